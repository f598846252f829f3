//! A shelf and its readers in one process.

use super::*;
use crate::nbd::Disk;
use crate::state::StateDir;
use std::sync::atomic::{AtomicBool, Ordering};

/// How patient readers are that need not be.
const SHORT: Duration = Duration::from_secs(2);

struct Lab {
    dir: tempfile::TempDir,
    state: Arc<StateDir>,
    shelf: Arc<Shelf>,
    content: Vec<u8>,
}

fn user() -> User {
    // SAFETY: the calls only read this process's user and group.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    User { uid, gid, groups: vec![] }
}

fn lab(size_bytes: usize) -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..size_bytes as u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let content = content[..size_bytes].to_vec();
    std::fs::write(dir.path().join("a.iso"), &content).unwrap();
    let state = Arc::new(StateDir::open(&dir.path().join("state")).unwrap());
    let shelf = Shelf::open(state.clone()).unwrap();
    Lab { dir, state, shelf, content }
}

impl Lab {
    fn lend(&self) -> Disc {
        self.shelf.lend(&self.dir.path().join("a.iso"), user()).unwrap()
    }
}

/// The way to a shelf, as long as it is up. What is under way breaks off when it goes down.
fn way(shelf: &Arc<Shelf>, up: &Arc<AtomicBool>) -> Connect {
    let (shelf, up) = (shelf.clone(), up.clone());
    Arc::new(move || {
        let connected = if up.load(Ordering::SeqCst) {
            Ok(Box::new(near(&shelf)) as Box<dyn Duplex>)
        } else {
            Err(io::ErrorKind::ConnectionRefused.into())
        };
        std::future::ready(connected).boxed()
    })
}

#[tokio::test]
async fn all_of_a_disc_is_read_in_any_order() {
    let lab = lab((3 << 20) + 100);
    let disc = lab.lend();
    let (remote, _gone) = RemoteDisc::open(way(&lab.shelf, &Arc::new(true.into())), disc.key, PATIENCE).await.unwrap();
    assert_eq!((remote.file_bytes(), remote.size_bytes() % 2048), (lab.content.len() as u64, 0));
    let whole = remote.read(0, remote.size_bytes() as usize).await.unwrap().concat();
    assert!(whole[..lab.content.len()] == lab.content && whole[lab.content.len()..].iter().all(|byte| *byte == 0));
    for (offset, length) in [(262_143, 2), (1 << 20, 5), (0, 1), ((3 << 20) - 1, 101)] {
        assert!(remote.read(offset, length).await.unwrap().concat() == lab.content[offset as usize..][..length]);
    }
}

#[tokio::test]
async fn a_restart_of_the_shelf_is_only_a_pause() {
    let lab = lab(1 << 20);
    let disc = lab.lend();
    let again = Shelf::open(lab.state.clone()).unwrap();
    let (remote, mut gone) = RemoteDisc::open(way(&again, &Arc::new(true.into())), disc.key, PATIENCE).await.unwrap();
    assert_eq!(remote.read(9, 9).await.unwrap().concat(), lab.content[9..18]);
    assert!(gone.try_recv().is_err());
    // A file that has changed is another disc.
    std::fs::write(lab.dir.path().join("a.iso"), "other").unwrap();
    let changed = Shelf::open(lab.state.clone()).unwrap();
    let error = RemoteDisc::open(way(&changed, &Arc::new(true.into())), disc.key, PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn what_is_given_back_is_gone_at_once() {
    let lab = lab(2 << 20);
    let disc = lab.lend();
    let way = way(&lab.shelf, &Arc::new(true.into()));
    let (remote, gone) = RemoteDisc::open(way.clone(), disc.key, PATIENCE).await.unwrap();
    remote.read(0, 1).await.unwrap();
    give_back(&way, disc.key).await.unwrap();
    assert!(remote.read(1 << 20, 1).await.is_err());
    assert!(gone.await.unwrap().contains("taken back"));
    assert!(RemoteDisc::open(way, disc.key, PATIENCE).await.is_err());
}

#[tokio::test]
async fn a_host_that_stays_away_ends_reads_within_the_bound() {
    let lab = lab(2 << 20);
    let disc = lab.lend();
    let up = Arc::new(AtomicBool::new(true));
    let (remote, gone) = RemoteDisc::resume(way(&lab.shelf, &up), disc.key, disc.size_bytes, SHORT);
    up.store(false, Ordering::SeqCst);
    let begin = tokio::time::Instant::now();
    assert!(remote.read(0, 100).await.is_err());
    assert!(begin.elapsed() <= Duration::from_secs(4), "{:?}", begin.elapsed());
    gone.await.unwrap();
    assert!(remote.read(1 << 20, 1).await.is_err());
}

#[tokio::test]
async fn reads_wait_for_a_host_that_comes_back() {
    let lab = lab(1 << 20);
    let disc = lab.lend();
    let up = Arc::new(AtomicBool::new(false));
    let (remote, mut gone) = RemoteDisc::resume(way(&lab.shelf, &up), disc.key, disc.size_bytes, SHORT);
    let reading = tokio::spawn({
        let remote = remote.clone();
        async move { remote.read(5, 5).await }
    });
    tokio::time::sleep(SHORT / 2).await;
    assert!(!reading.is_finished());
    up.store(true, Ordering::SeqCst);
    assert_eq!(reading.await.unwrap().unwrap().concat(), lab.content[5..10]);
    assert!(gone.try_recv().is_err());
}

#[tokio::test]
async fn nobody_reads_what_is_not_there_or_was_not_lent() {
    let lab = lab(1000);
    let disc = lab.lend();
    for questions in [
        vec![DiscRequest::Open(DiscKey([0; 16])), DiscRequest::Read { offset: 0, length: 1 }],
        vec![DiscRequest::Read { offset: 0, length: 1 }],
    ] {
        let mut stream = near(&lab.shelf);
        for question in questions {
            write_message(&mut stream, &question.encode()).await.unwrap();
            let answer = read_message(&mut stream).await.unwrap().unwrap();
            assert_eq!(DiscAnswer::decode(&answer), Ok(DiscAnswer::Unknown));
        }
    }
    for (offset, length) in [(999, 2), (u64::MAX, 2), (0, u32::MAX)] {
        let mut stream = near(&lab.shelf);
        for question in [DiscRequest::Open(disc.key), DiscRequest::Read { offset, length }] {
            write_message(&mut stream, &question.encode()).await.unwrap();
        }
        assert!(read_message(&mut stream).await.unwrap().is_some());
        assert!(read_message(&mut stream).await.unwrap().is_none());
    }
}
