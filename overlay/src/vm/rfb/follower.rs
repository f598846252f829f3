//! Where in what a server says a message ends.

use super::{
    COMPLETION_BYTES_MAX, COPY_RECT, CURSOR, DESKTOP_SIZE, EXTENDED_KEY, HEXTILE, LAST_RECT, POINTER_TYPE, PixelFormat,
    RAW, RRE, RfbError, u16_at, u32_at,
};

const UPDATE: u8 = 0;
const COLOURS: u8 = 1;
const BELL: u8 = 2;
const CUT_TEXT: u8 = 3;

/// Width and height of a hextile.
const TILE: u16 = 16;
/// What the first byte of a hextile says follows.
const TILE_RAW: u8 = 1;
const TILE_BACKGROUND: u8 = 2;
const TILE_FOREGROUND: u8 = 4;
const TILE_PARTS: u8 = 8;
const TILE_COLOURED: u8 = 16;

/// Zeros that are written in one go.
const ZEROS: [u8; 4096] = [0; 4096];

/// Follows a server without keeping what it says.
#[derive(Clone, Debug)]
pub struct Follower {
    /// Bytes of a pixel.
    pixel: u64,
    size: (u16, u16),
    step: Step,
    /// What came of a head.
    head: Vec<u8>,
    /// Bytes that mean nothing here.
    skip: u64,
    rects_left: u16,
    /// What comes can't be understood.
    fault: Option<RfbError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Between two messages.
    Kind,
    Update,
    Colours,
    CutText,
    Rect,
    Rre,
    /// What is left of a rectangle: tiles in its row, its width, and rows with their heights.
    Tile(Tiles),
    /// Behind the colours of a tile: how many parts follow, of so many bytes each.
    TileParts(Tiles, u64),
}

/// Where in a rectangle of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiles {
    width: u16,
    height: u16,
    x: u16,
    y: u16,
}

impl Tiles {
    fn pixels(self) -> u64 {
        u64::from(TILE.min(self.width - self.x)) * u64::from(TILE.min(self.height - self.y))
    }

    fn next(self) -> Option<Self> {
        let x = self.x.saturating_add(TILE);
        let next =
            if x < self.width { Self { x, ..self } } else { Self { x: 0, y: self.y.saturating_add(TILE), ..self } };
        (next.y < next.height).then_some(next)
    }
}

impl Follower {
    /// Begins behind the handshake.
    ///
    /// # Errors
    /// If there is no such pixel.
    pub fn new(format: PixelFormat, size: (u16, u16)) -> Result<Self, RfbError> {
        let (step, head) = (Step::Kind, Vec::new());
        Ok(Self { pixel: format.pixel_bytes()?, size, step, head, skip: 0, rects_left: 0, fault: None })
    }

    /// From the next rectangle on pixels are written so.
    ///
    /// # Errors
    /// If there is no such pixel.
    pub fn set_format(&mut self, format: PixelFormat) -> Result<(), RfbError> {
        self.pixel = format.pixel_bytes()?;
        Ok(())
    }

    /// The display's size, as the viewer knows it.
    pub const fn size(&self) -> (u16, u16) {
        self.size
    }

    /// Whether the server is between two messages.
    pub fn is_between(&self) -> bool {
        self.fault.is_none() && self.step == Step::Kind && self.skip == 0 && self.head.is_empty()
    }

    /// Takes what the server says. What can't be understood is found out by [`Self::complete`].
    pub fn hear(&mut self, mut bytes: &[u8]) {
        while self.fault.is_none() && !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            let missing = self.head_bytes() - self.head.len();
            let (now, rest) = bytes.split_at(missing.min(bytes.len()));
            self.head.extend(now);
            bytes = rest;
            if self.head.len() == self.head_bytes() {
                let head = std::mem::take(&mut self.head);
                if let Err(error) = self.on_head(&head) {
                    self.fault = Some(error);
                }
            }
        }
    }

    /// Ends the message that the server was in, by zeros for `viewer`, who knows the encodings `known`.
    ///
    /// # Errors
    /// If what the server said could not be understood, or too much is missing.
    pub fn complete(&mut self, known: &[i32], viewer: &mut Vec<u8>) -> Result<(), RfbError> {
        let rest = self.rest_of_encoding(known);
        viewer.extend(&rest);
        self.hear(&rest);
        let mut written = 0;
        while !self.is_between() {
            if let Some(fault) = &self.fault {
                return Err(fault.clone());
            }
            let count = if self.skip > 0 { self.skip.min(ZEROS.len() as u64) } else { 1 };
            written += count;
            if written > COMPLETION_BYTES_MAX {
                return Err(RfbError::Nonsense("a message without an end"));
            }
            let zeros = &ZEROS[..usize::try_from(count).unwrap_or_default()];
            viewer.extend(zeros);
            self.hear(zeros);
        }
        Ok(())
    }

    /// Of an encoding that was cut off, what makes it one that the viewer knows: with zeros it would be another one.
    fn rest_of_encoding(&self, known: &[i32]) -> Vec<u8> {
        let Some(begun) = self.head.get(8..).filter(|begun| self.step == Step::Rect && !begun.is_empty()) else {
            return Vec::new();
        };
        // Another size would be the wrong one; it is told in its turn.
        let harmless = known.iter().filter(|encoding| **encoding != DESKTOP_SIZE);
        let known = [RAW].iter().chain(harmless).chain([&DESKTOP_SIZE]).map(|encoding| encoding.to_be_bytes());
        let fitting = known.into_iter().find(|encoding| encoding.starts_with(begun));
        fitting.map_or_else(Vec::new, |encoding| encoding[begun.len()..].to_vec())
    }

    const fn head_bytes(&self) -> usize {
        match self.step {
            Step::Kind | Step::Tile(_) | Step::TileParts(..) => 1,
            Step::Update => 3,
            Step::Colours => 5,
            Step::CutText => 7,
            Step::Rect => 12,
            Step::Rre => 4,
        }
    }

    fn on_head(&mut self, head: &[u8]) -> Result<(), RfbError> {
        match self.step {
            Step::Kind => {
                self.step = match head[0] {
                    UPDATE => Step::Update,
                    COLOURS => Step::Colours,
                    CUT_TEXT => Step::CutText,
                    BELL => Step::Kind,
                    _ => return Err(RfbError::Nonsense("a message of an unknown kind")),
                };
            }
            Step::Update => {
                self.rects_left = u16_at(head, 1);
                self.next_rect();
            }
            Step::Colours => self.skip_to_end(6 * u64::from(u16_at(head, 3))),
            Step::CutText => self.skip_to_end(u64::from(u32_at(head, 3))),
            Step::Rect => self.on_rect(head)?,
            Step::Rre => {
                let parts = u64::from(u32_at(head, 0));
                self.skip = self.pixel + parts * (self.pixel + 8);
                self.next_rect();
            }
            Step::Tile(tiles) => self.on_tile(tiles, head[0]),
            Step::TileParts(tiles, part) => {
                self.skip = part * u64::from(head[0]);
                self.next_tile(tiles);
            }
        }
        Ok(())
    }

    fn skip_to_end(&mut self, bytes: u64) {
        self.skip = bytes;
        self.step = Step::Kind;
    }

    fn next_rect(&mut self) {
        self.step = if self.rects_left == 0 { Step::Kind } else { Step::Rect };
        self.rects_left = self.rects_left.saturating_sub(1);
    }

    fn on_rect(&mut self, head: &[u8]) -> Result<(), RfbError> {
        let (width, height) = (u16_at(head, 4), u16_at(head, 6));
        let pixels = u64::from(width) * u64::from(height);
        match i32::from_be_bytes([head[8], head[9], head[10], head[11]]) {
            RAW => self.skip = pixels * self.pixel,
            COPY_RECT => self.skip = 4,
            RRE => {
                self.step = Step::Rre;
                return Ok(());
            }
            HEXTILE if pixels > 0 => {
                self.step = Step::Tile(Tiles { width, height, x: 0, y: 0 });
                return Ok(());
            }
            HEXTILE | POINTER_TYPE | EXTENDED_KEY => {}
            DESKTOP_SIZE => self.size = (width, height),
            CURSOR => self.skip = pixels * self.pixel + u64::from(width.div_ceil(8)) * u64::from(height),
            LAST_RECT => self.rects_left = 0,
            _ => return Err(RfbError::Nonsense("an encoding that was not asked for")),
        }
        self.next_rect();
        Ok(())
    }

    fn on_tile(&mut self, tiles: Tiles, says: u8) {
        let has = |bit: u8| says & bit != 0;
        if has(TILE_RAW) {
            self.skip = tiles.pixels() * self.pixel;
            return self.next_tile(tiles);
        }
        self.skip = self.pixel * (u64::from(has(TILE_BACKGROUND)) + u64::from(has(TILE_FOREGROUND)));
        if has(TILE_PARTS) {
            self.step = Step::TileParts(tiles, 2 + if has(TILE_COLOURED) { self.pixel } else { 0 });
        } else {
            self.next_tile(tiles);
        }
    }

    fn next_tile(&mut self, tiles: Tiles) {
        match tiles.next() {
            Some(next) => self.step = Step::Tile(next),
            None => self.next_rect(),
        }
    }
}
