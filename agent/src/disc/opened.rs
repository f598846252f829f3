//! Files opened with the rights of the user who names them, so that nobody lends what he may not read.

use anyhow::{Context, anyhow, ensure};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// A user of this host, as the kernel tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The user's id.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
}

/// Tells one content of a file from another, as far as the file system does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    pub(super) size_bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        }
    }
}

/// Opens a file for reading as `user`.
///
/// # Errors
/// If the user may not read it, or it is no file with content.
pub(super) fn open(path: &Path, user: &User) -> anyhow::Result<(File, Identity)> {
    ensure!(path.is_absolute(), "{} is a relative path: the agent has another directory", path.display());
    let file = open_as(path, user).with_context(|| format!("Can't read {}", path.display()))?;
    let metadata = file.metadata().with_context(|| format!("Can't read {}", path.display()))?;
    ensure!(metadata.is_file(), "{} is not a file", path.display());
    ensure!(metadata.size() > 0, "{} is empty", path.display());
    Ok((file, Identity::of(&metadata)))
}

fn open_as(path: &Path, user: &User) -> anyhow::Result<File> {
    // SAFETY: the call only reads this process's user.
    let own = unsafe { libc::geteuid() };
    if user.uid == own {
        return Ok(open_now(path)?);
    }
    if own != 0 {
        // This process can't become another user. What everybody may read, that user may read too.
        let file = open_now(path)?;
        let is_public = file.metadata()?.permissions().mode() & 0o004 != 0;
        ensure!(is_public, "The agent is not root, so it lends only what everybody may read");
        return Ok(file);
    }
    std::thread::scope(|scope| {
        // The rights are those of this thread alone, and end with it.
        let opening = scope.spawn(|| {
            become_user(user).context("Can't take the user's rights")?;
            Ok(open_now(path)?)
        });
        opening.join().map_err(|_| anyhow!("Opening it broke off"))?
    })
}

fn open_now(path: &Path) -> io::Result<File> {
    // A pipe must not hold the agent up; it is refused afterwards.
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Gives this thread the rights of `user` in file systems. System calls, because the library's functions are for the
/// whole process.
fn become_user(user: &User) -> io::Result<()> {
    // SAFETY: the pointer and the count are those of the list, which lives through the call.
    if unsafe { libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for (call, id) in [(libc::SYS_setfsgid, user.gid), (libc::SYS_setfsuid, user.uid)] {
        // SAFETY: the calls take plain numbers. They tell the id before, and so the second one whether the first took.
        let now = unsafe {
            libc::syscall(call, id);
            libc::syscall(call, id)
        };
        if u32::try_from(now) != Ok(id) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};

    fn own() -> User {
        // SAFETY: the calls only read this process's user and group.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        User { uid, gid, groups: vec![] }
    }

    #[test]
    fn only_files_with_content_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.iso");
        fs::write(&file, "").unwrap();
        assert!(open(&file, &own()).unwrap_err().to_string().ends_with("is empty"));
        fs::write(&file, "CD001").unwrap();
        let (_, identity) = open(&file, &own()).unwrap();
        assert_eq!(identity.size_bytes, 5);
        assert!(open(dir.path(), &own()).unwrap_err().to_string().ends_with("is not a file"));
        assert!(open(Path::new("a.iso"), &own()).unwrap_err().to_string().contains("relative"));
        assert!(format!("{:#}", open(Path::new("/nonexistent"), &own()).unwrap_err()).contains("No such file"));
    }

    #[test]
    fn users_open_only_what_they_may_read() {
        if own().uid != 0 {
            println!("skipped: only root can become another user");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let file = dir.path().join("a.iso");
        fs::write(&file, "CD001").unwrap();
        let nobody = |groups| User { uid: 65_534, gid: 65_534, groups };
        let rights = |mode| fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        rights(0o644);
        assert!(open(&file, &nobody(vec![])).is_ok());
        rights(0o640);
        assert!(open(&file, &nobody(vec![])).is_err());
        assert!(open(&file, &nobody(vec![0])).is_ok());
        assert!(open(&file, &own()).is_ok());
        // A directory that is closed closes what is in it.
        rights(0o644);
        fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        assert!(open(&file, &nobody(vec![])).is_err());
    }
}
