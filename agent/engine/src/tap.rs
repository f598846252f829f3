//! The descriptor of a TAP: whole packets in, whole packets out, never waiting.
//!
//! Every packet begins with a 10-byte virtio-net header (`IFF_VNET_HDR`). How the device came to be is not known here;
//! anything that keeps packet borders, such as a `SOCK_SEQPACKET` pair, can stand in for it.

use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use virtuoso_overlay::offload::{Gso, VnetHdr};
use virtuoso_overlay::wire::frame::VNET_BYTES;

/// What passes between a TAP and the engine unfinished, as switched on by `TUNSETOFFLOAD`; all of it, for an operator
/// who says nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TapOffloads {
    /// Frames with partial checksums. Super-frames have them.
    pub csum: bool,
    /// TCP super-frames of IPv4.
    pub tso4: bool,
    /// TCP super-frames of IPv6.
    pub tso6: bool,
    /// UDP super-frames of both (Linux 6.2).
    pub uso: bool,
}

impl TapOffloads {
    /// Every one.
    pub const ALL: Self = Self { csum: true, tso4: true, tso6: true, uso: true };
    /// Frames as they are on a wire.
    pub const NONE: Self = Self { csum: false, tso4: false, tso6: false, uso: false };

    /// Whether a packet with this header passes as it is.
    pub(super) fn take(self, header: &VnetHdr) -> bool {
        (!header.needs_csum || self.csum) && self.of(header.gso)
    }

    fn of(self, gso: Gso) -> bool {
        match gso {
            Gso::None => true,
            Gso::Tcp4 => self.tso4,
            Gso::Tcp6 => self.tso6,
            Gso::Udp => self.uso,
        }
    }

    /// Without what a packet with this header needs most: segmentation, else its checksum, on which all else rests.
    #[must_use]
    pub(super) fn without(self, header: &VnetHdr) -> Self {
        match header.gso {
            Gso::Tcp4 => Self { tso4: false, ..self },
            Gso::Tcp6 => Self { tso6: false, ..self },
            Gso::Udp => Self { uso: false, ..self },
            Gso::None => Self::NONE,
        }
    }
}

impl Default for TapOffloads {
    fn default() -> Self {
        Self::ALL
    }
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
