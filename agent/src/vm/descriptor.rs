//! Descriptors that are passed to QEMU: with the command that needs them, as Unix sockets do.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Room for the header of a control message and one descriptor, aligned as the kernel wants it.
type Control = [u64; 3];

/// Sends as much of `bytes` as the socket takes, and `descriptor` with the first of them; how many those were.
///
/// # Errors
/// As of `sendmsg`.
pub(super) fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], descriptor: &OwnedFd) -> io::Result<usize> {
    let number = descriptor.as_raw_fd();
    let length = u32::try_from(size_of_val(&number)).unwrap_or_default();
    let mut control: Control = [0; 3];
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all bits zero are a valid, empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: `control` has room for the header and one descriptor, and outlives the call; the macros stay within it.
    let sent = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(length) as _;
        libc::CMSG_DATA(header).cast::<libc::c_int>().write_unaligned(number);
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::{AsFd, FromRawFd};
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_other_side_has_the_same_file() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut kept, passed) = UnixStream::pair().unwrap();
        assert_eq!(send_with(ours.as_fd(), b"take", &passed.into()).unwrap(), 4);
        let (mut bytes, mut control) = ([0_u8; 8], [0_u64; 3]);
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: all pointers are to the locals above, with their lengths; the one descriptor that comes is ours.
        let mut taken = unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control);
            assert_eq!(libc::recvmsg(theirs.as_raw_fd(), &raw mut message, 0), 4);
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            UnixStream::from_raw_fd(libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned())
        };
        assert_eq!(&bytes[..4], b"take");
        taken.write_all(b"hello").unwrap();
        let mut heard = [0; 5];
        kept.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }
}
