//! Disks over real sockets, read by the tools that others use.

use super::*;
use crate::control::model::Progress;
use crate::image::fetch::tests::{Manner, Swarm, content, import, name, pull_of, store};
use crate::nbd::tests::Client;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;
use virtuoso_overlay::ids::HostId;

async fn serve(store: &Arc<ImageStore>, image: &StoredImage, swarm: &Arc<Swarm>) -> InUse<Served> {
    let on_complete: OnComplete = Box::new(|_| Box::pin(std::future::ready(())));
    store.serve_nbd(pull_of(image), swarm.clone(), on_complete).await.unwrap()
}

/// A tool's output, or nothing and a word about it if it is not installed.
async fn tool(name: &str, args: Vec<String>) -> Option<std::process::Output> {
    if Command::new(name).arg("--version").output().is_err() {
        eprintln!("skipped: {name} is not installed (packages libnbd-bin, qemu-utils)");
        return None;
    }
    let mut command = tokio::process::Command::new(name);
    Some(command.args(args).output().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_read_what_was_imported_while_it_is_fetched() {
    let ((tmp, from), (kept, to)) = (store(), store());
    let image = import(&tmp, &from, "one", &content(40));
    let swarm = Arc::new(Swarm::default());
    swarm.add(1, &from, Manner::Honest);
    swarm.add(2, &from, Manner::Honest);
    let served = serve(&to, &image, &swarm).await;
    let mode = fs::metadata(served.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let uri = format!("nbd+unix:///?socket={}", served.path().display());
    if let Some(info) = tool("nbdinfo", vec!["--size".into(), uri.clone()]).await {
        assert_eq!(String::from_utf8_lossy(&info.stdout).trim(), image.size_bytes.to_string());
    }
    if let Some(list) = tool("nbdinfo", vec!["--list".into(), uri.clone()]).await {
        assert!(String::from_utf8_lossy(&list.stdout).contains("export=\"pulled\""), "{list:?}");
    }
    let copy = kept.path().join("copy.raw");
    if let Some(copied) = tool("nbdcopy", vec![uri.clone(), copy.display().to_string()]).await {
        assert!(copied.status.success(), "{copied:?}");
        assert!(fs::read(&copy).unwrap() == content(40));
    }
    let source = tmp.path().join("source.raw").display().to_string();
    let args = ["compare", "-f", "raw", "-F", "raw", &source, &uri].map(str::to_owned).to_vec();
    if let Some(compared) = tool("qemu-img", args).await {
        assert!(compared.status.success(), "{compared:?}");
    }
}

#[tokio::test]
async fn only_what_is_read_comes_while_the_reader_is_busy_and_reads_wait_for_a_provider() {
    let ((tmp, from), (_kept, to)) = (store(), store());
    let image = import(&tmp, &from, "one", &content(60));
    let swarm = Arc::new(Swarm::default());
    let sent = swarm.add(1, &from, Manner::Honest);
    let served = serve(&to, &image, &swarm).await;
    let mut client = Client::connect(served.path()).await;
    let at = 30 * CHUNK_BYTES as u64 + 7;
    assert_eq!(client.read(at, 100).await, content(60)[at as usize..][..100]);
    assert!((1..=1 + AHEAD).contains(&sent.load(Ordering::Relaxed)));

    // The only host that has it goes away, and comes back.
    swarm.clear();
    let reading = tokio::spawn(async move {
        let at = 50 * CHUNK_BYTES as u64;
        (client.read(at, 10).await, at)
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!reading.is_finished(), "a read that can't be served is an error or zeros");
    swarm.add(2, &from, Manner::Honest);
    let (read, at) = tokio::time::timeout(Duration::from_secs(20), reading).await.expect("no read").unwrap();
    assert_eq!(read, content(60)[at as usize..][..10]);
    drop(served);
    assert!(!to.has(image.digest));
}

#[tokio::test]
async fn a_damaged_chunk_is_fetched_again_and_all_of_it_gets_its_name() {
    let ((tmp, from), (_kept, to)) = (store(), store());
    let image = import(&tmp, &from, "one", &content(5));
    let swarm = Arc::new(Swarm::default());
    swarm.add(1, &from, Manner::Honest);
    let (here, is_here) = tokio::sync::oneshot::channel();
    let on_complete: OnComplete = Box::new(|stored| {
        here.send(stored).unwrap();
        Box::pin(std::future::ready(()))
    });
    let served = to.serve_nbd(pull_of(&image), swarm.clone(), on_complete).await.unwrap();
    // Without it, all comes too, but later.
    to.pull(pull_of(&image), swarm.clone(), watch::Sender::new(Progress::default())).await.unwrap();
    let stored = tokio::time::timeout(Duration::from_secs(20), is_here).await.expect("never quiet").unwrap();
    assert_eq!((stored.name, stored.digest), (name("pulled"), image.digest));
    let (digest, _) = to.manifest(&name("pulled")).unwrap().chunk_at(0);
    fs::write(to.chunks.path(digest), b"damaged").unwrap();
    let mut client = Client::connect(served.path()).await;
    assert_eq!(client.read(0, 16).await, content(5)[..16]);
    // Several chunks at once, and a second time what was found whole.
    let (at, length) = (CHUNK_BYTES - 7, 3 * CHUNK_BYTES);
    for _ in 0..2 {
        assert!(client.read(at as u64, length as u32).await == content(5)[at..at + length]);
    }
    assert_eq!(swarm.lies(), Vec::<HostId>::new());
    assert!(client.request(1, 0, 0).await == 1 && client.request(0, u64::MAX, 9).await == 22);
}

#[tokio::test]
async fn vms_of_one_image_share_a_server_and_a_pull_joins_them() {
    let ((tmp, from), (_kept, to)) = (store(), store());
    let image = import(&tmp, &from, "one", &content(60));
    let swarm = Arc::new(Swarm::default());
    let sent = swarm.add(1, &from, Manner::Honest);
    let (first, second) = tokio::join!(serve(&to, &image, &swarm), serve(&to, &image, &swarm));
    assert_eq!(first.path(), second.path());
    drop(first);
    let mut client = Client::connect(second.path()).await;
    let at = 30 * CHUNK_BYTES as u64;
    assert_eq!(client.read(at, 9).await, content(60)[at as usize..][..9]);

    let pull = || to.pull(pull_of(&image), swarm.clone(), watch::Sender::new(Progress::default()));
    let cancelled = tokio::time::timeout(Duration::ZERO, pull()).await;
    assert!(cancelled.is_err());
    // What a pull leaves to the disks stays; the next one adds what is missing.
    assert_eq!(client.read(at + 9, 9).await, content(60)[at as usize + 9..][..9]);
    let (one, two) = tokio::join!(pull(), pull());
    assert_eq!((one.unwrap().digest, two.unwrap().digest), (image.digest, image.digest));
    assert_eq!(sent.load(Ordering::Relaxed), 60, "something came twice, or not at all");
}

#[tokio::test]
async fn what_vms_use_is_not_removed() {
    let ((tmp, from), (kept, to)) = (store(), store());
    let image = import(&tmp, &from, "one", &content(5));
    let swarm = Arc::new(Swarm::default());
    swarm.add(1, &from, Manner::Honest);
    to.pull(pull_of(&image), swarm.clone(), watch::Sender::new(Progress::default())).await.unwrap();
    let served = serve(&to, &image, &swarm).await;
    let path = served.path().to_owned();
    assert!(matches!(to.remove(name("pulled")).await, Err(ImageError::InUse(_))));
    drop(served);
    // The VM is stopped, and the agent too; then it starts without any other host.
    let to = Arc::new(ImageStore::open(kept.path()).unwrap());
    to.retain_held(&BTreeSet::from([image.digest])).unwrap();
    assert!(matches!(to.remove(name("pulled")).await, Err(ImageError::InUse(_))));
    swarm.clear();
    let served = serve(&to, &image, &swarm).await;
    assert_eq!(served.path(), path);
    // It runs, whatever the list of VMs says.
    to.retain_held(&BTreeSet::new()).unwrap();
    assert!(matches!(to.remove(name("pulled")).await, Err(ImageError::InUse(_))));
    assert_eq!(Client::connect(&path).await.read(0, 9).await, content(5)[..9]);
    drop(served);
    to.retain_held(&BTreeSet::new()).unwrap();
    to.remove(name("pulled")).await.unwrap();
    let (digest, _) = from.manifest(&name("one")).unwrap().chunk_at(0);
    assert!(!to.chunks.path(digest).exists());
}

#[tokio::test]
async fn a_read_that_nobody_serves_fails_and_tells_when_to_try_again() {
    let ((tmp, from), (_kept, to)) = (store(), store());
    let image = import(&tmp, &from, "one", &content(5));
    let swarm = Arc::new(Swarm::default());
    swarm.add(1, &from, Manner::Honest);
    let served = serve(&to, &image, &swarm).await;
    swarm.clear();
    let mut supply = served.supply();
    let mut client = Client::connect(served.path()).await;
    assert_eq!(client.request(0, 0, 9).await, 5);
    assert!(matches!(&*supply.borrow_and_update(), Supply::Lost(_)));
    assert_eq!(client.request(0, 0, 9).await, 5, "nothing has changed");
    swarm.add(2, &from, Manner::Honest);
    supply.wait_for(|supply| *supply == Supply::Flowing).await.unwrap();
    assert_eq!(client.read(0, 9).await, content(5)[..9]);
}
