//! A client and a server by hand, and what is carried between them.

use super::*;
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;

const GREETING: [u8; 18] = *b"NBDMAGICIHAVEOPT\0\x03";
const NO_SPACE: u32 = 28;
/// Far beyond what a step takes, far below what a test may take.
const STEP_TIME_MAX: Duration = Duration::from_secs(10);

struct Ends {
    client: DuplexStream,
    server: DuplexStream,
    behind: Behind,
    carrying: JoinHandle<io::Result<()>>,
}

impl Ends {
    /// Ends that have agreed; the client had wished for replies of another shape.
    async fn new() -> Self {
        let ((mut client, theirs), (mut server, ours)) = (tokio::io::duplex(4 << 20), tokio::io::duplex(4 << 20));
        let (ahead, behind) = Ahead::new();
        let carrying = tokio::spawn(ahead.carry(theirs, ours));
        server.write_all(&GREETING).await.unwrap();
        let option = |kind: u32| [b"IHAVEOPT".as_slice(), &kind.to_be_bytes(), &[0; 4]].concat();
        let wishes = [[0, 0, 0, 3].as_slice(), &option(8), &option(7)].concat();
        client.write_all(&wishes).await.unwrap();
        assert_eq!(take::<18>(&mut client).await, GREETING);
        let refusal: [u8; 20] = take(&mut client).await;
        assert_eq!((refusal[11], &refusal[12..16]), (8, &[128, 0, 0, 1][..]), "structured replies are refused");
        assert_eq!(take::<4>(&mut server).await, [0, 0, 0, 3]);
        assert_eq!(take::<16>(&mut server).await, *option(7));
        let agreed = [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &[0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0]].concat();
        server.write_all(&agreed).await.unwrap();
        assert_eq!(take::<20>(&mut client).await, *agreed);
        Self { client, server, behind, carrying }
    }

    async fn ask(&mut self, kind: u16, cookie: u64, range: Range<u64>) {
        let length = u32::try_from(range.end - range.start).unwrap();
        let head = Request { flags: 0, kind, cookie, offset: range.start, length }.encode();
        let content = if kind == WRITE { vec![7; length as usize] } else { Vec::new() };
        self.client.write_all(&[&head[..], &content].concat()).await.unwrap();
    }

    /// The next answer for the client: the cookie and the error.
    async fn answer(&mut self) -> (u64, u32) {
        read_answer(&mut self.client).await
    }

    /// The next request that the server sees: its kind and its cookie.
    async fn request(&mut self) -> (u16, u64) {
        let seen = tokio::time::timeout(STEP_TIME_MAX, Request::read(&mut self.server)).await;
        let request = seen.expect("a request").unwrap();
        if request.kind == WRITE {
            let mut content = vec![0; request.length as usize];
            self.server.read_exact(&mut content).await.unwrap();
            assert!(content.iter().all(|byte| *byte == 7));
        }
        (request.kind, request.cookie)
    }

    async fn confirm(&mut self, cookie: u64, error: u32) {
        reply(&mut self.server, cookie, error, &[]).await.unwrap();
    }

    /// Whether the server sees nothing more, however long it waits.
    async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(50), self.server.read_u8()).await.is_err()
    }
}

async fn take<const N: usize>(stream: &mut DuplexStream) -> [u8; N] {
    let mut bytes = [0; N];
    let read = tokio::time::timeout(STEP_TIME_MAX, stream.read_exact(&mut bytes)).await;
    read.expect("bytes").unwrap();
    bytes
}

async fn read_answer(stream: &mut DuplexStream) -> (u64, u32) {
    let head: [u8; 16] = take(stream).await;
    assert_eq!(head[..4], REPLY_MAGIC.to_be_bytes());
    let (error, cookie) = (head[4..8].try_into().unwrap(), head[8..].try_into().unwrap());
    (u64::from_be_bytes(cookie), u32::from_be_bytes(error))
}

#[tokio::test]
async fn writes_and_flushes_are_confirmed_before_they_are_there() {
    let mut ends = Ends::new().await;
    ends.ask(WRITE, 5, 0..512).await;
    assert_eq!(ends.answer().await, (5, 0));
    ends.ask(FLUSH, 5, 0..0).await;
    assert_eq!(ends.answer().await, (5, 0));
    let mut behind = ends.behind.clone();
    let settled = tokio::spawn(async move { behind.settled().await });
    let (kind, write) = ends.request().await;
    assert_eq!(kind, WRITE);
    assert!(ends.is_quiet().await, "a flush of what is not there is none");
    ends.confirm(write, 0).await;
    let (kind, flush) = ends.request().await;
    assert_eq!((kind, settled.is_finished()), (FLUSH, false));
    ends.confirm(flush, 0).await;
    settled.await.unwrap().unwrap();

    ends.ask(WRITE_ZEROES, 6, 0..512).await;
    assert_eq!(ends.answer().await, (6, 0));
    ends.ask(DISCONNECT, 0, 0..0).await;
    let (_, zeroes) = ends.request().await;
    assert!(ends.is_quiet().await, "it would end before the last write is there");
    ends.confirm(zeroes, 0).await;
    assert_eq!(ends.request().await.0, DISCONNECT);
    ends.carrying.await.unwrap().unwrap();
    ends.behind.settled().await.unwrap();
}

#[tokio::test]
async fn what_fails_after_it_was_confirmed_makes_the_rest_fail() {
    let mut ends = Ends::new().await;
    ends.ask(WRITE, 1, 0..512).await;
    assert_eq!(ends.answer().await, (1, 0));
    let (_, write) = ends.request().await;
    ends.confirm(write, NO_SPACE).await;
    assert_eq!(ends.behind.settled().await.unwrap_err().raw_os_error(), Some(28));
    for (kind, cookie) in [(WRITE, 2), (FLUSH, 3), (READ, 4)] {
        ends.ask(kind, cookie, 512..1024).await;
        assert_eq!(ends.answer().await, (cookie, NO_SPACE));
    }
}

#[tokio::test]
async fn what_was_confirmed_and_is_lost_is_told() {
    let mut ends = Ends::new().await;
    ends.ask(WRITE, 1, 0..512).await;
    assert_eq!(ends.answer().await, (1, 0));
    drop(ends.server);
    assert!(ends.carrying.await.unwrap().is_err());
    assert_eq!(ends.behind.settled().await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn nothing_overtakes_a_write_to_the_same_place() {
    let mut ends = Ends::new().await;
    ends.ask(WRITE, 1, 0..512).await;
    assert_eq!(ends.answer().await, (1, 0));
    ends.ask(READ, 2, 256..768).await;
    let (_, write) = ends.request().await;
    assert!(ends.is_quiet().await, "a read would find what was there before");
    ends.confirm(write, 0).await;
    let (kind, read) = ends.request().await;
    assert_eq!(kind, READ);
    reply(&mut ends.server, read, 0, &[vec![7; 512].into()]).await.unwrap();
    assert_eq!(ends.answer().await, (2, 0));
    assert_eq!(take::<512>(&mut ends.client).await, [7; 512]);
}

#[tokio::test]
async fn only_so_much_is_confirmed_before_it_is_there() {
    let mut ends = Ends::new().await;
    ends.ask(WRITE, 1, 0..AHEAD_BYTES_MAX).await;
    assert_eq!(ends.answer().await, (1, 0));
    ends.ask(WRITE, 2, AHEAD_BYTES_MAX..AHEAD_BYTES_MAX + 512).await;
    let ((_, first), (_, second)) = (ends.request().await, ends.request().await);
    ends.confirm(second, NO_SPACE).await;
    assert_eq!(ends.answer().await, (2, NO_SPACE), "it waited, so it hears for itself");
    ends.confirm(first, 0).await;
    ends.behind.settled().await.unwrap();
}
