//! The data plane: one thread that owns the UDP socket's receiving side, the ports and the switch, and on machines with
//! many cores more of them, for the links.
//!
//! ```text
//!  port (TAP) -> vnet header settled -> Switch::ingress -> link -> chunks -> QUIC datagrams -> UDP (GSO)
//!  UDP (GRO) -> demux -> QUIC -> chunks -> Switch::egress -> vnet header rebuilt -> port (TAP)
//! ```
//! What lies between switch and UDP on either way is a `shard`. The switch decides, the engine does. The control
//! plane shares the socket through a [`ControlPort`] and speaks to the engine through an [`EngineHandle`]; it is never
//! waited for. Nothing in here knows libp2p's swarm, bridges or the API.

mod ceiling;
mod cid;
mod clock;
mod command;
mod congestion;
mod connection;
mod control_port;
mod demux;
mod event;
mod guest_ports;
mod lan;
mod link;
mod links;
mod path;
mod poller;
mod port;
mod priority;
mod queue;
mod rate_meter;
mod shard;
mod slots;
mod socket;
mod stats;
mod stream;
mod tap;
mod threads;
mod tls;
mod transport;
mod worker;

#[cfg(test)]
mod tests;

pub use command::EngineHandle;
pub use control_port::{ControlCounters, ControlPort, control_endpoint_config};
pub use demux::DemuxCounters;
pub use event::EngineEvent;
pub use guest_ports::GuestPorts;
pub use port::PortConfig;
pub use socket::Socket;
pub use stats::{EngineInfo, LinkInfo, LinkState, PortInfo, TrafficCounters};
pub use tap::TapOffloads;
pub use threads::Threads;

use anyhow::{Context, Result};
use libp2p::identity::Keypair;
use serde::Serialize;
use std::sync::Arc;
use tokio::sync::mpsc;
use virtuoso_overlay::congestion::Congestion;
use virtuoso_overlay::ids::HostId;
use virtuoso_overlay::switch::Switch;

/// Says whether a host with this certificate is a member, or why not. It runs on the engine's thread and must not wait.
pub type AdmissionCheck = Arc<dyn Fn(&HostId, &[u8]) -> Result<(), String> + Send + Sync>;

/// What the engine is started with.
pub struct EngineConfig {
    /// The socket that both planes share.
    pub socket: Arc<Socket>,
    /// The control plane's end of it.
    pub control: Option<Arc<ControlPort>>,
    /// This host's key. It must be an Ed25519 key.
    pub keypair: Keypair,
    /// What this host shows to peers.
    pub certificate: Vec<u8>,
    /// What peers show is checked by this.
    pub admit: AdmissionCheck,
    /// The switch. The engine owns it from now on; [`EngineHandle::call`] reaches it.
    pub switch: Switch,
    /// What limits links.
    pub links: LinkSettings,
}

/// What an operator says about links.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct LinkSettings {
    /// What limits how much a link has on its way.
    #[serde(serialize_with = "by_name")]
    pub congestion: Congestion,
    /// The most that a link sends, in Mbit/s; 0 is no limit.
    pub rate_mbit: u32,
    /// Threads of the data plane.
    pub threads: Threads,
}

impl LinkSettings {
    /// What limits links without settings of their own.
    #[must_use]
    pub fn limits(self) -> LinkLimits {
        LinkLimits { congestion: self.congestion, rate_mbit: self.rate_mbit }
    }
}

/// What limits one link, or one network on each link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct LinkLimits {
    /// What limits how much it has on its way.
    #[serde(serialize_with = "by_name")]
    pub congestion: Congestion,
    /// The most that it sends, in Mbit/s; 0 is no limit.
    pub rate_mbit: u32,
}

impl LinkLimits {
    /// Whether nothing is limited.
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }
}

fn by_name<S: serde::Serializer>(congestion: &Congestion, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(congestion)
}

/// Starts the engine's threads. The receiver yields what the control plane must know; it ends when the engine does.
///
/// # Errors
/// If the key is of the wrong kind, or the threads or their descriptors can't be made.
pub fn start(config: EngineConfig) -> Result<(EngineHandle, mpsc::Receiver<EngineEvent>)> {
    let EngineConfig { socket, control, keypair, certificate, admit, switch, links: settings } = config;
    let (sender, commands) = mpsc::channel(command::COMMANDS_MAX);
    let (events, receiver) = mpsc::channel(event::EVENTS_MAX);
    let wake = Arc::new(command::Wake::new().context("Can't make the engine's wake-up descriptor")?);
    let handle = EngineHandle::new(sender, Arc::clone(&wake));
    let events = event::EventSink::new(events);
    let clock = clock::Clock::new();
    let links = links::Links::new(links::LinksConfig {
        socket: Arc::clone(&socket),
        keypair,
        certificate,
        admit,
        settings,
        clock,
        wake: Arc::clone(&wake),
    })?;
    let worker = worker::Worker::new(worker::Parts { clock, links, switch, socket, control, commands, wake, events });
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || worker.run())
        .context("Can't start the engine's thread")?;
    Ok((handle, receiver))
}
