//! A disc of another host, read over a stream: in pieces that are kept for a while, and ahead of a reader who goes on.
//!
//! If nothing comes from its host for some time ([`PATIENCE`]), the disc is gone for good: whatever waits fails, and
//! whoever has it in a drive is told. Until then it connects anew, so a restart of the other agent is only a pause.

use super::Connect;
use crate::image::talk::{read_message, write_message};
use crate::nbd;
use bytes::{Bytes, BytesMut};
use futures::future::{FutureExt, Shared};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use virtuoso_overlay::ids::DiscKey;
use virtuoso_overlay::wire::disc::{DISC_READ_BYTES_MAX, DiscAnswer, DiscRequest};

/// Bytes of a piece.
const PIECE_BYTES: u64 = DISC_READ_BYTES_MAX as u64;
/// Pieces that are kept: 16 MiB. Guests read directories and the like again and again.
const PIECES_MAX: usize = 64;
/// Pieces that are fetched ahead of a reader who goes on: enough for 30 MB/s over 60 ms.
const AHEAD: u64 = 8;
/// Pieces that are wanted and not yet asked for.
const WISHES_MAX: usize = 64;
/// Questions without an answer.
const ASKED_MAX: usize = 32;
/// Guests work with sectors of this size, and files may end within one.
const SECTOR_BYTES: u64 = 2048;
static EMPTY_SECTOR: [u8; SECTOR_BYTES as usize] = [0; SECTOR_BYTES as usize];

/// Without questions, this often the other side is asked whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// So long not a byte may come while an answer is due. Then it connects anew.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Between two attempts to connect.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// So long the disc's host may be away. A guest gives a drive 30 s before it resets it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// Resolves when a disc is gone for good; why.
pub(crate) type Gone = oneshot::Receiver<String>;

type Piece = Shared<oneshot::Receiver<Bytes>>;

/// A disc that can be read. Its connection ends when it is dropped.
#[derive(Debug)]
pub(crate) struct RemoteDisc {
    size_bytes: u64,
    pieces: Mutex<VecDeque<(u64, Piece)>>,
    wishes: mpsc::Sender<Wish>,
}

/// A piece that somebody wants. Dropping it is a refusal.
#[derive(Debug)]
struct Wish {
    index: u64,
    reply: oneshot::Sender<Bytes>,
}

impl RemoteDisc {
    /// Opens a disc.
    ///
    /// # Errors
    /// If its host is not reachable now, or does not have it.
    pub(crate) async fn open(connect: Connect, key: DiscKey, patience: Duration) -> io::Result<(Arc<Self>, Gone)> {
        let (stream, size_bytes) = timeout(patience, Line::open(&connect, key)).await??;
        Ok(Self::begin(connect, key, size_bytes, patience, Some(stream)))
    }

    /// Goes on with a disc that was open in an earlier run, whether its host is reachable yet or not.
    pub(crate) fn resume(connect: Connect, key: DiscKey, size_bytes: u64, patience: Duration) -> (Arc<Self>, Gone) {
        Self::begin(connect, key, size_bytes, patience, None)
    }

    fn begin(
        connect: Connect,
        key: DiscKey,
        size_bytes: u64,
        patience: Duration,
        line: Option<Line>,
    ) -> (Arc<Self>, Gone) {
        let (wishes, inbox) = mpsc::channel(WISHES_MAX);
        let (leave, gone) = oneshot::channel();
        let carrier = Carrier {
            connect,
            key,
            size_bytes,
            patience,
            wishes: inbox,
            again: VecDeque::new(),
            heard: Instant::now(),
        };
        tokio::spawn(async move {
            if let Some(why) = carrier.run(line).await {
                // Nobody listens if the drive was emptied meanwhile.
                leave.send(why).ok();
            }
        });
        (Arc::new(Self { size_bytes, pieces: Mutex::default(), wishes }), gone)
    }

    /// The file's size; the disc is a little larger if that is not a whole number of sectors.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.size_bytes
    }

    async fn piece(&self, index: u64) -> io::Result<Bytes> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let permit = self.wishes.reserve().await.map_err(|_| gone())?;
        let (piece, goes_on) = {
            let mut pieces = self.pieces();
            let find = |index| pieces.iter().find(|(known, _)| *known == index).map(|(_, piece)| piece.clone());
            let goes_on = index.checked_sub(1).is_some_and(|before| find(before).is_some());
            let known = find(index);
            (known.unwrap_or_else(|| want(&mut pieces, index, permit)), goes_on)
        };
        if goes_on {
            self.fetch_ahead(index);
        }
        piece.await.map_err(|_| {
            self.pieces().retain(|(known, _)| *known != index);
            gone()
        })
    }

    fn fetch_ahead(&self, index: u64) {
        let mut pieces = self.pieces();
        let last = self.size_bytes.saturating_sub(1) / PIECE_BYTES;
        for next in (index + 1..=index + AHEAD).take_while(|next| *next <= last) {
            if pieces.iter().all(|(known, _)| *known != next) {
                // What can't be asked for now is asked for when it is read.
                let Ok(permit) = self.wishes.try_reserve() else { return };
                drop(want(&mut pieces, next, permit));
            }
        }
    }

    /// No holder can panic half-way.
    fn pieces(&self) -> MutexGuard<'_, VecDeque<(u64, Piece)>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn want(pieces: &mut VecDeque<(u64, Piece)>, index: u64, permit: mpsc::Permit<'_, Wish>) -> Piece {
    let (reply, piece) = oneshot::channel();
    let piece = piece.shared();
    pieces.truncate(PIECES_MAX - 1);
    pieces.push_front((index, piece.clone()));
    permit.send(Wish { index, reply });
    piece
}

impl nbd::Disk for RemoteDisc {
    fn name(&self) -> &str {
        "cdrom"
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes.next_multiple_of(SECTOR_BYTES)
    }

    fn piece_bytes(&self) -> u32 {
        DISC_READ_BYTES_MAX
    }

    async fn read(&self, offset: u64, length: usize) -> io::Result<Vec<Bytes>> {
        let (mut content, mut done) = (Vec::new(), 0);
        while done < length {
            let at = offset + done as u64;
            let piece = if at >= self.size_bytes {
                // What is missing of the last sector.
                Bytes::from_static(&EMPTY_SECTOR)
            } else {
                let piece = self.piece(at / PIECE_BYTES).await?;
                let within = usize::try_from(at % PIECE_BYTES).map_err(io::Error::other)?;
                piece.slice(within.min(piece.len())..)
            };
            let piece = piece.slice(..piece.len().min(length - done));
            if piece.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += piece.len();
            content.push(piece);
        }
        Ok(content)
    }
}

/// An open disc on a stream.
struct Line {
    reading: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    writing: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Line {
    async fn open(connect: &Connect, key: DiscKey) -> io::Result<(Self, u64)> {
        let (reading, writing) = tokio::io::split(connect().await?);
        let mut line = Self { reading: BufReader::new(Box::new(reading)), writing: Box::new(writing) };
        write_message(&mut line.writing, &DiscRequest::Open(key).encode()).await?;
        line.writing.flush().await?;
        match read_head(&mut line.reading).await? {
            DiscAnswer::Opened(size_bytes) => Ok((line, size_bytes)),
            DiscAnswer::Unknown => Err(io::Error::new(io::ErrorKind::NotFound, "The file was taken back by its host")),
            other => Err(nonsense(other)),
        }
    }
}

/// Carries pieces from the disc's host, over one stream after the other.
struct Carrier {
    connect: Connect,
    key: DiscKey,
    size_bytes: u64,
    patience: Duration,
    wishes: mpsc::Receiver<Wish>,
    /// What was asked for on a stream that broke.
    again: VecDeque<Wish>,
    /// When the other side was last heard.
    heard: Instant,
}

/// A question on its way.
enum Asked {
    Piece(Wish),
    Ping,
}

impl Carrier {
    /// Runs until nobody reads the disc any more, or it is gone: why.
    async fn run(mut self, mut line: Option<Line>) -> Option<String> {
        let mut why = "Its host is not reachable".to_owned();
        loop {
            if let Some(line) = line.take() {
                self.heard = Instant::now();
                match self.carry(line).await {
                    Ok(()) => return None,
                    Err(error) => why = error.to_string(),
                }
                tracing::debug!("A disc's stream broke: {why}");
            }
            let deadline = self.heard + self.patience;
            match timeout_at(deadline, Line::open(&self.connect, self.key)).await {
                Ok(Ok((opened, size_bytes))) if size_bytes == self.size_bytes => line = Some(opened),
                Ok(Ok(_)) => return Some("The file has another size now".into()),
                Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Some(error.to_string()),
                Ok(Err(error)) => why = error.to_string(),
                Err(_) => {}
            }
            if line.is_none() && Instant::now() + RETRY_INTERVAL > deadline {
                return Some(why);
            }
            if line.is_none() {
                tokio::select! {
                    () = sleep(RETRY_INTERVAL) => {}
                    () = unread(&mut self.wishes, &mut self.again) => return None,
                }
            }
        }
    }

    /// Serves wishes over one stream. Ends in order when nobody can have any more.
    async fn carry(&mut self, line: Line) -> io::Result<()> {
        let Line { mut reading, mut writing } = line;
        let (sender, mut asked) = mpsc::channel(ASKED_MAX);
        let mut current = None;
        let result = {
            let (again, wishes) = (&mut self.again, &mut self.wishes);
            let ask = async {
                loop {
                    // Whatever is awaited here, no wish is lost when this is dropped.
                    let permit = sender.reserve().await.map_err(|_| io::ErrorKind::BrokenPipe)?;
                    let next = match again.pop_front() {
                        Some(wish) => Asked::Piece(wish),
                        None => tokio::select! {
                            wish = wishes.recv() => match wish {
                                Some(wish) => Asked::Piece(wish),
                                None => return io::Result::Ok(()),
                            },
                            () = sleep(PING_INTERVAL) => Asked::Ping,
                        },
                    };
                    let question = next.question(self.size_bytes);
                    permit.send(next);
                    write_message(&mut writing, &question.encode()).await?;
                    writing.flush().await?;
                }
            };
            let answer = async {
                while let Some(next) = asked.recv().await {
                    let due = current.insert(next);
                    let content = read_answer(&mut reading, due, self.size_bytes, &mut self.heard).await?;
                    if let (Some(Asked::Piece(wish)), Some(content)) = (current.take(), content) {
                        // Whoever wanted it may have gone away.
                        wish.reply.send(content).ok();
                    }
                }
                Ok(())
            };
            tokio::select! {
                result = ask => result,
                result = answer => result,
            }
        };
        let mut unanswered = current;
        while let Some(next) = unanswered.or_else(|| asked.try_recv().ok()) {
            unanswered = None;
            if let Asked::Piece(wish) = next {
                self.again.push_back(wish);
            }
        }
        result
    }
}

/// Resolves when nobody can want anything any more. What is wanted meanwhile is kept.
async fn unread(wishes: &mut mpsc::Receiver<Wish>, again: &mut VecDeque<Wish>) {
    while again.len() < WISHES_MAX {
        match wishes.recv().await {
            Some(wish) => again.push_back(wish),
            None => return,
        }
    }
    std::future::pending::<()>().await;
}

impl Asked {
    fn question(&self, size_bytes: u64) -> DiscRequest {
        match self {
            Self::Piece(wish) => {
                let offset = wish.index * PIECE_BYTES;
                DiscRequest::Read { offset, length: piece_bytes(offset, size_bytes) }
            }
            Self::Ping => DiscRequest::Read { offset: 0, length: 0 },
        }
    }
}

fn piece_bytes(offset: u64, size_bytes: u64) -> u32 {
    u32::try_from(size_bytes.saturating_sub(offset)).unwrap_or(u32::MAX).min(DISC_READ_BYTES_MAX)
}

/// Reads what was asked for; nothing if the other side can't read it.
async fn read_answer(
    reading: &mut BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    asked: &Asked,
    size_bytes: u64,
    heard: &mut Instant,
) -> io::Result<Option<Bytes>> {
    let expected = match asked.question(size_bytes) {
        DiscRequest::Read { length, .. } => length,
        DiscRequest::Open(_) | DiscRequest::GiveBack(_) => 0,
    };
    let head = read_head(reading).await?;
    *heard = Instant::now();
    match head {
        DiscAnswer::Content(length) if length == expected => {
            let mut content = BytesMut::with_capacity(length as usize);
            while content.len() < length as usize {
                let mut rest = (&mut *reading).take(u64::from(length) - content.len() as u64);
                if timeout(SILENCE_MAX, rest.read_buf(&mut content)).await?? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                *heard = Instant::now();
            }
            Ok(Some(content.freeze()))
        }
        DiscAnswer::Unreadable => Ok(None),
        other => Err(nonsense(other)),
    }
}

async fn read_head(reading: &mut BufReader<Box<dyn AsyncRead + Send + Unpin>>) -> io::Result<DiscAnswer> {
    let head = timeout(SILENCE_MAX, read_message(reading)).await??.ok_or(io::ErrorKind::UnexpectedEof)?;
    DiscAnswer::decode(&head).map_err(io::Error::other)
}

fn nonsense(answer: DiscAnswer) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("The disc's host answers {answer:?}"))
}
