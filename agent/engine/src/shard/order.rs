//! What a shard is told, and what it tells.

use super::super::LinkLimits;
use super::super::connection::{CloseCode, Connection};
use super::super::path::Path;
use super::super::stats::EngineInfo;
use quinn_proto::{ConnectionError, ConnectionEvent, EndpointEvent};
use tokio::sync::oneshot;
use virtuoso_overlay::ids::{HostId, NetworkId};

/// Something to do. Orders are carried out in the order in which they are given.
// Nearly all are of the largest variant, one for each packet: boxes would only cost.
#[allow(clippy::large_enum_variant)]
pub(in super::super) enum Order {
    /// Tell a connection what the endpoint has for it: a packet that came over `via`, or new ids.
    Feed { slot: u16, via: Option<Path>, event: ConnectionEvent },
    /// Drive this connection from now on.
    Adopt { slot: u16, connection: Box<Connection> },
    /// The peer's certificate was accepted: its frames are taken.
    Admit { slot: u16, host: HostId },
    /// The link is up: the connection carries what goes to `host`.
    Serve { slot: u16, host: HostId },
    /// What limits the connection from now on.
    Limit { slot: u16, limits: LinkLimits },
    /// What limits a network on every link from now on, beside what limits the link.
    LimitNetwork { network: NetworkId, limits: LinkLimits },
    /// Send this on the connection's stream.
    Message { slot: u16, message: Vec<u8> },
    /// Close the connection with a code and a text that the peer logs.
    Close { slot: u16, code: CloseCode, reason: String },
    /// Nothing goes to this host any more.
    Forget(HostId),
    /// Add figures, and report it back.
    Survey(Box<Survey>),
}

/// Something that happened.
pub(in super::super) enum Report {
    /// A handshake is done, and proved whose key the peer has.
    Secured { slot: u16, peer: Result<HostId, String>, path: Option<Path> },
    /// The peer sent a message.
    Message { slot: u16, message: Vec<u8> },
    /// QUIC lost the connection, or the peer closed it.
    Lost { slot: u16, reason: ConnectionError },
    /// The message stream can't go on: the connection must be closed.
    Failed { slot: u16, reason: String },
    /// The endpoint must know. After the last event of a connection its slot is free.
    Endpoint { slot: u16, event: EndpointEvent },
    /// Figures were added.
    Survey(Box<Survey>),
}

/// Figures that go from shard to shard.
pub(in super::super) struct Survey {
    pub(in super::super) info: EngineInfo,
    /// Who waits for them.
    pub(in super::super) done: oneshot::Sender<EngineInfo>,
    /// Shards that have added theirs.
    pub(in super::super) visited: usize,
}
