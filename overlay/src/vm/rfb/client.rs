//! What a viewer says.

use super::{CUT_BYTES_MAX, ENCODINGS_MAX, Pending, PixelFormat, RfbError, filter, u16_at, u32_at};

const SET_PIXEL_FORMAT: u8 = 0;
const SET_ENCODINGS: u8 = 2;
const UPDATE_REQUEST: u8 = 3;
const KEY: u8 = 4;
const POINTER: u8 = 5;
const CUT_TEXT: u8 = 6;
const QEMU: u8 = 255;
/// Of QEMU's own messages the one of a key.
const QEMU_KEY: u8 = 0;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage {
    /// How it wants pixels.
    SetPixelFormat(PixelFormat),
    /// Which encodings it understands, of those that are let through.
    SetEncodings(Vec<i32>),
    /// It wants to see a part of the display: whether only changes, x, y, width and height.
    UpdateRequest([u8; 9]),
    /// A key: whether it is down, and which.
    Key {
        /// Down, and not up.
        is_down: bool,
        /// Its symbol.
        symbol: u32,
    },
    /// A key as QEMU has it, with its place.
    PlacedKey {
        /// Down, and not up.
        is_down: bool,
        /// Its symbol.
        symbol: u32,
        /// Its place.
        place: u32,
    },
    /// Which buttons are down, and where the pointer is.
    Pointer {
        /// One bit for each.
        buttons: u8,
        /// X and Y, as they are written.
        place: [u8; 4],
    },
    /// A text for the guest.
    CutText(Vec<u8>),
}

/// Messages out of the bytes of a viewer.
#[derive(Clone, Debug, Default)]
pub struct ClientMessages {
    pending: Pending,
    /// Bytes of a text that is not passed on.
    skipped: u32,
}

impl ClientMessages {
    /// Takes what the viewer says.
    pub fn hear(&mut self, bytes: &[u8]) {
        let skipped = bytes.len().min(self.skipped as usize);
        self.skipped -= u32::try_from(skipped).unwrap_or_default();
        self.pending.push(&bytes[skipped..]);
    }

    /// The next whole message.
    ///
    /// # Errors
    /// If it is none that this side offered to understand.
    pub fn next_message(&mut self) -> Result<Option<ClientMessage>, RfbError> {
        let Some([kind]) = self.pending.peek() else { return Ok(None) };
        Ok(match kind {
            SET_PIXEL_FORMAT => self.pixel_format()?,
            SET_ENCODINGS => self.encodings()?,
            UPDATE_REQUEST => self.pending.take::<10>().map(|bytes| {
                let mut area = [0; 9];
                area.copy_from_slice(&bytes[1..]);
                ClientMessage::UpdateRequest(area)
            }),
            KEY => self.pending.take::<8>().map(|bytes| {
                let (is_down, symbol) = (bytes[1] != 0, u32_at(&bytes, 4));
                ClientMessage::Key { is_down, symbol }
            }),
            POINTER => self.pending.take::<6>().map(|bytes| {
                let place = [bytes[2], bytes[3], bytes[4], bytes[5]];
                ClientMessage::Pointer { buttons: bytes[1], place }
            }),
            CUT_TEXT => return self.cut_text(),
            QEMU => self.qemu()?,
            _ => return Err(RfbError::Nonsense("a message of an unknown kind")),
        })
    }

    fn pixel_format(&mut self) -> Result<Option<ClientMessage>, RfbError> {
        let Some(bytes) = self.pending.take::<20>() else { return Ok(None) };
        let mut format = [0; 16];
        format.copy_from_slice(&bytes[4..]);
        let format = PixelFormat(format);
        format.pixel_bytes()?;
        Ok(Some(ClientMessage::SetPixelFormat(format)))
    }

    fn encodings(&mut self) -> Result<Option<ClientMessage>, RfbError> {
        let Some(head) = self.pending.peek::<4>() else { return Ok(None) };
        let count = usize::from(u16_at(&head, 2));
        if count > ENCODINGS_MAX {
            return Err(RfbError::Nonsense("too many encodings"));
        }
        let Some(bytes) = self.pending.take_many(4 + 4 * count) else { return Ok(None) };
        let wanted: Vec<i32> =
            bytes[4..].chunks_exact(4).map(|four| i32::from_be_bytes([four[0], four[1], four[2], four[3]])).collect();
        Ok(Some(ClientMessage::SetEncodings(filter(&wanted))))
    }

    fn cut_text(&mut self) -> Result<Option<ClientMessage>, RfbError> {
        let Some(head) = self.pending.peek::<8>() else { return Ok(None) };
        let length = u32_at(&head, 4);
        if length as usize > CUT_BYTES_MAX {
            self.pending.take::<8>();
            let rest: Vec<u8> = std::mem::take(&mut self.pending.0).into();
            self.skipped = length;
            self.hear(&rest);
            return self.next_message();
        }
        let Some(bytes) = self.pending.take_many(8 + length as usize) else { return Ok(None) };
        Ok(Some(ClientMessage::CutText(bytes[8..].to_vec())))
    }

    fn qemu(&mut self) -> Result<Option<ClientMessage>, RfbError> {
        match self.pending.peek() {
            Some([_, QEMU_KEY]) => {}
            Some([_, _]) => return Err(RfbError::Nonsense("a message of QEMU that was not offered")),
            None => return Ok(None),
        }
        Ok(self.pending.take::<12>().map(|bytes| ClientMessage::PlacedKey {
            is_down: u16_at(&bytes, 2) != 0,
            symbol: u32_at(&bytes, 4),
            place: u32_at(&bytes, 8),
        }))
    }
}

impl ClientMessage {
    /// As it is said to a server.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::SetPixelFormat(format) => [&[SET_PIXEL_FORMAT, 0, 0, 0], &format.0[..]].concat(),
            Self::SetEncodings(encodings) => {
                let count = u16::try_from(encodings.len()).unwrap_or_default();
                let mut bytes = vec![SET_ENCODINGS, 0];
                bytes.extend(count.to_be_bytes());
                bytes.extend(encodings.iter().take(count.into()).flat_map(|encoding| encoding.to_be_bytes()));
                bytes
            }
            Self::UpdateRequest(area) => [&[UPDATE_REQUEST], &area[..]].concat(),
            Self::Key { is_down, symbol } => [&[KEY, u8::from(*is_down), 0, 0], &symbol.to_be_bytes()[..]].concat(),
            Self::PlacedKey { is_down, symbol, place } => {
                let head = [QEMU, QEMU_KEY, 0, u8::from(*is_down)];
                [&head, &symbol.to_be_bytes()[..], &place.to_be_bytes()].concat()
            }
            Self::Pointer { buttons, place } => [&[POINTER, *buttons], &place[..]].concat(),
            Self::CutText(text) => {
                let length = u32::try_from(text.len()).unwrap_or_default();
                [&[CUT_TEXT, 0, 0, 0], &length.to_be_bytes()[..], text].concat()
            }
        }
    }

    /// Asks for all of a display.
    pub fn whole((width, height): (u16, u16)) -> Self {
        let mut area = [0; 9];
        area[5..7].copy_from_slice(&width.to_be_bytes());
        area[7..].copy_from_slice(&height.to_be_bytes());
        Self::UpdateRequest(area)
    }
}
