//! Who calls, as the kernel tells, and what that user may do. The kernel's answer is taken when the connection is
//! accepted; it can't be forged.

use super::socket::ControlSocket;
use crate::disc::User;
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Groups of one user that are looked at: the kernel's own bound.
const GROUPS_MAX: usize = 65_536;

/// The user at the other end of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) pid: i32,
    /// Primary and supplementary groups.
    pub(super) groups: Vec<u32>,
}

/// Who may do more than look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Policy {
    /// The agent's own user.
    pub(super) agent_uid: u32,
    /// The socket's group, if the operator's group exists.
    pub(super) socket_gid: Option<u32>,
}

impl Policy {
    /// Whether `caller` may change things: root, the agent's own user and members of the socket's group may.
    pub(super) fn may_change(&self, caller: &Caller) -> bool {
        caller.uid == 0
            || caller.uid == self.agent_uid
            || self.socket_gid.is_some_and(|gid| caller.groups.contains(&gid))
    }
}

impl Caller {
    /// As whom files are opened for this caller.
    pub(super) fn user(&self) -> User {
        // The primary group stands last.
        let gid = self.groups.last().copied().unwrap_or(u32::MAX);
        User { uid: self.uid, gid, groups: self.groups.clone() }
    }

    /// The peer of a connected Unix socket.
    pub(super) fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let credentials = credentials(socket)?;
        let mut groups = supplementary_groups(socket)?;
        groups.push(credentials.gid);
        Ok(Self { uid: credentials.uid, pid: credentials.pid, groups })
    }
}

/// A caller that the kernel can't name may do nothing.
#[derive(Clone, Debug)]
pub(super) struct KnownCaller(pub(super) Option<Caller>);

impl Connected<IncomingStream<'_, ControlSocket>> for KnownCaller {
    fn connect_info(stream: IncomingStream<'_, ControlSocket>) -> Self {
        Self(Caller::of(stream.io().as_fd()).ok())
    }
}

/// The process that listens at the other end of `socket`.
pub(super) fn pid(socket: BorrowedFd<'_>) -> io::Result<i32> {
    Ok(credentials(socket)?.pid)
}

fn credentials(socket: BorrowedFd<'_>) -> io::Result<libc::ucred> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `credentials`, which lives through the call; any bytes are a `ucred`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(credentials) } else { Err(io::Error::last_os_error()) }
}

fn supplementary_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut length = size_of_val(groups.as_slice()) as libc::socklen_t;
        // SAFETY: the pointer and the length describe the buffer of `groups`, which lives through the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let needed = length as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(needed);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The kernel says how much it needs.
        if error.raw_os_error() != Some(libc::ERANGE) || needed <= groups.len() || needed > GROUPS_MAX {
            return Err(error);
        }
        groups.resize(needed, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_kernel_names_the_caller() {
        let (socket, _other) = UnixStream::pair().unwrap();
        let caller = Caller::of(socket.as_fd()).unwrap();
        assert_eq!(caller.pid as u32, std::process::id());
        assert!(!caller.groups.is_empty());
    }

    #[test]
    fn root_the_agent_and_the_group_may_change_things() {
        let policy = Policy { agent_uid: 100, socket_gid: Some(50) };
        let caller = |uid, groups: &[u32]| Caller { uid, pid: 1, groups: groups.into() };
        assert!(policy.may_change(&caller(0, &[0])));
        assert!(policy.may_change(&caller(100, &[100])));
        assert!(policy.may_change(&caller(1000, &[1000, 50])));
        assert!(!policy.may_change(&caller(1000, &[1000, 0])));
        assert!(!Policy { socket_gid: None, ..policy }.may_change(&caller(1000, &[50])));
    }
}
