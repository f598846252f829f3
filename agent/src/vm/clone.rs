//! Copies of VMs' disks for their clones: taken on the source's host, fetched by the clone's, over a stream between the
//! two. Only what the VM wrote itself is copied; the image below is shared.
//!
//! The disk of a VM that runs is copied by QEMU, as it is at one moment: what the guest had not written yet is missing,
//! as after a power failure. The copy lies on the source's host until the clone has it, and goes with whoever asked.

use super::error::VmError;
use super::machine::{Live, Machine};
use super::qemu::DISK_NODE;
use crate::control::model::Progress;
use crate::entropy;
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{oneshot, watch};

/// Bytes that are read and written at once.
const STEP_BYTES: usize = 256 << 10;
/// Copies that lie here at once: each may be as large as a disk.
const OFFERS_MAX: usize = 8;
/// What a qcow2 file holds beside its content: a header, and 1/8192 of the content for tables, with reserve.
const OVERHEAD_BYTES: u64 = 16 << 20;
const OVERHEAD_SHARE: u64 = 1024;
/// Bytes of the name of an offer.
const TOKEN_BYTES: usize = 16;

/// Names an offer. Who knows it may fetch the copy.
pub type Token = [u8; TOKEN_BYTES];

/// Copies of disks that other hosts may fetch.
#[derive(Debug)]
pub struct Offers {
    dir: PathBuf,
    offers: Mutex<BTreeMap<Token, Option<Offer>>>,
}

#[derive(Clone, Debug)]
struct Offer {
    path: PathBuf,
    bytes: u64,
    progress: watch::Sender<Progress>,
}

/// A copy of a disk, which goes when this is dropped.
#[derive(Debug)]
pub struct Offered {
    /// Its name.
    pub token: Token,
    offers: Arc<Offers>,
}

impl Offers {
    /// Offers below a directory, which is emptied: nobody fetches what an earlier run offered.
    ///
    /// # Errors
    /// If the directory can't be used.
    pub(super) fn open(dir: PathBuf) -> anyhow::Result<Arc<Self>> {
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("Can't empty {}", dir.display()))?;
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.with_context(|| format!("Can't create {}", dir.display()))?;
        Ok(Arc::new(Self { dir, offers: Mutex::default() }))
    }

    fn path(&self, token: Token) -> PathBuf {
        self.dir.join(format!("{:032x}.qcow2", u128::from_be_bytes(token)))
    }

    /// Copies a VM's disk as it is now.
    pub(super) async fn make(
        self: &Arc<Self>,
        machine: Arc<Machine>,
        progress: watch::Sender<Progress>,
    ) -> anyhow::Result<Offered> {
        let token = entropy::bytes();
        {
            let mut offers = self.offers();
            ensure!(offers.len() < OFFERS_MAX, VmError::ManyClones);
            offers.insert(token, None);
        }
        let offered = Offered { token, offers: self.clone() };
        let path = self.path(token);
        let turn = machine.turn.lock().await;
        match machine.live() {
            Some(live) => {
                drop(turn);
                let (_cancel, cancelled) = oneshot::channel();
                // QEMU must be told to let go of the copy, whatever becomes of who asked for it.
                let copy = copy_live(live, path.clone(), machine.spec().disk_bytes, token, cancelled);
                tokio::spawn(copy).await.context("Copying a disk broke off")??;
            }
            None => {
                let disk = machine.files.disk();
                tokio::fs::copy(&disk, &path).await.with_context(|| format!("Can't copy {}", disk.display()))?;
                drop(turn);
            }
        }
        let bytes = fs::metadata(&path).with_context(|| format!("Can't read {}", path.display()))?.len();
        progress.send_replace(Progress { done_bytes: 0, total_bytes: bytes });
        self.offers().insert(token, Some(Offer { path, bytes, progress }));
        Ok(offered)
    }

    /// Gives a copy to whoever names it.
    ///
    /// # Errors
    /// If there is none of that name, or the other side goes away.
    pub async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<()> {
        let mut token = [0; TOKEN_BYTES];
        stream.read_exact(&mut token).await?;
        let offer = self.find(token).context("There is no copy of that name")?;
        let mut file = File::open(&offer.path).await?;
        stream.write_u64(offer.bytes).await?;
        let (mut buffer, mut done_bytes) = (vec![0; STEP_BYTES], 0);
        while done_bytes < offer.bytes {
            ensure!(self.find(token).is_some(), "Who asked for it has gone away");
            let count = file.read(&mut buffer).await?;
            ensure!(count > 0, "The copy is shorter than it was");
            stream.write_all(&buffer[..count]).await?;
            done_bytes += count as u64;
            offer.progress.send_replace(Progress { done_bytes, total_bytes: offer.bytes });
        }
        stream.shutdown().await?;
        Ok(())
    }

    fn find(&self, token: Token) -> Option<Offer> {
        self.offers().get(&token).cloned().flatten()
    }

    /// No holder can panic half-way.
    fn offers(&self) -> MutexGuard<'_, BTreeMap<Token, Option<Offer>>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        self.offers.offers().remove(&self.token);
        // It may not have been made.
        fs::remove_file(self.offers.path(self.token)).ok();
    }
}

/// Fetches a copy of a disk of at most `disk_bytes` into a new file.
pub(super) async fn fetch(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    token: Token,
    path: &Path,
    disk_bytes: u64,
) -> anyhow::Result<()> {
    stream.write_all(&token).await?;
    stream.flush().await?;
    let bytes = stream.read_u64().await.context("The other host does not give the disk")?;
    let bytes_max = disk_bytes + disk_bytes / OVERHEAD_SHARE + OVERHEAD_BYTES;
    ensure!(bytes <= bytes_max, "The disk has {bytes} bytes, more than the {bytes_max} that it can have");
    let mut file = File::create_new(path).await.with_context(|| format!("Can't write {}", path.display()))?;
    let mut content = BufReader::with_capacity(STEP_BYTES, stream.take(bytes));
    let copied = tokio::io::copy_buf(&mut content, &mut file);
    let copied = copied.await.with_context(|| format!("Can't write {}", path.display()))?;
    ensure!(copied == bytes, "The other host broke off after {copied} of {bytes} bytes of the disk");
    Ok(file.sync_all().await?)
}

/// Has QEMU copy what stands in its disk at this moment.
async fn copy_live(
    live: Live,
    path: PathBuf,
    disk_bytes: u64,
    token: Token,
    cancelled: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    super::disk::make_file(&path, disk_bytes).await?;
    let name = format!("clone{:08x}", u32::from_be_bytes([token[0], token[1], token[2], token[3]]));
    let node = json!({
        "driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": path},
    });
    live.qmp.run_with("blockdev-add", node).await?;
    let copied = back_up(&live, &name, cancelled).await;
    let closed = live.qmp.run_with("blockdev-del", json!({"node-name": name})).await;
    copied?;
    closed?;
    Ok(())
}

async fn back_up(live: &Live, name: &str, mut cancelled: oneshot::Receiver<()>) -> anyhow::Result<()> {
    let mut events = live.events.subscribe();
    let mut ending = live.clone();
    let mut is_cancelled = false;
    let job = json!({
        "job-id": name, "device": DISK_NODE, "target": name, "sync": "top", "auto-dismiss": false,
    });
    live.qmp.run_with("blockdev-backup", job).await?;
    loop {
        if let Some(error) = concluded(&live.qmp.run("query-jobs").await?, name) {
            live.qmp.run_with("job-dismiss", json!({"id": name})).await?;
            ensure!(!is_cancelled, "Copying a disk was cancelled");
            return error.map_or(Ok(()), |error| Err(anyhow::anyhow!("QEMU can't copy the disk: {error}")));
        }
        tokio::select! {
            // Whatever happened, and also if something was missed, the job is looked at again.
            _ = events.recv() => {}
            () = ending.wait_ended() => anyhow::bail!("The VM ended while its disk was copied"),
            // Who asked for it has gone away.
            _ = &mut cancelled, if !is_cancelled => {
                is_cancelled = true;
                live.qmp.run_with("job-cancel", json!({"id": name})).await?;
            }
        }
    }
}

/// Whether a job has ended, and its error.
fn concluded(jobs: &Value, name: &str) -> Option<Option<String>> {
    let job = jobs.as_array()?.iter().find(|job| job["id"] == name)?;
    (job["status"] == "concluded").then(|| job["error"].as_str().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(offers: &Arc<Offers>, content: &[u8]) -> Offered {
        let token = entropy::bytes();
        let path = offers.path(token);
        fs::write(&path, content).unwrap();
        let progress = watch::Sender::default();
        offers.offers().insert(token, Some(Offer { path, bytes: content.len() as u64, progress }));
        Offered { token, offers: offers.clone() }
    }

    #[tokio::test]
    async fn a_copy_is_fetched_by_its_name_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let offers = Offers::open(dir.path().join("copies")).unwrap();
        let content: Vec<u8> = (0..STEP_BYTES + 7).map(|number| number as u8).collect();
        let offered = offered(&offers, &content);
        let fetch_to = |name: &str, token: Token, disk_bytes: u64| {
            let (near, far) = tokio::io::duplex(4096);
            let (offers, path) = (offers.clone(), dir.path().join(name));
            tokio::spawn(async move { offers.serve(far).await });
            async move { fetch(near, token, &path, disk_bytes).await.map(|()| fs::read(path).unwrap()) }
        };
        assert_eq!(fetch_to("one", offered.token, 1 << 20).await.unwrap(), content);
        assert!(fetch_to("two", [0; TOKEN_BYTES], 1 << 20).await.is_err());
        let token = offered.token;
        drop(offered);
        assert!(fetch_to("three", token, 1 << 20).await.is_err());
        assert_eq!(fs::read_dir(dir.path().join("copies")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_disk_that_is_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (near, mut far) = tokio::io::duplex(64);
        far.write_u64(OVERHEAD_BYTES + 2).await.unwrap();
        let error = fetch(near, [0; TOKEN_BYTES], &dir.path().join("disk"), 1).await.unwrap_err();
        assert!(error.to_string().contains("more than"), "{error:#}");
        assert!(!dir.path().join("disk").exists());
    }

    #[test]
    fn jobs_are_read() {
        let jobs = |status: &str| json!([{"id": "other", "status": "concluded"}, {"id": "a", "status": status}]);
        assert_eq!(concluded(&jobs("running"), "a"), None);
        assert_eq!(concluded(&jobs("concluded"), "a"), Some(None));
        let failed = json!([{"id": "a", "status": "concluded", "error": "No space left"}]);
        assert_eq!(concluded(&failed, "a"), Some(Some("No space left".into())));
    }
}
