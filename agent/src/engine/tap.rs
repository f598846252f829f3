//! The descriptor of a TAP: whole packets in, whole packets out, never waiting.
//!
//! Every packet begins with a 10-byte virtio-net header (`IFF_VNET_HDR`). How the device came to be is not known here;
//! anything that keeps packet borders, such as a `SOCK_SEQPACKET` pair, can stand in for it.

use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use virtuoso_overlay::wire::frame::VNET_BYTES;

/// What a TAP's kernel side takes, as switched on by `TUNSETOFFLOAD`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TapOffloads {
    /// Frames with partial checksums.
    pub csum: bool,
    /// TCP super-frames of both IP versions.
    pub tso: bool,
    /// UDP super-frames.
    pub uso: bool,
}

/// A TAP, or what stands in for it.
#[derive(Debug)]
pub(super) struct Tap {
    file: std::fs::File,
}

impl Tap {
    /// Takes the descriptor over and makes it non-blocking.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        socket2::SockRef::from(&fd).set_nonblocking(true)?;
        Ok(Self { file: fd.into() })
    }

    /// Reads one packet. `WouldBlock` if there is none.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match io::Read::read(&mut &self.file, buffer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => Ok(bytes),
        }
    }

    /// Writes one packet.
    pub(super) fn write(&self, header: &[u8; VNET_BYTES], frame: &[u8]) -> io::Result<()> {
        let written = (&self.file).write_vectored(&[IoSlice::new(header), IoSlice::new(frame)])?;
        if written == header.len() + frame.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
