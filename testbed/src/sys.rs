//! The system calls the testbed needs and `std` does not offer, each behind a safe function.
//! Not here: anything that decides; all unsafe code of the testbed that is not a `pre_exec` lives in this file.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Nanoseconds of the monotonic clock, comparable between all threads and processes of a lab.
pub(crate) fn monotonic_ns() -> u64 {
    // SAFETY: `timespec` is plain data for which all zeroes is a valid value.
    let mut now: libc::timespec = unsafe { zeroed() };
    // SAFETY: `now` is a valid place for the result.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(result, 0, "the monotonic clock exists on every Linux");
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Sleeps until `deadline_ns` of the monotonic clock; the pace maker of the traffic generators.
pub(crate) fn sleep_until(deadline_ns: u64) {
    let deadline = timespec(Duration::from_nanos(deadline_ns));
    // SAFETY: `deadline` is valid for the call, the remainder is not asked for. An early return (EINTR) is harmless.
    unsafe {
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &raw const deadline, std::ptr::null_mut())
    };
}

pub(crate) fn effective_ids() -> (u32, u32) {
    // SAFETY: both calls cannot fail and touch no memory.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

pub(crate) fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: takes only flags.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// Moves the calling thread into the network namespace behind `namespace`.
pub(crate) fn enter_network(namespace: RawFd) -> io::Result<()> {
    // SAFETY: the kernel checks the descriptor.
    check(unsafe { libc::setns(namespace, libc::CLONE_NEWNET) }).map(drop)
}

/// A new terminal: the side of its user, and that of its programs.
pub(crate) fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let (mut screen, mut line) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: two valid places for the results; name, settings and size are not asked for.
    check(unsafe { libc::openpty(&raw mut screen, &raw mut line, null, null.cast(), null.cast()) })?;
    for fd in [screen, line] {
        // SAFETY: takes only integers.
        check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    }
    // SAFETY: both descriptors are new, and nobody else has them.
    Ok(unsafe { (OwnedFd::from_raw_fd(screen), OwnedFd::from_raw_fd(line)) })
}

/// Whether a terminal passes keys on one by one, and shows none.
pub(crate) fn is_raw(terminal: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: `termios` is plain data for which all zeroes is a valid value.
    let mut settings: libc::termios = unsafe { zeroed() };
    // SAFETY: `settings` is a valid place for the result.
    check(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut settings) })?;
    Ok(settings.c_lflag & (libc::ICANON | libc::ECHO) == 0)
}

/// Allocates nothing, so that a child may call it between fork and exec.
pub(crate) fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: three valid C strings, no data argument.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) }).map(drop)
}

/// Asks the kernel to kill the calling process when the thread that made it ends.
pub(crate) fn die_with_parent() -> io::Result<()> {
    // SAFETY: takes only integers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }).map(drop)
}

/// Timers of the calling thread fire as exactly as the kernel can.
pub(crate) fn exact_timers() {
    // SAFETY: takes only integers; a refusal costs precision only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0) };
}

/// The calling thread runs before all ordinary ones, if that is permitted.
pub(crate) fn real_time() {
    let priority = libc::sched_param { sched_priority: 2 };
    // SAFETY: 0 names the calling thread, and the parameter outlives the call; a refusal costs timeliness only.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const priority) };
}

pub(crate) fn kill(pid: u32, signal: libc::c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: takes only integers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Installs `handler` without `SA_RESTART`, so that blocking calls return at once.
pub(crate) fn on_signal(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) -> io::Result<()> {
    // SAFETY: `sigaction` is plain data; all zeroes means an empty mask and no flags.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    // SAFETY: `action` is valid; the handlers given here only store to an atomic.
    check(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) }).map(drop)
}

/// Waits until one of `fds` is readable or `timeout` passed; `true` for each readable one.
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut entries: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    let timeout = timeout.map(timespec);
    let timeout_ptr = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let count = libc::nfds_t::try_from(entries.len()).map_err(io::Error::other)?;
    // SAFETY: `entries` holds `count` valid entries, the timeout is null or valid, no signal mask is given.
    check(unsafe { libc::ppoll(entries.as_mut_ptr(), count, timeout_ptr, std::ptr::null()) })?;
    Ok(entries.iter().map(|entry| entry.revents != 0).collect())
}

pub(crate) fn event_fd() -> io::Result<OwnedFd> {
    // SAFETY: takes only integers.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn read(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `buffer` is valid for its length.
    let count = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

pub(crate) fn write(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: `bytes` is valid for its length.
    let count = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Makes the TAP device `name` in the network namespace of the calling thread. It lives as long as the descriptor.
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let path = c_string("/dev/net/tun")?;
    // SAFETY: a valid C string.
    let fd = check(unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
    // SAFETY: a fresh descriptor that nothing else owns.
    let tap = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    set_interface_name(&mut request, name)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(tap)
}

/// A socket for ICMP in the network namespace of the calling thread; it gives IPv4 packets with their headers.
///
/// It has room for seconds of answers: what a busy machine brings late, it brings at once.
pub(crate) fn open_icmp() -> io::Result<OwnedFd> {
    // SAFETY: takes only integers.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP) })?;
    // SAFETY: a fresh descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let bytes: libc::c_int = 16 << 20;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)?;
    Ok(socket)
}

/// A packet socket on interface `name` of the calling thread's network namespace that sees every frame.
pub(crate) fn open_packet(name: &str) -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: takes only integers.
    let fd = check(unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, i32::from(protocol))
    })?;
    // SAFETY: a fresh descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let name = c_string(name)?;
    // SAFETY: a valid C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `sockaddr_ll` is plain data for which all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a valid socket address of `length` bytes.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
    Ok(socket)
}

pub(crate) fn set_option(socket: &impl AsRawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` is a valid option value of `length` bytes.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) }).map(drop)
}

/// One frame as a packet socket saw it. The kernel takes the VLAN tag out of the bytes and hands it over apart.
pub(crate) struct Captured {
    pub(crate) length: usize,
    pub(crate) vlan_tag: Option<u16>,
}

pub(crate) fn receive_frame(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Captured> {
    let mut control = [0u64; 16];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `msghdr` is plain data for which all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message points to one valid buffer and a valid, aligned control buffer.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let length = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    Ok(Captured { length, vlan_tag: vlan_tag(&message) })
}

fn vlan_tag(message: &libc::msghdr) -> Option<u16> {
    // SAFETY: the kernel filled the control buffer of `message`, which outlives this call.
    let header = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() }?;
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    // SAFETY: PACKET_AUXDATA carries one `tpacket_auxdata`, possibly unaligned.
    let data = unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
    (data.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some(data.tp_vlan_tci)
}

/// Sends `copies` of `payload` on a connected socket with one system call; the number that went out.
pub(crate) fn send_many(socket: &impl AsRawFd, payload: &[u8], copies: usize) -> io::Result<usize> {
    let mut part = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    // SAFETY: `mmsghdr` is plain data for which all zeroes is a valid value.
    let mut message: libc::mmsghdr = unsafe { zeroed() };
    message.msg_hdr.msg_iov = &raw mut part;
    message.msg_hdr.msg_iovlen = 1;
    let mut messages = vec![message; copies];
    // SAFETY: every message points to `part`, which the kernel only reads.
    let count = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), copies as libc::c_uint, 0) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Receives up to `most` small datagrams and forgets them; how many there were.
pub(crate) fn receive_many(socket: &impl AsRawFd, most: usize) -> io::Result<usize> {
    let mut buffers = vec![[0u8; 64]; most];
    let mut parts: Vec<libc::iovec> = buffers
        .iter_mut()
        .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: `mmsghdr` is plain data for which all zeroes is a valid value.
            let mut message: libc::mmsghdr = unsafe { zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let (flags, timeout) = (libc::MSG_WAITFORONE, std::ptr::null_mut());
    // SAFETY: every message points to one buffer of its own; all outlive the call.
    let count =
        unsafe { libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), most as libc::c_uint, flags, timeout) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn set_interface_name(request: &mut libc::ifreq, name: &str) -> io::Result<()> {
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "An interface name has 1 to 15 bytes"));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    Ok(())
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(io::Error::other)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
