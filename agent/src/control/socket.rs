//! The control socket: made with its rights in place, replaced if its agent died, refused if its agent lives, removed
//! at the end. At most [`CONNECTIONS_MAX`] callers at once.

use super::caller::{self, Policy};
use anyhow::{Context, anyhow, bail, ensure};
use axum::serve::Listener;
use std::ffi::CString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Callers at once. A dashboard holds a few; a script in a loop must not eat the agent's descriptors.
pub const CONNECTIONS_MAX: usize = 256;

/// Bytes of a Unix socket's path without the final zero (`sun_path`).
const PATH_BYTES_MAX: usize = 107;

/// A listening control socket. Its file goes when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    permits: Arc<Semaphore>,
    file: SocketFile,
    policy: Policy,
}

/// The socket's file, as long as it is ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl ControlSocket {
    /// Listens at `path`, for root, this user and members of `group`. Needs a tokio runtime.
    pub fn bind(path: &Path, group: &str) -> anyhow::Result<Self> {
        // The socket appears under its name with its rights in place: nobody can connect in between.
        let mut unready = path.as_os_str().to_owned();
        unready.push("~");
        let unready = PathBuf::from(unready);
        let length = unready.as_os_str().len();
        ensure!(
            length <= PATH_BYTES_MAX,
            "The socket path {} is longer than {} bytes",
            path.display(),
            PATH_BYTES_MAX - 1
        );
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)
                .with_context(|| format!("Can't create the socket's directory {}", dir.display()))?;
        }
        remove_stale(path)?;
        remove_stale(&unready)?;
        let listener = StdListener::bind(&unready).with_context(|| format!("Can't listen on {}", unready.display()))?;
        let gid = restrict(&unready, group)?;
        let metadata = fs::metadata(&unready).with_context(|| format!("Can't read {}", unready.display()))?;
        fs::rename(&unready, path).with_context(|| format!("Can't create {}", path.display()))?;
        let file = SocketFile { path: path.into(), identity: (metadata.dev(), metadata.ino()) };
        listener.set_nonblocking(true).context("Can't use the control socket")?;
        let listener = UnixListener::from_std(listener).context("Can't use the control socket")?;
        let policy = Policy { agent_uid: metadata.uid(), socket_gid: gid };
        Ok(Self { listener, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)), file, policy })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    pub(super) fn policy(&self) -> Policy {
        self.policy
    }
}

/// 0660 for the group, 0600 if it doesn't exist: the group that a socket gets otherwise may be everyone's.
fn restrict(path: &Path, group: &str) -> anyhow::Result<Option<u32>> {
    let gid = group_id(group)?;
    if let Some(gid) = gid {
        match chown(path, None, Some(gid)) {
            Ok(()) => {}
            // An agent that is not root and not of that group serves its own user.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return close(path).map(|()| None),
            Err(error) => {
                return Err(error).with_context(|| format!("Can't give {} to group `{group}`", path.display()));
            }
        }
        let opened = fs::set_permissions(path, fs::Permissions::from_mode(0o660));
        opened.with_context(|| format!("Can't set the rights of {}", path.display()))?;
        return Ok(Some(gid));
    }
    close(path).map(|()| None)
}

fn close(path: &Path) -> anyhow::Result<()> {
    let closed = fs::set_permissions(path, fs::Permissions::from_mode(0o600));
    closed.with_context(|| format!("Can't set the rights of {}", path.display()))
}

/// Removes the socket of an agent that died. One that answers is left alone, and so is what is no socket.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("Can't use the socket path {}", path.display()))?,
    };
    ensure!(metadata.file_type().is_socket(), "{} exists and is no socket: name another with --socket", path.display());
    match StdStream::connect(path) {
        Ok(stream) => bail!(
            "The socket {} is taken by {}: stop it, or give this agent another with --socket",
            path.display(),
            caller::pid(stream.as_fd()).map_or_else(|_| "another process".into(), describe)
        ),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("Can't remove the dead socket {}", path.display()))
        }
        Err(error) => Err(anyhow!(error)).with_context(|| format!("Can't tell who has the socket {}", path.display())),
    }
}

fn describe(pid: i32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("pid {pid} ({})", name.trim()),
        Err(_) => format!("pid {pid}"),
    }
}

/// The id of a group, or `None` if there is none of that name.
pub(super) fn group_id(name: &str) -> anyhow::Result<Option<u32>> {
    let text = CString::new(name).with_context(|| format!("Not a group name: `{name}`"))?;
    let mut buffer = vec![0_u8; 1 << 16];
    // SAFETY: `group` holds plain integers and pointers, for which zeros are valid.
    let mut group: libc::group = unsafe { std::mem::zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: name, entry and buffer live through the call, and the length is the buffer's.
    let result = unsafe {
        libc::getgrnam_r(text.as_ptr(), &raw mut group, buffer.as_mut_ptr().cast(), buffer.len(), &raw mut found)
    };
    match result {
        0 => Ok((!found.is_null()).then_some(group.gr_gid)),
        // How different systems say that there is no such group (getgrnam(3)).
        libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM => Ok(None),
        errno => Err(io::Error::from_raw_os_error(errno)).with_context(|| format!("Can't look up group `{name}`")),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "Control socket not removed");
        }
    }
}

impl Listener for ControlSocket {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permits = Arc::clone(&self.permits);
        let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Connection { stream, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A caller's connection, counted.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    _permit: OwnedSemaphorePermit,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("run/v.sock");
        fs::create_dir(tmp.path().join("run")).unwrap();
        drop(StdListener::bind(&path).unwrap());
        let socket = ControlSocket::bind(&path, "no-such-group").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        let error = ControlSocket::bind(&path, "no-such-group").unwrap_err().to_string();
        assert!(error.contains(&format!("is taken by pid {}", std::process::id())), "{error}");
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_is_not_replaced() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("notes.txt");
        fs::write(&path, "mine").unwrap();
        assert!(ControlSocket::bind(&path, "x").unwrap_err().to_string().contains("is no socket"));
        assert!(
            ControlSocket::bind(&tmp.path().join("x".repeat(120)), "x").unwrap_err().to_string().contains("longer")
        );
    }

    #[tokio::test]
    async fn the_file_of_a_successor_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("v.sock");
        let old = ControlSocket::bind(&path, "x").unwrap();
        fs::remove_file(&path).unwrap();
        let _new = ControlSocket::bind(&path, "x").unwrap();
        drop(old);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn the_group_gets_the_socket() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("v.sock");
        assert_eq!(group_id("root").unwrap(), Some(0));
        assert_eq!(group_id("no-such-group").unwrap(), None);
        let socket = ControlSocket::bind(&path, "root").unwrap();
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        // Without root's rights the socket stays with its user.
        assert_eq!(mode, if socket.policy().socket_gid.is_some() { 0o660 } else { 0o600 });
    }
}
