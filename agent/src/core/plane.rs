//! The core's side of the data plane: work for the engine, in order, without waiting for it in the middle of a
//! decision.

use crate::netdev::Tap;
use std::collections::VecDeque;
use std::net::SocketAddr;
use virtuoso_engine::{EngineHandle, LinkLimits, PortConfig};
use virtuoso_overlay::ids::{HostId, Mac, NetworkId};
use virtuoso_overlay::switch::Switch;
use virtuoso_overlay::time::Instant;

/// Work for the engine that waits for the end of the present decision.
pub(super) struct Plane {
    engine: EngineHandle,
    queue: VecDeque<Work>,
}

/// Something to do with the switch, at the engine's time.
type SwitchCall = Box<dyn FnOnce(&mut Switch, Instant) + Send>;

enum Work {
    Call(SwitchCall),
    AddPort(PortConfig),
    RemovePort(NetworkId),
    SetAddresses(HostId, Vec<SocketAddr>),
    LimitLink(HostId, LinkLimits),
    LimitNetwork(NetworkId, LinkLimits),
    SetCertificate(Vec<u8>),
    Forget(HostId),
    ForgetGuest(NetworkId, Mac),
}

impl Plane {
    pub(super) fn new(engine: EngineHandle) -> Self {
        Self { engine, queue: VecDeque::new() }
    }

    /// For work outside the core's task.
    pub(super) fn engine(&self) -> EngineHandle {
        self.engine.clone()
    }

    pub(super) fn switch(&mut self, call: impl FnOnce(&mut Switch, Instant) + Send + 'static) {
        self.queue.push_back(Work::Call(Box::new(call)));
    }

    pub(super) fn add_port(&mut self, network: NetworkId, mtu: u16, tap: Tap) {
        let Tap { fd, offloads, .. } = tap;
        self.queue.push_back(Work::AddPort(PortConfig { network, tap: fd, mtu, offloads }));
    }

    pub(super) fn remove_port(&mut self, network: NetworkId) {
        self.queue.push_back(Work::RemovePort(network));
    }

    pub(super) fn set_addresses(&mut self, host: HostId, addresses: Vec<SocketAddr>) {
        self.queue.push_back(Work::SetAddresses(host, addresses));
    }

    pub(super) fn limit_link(&mut self, host: HostId, limits: LinkLimits) {
        self.queue.push_back(Work::LimitLink(host, limits));
    }

    pub(super) fn limit_network(&mut self, network: NetworkId, limits: LinkLimits) {
        self.queue.push_back(Work::LimitNetwork(network, limits));
    }

    pub(super) fn set_certificate(&mut self, certificate: Vec<u8>) {
        self.queue.push_back(Work::SetCertificate(certificate));
    }

    pub(super) fn forget(&mut self, host: HostId) {
        self.queue.push_back(Work::Forget(host));
    }

    /// The port of a guest is gone.
    pub(super) fn forget_guest(&mut self, network: NetworkId, mac: Mac) {
        self.queue.push_back(Work::ForgetGuest(network, mac));
    }

    /// Hands the engine all that waits. The engine takes commands within a millisecond and never waits for the core.
    pub(super) async fn flush(&mut self) -> anyhow::Result<()> {
        while let Some(work) = self.queue.pop_front() {
            match work {
                Work::Call(call) => self.engine.cast(move |switch, now| call(switch, now.mono)).await?,
                Work::AddPort(port) => self.engine.add_port(port).await?,
                Work::RemovePort(network) => self.engine.remove_port(network).await?,
                Work::SetAddresses(host, addresses) => self.engine.set_addresses(host, addresses).await?,
                Work::LimitLink(host, limits) => self.engine.limit_link(host, limits).await?,
                Work::LimitNetwork(network, limits) => self.engine.limit_network(network, limits).await?,
                Work::SetCertificate(certificate) => self.engine.set_certificate(certificate).await?,
                Work::Forget(host) => self.engine.forget(host).await?,
                Work::ForgetGuest(network, mac) => self.engine.set_guest(network, mac, None).await?,
            }
        }
        Ok(())
    }
}
