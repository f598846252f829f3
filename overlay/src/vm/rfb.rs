//! The protocol of displays (RFB, RFC 6143), as far as a host must understand it that keeps a viewer's connection while
//! the VM moves from one QEMU to another: it shakes hands with both sides, knows what the viewer has asked for, and
//! where in what the server says a message ends.
//!
//! Only encodings are let through that remember nothing of what came before ([`filter`]), so that a viewer can go on
//! with another server at the end of any message. One that was cut in the middle is completed with zeros
//! ([`Follower::complete`]): whatever the field, a zero ends it soon and can be drawn, and a full update paints over
//! it.

mod client;
mod follower;
mod handshake;
mod relay;

pub use client::{ClientMessage, ClientMessages};
pub use follower::Follower;
pub use handshake::{Greeting, ServerInit, Welcome};
pub use relay::Relay;

/// Bytes of a display's name.
pub const NAME_BYTES_MAX: usize = 4096;
/// Encodings in one list of a viewer's: it has some twenty.
pub const ENCODINGS_MAX: usize = 256;
/// Bytes of a text that a viewer cuts; of a longer one nothing is passed on.
pub const CUT_BYTES_MAX: usize = 16 << 10;
/// Zeros that may complete a message: a picture of 4096 by 2160 in full colour.
pub const COMPLETION_BYTES_MAX: u64 = 64 << 20;

const RAW: i32 = 0;
const COPY_RECT: i32 = 1;
const RRE: i32 = 2;
const HEXTILE: i32 = 5;
/// The display has another size.
const DESKTOP_SIZE: i32 = -223;
/// The display ends its update here.
const LAST_RECT: i32 = -224;
/// A pointer's picture.
const CURSOR: i32 = -239;
/// Whether the pointer's place is absolute; QEMU's own.
const POINTER_TYPE: i32 = -257;
/// Keys may be told by their place; QEMU's own.
const EXTENDED_KEY: i32 = -258;

/// Encodings that are let through.
const ENCODINGS: [i32; 8] = [RAW, COPY_RECT, RRE, HEXTILE, DESKTOP_SIZE, CURSOR, POINTER_TYPE, EXTENDED_KEY];

/// Why one side can't be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RfbError {
    /// It speaks something else.
    #[error("It does not speak RFB")]
    NoRfb,
    /// It wants a password, or refuses.
    #[error("The display can't be seen without a password")]
    Refused,
    /// Something is out of bounds.
    #[error("It says something that makes no sense: {0}")]
    Nonsense(&'static str),
}

/// How a pixel is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelFormat(pub [u8; 16]);

impl PixelFormat {
    /// Bytes of a pixel.
    ///
    /// # Errors
    /// If there is no such pixel.
    pub fn pixel_bytes(self) -> Result<u64, RfbError> {
        match self.0[0] {
            8 => Ok(1),
            16 => Ok(2),
            32 => Ok(4),
            _ => Err(RfbError::Nonsense("a pixel of another size than 8, 16 or 32 bits")),
        }
    }
}

/// The encodings of a viewer's list that are let through, in its order.
pub fn filter(wanted: &[i32]) -> Vec<i32> {
    wanted.iter().copied().filter(|encoding| ENCODINGS.contains(encoding)).collect()
}

/// Bytes that are not understood yet.
#[derive(Clone, Debug, Default)]
struct Pending(std::collections::VecDeque<u8>);

impl Pending {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// The next `N` bytes, which stay.
    fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        for (place, byte) in bytes.iter_mut().zip(self.0.range(..N.min(self.0.len()))) {
            *place = *byte;
        }
        (self.0.len() >= N).then_some(bytes)
    }

    /// Takes the next `N` bytes.
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = self.peek()?;
        self.0.drain(..N);
        Some(bytes)
    }

    /// Takes so many bytes.
    fn take_many(&mut self, count: usize) -> Option<Vec<u8>> {
        (self.0.len() >= count).then(|| self.0.drain(..count).collect())
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests;
