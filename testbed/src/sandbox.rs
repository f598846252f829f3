//! The private world of one run: a mount and a network namespace (and, without root, a user namespace) that
//! nothing outside sees. Network namespaces, TAPs and bridges of a lab hang in it, so the kernel takes them
//! away with the last process of the run even when the testbed itself is killed, and no packet of a lab can
//! reach the machine's own network. Not here: the namespaces of the lab's hosts (`netns.rs`).

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use crate::command;
use crate::sys;

/// Sockets, state directories and namespaces of the run; short, because a socket path has at most 107 bytes.
pub(crate) const WORK_DIR: &str = "/run/vt";

static OWN_USERS: AtomicBool = AtomicBool::new(false);

/// Moves this process in. To be called before any thread exists.
pub(crate) fn enter() -> Result<()> {
    let own = libc::CLONE_NEWNS | libc::CLONE_NEWNET;
    if sys::unshare(own).is_err() {
        OWN_USERS.store(true, Ordering::Relaxed);
        let ids = sys::effective_ids();
        sys::unshare(own | libc::CLONE_NEWUSER).context(
            "Making namespaces is not permitted here: run as root, \
             or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces>0)",
        )?;
        become_root(ids)?;
    }
    sys::mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE).context("Cannot make the mounts private")?;
    sys::mount(c"tmpfs", c"/run", c"tmpfs", libc::MS_NOSUID | libc::MS_NODEV).context("Cannot mount a private /run")?;
    for dir in ["/run/netns", WORK_DIR] {
        fs::create_dir_all(dir).with_context(|| format!("Cannot make {dir}"))?;
    }
    keep_control_groups()
}

/// Agents get a `/sys` of their own namespace, which lacks the control groups: they are kept aside for them.
fn keep_control_groups() -> Result<()> {
    fs::create_dir_all("/run/cgroup").context("Cannot make /run/cgroup")?;
    // A machine without control groups has nothing to keep.
    let _ = sys::mount(c"/sys/fs/cgroup", c"/run/cgroup", c"none", libc::MS_BIND | libc::MS_REC);
    Ok(())
}

/// Why no lab can be built here although there are namespaces; `None` if all is well.
pub(crate) fn obstacle() -> Option<String> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun").err();
    let tun = tun.map(|error| format!("/dev/net/tun cannot be opened ({error}): load the tun module, or run as root"));
    tun.or_else(|| (!command::is_installed("ip")).then(|| "ip is not installed (package iproute2)".to_owned()))
}

/// Whether root is root only in here.
pub(crate) fn has_own_users() -> bool {
    OWN_USERS.load(Ordering::Relaxed)
}

/// An empty directory of this name below the run's private one.
pub(crate) fn fresh_dir(name: &str) -> Result<PathBuf> {
    let dir = PathBuf::from(WORK_DIR).join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("Cannot empty {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("Cannot make {}", dir.display()))?;
    Ok(dir)
}

fn become_root((uid, gid): (u32, u32)) -> Result<()> {
    for (file, line) in
        [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))]
    {
        fs::write(format!("/proc/self/{file}"), line).with_context(|| format!("Cannot write /proc/self/{file}"))?;
    }
    Ok(())
}
