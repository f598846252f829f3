//! Pulls between stores in this process, over pipes whose other ends behave, lie, stall or break.

use super::*;
use crate::image::provide::answer;
use crate::image::talk::{read_message, write_message};
use crate::image::{CHUNK_BYTES, Pull, StoredImage};
use crate::name::Name;
use futures::FutureExt;
use std::fs;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;
use tokio::io::{AsyncWriteExt, DuplexStream};
use virtuoso_overlay::wire::image::{ImageAnswer, ImageRequest};

#[derive(Clone, Copy, PartialEq)]
pub(in crate::image) enum Manner {
    Honest,
    /// Sends chunks of something else.
    Lies,
    /// Takes questions, answers none but those for manifests.
    Stalls,
    /// Breaks the stream after so many chunks, each time.
    Breaks(u64),
    /// Has a slow line: others have time to say what they have.
    Slow,
}

struct Host {
    id: HostId,
    store: Arc<ImageStore>,
    manner: Manner,
    /// Chunks that it sent.
    sent: Arc<AtomicU64>,
}

/// A swarm of hosts with images.
#[derive(Default)]
pub(in crate::image) struct Swarm {
    hosts: Mutex<Vec<Host>>,
    lies: Mutex<Vec<HostId>>,
    talks: Mutex<Vec<tokio::task::AbortHandle>>,
}

impl Providers for Swarm {
    fn find(&self, image: Digest) -> BoxFuture<'_, Vec<Holder>> {
        let holder = |host: &Host| Holder { host: host.id, complete: host.store.has(image) };
        let hosts = self.hosts.lock().unwrap().iter().map(holder).collect();
        std::future::ready(hosts).boxed()
    }

    fn open(&self, id: HostId) -> BoxFuture<'_, Opened> {
        let hosts = self.hosts.lock().unwrap();
        let Some(host) = hosts.iter().find(|host| host.id == id) else {
            return std::future::ready(Err("it is gone".into())).boxed();
        };
        let (here, there) = tokio::io::duplex(1 << 20);
        let talk = tokio::spawn(behave(host.store.clone(), host.manner, host.sent.clone(), there));
        self.talks.lock().unwrap().push(talk.abort_handle());
        std::future::ready(Ok(Box::new(here) as Box<dyn Io>)).boxed()
    }

    fn arrivals(&self) -> BoxStream<'static, ()> {
        futures::stream::pending().boxed()
    }

    fn changed(&self) {}

    fn lied(&self, host: HostId, _: Digest, _: Digest) {
        self.lies.lock().unwrap().push(host);
    }
}

impl Swarm {
    /// All hosts are gone.
    pub(in crate::image) fn clear(&self) {
        self.hosts.lock().unwrap().clear();
        self.talks.lock().unwrap().drain(..).for_each(|talk| talk.abort());
    }

    pub(in crate::image) fn lies(&self) -> Vec<HostId> {
        self.lies.lock().unwrap().clone()
    }

    pub(in crate::image) fn add(&self, n: u8, store: &Arc<ImageStore>, manner: Manner) -> Arc<AtomicU64> {
        let sent = Arc::default();
        let host = Host { id: HostId([n; 32]), store: store.clone(), manner, sent: Arc::clone(&sent) };
        self.hosts.lock().unwrap().push(host);
        sent
    }
}

/// Passes questions on to an honest provider, one by one, and does with the answers what the manner says.
async fn behave(store: Arc<ImageStore>, manner: Manner, sent: Arc<AtomicU64>, mut stream: DuplexStream) {
    let mut chunks = 0;
    while let Ok(Some(question)) = read_message(&mut stream).await {
        if matches!(ImageRequest::decode(&question), Ok(ImageRequest::Follow(_))) {
            // What comes is told for as long as somebody listens.
            let (mut near, far) = tokio::io::duplex(1 << 20);
            write_message(&mut near, &question).await.unwrap();
            let answered = async { answer(&store, far).await.map_err(drop) };
            let copied = async { tokio::io::copy(&mut near, &mut stream).await.map_err(drop) };
            tokio::try_join!(answered, copied).ok();
            return;
        }
        let is_chunk = matches!(ImageRequest::decode(&question), Ok(ImageRequest::Chunk(_)));
        match manner {
            Manner::Stalls if is_chunk => std::future::pending().await,
            Manner::Slow if is_chunk => tokio::time::sleep(Duration::from_millis(50)).await,
            Manner::Breaks(count) if is_chunk && chunks == count => return,
            Manner::Lies if is_chunk => {
                let lie = ImageAnswer::Content(CHUNK_BYTES as u64).encode();
                // Whoever has caught an earlier one listens no longer.
                if write_message(&mut stream, &lie).await.is_err() {
                    return;
                }
                stream.write_all(&vec![0x66; CHUNK_BYTES]).await.ok();
                continue;
            }
            _ => {}
        }
        let (mut near, far) = tokio::io::duplex(1 << 20);
        write_message(&mut near, &question).await.unwrap();
        near.shutdown().await.unwrap();
        let (answered, mut content) = (answer(&store, far), Vec::new());
        let (answered, read) =
            tokio::join!(answered, async { tokio::io::AsyncReadExt::read_to_end(&mut near, &mut content).await });
        answered.unwrap();
        read.unwrap();
        if stream.write_all(&content).await.is_err() {
            return;
        }
        chunks += u64::from(is_chunk);
        sent.fetch_add(u64::from(is_chunk), Ordering::Relaxed);
    }
}

/// Two tries fit.
const PATIENCE: Duration = Duration::from_secs(5);

pub(in crate::image) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(in crate::image) fn store() -> (TempDir, Arc<ImageStore>) {
    let tmp = tempfile::tempdir().unwrap();
    let store = Arc::new(ImageStore::open(tmp.path()).unwrap());
    (tmp, store)
}

/// Chunks that all differ, with a hole.
pub(in crate::image) fn content(chunks: u64) -> Vec<u8> {
    let chunk = |n: u64| if n == 1 { vec![0; CHUNK_BYTES] } else { (n + 1).to_le_bytes().repeat(CHUNK_BYTES / 8) };
    (0..chunks).flat_map(chunk).chain(*b"end").collect()
}

pub(in crate::image) fn import(tmp: &TempDir, store: &ImageStore, text: &str, content: &[u8]) -> StoredImage {
    let path = tmp.path().join("source.raw");
    fs::write(&path, content).unwrap();
    store.import_blocking(&path, &name(text), &mut |_| ControlFlow::Continue(())).unwrap()
}

pub(in crate::image) fn pull_of(image: &StoredImage) -> Pull {
    Pull {
        image: image.digest,
        name: name("pulled"),
        size_bytes: Some(image.size_bytes),
        rate: None,
        patience: PATIENCE,
    }
}

async fn pull(store: &Arc<ImageStore>, image: &StoredImage, swarm: &Arc<Swarm>) -> Result<StoredImage, ImageError> {
    let (progress, told) = watch::channel(Progress::default());
    let pulled = store.pull(pull_of(image), swarm.clone(), progress).await;
    if pulled.is_ok() {
        let told = *told.borrow();
        assert_eq!(told.done_bytes, told.total_bytes);
    }
    pulled
}

fn is_whole(store: &ImageStore) -> bool {
    store.verify_blocking(&name("pulled"), &mut |_| ControlFlow::Continue(())).unwrap().ok
}

fn is_empty(store: &ImageStore) -> bool {
    let files = |part: &str| fs::read_dir(store.dir.join(part)).unwrap().count();
    let chunks = fs::read_dir(store.dir.join("chunks")).unwrap();
    let chunks: usize = chunks.map(|dir| fs::read_dir(dir.unwrap().path()).unwrap().count()).sum();
    chunks + files("partial") + files("manifests") + files("tmp") == 0
}

#[tokio::test]
async fn all_providers_give_their_share_and_nothing_comes_twice() {
    let ((tmp, from), (_kept, to)) = (store(), store());
    let image = import(&tmp, &from, "one", &content(60));
    let swarm = Arc::new(Swarm::default());
    let sent = [swarm.add(1, &from, Manner::Honest), swarm.add(2, &from, Manner::Honest)];
    let pulled = pull(&to, &image, &swarm).await.unwrap();
    assert_eq!((pulled.digest, pulled.stored_bytes), (image.digest, image.stored_bytes));
    assert!(is_whole(&to));
    let sent = sent.map(|sent| sent.load(Ordering::Relaxed));
    assert!(sent[0] + sent[1] == 60 && sent[0] > 5 && sent[1] > 5, "{sent:?}");
    assert!(swarm.lies.lock().unwrap().is_empty());
    assert_eq!(fs::read_dir(to.dir.join("partial")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_second_version_moves_only_what_changed() {
    let ((tmp, from), (_kept, to)) = (store(), store());
    let mut bytes = content(100);
    let swarm = Arc::new(Swarm::default());
    let sent = swarm.add(1, &from, Manner::Honest);
    pull(&to, &import(&tmp, &from, "one", &bytes), &swarm).await.unwrap();
    let before = sent.load(Ordering::Relaxed);
    bytes[40 * CHUNK_BYTES..42 * CHUNK_BYTES].fill(7);
    let second = Pull { name: name("second"), ..pull_of(&import(&tmp, &from, "two", &bytes)) };
    let (progress, _) = watch::channel(Progress::default());
    to.pull(second, swarm.clone(), progress).await.unwrap();
    // Two chunks with one content.
    assert_eq!(sent.load(Ordering::Relaxed) - before, 1);
}

#[tokio::test]
async fn a_liar_is_dropped_and_told_and_the_pull_goes_on() {
    let ((tmp, from), (_kept, to)) = (store(), store());
    let image = import(&tmp, &from, "one", &content(30));
    let swarm = Arc::new(Swarm::default());
    swarm.add(1, &from, Manner::Lies);
    swarm.add(2, &from, Manner::Honest);
    pull(&to, &image, &swarm).await.unwrap();
    assert!(is_whole(&to));
    assert_eq!(*swarm.lies.lock().unwrap(), [HostId([1; 32])]);
}

#[tokio::test]
async fn who_does_not_answer_or_breaks_off_is_worked_around() {
    for manner in [Manner::Stalls, Manner::Breaks(3)] {
        let ((tmp, from), (_kept, to)) = (store(), store());
        let image = import(&tmp, &from, "one", &content(30));
        let swarm = Arc::new(Swarm::default());
        swarm.add(1, &from, manner);
        swarm.add(2, &from, Manner::Honest);
        let begun = Instant::now();
        pull(&to, &image, &swarm).await.unwrap();
        assert!(is_whole(&to));
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_pull_goes_on_where_it_was_when_its_providers_were_lost() {
    let ((tmp, from), (kept, to)) = (store(), store());
    let image = import(&tmp, &from, "one", &content(30));
    let swarm = Arc::new(Swarm::default());
    // It comes back a few times, but never gets further.
    let sent = swarm.add(1, &from, Manner::Breaks(0));
    let lost = pull(&to, &image, &swarm).await.unwrap_err();
    assert!(matches!(&lost, ImageError::Fetch { reason, .. } if reason.contains("kept")), "{lost}");
    swarm.hosts.lock().unwrap()[0].manner = Manner::Breaks(10);
    let mut cut = Box::pin(pull(&to, &image, &swarm));
    assert!(futures::poll!(&mut cut).is_pending());
    while sent.load(Ordering::Relaxed) < 10 {
        assert!(futures::poll!(&mut cut).is_pending());
        tokio::task::yield_now().await;
    }
    // As when the agent ends: nothing is tidied.
    to.close();
    drop(cut);
    let before = sent.load(Ordering::Relaxed);
    swarm.hosts.lock().unwrap()[0].manner = Manner::Honest;
    let to = Arc::new(ImageStore::open(kept.path()).unwrap());
    pull(&to, &image, &swarm).await.unwrap();
    assert!(is_whole(&to));
    let after = sent.load(Ordering::Relaxed) - before;
    assert!(after < 28, "{after} of 30 chunks came again");
}

#[tokio::test]
async fn a_cancelled_pull_leaves_nothing() {
    let ((tmp, from), (_kept, to)) = (store(), store());
    let image = import(&tmp, &from, "one", &content(30));
    let swarm = Arc::new(Swarm::default());
    let sent = swarm.add(1, &from, Manner::Honest);
    let slow = Pull { rate: Some(4 * CHUNK_BYTES as u64), ..pull_of(&image) };
    let (progress, _) = watch::channel(Progress::default());
    let mut pulling = Box::pin(to.pull(slow.clone(), swarm.clone(), progress));
    tokio::select! {
        _ = &mut pulling => panic!("the rate was not kept"),
        () = async {
            while sent.load(Ordering::Relaxed) < 3 {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    drop(pulling);
    tokio::time::timeout(Duration::from_secs(10), async {
        while !is_empty(&to) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("something stays");
}

#[tokio::test]
async fn what_nobody_has_is_an_error_at_once() {
    let ((tmp, from), (_kept, to)) = (store(), store());
    let image = import(&tmp, &from, "one", &content(1));
    let error = pull(&to, &image, &Arc::new(Swarm::default())).await.unwrap_err();
    assert!(error.to_string().ends_with("no host has it"), "{error}");
    assert!(is_empty(&to));
}

#[tokio::test]
async fn who_fetches_gives_what_has_come() {
    let ((tmp, from), (_one, first), (_two, second)) = (store(), store(), store());
    let image = import(&tmp, &from, "one", &content(60));
    // The first has the only whole copy for itself, and that breaks off after a while for good.
    let seen = Arc::new(Swarm::default());
    let sent = seen.add(1, &from, Manner::Honest);
    let slow = Pull { rate: Some(4 * CHUNK_BYTES as u64), ..pull_of(&image) };
    let pulling = first.pull(slow, seen.clone(), watch::Sender::new(Progress::default()));
    let others = async {
        while sent.load(Ordering::Relaxed) < 10 {
            tokio::task::yield_now().await;
        }
        let known = Arc::new(Swarm::default());
        let whole = known.add(1, &from, Manner::Slow);
        let part = known.add(2, &first, Manner::Honest);
        pull(&second, &image, &known).await.unwrap();
        (whole.load(Ordering::Relaxed), part.load(Ordering::Relaxed))
    };
    let (whole, part) = tokio::select! {
        _ = pulling => panic!("the rate was not kept"),
        sent = others => sent,
    };
    assert!(is_whole(&second));
    assert!(part > 0 && whole + part == 60, "{whole} of the whole copy, {part} of the other");
}

#[tokio::test]
async fn a_pull_that_is_more_than_the_owner_lends_leaves_nothing() {
    let ((tmp, from), (_kept, to)) = (store(), store());
    let image = import(&tmp, &from, "one", &content(5));
    let swarm = Arc::new(Swarm::default());
    swarm.add(1, &from, Manner::Honest);
    to.set_limit(Some(3 * CHUNK_BYTES as u64));
    let error = pull(&to, &image, &swarm).await.unwrap_err();
    assert!(matches!(error, ImageError::Quota { used_bytes: 0, .. }), "{error}");
    tokio::time::timeout(Duration::from_secs(30), async {
        while !is_empty(&to) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("something stays");
    to.set_limit(None);
    pull(&to, &image, &swarm).await.unwrap();
}
