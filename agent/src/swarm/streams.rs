//! Raw streams between members: bulk that is neither a request nor gossip, such as images, consoles and migrations.
//!
//! A stream is one bidirectional stream of a control connection, so it is encrypted, flow-controlled, and ends with
//! the membership of either side. Its kind says who serves it; what the bytes mean, those two decide. A member that is
//! not connected is dialled, and a connection that carries streams is not closed for being one too many.

mod behaviour;
mod handler;
mod lease;

pub use behaviour::{Behaviour, Wanted};

use futures::{AsyncRead as _, AsyncWrite as _};
use lease::{Lease, Leases};
use libp2p::swarm::ConnectionId;
use libp2p::{PeerId, StreamProtocol};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use virtuoso_overlay::ids::{HostId, SwarmId};

/// Streams with one peer, of both directions and all kinds. A VM takes a handful; an image a few.
pub const STREAMS_PER_PEER_MAX: usize = 128;
/// Inbound streams of one kind that wait to be served. More are reset: whoever opened them tries again.
const INBOUND_MAX: usize = 64;
/// Wishes for streams that wait for the swarm's task.
const REQUESTS_MAX: usize = 256;
/// Dialling, the gates of both sides and the stream's negotiation take a few round trips; a dead address takes longer.
const OPEN_TIME_MAX: Duration = Duration::from_secs(15);

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKind(&'static str);

impl StreamKind {
    /// Chunks of images.
    pub const IMAGE: Self = Self::new("image");

    /// A kind by its name, which is the protocol's name on the wire: `/virtuoso/<swarm>/<name>/1`.
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.0
    }

    fn protocol(self, swarm: SwarmId) -> StreamProtocol {
        super::behaviour::protocol(swarm, &format!("{}/1", self.0))
    }
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The host has joined no swarm.
    #[error("This host is in no swarm yet")]
    NoSwarm,
    /// The other end may not have streams.
    #[error("The host is no member of the swarm")]
    NoMember,
    /// No address answers.
    #[error("The host can't be reached: {0}")]
    Unreachable(String),
    /// It does not know this kind of stream.
    #[error("The host does not serve `{0}` streams")]
    Unserved(&'static str),
    /// There are [`STREAMS_PER_PEER_MAX`] already.
    #[error("There are {STREAMS_PER_PEER_MAX} streams to the host, the most")]
    TooMany,
    /// The connection went away, and no other one came.
    #[error("The connection to the host was lost ({0}), and there was no other one in {time} s", time = OPEN_TIME_MAX.as_secs())]
    Lost(String),
    /// Nothing happened for too long.
    #[error("The host did not answer in {} s", OPEN_TIME_MAX.as_secs())]
    Timeout,
    /// Streams end with the agent.
    #[error("This host's agent is stopping")]
    Stopping,
}

/// Opens and accepts streams. Clones are the same.
#[derive(Clone)]
pub struct Streams {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
}

/// The end of [`Streams`] that the swarm's behaviour holds.
pub struct Requests {
    shared: Arc<Shared>,
    receiver: mpsc::Receiver<Request>,
}

/// A wish for a stream.
struct Request {
    peer: PeerId,
    kind: StreamKind,
    /// Connections that did not carry it.
    failed: Vec<ConnectionId>,
    reply: oneshot::Sender<Result<Stream, Refusal>>,
}

/// Why a wish was not granted.
#[derive(Debug)]
struct Refusal {
    why: OpenError,
    /// The connection that failed: another one may do.
    failed: Option<ConnectionId>,
}

impl From<OpenError> for Refusal {
    fn from(why: OpenError) -> Self {
        Self { why, failed: None }
    }
}

/// A stream that another member opened.
#[derive(Debug)]
pub struct Inbound {
    /// Who.
    pub host: HostId,
    /// The stream.
    pub stream: Stream,
}

struct Shared {
    swarm: OnceLock<SwarmId>,
    served: Mutex<BTreeMap<StreamKind, mpsc::Sender<Inbound>>>,
    /// What follows from the two above, for connections to look at often.
    offers: Mutex<Arc<Vec<Offer>>>,
    leases: Leases,
}

/// A kind of stream that is served here.
#[derive(Clone)]
struct Offer {
    protocol: StreamProtocol,
    to: mpsc::Sender<Inbound>,
}

impl Streams {
    /// Streams of a swarm, and what [`Behaviour::new`] needs.
    pub fn new() -> (Self, Requests) {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let shared = Arc::new(Shared {
            swarm: OnceLock::new(),
            served: Mutex::default(),
            offers: Mutex::default(),
            leases: Leases::default(),
        });
        (Self { shared: shared.clone(), requests }, Requests { shared, receiver })
    }

    /// Opens a stream to a member, which is dialled if it is not connected. Of a connection whose other end is gone,
    /// because the host was started again or moved, this host may not know yet; then the stream is opened on another
    /// one. Dropping the future gives up.
    ///
    /// # Errors
    /// If within 15 s there is no way to the host, or it does not serve this kind.
    pub async fn open(&self, host: HostId, kind: StreamKind) -> Result<Stream, OpenError> {
        if self.shared.swarm.get().is_none() {
            return Err(OpenError::NoSwarm);
        }
        let mut last = OpenError::Timeout;
        let opening = self.open_somewhere(super::address::peer_of(&host), kind, &mut last);
        tokio::time::timeout(OPEN_TIME_MAX, opening).await.unwrap_or(Err(last))
    }

    /// Tries one connection after the other; `last` is why the latest one failed.
    async fn open_somewhere(&self, peer: PeerId, kind: StreamKind, last: &mut OpenError) -> Result<Stream, OpenError> {
        let mut failed = Vec::new();
        loop {
            let (reply, answer) = oneshot::channel();
            let request = Request { peer, kind, failed: failed.clone(), reply };
            self.requests.send(request).await.map_err(|_| OpenError::Stopping)?;
            match answer.await.map_err(|_| OpenError::Stopping)? {
                Ok(stream) => return Ok(stream),
                Err(Refusal { why, failed: None }) => return Err(why),
                Err(Refusal { why, failed: Some(connection) }) => {
                    tracing::debug!(%peer, %connection, kind = kind.name(), %why, "A connection carries no stream");
                    failed.push(connection);
                    *last = why;
                }
            }
        }
    }

    /// Serves a kind of stream from now on, until the receiver is dropped. Replaces who served it before.
    pub fn serve(&self, kind: StreamKind) -> mpsc::Receiver<Inbound> {
        let (sender, receiver) = mpsc::channel(INBOUND_MAX);
        self.shared.served().insert(kind, sender);
        self.shared.renew_offers();
        receiver
    }

    /// Connections that carry streams.
    pub(super) fn busy(&self) -> (BTreeSet<PeerId>, BTreeSet<ConnectionId>) {
        self.shared.leases.busy()
    }
}

impl Shared {
    fn enter(&self, swarm: SwarmId) {
        self.swarm.get_or_init(|| swarm);
        self.renew_offers();
    }

    fn renew_offers(&self) {
        let Some(swarm) = self.swarm.get() else { return };
        let served = self.served();
        let offer = |(kind, to): (&StreamKind, &mpsc::Sender<Inbound>)| {
            let protocol = kind.protocol(*swarm);
            Offer { protocol, to: to.clone() }
        };
        let offers = served.iter().map(offer).collect();
        // Set while `served` is locked: of two changes the later one wins here too.
        *self.offers_now() = Arc::new(offers);
    }

    fn offers(&self) -> Arc<Vec<Offer>> {
        self.offers_now().clone()
    }

    /// Replaced as a whole, so it is true even if a holder panicked.
    fn offers_now(&self) -> MutexGuard<'_, Arc<Vec<Offer>>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No holder can panic half-way.
    fn served(&self) -> MutexGuard<'_, BTreeMap<StreamKind, mpsc::Sender<Inbound>>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One bidirectional stream. Dropping it ends both directions.
#[derive(Debug)]
pub struct Stream {
    inner: libp2p::Stream,
    _lease: Lease,
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = ready!(Pin::new(&mut self.inner).poll_read(cx, buffer.initialize_unfilled()))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}
