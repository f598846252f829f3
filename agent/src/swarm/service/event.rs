//! What the swarm tells the rest of the agent.

use libp2p::gossipsub::MessageId;
use libp2p::request_response::{OutboundRequestId, ResponseChannel};
use libp2p::{Multiaddr, PeerId};
use virtuoso_overlay::ids::{Digest, HostId};

/// One thing that happened.
#[derive(Debug)]
pub enum Event {
    /// A host is connected, which may be a stranger: time to introduce oneself by `send_admit`.
    PeerConnected {
        /// Who.
        host: HostId,
        /// Where.
        address: Multiaddr,
        /// Whether it is an admitted member already.
        member: bool,
    },
    /// No connection to this host is left.
    PeerDisconnected {
        /// Who.
        host: HostId,
    },
    /// Both sides have admitted each other: gossip flows and sync requests can be sent.
    MemberReady {
        /// Who.
        host: HostId,
    },
    /// A gossip message. It goes no further until it is judged.
    Gossip {
        /// For `judge`.
        id: GossipId,
        /// Who wrote and signed it. Whether that is a member is for the judge to know.
        source: HostId,
        /// What.
        bytes: Vec<u8>,
    },
    /// A host, maybe a stranger, introduces itself. To be answered by `respond`.
    AdmitRequest {
        /// Who, proven by the connection.
        host: HostId,
        /// What it says.
        bytes: Vec<u8>,
        /// For the answer.
        reply: Reply,
    },
    /// The answer to `send_admit`.
    AdmitResponse {
        /// Who.
        host: HostId,
        /// Which request.
        id: AdmitId,
        /// What.
        bytes: Vec<u8>,
    },
    /// There will be no answer.
    AdmitFailed {
        /// Who.
        host: HostId,
        /// Which request.
        id: AdmitId,
        /// Why.
        error: String,
    },
    /// A member asks for rows. To be answered by `respond`.
    SyncRequest {
        /// Who.
        host: HostId,
        /// What.
        bytes: Vec<u8>,
        /// For the answer.
        reply: Reply,
    },
    /// The answer to `send_sync`.
    SyncResponse {
        /// Who.
        host: HostId,
        /// Which request.
        id: SyncId,
        /// What.
        bytes: Vec<u8>,
    },
    /// There will be no answer.
    SyncFailed {
        /// Who.
        host: HostId,
        /// Which request.
        id: SyncId,
        /// Why.
        error: String,
    },
    /// Hosts that say they have an image. Comes once per `get_providers` with `last`, and before that as found.
    ProvidersFound {
        /// The image.
        image: Digest,
        /// Hosts not told before.
        hosts: Vec<HostId>,
        /// Whether the search is over.
        last: bool,
    },
    /// This host can be reached here.
    ListenAddress(Multiaddr),
    /// No longer.
    ListenAddressGone(Multiaddr),
    /// A peer saw this host under this address, which may serve others (or be one NAT's for one peer).
    ExternalAddressCandidate(Multiaddr),
    /// A host on the local network, found by mDNS. Of any swarm, or of none.
    Discovered {
        /// Who it says it is.
        host: HostId,
        /// Where.
        addresses: Vec<Multiaddr>,
    },
}

/// Names a gossip message, and the neighbour that it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipId {
    pub(super) message: MessageId,
    pub(super) from: PeerId,
}

/// What becomes of a gossip message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is valid: pass it on.
    Accept,
    /// It is of no use, which may be nobody's fault.
    Ignore,
    /// No correct host would have passed it on.
    Reject,
}

/// Names a sync request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SyncId(pub(super) OutboundRequestId);

/// Names an admit request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdmitId(pub(super) OutboundRequestId);

/// Where the answer to a request goes. Dropping it tells the other side that there is none.
#[derive(Debug)]
pub struct Reply {
    pub(super) channel: ResponseChannel<Vec<u8>>,
    pub(super) protocol: Protocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Admit,
    Sync,
}
