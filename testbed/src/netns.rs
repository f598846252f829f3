//! One network namespace of a lab: made on creation, deleted on drop. Interfaces are made by `ip`.
//! The namespace names are plain because they live in the run's private `/run/netns` (`sandbox.rs`).

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::command;
use crate::sys;

#[derive(Clone)]
pub(crate) struct Namespace(Arc<Named>);

struct Named {
    name: String,
    file: File,
}

impl Namespace {
    pub(crate) fn create(name: &str) -> Result<Self> {
        command::run(Command::new("ip").args(["netns", "add", name]))
            .with_context(|| format!("Cannot make network namespace {name}"))?;
        let file = File::open(path(name)).with_context(|| format!("Cannot open network namespace {name}"))?;
        let namespace = Self(Arc::new(Named { name: name.to_owned(), file }));
        namespace.ip("link set lo up")?;
        // Duplicate address detection would keep each IPv6 address back for seconds; labs have no duplicates.
        namespace.enter(|| {
            for scope in ["all", "default"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad"), "0")?;
            }
            Ok(())
        })?;
        Ok(namespace)
    }

    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// `ip` inside this namespace, its arguments separated by blanks.
    pub(crate) fn ip(&self, arguments: &str) -> Result<String> {
        command::run(Command::new("ip").args(["-n", self.name()]).args(arguments.split_whitespace()))
    }

    /// A command that will run inside this namespace, with the `/sys` that belongs to it.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        let namespace = self.0.file.as_raw_fd();
        // SAFETY: only async-signal-safe system calls, on values made before the fork.
        unsafe { command.pre_exec(move || settle(namespace)) };
        command
    }

    /// Runs `work` on a thread of its own inside this namespace and waits for it.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = self.0.file.as_raw_fd();
        let outcome = thread::scope(|scope| {
            scope
                .spawn(move || {
                    sys::enter_network(namespace).context("Cannot enter a network namespace")?;
                    work()
                })
                .join()
        });
        outcome.map_err(|_| anyhow!("A thread in network namespace {} panicked", self.name()))?
    }

    /// Bytes received and sent by `interface` since it was made.
    pub(crate) fn interface_bytes(&self, interface: &str) -> Result<(u64, u64)> {
        let text = self.enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?))?;
        parse_interface_bytes(&text, interface)
            .with_context(|| format!("No counters of {interface} in {}", self.name()))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // A failure leaves a name in the run's private directory, which ends with the run.
        let _ = command::run(Command::new("ip").args(["netns", "delete", &self.name]));
    }
}

fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// The child's last steps before exec.
fn settle(namespace: RawFd) -> std::io::Result<()> {
    sys::enter_network(namespace)?;
    sys::unshare(libc::CLONE_NEWNS)?;
    // Where a container forbids this, only what reads /sys/class/net sees the wrong interfaces.
    if sys::mount(c"sysfs", c"/sys", c"sysfs", 0).is_ok() {
        // A new /sys has an empty directory here.
        let _ = sys::mount(c"/run/cgroup", c"/sys/fs/cgroup", c"none", libc::MS_BIND | libc::MS_REC);
    }
    Ok(())
}

fn parse_interface_bytes(text: &str, interface: &str) -> Option<(u64, u64)> {
    let counters = text.lines().find_map(|line| {
        let (name, counters) = line.split_once(':')?;
        (name.trim() == interface).then_some(counters)
    })?;
    let mut columns = counters.split_whitespace();
    let received = columns.next()?.parse().ok()?;
    let sent = columns.nth(7)?.parse().ok()?;
    Some((received, sent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_interface_counters() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes\n\
                    wan: 100 2 0 0 0 0 0 0 300 4 0 0 0 0 0 0\n  lo: 5 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n";
        assert_eq!(parse_interface_bytes(text, "wan"), Some((100, 300)));
        assert_eq!(parse_interface_bytes(text, "eth0"), None);
    }
}
