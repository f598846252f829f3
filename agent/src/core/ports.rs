//! Where VMs are plugged into networks, what they hold of this host, and their rows.

use super::networks::{self, device_error, not_a_member};
use super::{Core, Handle};
use crate::control::problem::{ApiError, ErrorCode};
use crate::name::Name;
use crate::netdev::{Netdev, Rest};
use crate::vm::{Nic, Spec, TotalUsage};
use anyhow::Context;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::Mutex;
use virtuoso_engine::EngineHandle;
use virtuoso_overlay::claims::Claim;
use virtuoso_overlay::ids::{HostId, Mac, NetworkId, VmId};
use virtuoso_overlay::names::Owner;
use virtuoso_overlay::switch::{Assignment, PortId};
use virtuoso_overlay::table::{Body, Key, Standing, VmRow, VmState};
use virtuoso_overlay::time::UnixTime;
use virtuoso_overlay::vm::reservations::Share;

/// MAC addresses that are tried for an interface. Of 16 million, the first is nearly always free.
const MAC_ATTEMPTS_MAX: u8 = 8;

/// The VMs of this host as the core knows them.
#[derive(Default)]
pub(super) struct Guests {
    pub(super) vms: Vec<(Spec, VmState)>,
    pub(super) held: Share,
    pub(super) used: TotalUsage,
    /// Interfaces that are plugged in, by the name of the host's end.
    plugged: BTreeMap<String, Nic>,
    /// VMs that have left, and whose row stays for a moment.
    leaving: BTreeSet<VmId>,
}

/// Plugs VMs into networks.
#[derive(Clone)]
pub struct Sockets {
    /// The core.
    pub core: Handle,
    /// The kernel's network devices.
    pub netdev: Netdev,
    /// Held while bridges and TAPs change.
    pub devices: Arc<Mutex<()>>,
}

/// Where an interface is plugged in, with all that must be known when a moment counts.
#[derive(Clone)]
pub struct Seat {
    /// The interface.
    pub nic: Nic,
    network: NetworkId,
    port: PortId,
    /// The kernel's number of it.
    index: u32,
    engine: EngineHandle,
}

impl Sockets {
    /// Makes a TAP in the interface's network, which is attached here if need be, and claims the address at once. The
    /// TAP goes with the last descriptor of it.
    pub async fn plug(&self, nic: &Nic) -> Result<OwnedFd, ApiError> {
        let _devices = self.devices.lock().await;
        let row = networks::attach(&self.core, &self.netdev, &nic.network).await?;
        let tap = self.netdev.create_guest_tap(&nic.tap, row.mtu).await.map_err(device_error)?;
        self.netdev.attach(row.id, &nic.tap).await.map_err(device_error)?;
        self.filter(nic).await;
        self.lock(row.id, nic).await;
        self.claim(nic).await?;
        Ok(tap)
    }

    /// Keeps a guest from using another's IP address, unless it may.
    async fn filter(&self, nic: &Nic) {
        if !nic.spoofing {
            tell_unguarded(nic, self.netdev.filter(&nic.tap, nic.ip).await);
        }
    }

    /// Keeps an interface that is in its network's bridge from using another's Ethernet address, unless its guest may.
    async fn lock(&self, network: NetworkId, nic: &Nic) {
        if !nic.spoofing {
            tell_unguarded(nic, self.netdev.lock(network, &nic.tap, nic.mac.0).await);
        }
    }

    /// The address of an interface that is plugged in has changed.
    pub async fn readdress(&self, nic: &Nic) -> Result<(), ApiError> {
        let wanted = nic.network.clone();
        let network = self.core.call(move |core| core.find_network(&wanted).map(|row| row.id)).await??;
        self.filter(nic).await;
        self.lock(network, nic).await;
        self.claim(nic).await
    }

    /// Makes a TAP for an interface whose VM is on its way here: it hears and says nothing until it is opened.
    pub async fn prepare(&self, nic: &Nic) -> Result<OwnedFd, ApiError> {
        let _devices = self.devices.lock().await;
        let row = networks::attach(&self.core, &self.netdev, &nic.network).await?;
        let tap = self.netdev.create_guest_tap(&nic.tap, row.mtu).await.map_err(device_error)?;
        // Now, because it takes long; what is left is done when the guest is about to run.
        self.filter(nic).await;
        self.netdev.attach_silent(row.id, &nic.tap).await.map_err(device_error)?;
        Ok(tap)
    }

    /// Where these interfaces are plugged in, or were.
    pub async fn seats(&self, nics: &[Nic]) -> Result<Vec<Seat>, ApiError> {
        let wanted = nics.to_vec();
        let find = move |core: &mut Core| {
            let engine = core.plane.engine();
            let place = |nic: &Nic| {
                let network = core.find_network(&nic.network)?.id;
                Ok((network, core.networks.port_id(network, &nic.tap)))
            };
            let places: Result<Vec<_>, ApiError> = wanted.iter().map(place).collect();
            places.map(|places| (engine, places))
        };
        let (engine, places) = self.core.call(find).await??;
        let mut seats = Vec::new();
        for (nic, (network, port)) in nics.iter().zip(places) {
            let index = self.netdev.interface(&nic.tap).await.map_err(device_error)?.index;
            engine.set_guest(network, nic.mac.0, Some(index)).await?;
            seats.push(Seat { nic: nic.clone(), network, port, index, engine: engine.clone() });
        }
        Ok(seats)
    }

    /// Frames for these interfaces wait from now on, whose VM comes from `holder`.
    pub async fn expect(&self, nics: &[Nic], holder: HostId) -> Result<Vec<Seat>, ApiError> {
        let seats = self.seats(nics).await?;
        for seat in &seats {
            let (network, mac) = seat.address();
            seat.engine.call(move |switch, now| switch.expect_move(now.mono, network, mac, holder)).await?;
        }
        Ok(seats)
    }

    /// Lets guests that run hear what is for groups: an earlier agent may have kept their ports off the floods.
    pub async fn let_hear(&self, nics: &[Nic]) -> Result<(), ApiError> {
        for seat in self.seats(nics).await? {
            let (network, mac) = seat.address();
            seat.engine.call(move |switch, now| switch.handle_running(now.mono, network, mac)).await?;
        }
        Ok(())
    }

    /// The VM of these interfaces is here, or does not come.
    pub async fn end_expectation(&self, nics: &[Nic]) -> Result<(), ApiError> {
        for (network, mac) in self.addresses(nics).await? {
            let call = move |core: &mut Core| {
                core.plane.switch(move |switch, now| switch.end_expectation(now, network, mac));
            };
            self.core.call(call).await?;
        }
        Ok(())
    }

    /// Lets the guest of an interface that was prepared speak, in its own name, and hear what is for it.
    pub async fn open(&self, seat: &Seat) -> Result<(), ApiError> {
        let Seat { nic, network, index, .. } = seat;
        let mac = (!nic.spoofing).then_some(nic.mac.0);
        self.netdev.let_speak(*network, (&nic.tap, *index), mac).await.map_err(device_error)
    }

    /// Plugs an interface in again that was closed, and lets it speak and hear what is for it.
    pub async fn plug_again(&self, seat: &Seat) -> Result<(), ApiError> {
        self.netdev.attach_silent(seat.network, &seat.nic.tap).await.map_err(device_error)?;
        self.open(seat).await
    }

    /// Takes an interface out of its network, whose VM is paused and about to leave. What is still on its way to it is
    /// read from its TAP, and waits with what comes later.
    pub async fn close(&self, seat: &Seat, pid: u32) -> Result<(), ApiError> {
        seat.hold().await?;
        let (network, mac) = seat.address();
        self.netdev.detach(network, &seat.nic.tap).await.map_err(device_error)?;
        let tap = seat.nic.tap.clone();
        let rest = tokio::task::spawn_blocking(move || Rest::of(pid, &tap)?.take(mac)).await.context("Broke off")?;
        match rest {
            Ok(packets) => {
                tracing::debug!(tap = seat.nic.tap, frames = packets.len(), "Took back what was on its way to a VM");
                seat.engine.call(move |switch, now| switch.bring_back(now.mono, network, mac, packets)).await?;
            }
            Err(error) => tracing::warn!(tap = seat.nic.tap, "Can't read what was on its way to a VM: {error:#}"),
        }
        Ok(())
    }

    /// The addresses of interfaces, by network.
    pub async fn addresses(&self, nics: &[Nic]) -> Result<Vec<(NetworkId, Mac)>, ApiError> {
        let nics = nics.to_vec();
        let find = move |core: &mut Core| {
            let found = nics.iter().map(|nic| Ok((core.find_network(&nic.network)?.id, nic.mac.0)));
            found.collect()
        };
        self.core.call(find).await?
    }

    /// Claims the address of an interface that is plugged in.
    pub async fn claim(&self, nic: &Nic) -> Result<(), ApiError> {
        let nic = nic.clone();
        Ok(self.core.call(move |core| core.plug(nic)).await?)
    }

    /// The interfaces are unplugged: their TAPs are gone or about to go.
    pub async fn release(&self, nics: &[Nic]) {
        let taps: Vec<String> = nics.iter().map(|nic| nic.tap.clone()).collect();
        for nic in nics.iter().filter(|nic| !nic.spoofing) {
            self.netdev.unguard(&nic.tap).await;
        }
        // Without a core the agent is stopping.
        self.core.call(move |core| taps.iter().for_each(|tap| core.unplug(tap))).await.ok();
    }
}

impl Seat {
    /// The address behind it.
    pub const fn address(&self) -> (NetworkId, Mac) {
        (self.network, self.nic.mac.0)
    }

    /// Its TAP, and the kernel's index of that.
    pub fn tap(&self) -> (String, u32) {
        (self.nic.tap.clone(), self.index)
    }

    /// Frames of this host for the interface, whose VM is about to be paused, wait from now on.
    pub async fn hold(&self) -> Result<(), ApiError> {
        let (network, mac) = self.address();
        Ok(self.engine.cut(network, move |switch, now| switch.begin_move(now.mono, network, mac)).await?)
    }

    /// Takes the address with what its former host has signed. What the VM says passes from then on.
    pub async fn take_over(&self, handoffs: &[Claim]) -> Result<(), ApiError> {
        let (network, mac) = self.address();
        let Some(claim) = handoffs.iter().find(|claim| (claim.network, claim.mac) == (network, mac)).cloned() else {
            return Ok(());
        };
        Ok(self.engine.call(move |switch, now| switch.handle_handoff(now.mono, claim)).await?)
    }

    /// The guest runs here: it gets what waits for it, and hears what is for groups.
    pub async fn welcome(&self) -> Result<(), ApiError> {
        let ((network, mac), port) = (self.address(), self.port);
        let welcome = self.engine.cut(network, move |switch, now| {
            switch.handle_running(now.mono, network, mac);
            switch.handle_local(now.mono, network, mac, Some(port), &[]);
        });
        Ok(welcome.await?)
    }
}

/// An old kernel: what leaves the host is watched by the switch all the same.
fn tell_unguarded(nic: &Nic, guarded: anyhow::Result<()>) {
    if let Err(error) = guarded {
        tracing::warn!(tap = nic.tap, "A guest can speak in the name of others on this host: {error:#}");
    }
}

impl Core {
    fn plug(&mut self, nic: Nic) {
        let network = self.networks.attached().find(|id| self.networks.name(*id) == Some(&nic.network));
        if let Some(network) = network {
            self.claim_for(network, &nic);
        }
        self.guests.plugged.insert(nic.tap.clone(), nic);
    }

    /// A network has just been attached: what was plugged into its bridge before is claimed.
    pub(super) fn claim_plugged(&mut self, network: NetworkId, name: &Name) {
        let nics: Vec<Nic> = self.guests.plugged.values().filter(|nic| nic.network == *name).cloned().collect();
        for nic in nics {
            self.claim_for(network, &nic);
        }
    }

    fn claim_for(&mut self, network: NetworkId, nic: &Nic) {
        let port = self.networks.port_id(network, &nic.tap);
        let mac = nic.mac.0;
        let plan = self.networks.plan(network);
        let given = nic.ip.zip(plan).map(|(ip, plan)| {
            let guarded = !nic.spoofing;
            Assignment { ip, subnet: plan.subnet, guarded }
        });
        self.plane.switch(move |switch, now| match given {
            Some(given) => switch.assign(now, network, mac, Some(port), given),
            None => switch.handle_local(now, network, mac, Some(port), &[]),
        });
    }

    fn unplug(&mut self, tap: &str) {
        let Some(nic) = self.guests.plugged.remove(tap) else { return };
        if let Ok(row) = self.find_network(&nic.network) {
            self.plane.forget_guest(row.id, nic.mac.0);
            self.plane.switch(move |switch, now| {
                switch.unguard(row.id, nic.mac.0);
                switch.retire(now, row.id, nic.mac.0);
            });
        }
    }

    /// The VMs that are plugged into a network here.
    pub(super) fn vms_in(&self, network: &Name) -> Vec<String> {
        let uses = |spec: &Spec| {
            spec.nics.iter().any(|nic| self.guests.plugged.contains_key(&nic.tap) && nic.network == *network)
        };
        self.guests.vms.iter().filter(|(spec, _)| uses(spec)).map(|(spec, _)| spec.name.to_string()).collect()
    }

    /// What this host lends to VMs in all.
    pub fn vm_room(&self) -> Share {
        let Some(has) = self.own_resources() else { return Share::default() };
        Share { vcpus: has.vcpus_total, memory_bytes: has.memory_total_bytes, disk_bytes: has.disk_total_bytes }
    }

    /// Takes what VMs there are and what they hold, and tells the swarm.
    pub fn set_vms(&mut self, vms: Vec<(Spec, VmState)>, held: Share) {
        self.guests.vms = vms;
        let changed = self.guests.held != held;
        self.guests.held = held;
        self.limit_images();
        self.publish_vms();
        self.vm_changes.send_modify(|count| *count += 1);
        if changed {
            self.publish_host_row();
        }
    }

    /// Takes what VMs use; the swarm is told with the next look at this host's facts.
    pub fn set_usage(&mut self, used: TotalUsage) {
        self.guests.used = used;
    }

    /// Lets images take what the owner lends and VMs' own disks leave.
    pub(super) fn limit_images(&self) {
        let lent = self.config.limits.disk.map(|limit| limit.0.saturating_sub(self.guests.held.disk_bytes));
        self.images.set_limit(lent);
    }

    /// Keeps the row of a VM that has left, until [`Self::end_row`].
    pub fn keep_row(&mut self, vm: VmId) {
        self.guests.leaving.insert(vm);
    }

    /// Has no row any more of a VM that is not here.
    pub fn end_row(&mut self, vm: VmId) {
        self.guests.leaving.remove(&vm);
        self.publish_vms();
    }

    /// Whether another host has a row of a VM.
    pub fn is_told_elsewhere(&self, vm: VmId) -> bool {
        let me = self.me();
        self.vm_rows().any(|(host, row)| row.id == vm && host != me)
    }

    /// Makes the rows of VMs say what there is.
    pub(super) fn publish_vms(&mut self) {
        let now = self.clock.now();
        let Some(node) = &mut self.node else { return };
        let swarm = node.swarm();
        let told: BTreeMap<VmId, VmRow> = node
            .table()
            .bodies_of(node.me())
            .filter_map(|body| match body {
                Body::Vm(row) => Some((row.id, row.clone())),
                _ => None,
            })
            .collect();
        let is_here = |id: &VmId| self.guests.vms.iter().any(|(spec, _)| spec.id.0 == *id);
        for id in told.keys().filter(|id| !is_here(id) && !self.guests.leaving.contains(id)) {
            node.take_back(now, Key::Vm(*id));
        }
        for (spec, state) in &self.guests.vms {
            let nics =
                spec.nics.iter().map(|nic| (NetworkId::of(swarm, &nic.network), nic.mac.0, nic.ip.map(IpAddr::from)));
            let row = VmRow {
                id: spec.id.0,
                name: spec.name.to_string(),
                state: *state,
                vcpus: spec.vcpus,
                memory_bytes: spec.memory_bytes,
                image: spec.image(),
                nics: nics.collect(),
                made: UnixTime(spec.made_s),
            };
            if told.get(&row.id) != Some(&row) {
                node.put(now, Body::Vm(row));
            }
        }
    }

    /// Who has the VM of this name, and the VM.
    pub(super) fn vm_named(&self, name: &str) -> Result<Option<(HostId, VmRow)>, ApiError> {
        self.node.as_ref().ok_or_else(not_a_member)?;
        Ok(self.vm_row(|row| row.name == name).map(|(host, row)| (host, row.clone())))
    }

    /// Whom to ask about the VM that `is_it` means, and the VM.
    pub(super) fn vm_row(&self, is_it: impl Fn(&VmRow) -> bool) -> Option<(HostId, &VmRow)> {
        self.vm_rows().filter(|(_, row)| is_it(row)).min_by_key(|(host, row)| self.vm_rank(*host, row))
    }

    /// Two hosts have a VM while its memory is fetched, and one of them may be gone: the smallest is whom to ask.
    pub(super) fn vm_rank(&self, host: HostId, row: &VmRow) -> impl Ord + use<> {
        (self.standing(host).0 != Standing::Alive, row.state == VmState::Migrating)
    }

    /// The host and the id of the VM of this name.
    pub(crate) fn vm_place(&self, name: &str) -> Result<Option<(HostId, VmId)>, ApiError> {
        Ok(self.vm_named(name)?.map(|(host, row)| (host, row.id)))
    }

    /// The host of a VM, by the tables.
    pub(crate) fn host_of_vm(&self, vm: VmId) -> Option<HostId> {
        self.vm_row(|row| row.id == vm).map(|(host, _)| host)
    }

    /// The interface number `index` of a VM, with addresses that nobody is known to have.
    ///
    /// # Errors
    /// If there is no such network, or its subnet is full.
    pub(super) fn new_nic(&self, vm: VmId, network: Name, index: usize) -> Result<Nic, ApiError> {
        let row = self.find_network(&network)?;
        let mut attempts = (0..MAC_ATTEMPTS_MAX).map(|attempt| Nic::new(vm, network.clone(), index, attempt));
        let free = attempts.find(|nic| !self.is_mac_taken(nic.mac.0, vm));
        let nic = free.ok_or_else(|| ApiError::conflict("No MAC address is free for an interface"))?;
        let Some(plan) = row.plan else { return Ok(nic) };
        let owner = Owner::Vm(vm, u8::try_from(index).unwrap_or(u8::MAX));
        let ip = self.addresses_in(row.id, plan.subnet).choose(owner).ok_or_else(|| {
            ApiError::new(ErrorCode::NoSpace, format!("Subnet {} of network {network} is full", plan.subnet))
        })?;
        Ok(Nic { ip: Some(ip), ..nic })
    }

    /// Whether some VM has the address.
    fn is_mac_taken(&self, mac: Mac, by_other_than: VmId) -> bool {
        let bodies = self.node.iter().flat_map(|node| node.table().bodies());
        bodies.into_iter().any(|(_, body)| match body {
            Body::Vm(row) => row.id != by_other_than && row.nics.iter().any(|(_, taken, _)| *taken == mac),
            _ => false,
        })
    }
}
