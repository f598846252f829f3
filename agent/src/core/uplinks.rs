//! Uplinks of this host: NICs of the user's LAN in the bridges of networks, and the election of the one host that joins
//! a LAN to a network.
//!
//! `overlay` decides (see `uplinks::Election`); one task per uplink hears and sends beacons and carries out. While the
//! election says standby the NIC stays in the bridge, and the switch lets nothing pass between the bridge and the
//! overlay: what is on the bridge, this host's own addresses included, is part of the LAN and reaches the overlay
//! through the elected host. Blocking the NIC instead would cut off a host whose address is on the bridge; letting
//! guests use both ways (isolated ports) gives them each broadcast twice, their own among them.

use super::networks::{Attachment, device_error};
use super::switch_events::is_port;
use super::{Core, Handle};
use crate::clock::Clock;
use crate::control::problem::ApiError;
use crate::events::EventKind;
use crate::name::Name;
use crate::netdev::{BeaconSocket, InterfaceState, Netdev};
use crate::text::Text;
use std::io;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use virtuoso_engine::EngineHandle;
use virtuoso_overlay::ids::{HostId, Mac, NetworkId, SwarmId};
use virtuoso_overlay::switch::PortId;
use virtuoso_overlay::table::NetworkRow;
use virtuoso_overlay::uplinks::{Election, Standing, UplinkEffect};
use virtuoso_overlay::wire::beacon::Beacon;

/// How often the NIC is looked at: a cable that was plugged in may close a loop until it is noticed.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// An uplink of this host. A network has at most one: two on one bridge could lead to one LAN without any overlay.
pub(super) struct Uplink {
    pub(super) interface: String,
    /// Whether frames pass between the bridge and the overlay.
    pub(super) open: bool,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Farewell>,
}

/// The last word to the LAN, once nothing passes any more.
pub(super) struct Farewell(Option<(BeaconSocket, Vec<u8>)>);

impl Uplink {
    /// Ends the election; what passes stays as it is.
    pub(super) async fn halt(self) -> Farewell {
        // A task that has ended needs no word.
        self.stop.send(()).ok();
        self.task.await.unwrap_or(Farewell(None))
    }
}

impl Farewell {
    /// Lets the next host take over at once. The caller has seen to it that nothing passes here.
    pub(super) fn say(self) {
        let Some((socket, frame)) = self.0 else { return };
        if let Err(error) = socket.send(&frame) {
            tracing::debug!(%error, "Can't say goodbye on an uplink: others will notice its silence");
        }
    }
}

impl Core {
    /// The uplink is in the bridge, and nothing passes between that and the overlay yet.
    fn begin_uplink(&mut self, name: &Name, row: &NetworkRow, interface: &str) -> anyhow::Result<()> {
        self.remember_interface(name, interface, Some(Attachment::Uplink))?;
        let Some(node) = &self.node else { return Ok(()) };
        let (stop, stopped) = oneshot::channel();
        let worker = Worker {
            network: row.id,
            interface: interface.to_owned(),
            swarm: node.swarm(),
            me: self.me(),
            clock: self.clock,
            netdev: self.netdev.clone(),
            engine: self.plane.engine(),
            core: self.handle(),
            election: Election::new(self.clock.mono(), self.me()),
            socket: None,
            mac: Mac::ZERO,
        };
        let task = tokio::spawn(worker.run(stopped));
        self.uplinks.insert(row.id, Uplink { interface: interface.to_owned(), open: false, stop, task });
        Ok(())
    }

    /// Whether an interface may become this network's uplink; false if it is already.
    fn accept_uplink(&self, name: &Name, network: NetworkId, interface: &str) -> Result<bool, ApiError> {
        match self.uplinks.get(&network) {
            Some(uplink) if uplink.interface == interface => Ok(false),
            Some(Uplink { interface: other, .. }) => Err(ApiError::conflict(format!(
                "Network {name} has the uplink {other} on this host already; two could make a loop. Detach it first: \
                 `virtuoso net detach {name} --interface {other}`"
            ))),
            None => Ok(true),
        }
    }

    /// Whether an interface is an uplink on which nothing passes to or from the overlay.
    pub(super) fn is_standby(&self, network: NetworkId, interface: &str) -> bool {
        self.uplinks.get(&network).is_some_and(|uplink| uplink.interface == interface && !uplink.open)
    }

    fn on_uplink_changed(&mut self, id: NetworkId, open: bool, elected: Option<HostId>) {
        let Some(uplink) = self.uplinks.get_mut(&id) else { return };
        uplink.open = open;
        let interface = uplink.interface.clone();
        let (network, me) = (self.network_name(id), self.me());
        match (open, elected) {
            (true, Some(host)) if host == me => {
                tracing::info!(network, interface, "The uplink joins its LAN to the network");
                self.events.emit(EventKind::UplinkActive { network, interface, host: Text(host) });
            }
            (true, _) => tracing::info!(network, interface, "The uplink has no carrier or left its bridge"),
            (false, elected) => {
                let by = elected.map_or_else(|| "nobody yet".into(), |host| self.name_of(host));
                tracing::info!(network, interface, by, "The uplink is on standby, its LAN is joined by another");
                self.events.emit(EventKind::UplinkStandby { network, interface, host: elected.map(Text) });
            }
        }
    }
}

/// Puts a NIC of the user's LAN into an attached network.
pub(super) async fn attach_uplink(
    core: &Handle,
    netdev: &Netdev,
    (name, row): (&Name, &NetworkRow),
    interface: &str,
) -> Result<(), ApiError> {
    if row.plan.is_some_and(|plan| plan.dhcp) {
        return Err(ApiError::conflict(format!(
            "Network {name} answers DHCP, and would do so on the LAN behind {interface}. Make a network for the LAN \
             without --subnet, or with --dhcp off"
        )));
    }
    let network = row.id;
    let (wanted, nic) = (name.clone(), interface.to_owned());
    // The core has handed the engine all earlier work when it answers.
    let (accepted, running, engine) = core
        .call(move |core| {
            let running = core.uplinks.contains_key(&network);
            (core.accept_uplink(&wanted, network, &nic), running, core.plane.engine())
        })
        .await?;
    if !accepted? {
        return Ok(());
    }
    let attached = enslave(&engine, netdev, row, interface).await;
    if attached.is_err() && !running {
        engine.call(move |switch, _| switch.attach(network)).await?;
    }
    attached?;
    let (name, row, interface) = (name.clone(), row.clone(), interface.to_owned());
    Ok(core.call(move |core| core.begin_uplink(&name, &row, &interface)).await??)
}

/// First nothing passes, then the NIC is in the bridge.
async fn enslave(engine: &EngineHandle, netdev: &Netdev, row: &NetworkRow, interface: &str) -> Result<(), ApiError> {
    netdev.check_uplink(row.id, row.mtu, interface).await.map_err(device_error)?;
    close(engine, row.id).await?;
    netdev.attach(row.id, interface).await.map_err(device_error)?;
    Ok(())
}

/// The NIC is out of the bridge: its LAN hears so, and the network is as one without an uplink.
pub(super) async fn end_uplink(core: &Handle, network: NetworkId, interface: &str) -> Result<(), ApiError> {
    let nic = interface.to_owned();
    let (uplink, engine) = core
        .call(move |core| {
            let ours = core.uplinks.get(&network).is_some_and(|uplink| uplink.interface == nic);
            (ours.then(|| core.uplinks.remove(&network)).flatten(), core.plane.engine())
        })
        .await?;
    if let Some(uplink) = uplink {
        uplink.halt().await.say();
        engine.call(move |switch, _| switch.attach(network)).await?;
    }
    Ok(())
}

async fn close(engine: &EngineHandle, network: NetworkId) -> anyhow::Result<()> {
    engine.call(move |switch, now| switch.detach(now.mono, network)).await
}

/// The task of one uplink.
struct Worker {
    network: NetworkId,
    interface: String,
    swarm: SwarmId,
    me: HostId,
    clock: Clock,
    netdev: Netdev,
    engine: EngineHandle,
    core: Handle,
    election: Election,
    /// Nothing while the NIC is away.
    socket: Option<BeaconSocket>,
    /// The NIC's address.
    mac: Mac,
}

impl Worker {
    async fn run(mut self, mut stop: oneshot::Receiver<()>) -> Farewell {
        let mut look = every(LOOK_INTERVAL);
        loop {
            if let Err(error) = self.carry_out().await {
                // The core or the engine is gone: the agent stops.
                tracing::debug!(network = %self.network, "election of uplinks ends: {error:#}");
                break;
            }
            tokio::select! {
                _ = &mut stop => break,
                received = receive(self.socket.as_ref()) => self.on_received(received),
                () = sleep_until(self.deadline()) => self.election.handle_timeout(self.clock.mono()),
                _ = look.tick() => self.look().await,
            }
        }
        let frame = self.beacon(Standing::Leaving).encode(self.mac);
        Farewell(self.socket.map(|socket| (socket, frame)))
    }

    fn deadline(&self) -> Option<Instant> {
        self.election.poll_timeout().map(|at| self.clock.deadline(at).into())
    }

    fn on_received(&mut self, received: io::Result<Vec<u8>>) {
        let frame = match received {
            Ok(frame) => frame,
            Err(error) => {
                tracing::debug!(interface = self.interface, %error, "the uplink went down");
                self.socket = None;
                return self.election.handle_lan(self.clock.mono(), false);
            }
        };
        match Beacon::decode(&frame) {
            Ok(beacon) if beacon.swarm == self.swarm && beacon.network == self.network => {
                self.election.handle_beacon(self.clock.mono(), beacon.host, beacon.standing);
            }
            // Of another swarm or network: no loop.
            Ok(_) => {}
            Err(error) => tracing::debug!(interface = self.interface, %error, "not a beacon of ours"),
        }
    }

    /// Whether the NIC still leads from the bridge to a LAN.
    async fn look(&mut self) {
        let present = match self.find_lan().await {
            Ok(present) => present,
            // No answer is no evidence.
            Err(error) => return tracing::debug!(interface = self.interface, "Can't look at an uplink: {error:#}"),
        };
        if !present {
            self.socket = None;
        }
        self.election.handle_lan(self.clock.mono(), present);
    }

    async fn find_lan(&mut self) -> anyhow::Result<bool> {
        let ports = self.netdev.ports(self.network).await?;
        let nic = ports.into_iter().find(|port| port.name == self.interface && port.state == InterfaceState::Up);
        let Some(nic) = nic else { return Ok(false) };
        if self.socket.as_ref().is_none_or(|socket| socket.index != nic.index) {
            self.socket = Some(BeaconSocket::open(&nic)?);
            self.mac = nic.mac.unwrap_or(Mac::ZERO);
        }
        Ok(true)
    }

    async fn carry_out(&mut self) -> anyhow::Result<()> {
        while let Some(effect) = self.election.poll_effect() {
            match effect {
                UplinkEffect::Open => self.open().await?,
                UplinkEffect::Close => close(&self.engine, self.network).await?,
                UplinkEffect::Beacon(standing) => self.send(standing),
                UplinkEffect::Changed { open, elected } => {
                    let network = self.network;
                    self.core.call(move |core| core.on_uplink_changed(network, open, elected)).await?;
                }
            }
        }
        Ok(())
    }

    fn beacon(&self, standing: Standing) -> Beacon {
        Beacon { swarm: self.swarm, network: self.network, host: self.me, standing }
    }

    fn send(&self, standing: Standing) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(&self.beacon(standing).encode(self.mac)) {
            tracing::debug!(interface = self.interface, %error, "a beacon was not sent");
        }
    }

    /// What the bridge knows is claimed at once: a guest that only listens must not wait for its next frame. What was
    /// reached through the LAN until now, the bridge forgets.
    async fn open(&self) -> anyhow::Result<()> {
        let (network, interface) = (self.network, self.interface.clone());
        let mut known = self.netdev.fdb(network).await.unwrap_or_else(|error| {
            tracing::warn!(%network, "Some addresses of a LAN are not reached until they speak: {error:#}");
            Vec::new()
        });
        known.retain(|entry| is_port(&entry.interface));
        let (behind, local): (Vec<_>, Vec<_>) = self
            .core
            .call(move |core| {
                let ports = known.into_iter().map(|entry| {
                    let port: PortId = core.networks.port_id(network, &entry.interface);
                    (entry.interface == interface, (entry.mac, port))
                });
                ports.partition(|(is_behind, _)| *is_behind)
            })
            .await?;
        let behind: Vec<(Mac, PortId)> = behind.into_iter().map(|(_, entry)| entry).collect();
        let lan: Vec<HostId> = self.election.met().collect();
        let elsewhere = self
            .engine
            .call(move |switch, now| {
                let elsewhere = switch.join_lan(now.mono, network, &lan, &behind);
                for (_, (mac, port)) in local {
                    switch.handle_local(now.mono, network, mac, Some(port), &[]);
                }
                elsewhere
            })
            .await?;
        for mac in elsewhere {
            if let Err(error) = self.netdev.fdb_forget(network, mac).await {
                tracing::debug!(%network, %mac, "Can't tell the bridge that an address is elsewhere: {error:#}");
            }
        }
        Ok(())
    }
}

async fn receive(socket: Option<&BeaconSocket>) -> io::Result<Vec<u8>> {
    match socket {
        Some(socket) => socket.receive().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
