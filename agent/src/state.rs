//! The state directory: one agent at a time, files that are whole or named as damaged, nothing silently replaced.
//! What the files mean is for their owners to know.

pub mod sealed;

use anyhow::{Context, anyhow, ensure};
use sealed::Kind;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Held by the agent that uses the directory; contains its process id.
const LOCK_FILE: &str = "lock";
/// The image store.
const IMAGES_DIR: &str = "images";
/// Suffix of a file that is being written. Its owner died if it's there at start.
const UNFINISHED: &str = "new";

/// An open state directory. Only its owner may read it; the lock is held until this is dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Kept open: closing it releases the lock.
    _lock: File,
    /// Files whose content was read whole or written by us, so that replacing them loses nothing.
    replaceable: Mutex<BTreeSet<String>>,
}

impl StateDir {
    /// Creates the directory if needed and locks it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        prepare(path)?;
        let lock = lock(path)?;
        let dir = Self { path: path.into(), _lock: lock, replaceable: Mutex::default() };
        dir.remove_unfinished()?;
        Ok(dir)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the image store lives.
    pub fn images(&self) -> PathBuf {
        self.path.join(IMAGES_DIR)
    }

    /// Reads a file of the given format version, or `None` if there is none.
    pub fn read(&self, kind: &Kind) -> anyhow::Result<Option<Vec<u8>>> {
        let content = sealed::read(&self.path.join(kind.name), kind)?;
        self.replaceable().insert(kind.name.into());
        Ok(content)
    }

    /// Writes a file, whole or not at all. A file there that can't be read is not replaced.
    pub fn write(&self, kind: &Kind, content: &[u8]) -> anyhow::Result<()> {
        let mut replaceable = self.replaceable();
        if !replaceable.contains(kind.name) {
            sealed::read(&self.path.join(kind.name), kind)?;
        }
        sealed::write(&self.path.join(kind.name), kind, content)?;
        replaceable.insert(kind.name.into());
        Ok(())
    }

    /// Writes a file that must not exist yet.
    pub fn create(&self, kind: &Kind, content: &[u8]) -> anyhow::Result<()> {
        let mut replaceable = self.replaceable();
        sealed::create(&self.path.join(kind.name), kind, content)?;
        replaceable.insert(kind.name.into());
        Ok(())
    }

    /// [`Self::read`] for JSON.
    pub fn read_json<T: DeserializeOwned>(&self, kind: &Kind) -> anyhow::Result<Option<T>> {
        let Some(content) = self.read(kind)? else { return Ok(None) };
        let path = self.path.join(kind.name);
        serde_json::from_slice(&content).map(Some).map_err(|error| {
            self.replaceable().remove(kind.name);
            anyhow!(sealed::Unreadable { path, reason: sealed::Reason::Content(error.to_string()) })
        })
    }

    /// [`Self::write`] for JSON.
    pub fn write_json<T: Serialize>(&self, kind: &Kind, value: &T) -> anyhow::Result<()> {
        let mut content = serde_json::to_vec_pretty(value).with_context(|| format!("Can't encode {}", kind.name))?;
        content.push(b'\n');
        self.write(kind, &content)
    }

    /// A poisoned lock means that a write panicked; the set is still true, because it is changed last.
    fn replaceable(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.replaceable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_unfinished(&self) -> anyhow::Result<()> {
        let entries = fs::read_dir(&self.path).with_context(|| format!("Can't list {}", self.path.display()))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == UNFINISHED) && path.is_file() {
                fs::remove_file(&path).with_context(|| format!("Can't remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// The directory exists, is ours and is closed to others.
fn prepare(path: &Path) -> anyhow::Result<()> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let created = DirBuilder::new().recursive(true).mode(0o700).create(path);
            return created.with_context(|| format!("Can't create the state directory {}", path.display()));
        }
        Err(error) => return Err(error).with_context(|| format!("Can't use the state directory {}", path.display())),
        Ok(metadata) => {
            ensure!(metadata.is_dir(), "The state directory {} is not a directory", path.display());
            if metadata.mode() & 0o077 == 0 {
                return Ok(());
            }
        }
    }
    // A directory that someone made for us is closed; one with other content in it is somebody else's.
    let mut entries = fs::read_dir(path).with_context(|| format!("Can't list {}", path.display()))?;
    ensure!(
        path.join(LOCK_FILE).exists() || entries.next().is_none(),
        "{} is no state directory: it has other content, and other users may enter it. Name a directory of its own \
         with --state-dir, or close it with `chmod 700 {0}`",
        path.display()
    );
    let closed = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    closed.with_context(|| format!("Can't close the state directory {} to other users", path.display()))
}

/// Takes the lock, or says who has it.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(LOCK_FILE);
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = opened.with_context(|| format!("Can't open {}", path.display()))?;
    // SAFETY: the descriptor is open for the whole call; flock touches no memory of ours.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        let error = std::io::Error::last_os_error();
        if error.kind() != ErrorKind::WouldBlock {
            return Err(error).with_context(|| format!("Can't lock {}", path.display()));
        }
        let mut pid = String::new();
        let _ = file.take(20).read_to_string(&mut pid);
        let holder =
            if pid.trim().is_empty() { "another agent".into() } else { format!("the agent with pid {}", pid.trim()) };
        return Err(anyhow!(
            "The state directory {} is in use by {holder}: stop that agent, or give this one its own with --state-dir",
            dir.display()
        ));
    }
    let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.with_context(|| format!("Can't write {}", path.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sealed::Unreadable;

    const PEERS: Kind = Kind { name: "peers.json", version: 1 };

    fn open(dir: &Path) -> StateDir {
        StateDir::open(&dir.join("state")).unwrap()
    }

    #[test]
    fn is_created_closed_and_keeps_its_files() {
        let tmp = tempfile::tempdir().unwrap();
        let state = open(tmp.path());
        assert_eq!(fs::metadata(state.path()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(state.read_json::<Vec<u32>>(&PEERS).unwrap(), None);
        state.write_json(&PEERS, &[1, 2]).unwrap();
        state.write_json(&PEERS, &[3]).unwrap();
        drop(state);
        assert_eq!(open(tmp.path()).read_json::<Vec<u32>>(&PEERS).unwrap(), Some(vec![3]));
    }

    #[test]
    fn a_second_agent_hears_who_has_it() {
        let tmp = tempfile::tempdir().unwrap();
        let _first = open(tmp.path());
        let error = StateDir::open(&tmp.path().join("state")).unwrap_err().to_string();
        assert!(error.contains(&format!("the agent with pid {}", std::process::id())), "{error}");
    }

    #[test]
    fn an_open_directory_is_closed_unless_it_is_someone_elses() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("state");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        drop(open(tmp.path()));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);

        let other = tmp.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(other.join("letter.txt"), "mine").unwrap();
        assert!(StateDir::open(&other).unwrap_err().to_string().contains("other content"));
        assert!(!other.join(LOCK_FILE).exists());
    }

    #[test]
    fn a_damaged_file_is_named_and_kept() {
        let tmp = tempfile::tempdir().unwrap();
        let state = open(tmp.path());
        state.write_json(&PEERS, &[1, 2, 3]).unwrap();
        drop(state);
        let path = tmp.path().join("state/peers.json");
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let state = open(tmp.path());
            let error = state.read_json::<Vec<u32>>(&PEERS).unwrap_err();
            assert!(error.downcast_ref::<Unreadable>().is_some_and(|e| e.path == path), "{length}: {error}");
            state.write_json(&PEERS, &[9]).unwrap_err();
            assert_eq!(fs::read(&path).unwrap(), &whole[..length]);
        }
    }

    #[test]
    fn content_of_another_shape_is_kept_too() {
        let tmp = tempfile::tempdir().unwrap();
        let state = open(tmp.path());
        state.write(&PEERS, b"not json").unwrap();
        assert!(state.read_json::<Vec<u32>>(&PEERS).unwrap_err().is::<Unreadable>());
    }

    #[test]
    fn what_a_dead_agent_left_unfinished_goes() {
        let tmp = tempfile::tempdir().unwrap();
        drop(open(tmp.path()));
        let left = tmp.path().join("state/peers.json.new");
        fs::write(&left, "half").unwrap();
        drop(open(tmp.path()));
        assert!(!left.exists());
    }
}
