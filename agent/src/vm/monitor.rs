//! The way to QEMU's monitor, which outlives the agent.
//!
//! QEMU settles with each new client what the monitor can do, and does so in its main loop. One that waits there for
//! memory of another host can be helped out of band only, which must have been settled before. So QEMU keeps the
//! agent's end of the connection open, and the next agent takes it back out of the process.

use super::process::Process;
use super::qmp::{Event, Qmp};
use anyhow::Context;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as Socket;
use std::path::Path;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// What QEMU calls the agent's end.
const KEPT: &str = "monitor0";

/// Connects to the monitor of a process, or goes on with the connection of an earlier agent.
pub(super) async fn connect(process: &Process, path: &Path) -> anyhow::Result<(Qmp, mpsc::Receiver<Event>)> {
    match kept(process, path) {
        Ok(Some(socket)) => match resume(socket).await {
            Ok(resumed) => return Ok(resumed),
            Err(error) => tracing::warn!("QEMU does not go on with the connection of an earlier agent: {error:#}"),
        },
        Ok(None) => {}
        Err(error) => tracing::warn!(
            "This agent may not use descriptors of QEMU ({error}). A VM that was left while it fetched its memory from \
             another host may not be found again"
        ),
    }
    let stream = UnixStream::connect(path).await.with_context(|| format!("Can't connect to {}", path.display()))?;
    let end = stream.as_fd().try_clone_to_owned().context("Can't keep a monitor open")?;
    let (qmp, events) = Qmp::start(stream).await?;
    keep(process, &qmp, end).await?;
    Ok((qmp, events))
}

async fn resume(socket: Socket) -> anyhow::Result<(Qmp, mpsc::Receiver<Event>)> {
    socket.set_nonblocking(true).context("Can't use a monitor")?;
    Ok(Qmp::resume(UnixStream::from_std(socket).context("Can't use a monitor")?).await?)
}

/// Leaves an end with QEMU, if the next agent may take it back: nobody else can connect from then on.
async fn keep(process: &Process, qmp: &Qmp, end: OwnedFd) -> anyhow::Result<()> {
    let standard_input = 0;
    if let Err(error) = process.borrow(standard_input) {
        tracing::debug!("The monitor ends with this agent: {error}");
        return Ok(());
    }
    leave(qmp, end.into()).await
}

/// QEMU makes what it is given wait when it is read, and that is the agent's own end: a thread of the agent would stand
/// still.
async fn leave(qmp: &Qmp, end: Socket) -> anyhow::Result<()> {
    let ours = end.try_clone().context("Can't keep a monitor open")?;
    qmp.give(KEPT, end.into()).await?;
    ours.set_nonblocking(true).context("Can't use a monitor")
}

/// The end of an earlier agent's connection.
fn kept(process: &Process, path: &Path) -> io::Result<Option<Socket>> {
    for number in process.sockets()? {
        let socket = match process.borrow(number) {
            Ok(socket) => Socket::from(socket),
            // It has been closed meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => continue,
            Err(error) => return Err(error),
        };
        // Others are no Unix sockets, or not connected.
        if socket.peer_addr().is_ok_and(|peer| peer.as_pathname().is_some_and(|peer| is_same(peer, path))) {
            return Ok(Some(socket));
        }
    }
    Ok(None)
}

/// Whether both are a socket of the same name of the same VM: what its directory is in may be called by another name.
fn is_same(a: &Path, b: &Path) -> bool {
    tail(a) == tail(b)
}

fn tail(path: &Path) -> (Option<&OsStr>, Option<&OsStr>) {
    (path.parent().and_then(Path::file_name), path.file_name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    #[tokio::test]
    async fn the_end_that_a_process_keeps_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("qmp.sock"), dir.path().join("serial.sock"));
        let listeners = [&path, &other].map(|path| UnixListener::bind(path).unwrap());
        let ends = [&other, &path].map(|path| OwnedFd::from(Socket::connect(path).unwrap()));
        let arguments = ["-c".into(), "sleep 60".into()];
        let spawn = |inherited: &[OwnedFd]| {
            Process::spawn(Path::new("/bin/sh"), &arguments, inherited, &dir.path().join("log")).unwrap()
        };
        let (without, with) = (spawn(&ends[..1]), spawn(&ends));
        drop(ends);
        assert!(kept(&without, &path).unwrap().is_none());
        let found = kept(&with, &path).unwrap().unwrap();
        let (mut server, _) = listeners[0].accept().unwrap();
        io::Write::write_all(&mut &found, b"x").unwrap();
        let mut heard = [0];
        io::Read::read_exact(&mut server, &mut heard).unwrap();
        assert_eq!(heard, *b"x");
        for process in [without, with] {
            process.kill();
            process.ended().await;
        }
    }

    #[tokio::test]
    async fn the_agent_never_waits_in_what_a_process_keeps() {
        let (ours, theirs) = Socket::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let [end, same] = [(); 2].map(|()| ours.try_clone().unwrap());
        theirs.set_nonblocking(true).unwrap();
        let qemu = tokio::spawn(async move {
            let mut qemu = BufReader::new(UnixStream::from_std(theirs).unwrap());
            qemu.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").await.unwrap();
            for id in 1..=2 {
                let mut asked = String::new();
                qemu.read_line(&mut asked).await.unwrap();
                if asked.contains("getfd") {
                    // What QEMU does to the descriptor that comes along.
                    same.set_nonblocking(false).unwrap();
                }
                qemu.write_all(format!("{{\"return\": {{}}, \"id\": {id}}}\r\n").as_bytes()).await.unwrap();
            }
            same
        });
        let (qmp, _events) = Qmp::start(UnixStream::from_std(ours).unwrap()).await.unwrap();
        leave(&qmp, end).await.unwrap();
        let same = qemu.await.unwrap();
        // SAFETY: the call takes no pointers, and the descriptor is open.
        let flags = unsafe { libc::fcntl(same.as_raw_fd(), libc::F_GETFL) };
        assert!(flags & libc::O_NONBLOCK != 0);
    }

    #[test]
    fn sockets_of_other_vms_differ() {
        assert!(is_same(Path::new("/a/vms/1/qmp.sock"), Path::new("/b/../a/vms/1/qmp.sock")));
        assert!(!is_same(Path::new("/a/vms/2/qmp.sock"), Path::new("/a/vms/1/qmp.sock")));
    }
}
