//! What the control API asks for, done by the core, the image store and the network devices.

use super::image_source::ImageSource;
use super::networks::{self, Attachment};
use super::views::{rfc3339, seconds};
use super::vm_verbs::vm_error;
use super::{Core, Handle};
use crate::attach::{Attachments, Session};
use crate::control::backend::{Answer, Backend, Origin, Target};
use crate::control::model::{
    Attach, CdromInsert, Check, Detach, DrainReport, FdbEntry, Host, HostMatch, HostQuery, Image, ImageExport,
    ImageImport, ImagePull, ImageVerification, Invite, InviteRequest, Link, LinkState, Loan, Member, MigrationProgress,
    MigrationReport, Network, NetworkCreate, NetworkTraffic, Peer, PendingHost, Port, PortKind, PortState, Progress,
    Status, Vm, VmClone, VmCreate, VmMigrate, VmResolve, VmStop,
};
use crate::control::problem::{ApiError, ErrorCode};
use crate::disc::{Discs, User};
use crate::events::{EventKind, EventLog};
use crate::image::{ImageStore, Pull};
use crate::name::Name;
use crate::netdev::{InterfaceState, Netdev, network_of_tap};
use crate::swarm::streams::Streams;
use crate::text::Text;
use crate::vm::{Migrations, VmLimitsChange, Vms};
use axum::extract::Request;
use axum::response::Response;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use virtuoso_engine::{self as engine, EngineHandle};
use virtuoso_overlay::drop_reason::DropCounters;
use virtuoso_overlay::ids::{HostId, Mac};
use virtuoso_overlay::table::NetworkRow;

/// How long a guest may take to end after its power button was pressed, unless the caller says.
const STOP_TIME: Duration = Duration::from_secs(60);

/// The agent as the control API sees it.
pub struct Agent {
    /// The core.
    pub core: Handle,
    /// The data plane.
    pub engine: EngineHandle,
    /// The kernel's network devices.
    pub netdev: Netdev,
    /// The image store.
    pub images: Arc<ImageStore>,
    /// Where images come from.
    pub image_source: Arc<ImageSource>,
    /// VMs that come and go.
    pub migrations: Migrations,
    /// Streams to other members.
    pub streams: Streams,
    /// What the operator may watch.
    pub events: EventLog,
    /// Held while bridges and TAPs change: two attaches of one network must not mix.
    pub devices: Arc<Mutex<()>>,
    /// The VMs.
    pub vms: Arc<Vms>,
    /// Files of users in drives of VMs.
    pub discs: Discs,
    /// Consoles and displays.
    pub attachments: Attachments,
}

impl Agent {
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        Ok(self.core.call(question).await?)
    }

    /// A network with its ports.
    async fn show(&self, name: &Name) -> Result<Network, ApiError> {
        let wanted = name.clone();
        let (row, mut network) = self
            .ask(move |core| core.find_network(&wanted).map(|row| (row.clone(), core.network_view(&row))))
            .await??;
        self.add_local_part(name, &row, &mut network).await?;
        Ok(network)
    }

    /// Adds what only the kernel and the engine know of a network on this host.
    async fn add_local_part(&self, name: &Name, row: &NetworkRow, network: &mut Network) -> Result<(), ApiError> {
        if network.bridge.is_none() {
            return Ok(());
        }
        network.ports = self.ports_of(name, row).await?;
        let ports = self.engine.info().await?.ports;
        network.traffic = ports.iter().find(|port| port.network == row.id).map(|port| traffic_view(&port.traffic));
        Ok(())
    }

    async fn ports_of(&self, name: &Name, row: &NetworkRow) -> Result<Vec<Port>, ApiError> {
        let interfaces = self.netdev.ports(row.id).await.map_err(networks::device_error)?;
        let learned = self.netdev.fdb(row.id).await.map_err(networks::device_error)?;
        let wanted = name.clone();
        let names: Vec<String> = interfaces.iter().map(|interface| interface.name.clone()).collect();
        let id = row.id;
        // Each with whether it is on standby.
        let uplinks = self
            .ask(move |core| {
                let uplinks = names.into_iter().filter(|port| core.networks.is_uplink(&wanted, port));
                uplinks.map(|port| (core.is_standby(id, &port), port)).map(|(standby, port)| (port, standby)).collect()
            })
            .await
            .map(|uplinks: BTreeMap<String, bool>| uplinks)?;
        let port = |interface: crate::netdev::Interface| {
            let is_tap = network_of_tap(&interface.name).is_some();
            let behind = learned.iter().filter(|entry| entry.interface == interface.name && !is_tap);
            Port {
                network: name.to_string(),
                kind: match (is_tap, uplinks.contains_key(&interface.name)) {
                    (true, _) => PortKind::Agent,
                    (false, true) => PortKind::Uplink,
                    (false, false) => PortKind::Interface,
                },
                state: match interface.state {
                    InterfaceState::Up if uplinks.get(&interface.name) == Some(&true) => PortState::Silent,
                    InterfaceState::Up => PortState::Up,
                    InterfaceState::NoCarrier | InterfaceState::Down => PortState::Down,
                },
                macs: behind.map(|entry| Text(entry.mac)).collect(),
                interface: interface.name,
            }
        };
        Ok(interfaces.into_iter().map(port).collect())
    }

    /// What a name or digest means in the swarm, and the name that the image gets here.
    pub(super) async fn find_pull(&self, wanted: &str, request: &ImagePull) -> Result<Pull, ApiError> {
        let images = self.ask(Core::images_view).await?;
        let named = |image: &Image| image.name == wanted || image.digest.to_string() == wanted;
        let found: BTreeMap<_, _> = images.into_iter().filter(named).map(|image| (image.digest.0, image)).collect();
        if found.len() > 1 {
            let digests: Vec<String> = found.keys().map(ToString::to_string).collect();
            let list = digests.join(", ");
            return Err(ApiError::conflict(format!(
                "Several images are named {wanted}: name one by its digest: {list}"
            )));
        }
        let found = found.into_values().next();
        let digest = found.as_ref().map(|image| image.digest.0).or_else(|| wanted.parse().ok());
        let Some(image) = digest else {
            let detail = format!("No host has an image {wanted}: `virtuoso image list` shows all");
            return Err(ApiError::not_found(detail));
        };
        let own_name = found.as_ref().and_then(|image| image.name.parse().ok());
        let Some(name) = request.name.clone().or(own_name) else {
            return Err(ApiError::invalid(format!("No row tells a name of image {image}: choose one with --name")));
        };
        let rate = request.rate.map(|rate| rate.0);
        if rate == Some(0) {
            return Err(ApiError::invalid("With a rate of 0 nothing would ever come"));
        }
        Ok(Pull { image, name, size_bytes: found.map(|image| image.size_bytes), rate, patience: Pull::PATIENCE })
    }

    async fn find_image(&self, name: &str) -> Result<Image, ApiError> {
        let wanted = name.to_owned();
        let images = self.ask(Core::images_view).await?;
        let found = images.into_iter().find(|image| image.name == wanted || image.digest.to_string() == wanted);
        found
            .ok_or_else(|| ApiError::not_found(format!("No host has an image {name}: `virtuoso image list` shows all")))
    }
}

impl Backend for Agent {
    fn status(&self) -> Answer<'_, Status> {
        Box::pin(async {
            let info = self.engine.info().await?;
            let mut dead = info.held_drops;
            dead.add(&info.strays.drops);
            let status = self.ask(|core| core.status()).await?;
            Ok(Status { drops: drops_view(&dead), ..status })
        })
    }

    fn peers(&self) -> Answer<'_, Vec<Peer>> {
        Box::pin(self.ask(|core| core.peers()))
    }

    fn links(&self) -> Answer<'_, Vec<Link>> {
        Box::pin(async {
            let info = self.engine.info().await?;
            self.ask(move |core| info.links.iter().map(|link| link_view(core.name_of(link.host), link)).collect()).await
        })
    }

    fn checks(&self) -> Answer<'_, Vec<Check>> {
        Box::pin(self.ask(|core| core.checks()))
    }

    fn hosts(&self) -> Answer<'_, Vec<Host>> {
        Box::pin(self.ask(|core| core.hosts()))
    }

    fn find_hosts(&self, query: HostQuery) -> Answer<'_, Vec<HostMatch>> {
        Box::pin(async { self.ask(move |core| core.find_hosts(&query)).await? })
    }

    fn networks(&self) -> Answer<'_, Vec<Network>> {
        Box::pin(async {
            let mut networks = Vec::new();
            for (row, mut network) in self.ask(|core| core.networks()).await? {
                if let Ok(name) = row.name.parse() {
                    self.add_local_part(&name, &row, &mut network).await?;
                }
                networks.push(network);
            }
            Ok(networks)
        })
    }

    fn network(&self, name: Name) -> Answer<'_, Network> {
        Box::pin(async move { self.show(&name).await })
    }

    fn create_network(&self, request: NetworkCreate) -> Answer<'_, Network> {
        Box::pin(
            async move { self.ask(move |core| core.create_network(request).map(|row| core.network_view(&row))).await? },
        )
    }

    fn delete_network(&self, name: Name) -> Answer<'_, ()> {
        Box::pin(async move { self.ask(move |core| core.delete_network(&name)).await? })
    }

    fn attach(&self, name: Name, request: Attach) -> Answer<'_, Network> {
        Box::pin(async move {
            let Attach { interface, uplink, mac } = request;
            let port = match (interface, uplink) {
                (Some(_), Some(_)) => {
                    return Err(ApiError::invalid("Name an interface or an uplink, not both"));
                }
                (Some(interface), None) => Some((interface, Attachment::Interface)),
                (None, Some(uplink)) => Some((uplink, Attachment::Uplink)),
                (None, None) if !mac.is_empty() => {
                    return Err(ApiError::invalid("Addresses belong to an interface: name it too"));
                }
                (None, None) => None,
            };
            let macs: Vec<Mac> = mac.into_iter().map(|mac| mac.0).collect();
            let _devices = self.devices.lock().await;
            let row = networks::attach(&self.core, &self.netdev, &name).await?;
            if let Some((interface, kind)) = &port {
                let place = (&name, &row);
                networks::attach_interface(&self.core, &self.netdev, place, (interface, *kind), macs).await?;
            }
            self.show(&name).await
        })
    }

    fn detach(&self, name: Name, request: Detach) -> Answer<'_, Network> {
        Box::pin(async move {
            let _devices = self.devices.lock().await;
            match request.interface {
                Some(interface) => {
                    let wanted = name.clone();
                    let row = self.ask(move |core| core.find_network(&wanted)).await??;
                    networks::detach_interface(&self.core, &self.netdev, (&name, &row), &interface).await?;
                }
                None => {
                    networks::detach(&self.core, &self.netdev, &name).await?;
                }
            }
            self.show(&name).await
        })
    }

    fn fdb(&self, name: Name) -> Answer<'_, Vec<FdbEntry>> {
        Box::pin(async move {
            let row = self.ask(move |core| core.find_network(&name)).await??;
            let (now, entries) = self.engine.call(move |switch, now| (now.mono, switch.fdb(row.id))).await?;
            self.ask(move |core| entries.iter().map(|entry| core.fdb_view(now, entry)).collect()).await
        })
    }

    fn ports(&self) -> Answer<'_, Vec<Port>> {
        Box::pin(async { Ok(self.networks().await?.into_iter().flat_map(|network| network.ports).collect()) })
    }

    fn images(&self) -> Answer<'_, Vec<Image>> {
        Box::pin(self.ask(Core::images_view))
    }

    fn image(&self, name: Name) -> Answer<'_, Image> {
        Box::pin(async move {
            let mut image = self.find_image(&name).await?;
            if image.local {
                // It may be here under another name only.
                image.unique_bytes = self.images.unique(name).await.ok();
            }
            Ok(image)
        })
    }

    fn import_image(&self, request: ImageImport, progress: watch::Sender<Progress>) -> Answer<'_, Image> {
        Box::pin(async move {
            let ImageImport { path, name } = request;
            let stored = self.images.import(path, name.clone(), progress).await?;
            self.events.emit(EventKind::ImageImported { name: name.to_string(), digest: Text(stored.digest) });
            self.ask(Core::publish_images).await?;
            self.find_image(&name).await
        })
    }

    fn pull_image(&self, wanted: String, request: ImagePull, progress: watch::Sender<Progress>) -> Answer<'_, Image> {
        Box::pin(async move {
            let pull = self.find_pull(&wanted, &request).await?;
            let name = pull.name.clone();
            let stored = self.images.pull(pull, self.image_source.clone(), progress).await?;
            self.events.emit(EventKind::ImageImported { name: name.to_string(), digest: Text(stored.digest) });
            self.ask(Core::publish_images).await?;
            self.find_image(&name).await
        })
    }

    fn export_image(&self, name: Name, request: ImageExport, progress: watch::Sender<Progress>) -> Answer<'_, ()> {
        Box::pin(async move { Ok(self.images.export(name, request.path, progress).await?) })
    }

    fn verify_image(&self, name: Name, progress: watch::Sender<Progress>) -> Answer<'_, ImageVerification> {
        Box::pin(async move {
            let verification = self.images.verify(name, progress).await?;
            if !verification.ok {
                let (name, chunks) = (verification.name.clone(), verification.chunks_damaged);
                self.events.emit(EventKind::ImageDamaged { name, chunks });
            }
            Ok(verification)
        })
    }

    fn remove_image(&self, name: Name) -> Answer<'_, ()> {
        Box::pin(async move {
            self.images.remove(name.clone()).await?;
            self.events.emit(EventKind::ImageRemoved { name: name.to_string() });
            self.ask(Core::publish_images).await
        })
    }

    fn vms(&self) -> Answer<'_, Vec<Vm>> {
        Box::pin(self.ask(|core| core.vms()))
    }

    fn vm(&self, name: Name) -> Answer<'_, Vm> {
        Box::pin(async move { self.show_vm(&name).await })
    }

    fn create_vm(&self, request: VmCreate, origin: Origin) -> Answer<'_, Vm> {
        Box::pin(self.place_vm(request, origin))
    }

    fn start_vm(&self, name: Name) -> Answer<'_, Vm> {
        Box::pin(async move {
            self.vms.start(&name).await.map_err(vm_error)?;
            self.show_vm(&name).await
        })
    }

    fn stop_vm(&self, name: Name, request: VmStop) -> Answer<'_, Vm> {
        Box::pin(async move {
            let patience = request.timeout_s.map_or(STOP_TIME, |seconds| Duration::from_secs(seconds.into()));
            self.vms.stop(&name, (!request.force).then_some(patience)).await.map_err(vm_error)?;
            self.show_vm(&name).await
        })
    }

    fn reset_vm(&self, name: Name) -> Answer<'_, Vm> {
        Box::pin(async move {
            self.vms.reset(&name).await.map_err(vm_error)?;
            self.show_vm(&name).await
        })
    }

    fn delete_vm(&self, name: Name, force: bool) -> Answer<'_, ()> {
        Box::pin(async move { self.vms.delete(&name, force).await.map_err(vm_error) })
    }

    fn clone_vm(&self, name: Name, request: VmClone, progress: watch::Sender<Progress>) -> Answer<'_, Vm> {
        Box::pin(self.clone_here(name, request, progress))
    }

    fn limit_vm(&self, name: Name, change: VmLimitsChange) -> Answer<'_, Vm> {
        Box::pin(async move {
            self.vms.limit(&name, change).await.map_err(vm_error)?;
            self.show_vm(&name).await
        })
    }

    fn migrate_vm(
        &self,
        name: Name,
        request: VmMigrate,
        progress: watch::Sender<MigrationProgress>,
    ) -> Answer<'_, MigrationReport> {
        Box::pin(self.move_vm(name, request, progress))
    }

    fn drain(&self) -> Answer<'_, DrainReport> {
        Box::pin(self.drain_host())
    }

    fn undrain(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(self.ask(|core| core.set_draining(false)).await??) })
    }

    fn cancel_migration(&self, name: Name) -> Answer<'_, ()> {
        Box::pin(self.cancel_move(name))
    }

    fn resolve_migration(&self, name: Name, request: VmResolve) -> Answer<'_, ()> {
        Box::pin(self.resolve_move(name, request))
    }

    fn vm_console(&self, name: Name) -> Answer<'_, Session> {
        Box::pin(self.attachments.console(name))
    }

    fn vm_console_history(&self, name: Name) -> Answer<'_, Vec<u8>> {
        Box::pin(async move { self.vms.console_history(&name).await.map_err(vm_error) })
    }

    fn lend(&self, path: PathBuf, user: User) -> Answer<'_, Loan> {
        Box::pin(self.lend_file(path, user))
    }

    fn take_back(&self, loan: &Loan) {
        if loan.host.0 == self.discs.me {
            self.discs.shelf.take_back(loan.key.0);
        }
    }

    fn insert_cdrom(&self, name: Name, medium: CdromInsert) -> Answer<'_, Vm> {
        Box::pin(self.insert_medium(name, medium))
    }

    fn eject_cdrom(&self, name: Name) -> Answer<'_, Vm> {
        Box::pin(async move {
            self.vms.eject_medium(&name).await.map_err(vm_error)?;
            self.show_vm(&name).await
        })
    }

    fn vm_display(&self, name: Name) -> Answer<'_, Session> {
        Box::pin(self.attachments.display(name))
    }

    fn vm_screenshot(&self, name: Name) -> Answer<'_, Vec<u8>> {
        Box::pin(async move { self.vms.screenshot(&name).await.map_err(vm_error) })
    }

    fn place(&self, target: Target) -> Answer<'_, Option<HostId>> {
        Box::pin(self.find_place(target))
    }

    fn forward(&self, host: HostId, request: Request) -> Answer<'_, Response> {
        Box::pin(self.forward_to(host, request))
    }

    fn members(&self) -> Answer<'_, Vec<Member>> {
        Box::pin(self.ask(|core| core.members()))
    }

    fn pending(&self) -> Answer<'_, Vec<PendingHost>> {
        Box::pin(self.ask(|core| core.pending()))
    }

    fn approve(&self, peer: String) -> Answer<'_, Member> {
        Box::pin(async move { self.ask(move |core| core.approve(&peer)).await? })
    }

    fn invite(&self, request: InviteRequest) -> Answer<'_, Invite> {
        Box::pin(async move { self.ask(move |core| core.invite(&request)).await? })
    }
}

impl Core {
    /// All images of the swarm, for calls that name a function.
    fn images_view(&mut self) -> Vec<Image> {
        self.images()
    }

    fn approve(&mut self, peer: &str) -> Result<Member, ApiError> {
        let authority = self.authority()?;
        let pending = self.pending();
        let mut named = pending.iter().filter(|host| host.id.to_string() == peer || host.name == peer);
        let Some(host) = named.next() else {
            return Err(ApiError::not_found(format!(
                "No host {peer} waits for approval: `virtuoso swarm pending` shows those that do"
            )));
        };
        if named.next().is_some() {
            return Err(ApiError::conflict(format!("Several hosts wait under the name {peer}: name one by its id")));
        }
        if let Some(other) = self.member_named(&host.name).filter(|other| *other != host.id.0) {
            return Err(ApiError::conflict(format!("The name {} is taken by member {other}", host.name)));
        }
        let certificate = self.issue(&authority, host.id.0, host.name.clone())?;
        self.offer(&certificate);
        let id = Text(certificate.host);
        let expires = rfc3339(certificate.expires);
        Ok(Member { id, name: certificate.name, admin: false, expires, connected: false })
    }

    fn invite(&mut self, request: &InviteRequest) -> Result<Invite, ApiError> {
        self.authority()?;
        let valid = request.valid_s.map_or(super::admission::TICKET_TIME, Duration::from_secs);
        let ticket = self.make_ticket(valid, request.name.as_deref())?;
        Ok(Invite { ticket: ticket.to_string(), expires: rfc3339(ticket.expires) })
    }

    fn authority(&self) -> Result<Arc<crate::identity::SigningKey>, ApiError> {
        self.admission.credentials.authority.clone().ok_or_else(|| {
            let admins: Vec<String> = self.members().into_iter().filter(|m| m.admin).map(|m| m.name).collect();
            let whom = if admins.is_empty() { "the host that began the swarm".into() } else { admins.join(", ") };
            ApiError::new(
                ErrorCode::NotPermittedBySwarm,
                format!("This host does not have the swarm's authority: run this on {whom}"),
            )
        })
    }
}

fn drops_view(drops: &DropCounters) -> BTreeMap<String, u64> {
    drops.iter().map(|(reason, count)| (reason.name().to_owned(), count)).collect()
}

fn traffic_view(traffic: &engine::TrafficCounters) -> NetworkTraffic {
    NetworkTraffic {
        tx_bytes: traffic.tx_bytes,
        rx_bytes: traffic.rx_bytes,
        tx_frames: traffic.tx_frames,
        rx_frames: traffic.rx_frames,
        drops: drops_view(&traffic.drops),
    }
}

fn link_view(name: String, link: &engine::LinkInfo) -> Link {
    Link {
        peer: Text(link.host),
        name,
        path: link.path.clone(),
        state: match link.state {
            engine::LinkState::Up => LinkState::Up,
            engine::LinkState::Connecting | engine::LinkState::Hello => LinkState::Connecting,
            engine::LinkState::Idle | engine::LinkState::Backoff => LinkState::Down,
        },
        rtt_us: link.rtt.map(|rtt| rtt.as_micros() as u64),
        loss: if link.sent_packets == 0 { 0.0 } else { link.lost_packets as f64 / link.sent_packets as f64 },
        mtu_bytes: link.mtu_bytes.unwrap_or_default().into(),
        black_holes: link.black_holes,
        tx_mbit: link.sent_bits_per_s as f64 / 1e6,
        rx_mbit: link.received_bits_per_s as f64 / 1e6,
        tx_bytes: link.traffic.tx_bytes,
        rx_bytes: link.traffic.rx_bytes,
        tx_frames: link.traffic.tx_frames,
        rx_frames: link.traffic.rx_frames,
        drops: drops_view(&link.traffic.drops),
        batch_packets: link.batch_packets as u64,
        congestion: link.congestion.name().to_owned(),
        repaired_frames: link.repaired_frames,
        queued_frames: link.queued_frames,
        rate_mbit: link.rate_mbit,
        marked_frames: link.marked_frames,
        cut_frames: link.cut_frames,
        age_s: seconds(link.age),
    }
}
