//! A QEMU process: started so that it outlives the agent, found again by the next one, watched without polling.

use super::store::ProcessMark;
use anyhow::{Context, anyhow};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use tokio::io::unix::AsyncFd;

/// Bytes of QEMU's standard error that are shown when it failed.
const WORDS_BYTES_MAX: u64 = 2048;

/// A process, whether this agent started it or an earlier one.
#[derive(Debug)]
pub(super) struct Process {
    mark: ProcessMark,
    pidfd: AsyncFd<OwnedFd>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// Its parent was an earlier agent, so nobody knows.
    Unknown,
}

impl Process {
    /// Starts a program in a session of its own, with `inherited` as its only descriptors beside the standard ones.
    pub(super) fn spawn(
        program: &Path,
        arguments: &[OsString],
        inherited: &[OwnedFd],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(log);
        let log_file = opened.with_context(|| format!("Can't write {}", log.display()))?;
        let output = log_file.try_clone().with_context(|| format!("Can't write {}", log.display()))?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir("/").stdin(Stdio::null()).stdout(output).stderr(log_file);
        let fds: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
        // SAFETY: between fork and exec this calls nothing but functions that are safe there (signal-safety(7)), and
        // allocates nothing.
        unsafe {
            command.pre_exec(move || {
                libc::umask(0o177);
                // What the agent may do with the network is not for a guest's process. Old kernels have no such set.
                libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
                // The next agent is no parent of it, and has to reach its descriptors; of other users' processes this
                // makes none more trusted. Kernels without that check don't know the call.
                libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0);
                if libc::setsid() < 0 {
                    return Err(io::Error::last_os_error());
                }
                for fd in &fds {
                    if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = command.spawn().with_context(|| format!("Can't start {}", program.display()))?;
        let pid = child.id();
        let start = start_ticks(pid).context("The process that was just started is gone")?;
        Self::open(ProcessMark { pid, start })?.context("The process that was just started is gone")
    }

    /// The process of an earlier agent, if it still is that process.
    pub(super) fn open(mark: ProcessMark) -> anyhow::Result<Option<Self>> {
        let pid = libc::pid_t::try_from(mark.pid).context("Not a process id")?;
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ESRCH) => Ok(None),
                _ => Err(anyhow!(error).context(format!("Can't watch process {pid}"))),
            };
        }
        let fd = RawFd::try_from(fd).context("Not a descriptor")?;
        // SAFETY: the descriptor is new and nobody else has it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Read after the descriptor was opened: from here on the id can't pass to another process unnoticed.
        if start_ticks(mark.pid) != Some(mark.start) {
            return Ok(None);
        }
        // SAFETY: an `OwnedFd` gives the same open descriptor for as long as it lives.
        let pidfd = unsafe { AsyncFd::register(pidfd) }.context("Can't watch a process")?;
        Ok(Some(Self { mark, pidfd }))
    }

    pub(super) fn mark(&self) -> ProcessMark {
        self.mark
    }

    /// One of its descriptors, to use it together.
    ///
    /// # Errors
    /// If it has none of this number, or this kernel or its security module does not allow it.
    pub(super) fn borrow(&self, number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.pidfd.as_raw_fd(), number, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the descriptor is new and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// The numbers of its descriptors that are sockets.
    pub(super) fn sockets(&self) -> io::Result<Vec<RawFd>> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.mark.pid))?.flatten();
        let sockets = entries.filter(|entry| {
            // One may have been closed meanwhile.
            fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        });
        Ok(sockets.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// Waits for its end. Cancel safe.
    pub(super) async fn ended(&self) -> Exit {
        // It becomes readable once and stays so; an error would mean that the descriptor is none.
        if let Err(error) = self.pidfd.readable().await {
            tracing::debug!("Can't wait for a process: {error}");
        }
        self.reap()
    }

    fn reap(&self) -> Exit {
        // SAFETY: `siginfo_t` holds plain integers and pointers, for which zeros are valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = libc::id_t::try_from(self.pidfd.as_raw_fd()).unwrap_or_default();
        // SAFETY: the descriptor is open, and `info` lives through the call.
        let result = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED | libc::WNOHANG) };
        if result < 0 {
            return Exit::Unknown;
        }
        // SAFETY: the call has filled the part of a child's end.
        let status = unsafe { info.si_status() };
        match info.si_code {
            libc::CLD_EXITED => Exit::Code(status),
            libc::CLD_KILLED | libc::CLD_DUMPED => Exit::Signal(status),
            _ => Exit::Unknown,
        }
    }

    /// Ends it now.
    pub(super) fn kill(&self) {
        let fd = self.pidfd.as_raw_fd();
        // SAFETY: the descriptor is open; without a siginfo the call reads no memory of ours.
        let result =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, std::ptr::null::<u8>(), 0) };
        if result < 0 {
            // It has ended already.
            tracing::debug!(pid = self.mark.pid, "Can't kill: {}", io::Error::last_os_error());
        }
    }

    /// Seconds of processor time, and bytes of memory, that it has used.
    pub(super) fn usage(&self) -> Option<(f64, u64)> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.mark.pid)).ok()?;
        let fields = after_name(&stat)?;
        // SAFETY: the call takes a plain integer and touches no memory.
        let (ticks, page) = unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let cpu_s = (number(11)? + number(12)?) as f64 / ticks.max(1) as f64;
        Some((cpu_s, number(21)?.saturating_mul(u64::try_from(page).ok()?)))
    }
}

/// When a process was started, in ticks since the machine was.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    after_name(&stat)?.get(19)?.parse().ok()
}

/// The fields of `/proc/PID/stat` from the state on: the name before may have blanks and brackets in it.
fn after_name(stat: &str) -> Option<Vec<&str>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace().collect())
}

/// The last lines of a file.
pub(super) fn last_words(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(WORDS_BYTES_MAX)))?;
        let mut bytes = Vec::new();
        file.take(WORDS_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spawn(script: &str, inherited: &[OwnedFd]) -> (Process, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let arguments = ["-c".into(), script.into()];
        let process = Process::spawn(Path::new("/bin/sh"), &arguments, inherited, &dir.path().join("log")).unwrap();
        (process, dir)
    }

    #[tokio::test]
    async fn an_end_is_told_with_its_words() {
        let (process, dir) = spawn("echo no disk >&2; exit 3", &[]);
        assert_eq!(process.ended().await, Exit::Code(3));
        assert_eq!(last_words(&dir.path().join("log")), "no disk");
        assert!(Process::open(process.mark()).unwrap().is_none());
    }

    #[tokio::test]
    async fn only_the_same_process_is_found_again() {
        let (process, _dir) = spawn("sleep 60", &[]);
        let again = Process::open(process.mark()).unwrap().unwrap();
        let mark = process.mark();
        assert!(Process::open(ProcessMark { start: mark.start + 1, ..mark }).unwrap().is_none());
        assert!(again.usage().is_some());
        again.kill();
        assert_eq!(process.ended().await, Exit::Signal(libc::SIGKILL));
    }

    #[tokio::test]
    async fn descriptors_are_inherited() {
        let (mut reader, writer) = io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        let (process, _dir) =
            spawn(&format!("echo told >/proc/self/fd/{}", writer.as_raw_fd()), std::slice::from_ref(&writer));
        assert_eq!(process.ended().await, Exit::Code(0));
        drop(writer);
        let mut told = String::new();
        reader.read_to_string(&mut told).unwrap();
        assert_eq!(told, "told\n");
    }
}
