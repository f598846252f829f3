//! The handshake, as a viewer to a server and as a server to a viewer. Nobody asks for a password: whoever may see a
//! display was decided before.

use super::{NAME_BYTES_MAX, Pending, PixelFormat, RfbError, u16_at, u32_at};

const VERSION: &[u8; 12] = b"RFB 003.008\n";
/// The kind of security that is none.
const NONE: u8 = 1;

/// What a server says of its display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInit {
    /// Width and height in pixels.
    pub size: (u16, u16),
    /// How its pixels are written, unless the viewer wants them otherwise.
    pub format: PixelFormat,
    /// Its name, at most [`NAME_BYTES_MAX`].
    pub name: Vec<u8>,
}

/// The viewer's side, to a server.
#[derive(Clone, Debug, Default)]
pub struct Greeting {
    pending: Pending,
    step: GreetingStep,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum GreetingStep {
    #[default]
    Version,
    Security,
    Result,
    Init,
}

/// The server's side, to a viewer.
#[derive(Clone, Debug)]
pub struct Welcome {
    pending: Pending,
    step: WelcomeStep,
    /// The viewer's version: 3, 7 or 8.
    minor: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WelcomeStep {
    Version,
    Choice,
    Init,
}

impl Greeting {
    /// Takes what the server says; what to answer goes to `answer`. What the server says of its display ends it.
    ///
    /// # Errors
    /// If it can't be understood, or refuses.
    pub fn hear(&mut self, bytes: &[u8], answer: &mut Vec<u8>) -> Result<Option<ServerInit>, RfbError> {
        self.pending.push(bytes);
        loop {
            match self.step {
                GreetingStep::Version => {
                    let Some(version) = self.pending.take::<12>() else { return Ok(None) };
                    if &version != VERSION {
                        return Err(RfbError::NoRfb);
                    }
                    answer.extend(VERSION);
                    self.step = GreetingStep::Security;
                }
                GreetingStep::Security => {
                    let Some([count]) = self.pending.peek() else { return Ok(None) };
                    let Some(kinds) = self.pending.take_many(1 + usize::from(count)) else { return Ok(None) };
                    if !kinds[1..].contains(&NONE) {
                        return Err(RfbError::Refused);
                    }
                    answer.push(NONE);
                    self.step = GreetingStep::Result;
                }
                GreetingStep::Result => {
                    let Some(result) = self.pending.take::<4>() else { return Ok(None) };
                    if result != [0; 4] {
                        return Err(RfbError::Refused);
                    }
                    // Others may look on.
                    answer.push(1);
                    self.step = GreetingStep::Init;
                }
                GreetingStep::Init => return self.init(),
            }
        }
    }

    fn init(&mut self) -> Result<Option<ServerInit>, RfbError> {
        let Some(head) = self.pending.peek::<24>() else { return Ok(None) };
        let length = u32_at(&head, 20) as usize;
        if length > NAME_BYTES_MAX {
            return Err(RfbError::Nonsense("a name that is too long"));
        }
        let Some(bytes) = self.pending.take_many(24 + length) else { return Ok(None) };
        let mut format = [0; 16];
        format.copy_from_slice(&bytes[4..20]);
        let format = PixelFormat(format);
        format.pixel_bytes()?;
        Ok(Some(ServerInit { size: (u16_at(&bytes, 0), u16_at(&bytes, 2)), format, name: bytes[24..].to_vec() }))
    }

    /// What the server said behind the handshake.
    pub fn rest(self) -> Vec<u8> {
        self.pending.0.into()
    }
}

impl ServerInit {
    /// As it is said to a viewer.
    pub fn encode(&self) -> Vec<u8> {
        let (width, height) = self.size;
        let length = u32::try_from(self.name.len()).unwrap_or_default();
        [&width.to_be_bytes()[..], &height.to_be_bytes(), &self.format.0, &length.to_be_bytes(), &self.name].concat()
    }
}

impl Welcome {
    /// A new viewer, and what it is told first.
    pub fn new() -> (Self, Vec<u8>) {
        (Self { pending: Pending::default(), step: WelcomeStep::Version, minor: 8 }, VERSION.to_vec())
    }

    /// Takes what the viewer says; what to answer goes to `answer`. True when it waits for a [`ServerInit`].
    ///
    /// # Errors
    /// If it can't be understood.
    pub fn hear(&mut self, bytes: &[u8], answer: &mut Vec<u8>) -> Result<bool, RfbError> {
        self.pending.push(bytes);
        loop {
            match self.step {
                WelcomeStep::Version => {
                    let Some(version) = self.pending.take::<12>() else { return Ok(false) };
                    if !version.starts_with(b"RFB 003.") || version[11] != b'\n' {
                        return Err(RfbError::NoRfb);
                    }
                    self.minor = match &version[8..11] {
                        b"007" => 7,
                        b"008" | b"889" => 8,
                        // As the standard has it for all that it does not name.
                        _ => 3,
                    };
                    if self.minor == 3 {
                        answer.extend(u32::from(NONE).to_be_bytes());
                        self.step = WelcomeStep::Init;
                    } else {
                        answer.extend([1, NONE]);
                        self.step = WelcomeStep::Choice;
                    }
                }
                WelcomeStep::Choice => {
                    let Some([kind]) = self.pending.take() else { return Ok(false) };
                    if kind != NONE {
                        return Err(RfbError::Nonsense("a kind of security that was not offered"));
                    }
                    if self.minor == 8 {
                        answer.extend([0; 4]);
                    }
                    self.step = WelcomeStep::Init;
                }
                // Whether it wants to be alone: it can't.
                WelcomeStep::Init => return Ok(self.pending.take::<1>().is_some()),
            }
        }
    }

    /// What the viewer said behind the handshake.
    pub fn rest(self) -> Vec<u8> {
        self.pending.0.into()
    }
}
