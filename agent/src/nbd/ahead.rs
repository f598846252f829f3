//! Carries NBD from a client on this host to a server elsewhere, and confirms writes before they are there.
//!
//! A hypervisor that copies a guest's disk waits for each write and each flush, some of them while the guest is paused:
//! over a long path that is a round trip every time. Here they are confirmed as soon as they are on their way, up to a
//! bound, and whoever needs to know that they are there asks [`Behind::settled`]. What fails after it was confirmed
//! makes all that follows fail.

use super::negotiation::pass_options;
use super::{DISCONNECT, FLUSH, READ, REPLY_MAGIC, Request, WRITE, discard, invalid, reply};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter, ReadHalf, WriteHalf, copy_buf, split,
};
use tokio::sync::{Mutex, watch};

const WRITE_ZEROES: u16 = 6;
/// The client wants to hear if the server can't do it quickly.
const FAST_ZERO: u16 = 1 << 4;
/// Bytes that are confirmed and not there: a guest may have to stay paused until they are.
const AHEAD_BYTES_MAX: u64 = 1 << 20;
/// Bytes that are read in one go.
const COPY_BYTES: usize = 128 << 10;

/// What has been confirmed and may not be there.
#[derive(Clone, Debug)]
pub(crate) struct Behind(watch::Receiver<State>);

/// Tells [`Behind`].
#[derive(Debug)]
pub(crate) struct Ahead(watch::Sender<State>);

#[derive(Debug, Default)]
struct State {
    /// What the server has not answered, by the cookies that it knows.
    pending: BTreeMap<u64, Pending>,
    next: u64,
    /// A flush was confirmed, and must follow the writes before it.
    is_flush_owed: bool,
    /// The protocol's number of what went wrong with something that was confirmed.
    failure: u32,
}

#[derive(Debug)]
enum Pending {
    /// The client has its answer.
    Write(Range<u64>),
    Flush,
    /// It has none: its cookie, and the bytes that come with the answer.
    Asked {
        cookie: u64,
        content: u32,
    },
}

/// A client and a server that agree.
struct Relay<C, S> {
    to_client: Mutex<BufWriter<WriteHalf<C>>>,
    to_server: Mutex<BufWriter<WriteHalf<S>>>,
    ahead: Ahead,
}

impl Ahead {
    /// For a client that comes.
    pub(crate) fn new() -> (Self, Behind) {
        let (sender, receiver) = watch::channel(State::default());
        (Self(sender), Behind(receiver))
    }

    /// Carries all between them until the client goes and the server has all, or the server goes.
    pub(crate) async fn carry<C, S>(self, client: C, server: S) -> io::Result<()>
    where
        C: AsyncRead + AsyncWrite + Send,
        S: AsyncRead + AsyncWrite + Send,
    {
        let ((from_client, to_client), (from_server, to_server)) = (split(client), split(server));
        let mut from_client = BufReader::with_capacity(COPY_BYTES, from_client);
        let mut from_server = BufReader::with_capacity(COPY_BYTES, from_server);
        let (mut to_client, mut to_server) = (BufWriter::new(to_client), BufWriter::new(to_server));
        if !pass_options((&mut from_client, &mut to_client), (&mut from_server, &mut to_server)).await? {
            return Ok(());
        }
        let relay = Relay { to_client: Mutex::new(to_client), to_server: Mutex::new(to_server), ahead: self };
        tokio::select! {
            end = relay.take_requests(from_client) => end,
            end = relay.take_answers(from_server) => end,
            end = relay.send_flushes() => end,
        }
    }
}

impl Behind {
    /// Waits until the server has, for good, all that was confirmed until now.
    ///
    /// # Errors
    /// If that failed, or can't come any more.
    pub(crate) async fn settled(&mut self) -> io::Result<()> {
        let ended = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the stream to the target broke");
        let state = self.0.wait_for(|state| state.is_settled() || state.failure != 0).await.map_err(ended)?;
        match i32::try_from(state.failure) {
            Ok(0) => Ok(()),
            Ok(number) => Err(io::Error::from_raw_os_error(number)),
            Err(_) => Err(io::ErrorKind::Other.into()),
        }
    }
}

impl<C, S> Relay<C, S>
where
    C: AsyncRead + AsyncWrite + Send,
    S: AsyncRead + AsyncWrite + Send,
{
    async fn take_requests(&self, mut reading: BufReader<ReadHalf<C>>) -> io::Result<()> {
        loop {
            let request = match Request::read(&mut reading).await {
                Ok(request) if request.kind != DISCONNECT => request,
                _ => return self.end().await,
            };
            let failure = self.ahead.0.borrow().failure;
            if failure != 0 {
                if request.kind == WRITE {
                    discard(&mut reading, request.length).await?;
                }
                self.answer(request.cookie, failure).await?;
            } else if request.kind == FLUSH {
                self.ahead.0.send_modify(|state| state.is_flush_owed = true);
                self.answer(request.cookie, 0).await?;
            } else {
                self.pass(request, &mut reading).await?;
            }
        }
    }

    /// Hands a request to the server.
    async fn pass(&self, request: Request, reading: &mut BufReader<ReadHalf<C>>) -> io::Result<()> {
        let Request { flags, kind, cookie, .. } = request;
        let range = request.range();
        // The server takes requests in any order.
        let mut state = self.ahead.0.subscribe();
        state.wait_for(|state| !state.overlaps(&range)).await.map_err(io::Error::other)?;
        let may_be_ahead = matches!(kind, WRITE | WRITE_ZEROES) && flags & FAST_ZERO == 0;
        let is_ahead = may_be_ahead && state.borrow().has_room(&range);
        let content = if kind == READ { request.length } else { 0 };
        let pending = if is_ahead { Pending::Write(range) } else { Pending::Asked { cookie, content } };
        let known = self.note(pending);
        let mut writing = self.to_server.lock().await;
        writing.write_all(&Request { cookie: known, ..request }.encode()).await?;
        if kind == WRITE {
            let sent = copy_buf(&mut reading.take(request.length.into()), &mut *writing).await?;
            if sent < request.length.into() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        writing.flush().await?;
        drop(writing);
        if is_ahead { self.answer(cookie, 0).await } else { Ok(()) }
    }

    /// The client goes: the server gets what it has not, and hears so.
    async fn end(&self) -> io::Result<()> {
        let mut state = self.ahead.0.subscribe();
        let has_ended = |state: &State| state.failure != 0 || state.is_settled();
        state.wait_for(has_ended).await.map_err(io::Error::other)?;
        let bye = Request { flags: 0, kind: DISCONNECT, cookie: 0, offset: 0, length: 0 };
        let mut writing = self.to_server.lock().await;
        writing.write_all(&bye.encode()).await?;
        writing.shutdown().await
    }

    async fn take_answers(&self, mut reading: BufReader<ReadHalf<S>>) -> io::Result<()> {
        loop {
            if reading.read_u32().await? != REPLY_MAGIC {
                return Err(invalid("not a reply"));
            }
            let (error, known) = (reading.read_u32().await?, reading.read_u64().await?);
            let mut answered = None;
            self.ahead.0.send_modify(|state| {
                answered = state.pending.remove(&known);
                if !matches!(answered, Some(Pending::Asked { .. })) && error != 0 {
                    state.failure = error;
                }
            });
            match answered.ok_or_else(|| invalid("a reply to nothing"))? {
                Pending::Asked { cookie, content } => {
                    let mut writing = self.to_client.lock().await;
                    reply(&mut *writing, cookie, error, &[]).await?;
                    if error == 0 {
                        copy_buf(&mut (&mut reading).take(content.into()), &mut *writing).await?;
                    }
                    writing.flush().await?;
                }
                Pending::Write(_) | Pending::Flush => {}
            }
        }
    }

    /// Sends the flushes that were confirmed, each when the writes before it are there.
    async fn send_flushes(&self) -> io::Result<()> {
        let mut state = self.ahead.0.subscribe();
        loop {
            state.wait_for(State::is_flush_due).await.map_err(io::Error::other)?;
            let known = self.note(Pending::Flush);
            let flush = Request { flags: 0, kind: FLUSH, cookie: known, offset: 0, length: 0 };
            let mut writing = self.to_server.lock().await;
            writing.write_all(&flush.encode()).await?;
            writing.flush().await?;
        }
    }

    /// The cookie for something that is about to be sent to the server.
    fn note(&self, pending: Pending) -> u64 {
        let mut known = 0;
        self.ahead.0.send_modify(|state| {
            known = state.next;
            state.next += 1;
            state.is_flush_owed &= !matches!(pending, Pending::Flush);
            state.pending.insert(known, pending);
        });
        known
    }

    async fn answer(&self, cookie: u64, error: u32) -> io::Result<()> {
        reply(&mut *self.to_client.lock().await, cookie, error, &[]).await
    }
}

impl State {
    fn is_settled(&self) -> bool {
        !self.is_flush_owed && self.pending.values().all(|pending| matches!(pending, Pending::Asked { .. }))
    }

    fn is_flush_due(&self) -> bool {
        self.is_flush_owed && self.pending.values().all(|pending| matches!(pending, Pending::Asked { .. }))
    }

    fn writes(&self) -> impl Iterator<Item = &Range<u64>> {
        self.pending.values().filter_map(|pending| match pending {
            Pending::Write(range) => Some(range),
            Pending::Flush | Pending::Asked { .. } => None,
        })
    }

    /// Whether something that was confirmed is on its way to the same place.
    fn overlaps(&self, range: &Range<u64>) -> bool {
        self.writes().any(|write| write.start < range.end && range.start < write.end)
    }

    fn has_room(&self, range: &Range<u64>) -> bool {
        let bytes: u64 = self.writes().map(|write| write.end - write.start).sum();
        bytes + (range.end - range.start) <= AHEAD_BYTES_MAX
    }
}

#[cfg(test)]
mod tests;
