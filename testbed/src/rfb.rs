//! The least of a VNC viewer: RFB 3.8 without a password.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::interrupt;

const VERSION: &[u8; 12] = b"RFB 003.008\n";
/// Security type: none.
const NONE: u8 = 1;

/// Shakes hands; width and height of the display, and its name.
pub(crate) fn handshake(display: &mut (impl Read + Write)) -> Result<(u16, u16, String)> {
    let mut version = [0; 12];
    display.read_exact(&mut version).context("The display says nothing")?;
    ensure!(&version == VERSION, "Not RFB 3.8: {:?}", String::from_utf8_lossy(&version));
    display.write_all(VERSION)?;
    let [count] = read(display)?;
    let mut types = vec![0; count.into()];
    display.read_exact(&mut types)?;
    ensure!(types.contains(&NONE), "The display wants a password: {types:?}");
    display.write_all(&[NONE])?;
    ensure!(read(display)? == [0; 4], "The display refuses");
    // Others may look on.
    display.write_all(&[1])?;
    let (width, height) = (u16::from_be_bytes(read(display)?), u16::from_be_bytes(read(display)?));
    let _pixel_format: [u8; 16] = read(display)?;
    let length = u32::from_be_bytes(read(display)?);
    ensure!(length <= 1024, "A name of {length} bytes");
    let mut name = vec![0; length as usize];
    display.read_exact(&mut name)?;
    Ok((width, height, String::from_utf8_lossy(&name).into_owned()))
}

fn read<const N: usize>(display: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    display.read_exact(&mut bytes).context("The display ends in the middle")?;
    Ok(bytes)
}

/// A viewer that keeps the picture, and asks for more than it understands, as viewers do.
pub(crate) struct Viewer {
    display: UnixStream,
    size: (u16, u16),
    /// Red, green and blue of each pixel.
    pixels: Vec<[u8; 3]>,
}

impl Viewer {
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let mut display = UnixStream::connect(path).with_context(|| format!("Cannot see {}", path.display()))?;
        display.set_read_timeout(Some(READ_TIME))?;
        let (width, height, _) = handshake(&mut display)?;
        let mut viewer = Self { display, size: (0, 0), pixels: Vec::new() };
        viewer.resize(width, height);
        // Other than a display has them by itself: red in the first byte.
        viewer.display.write_all(&[0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 0, 8, 16, 0, 0, 0])?;
        let encodings = [ZRLE, TIGHT, RAW, DESKTOP_SIZE];
        viewer.display.write_all(&[2, 0, 0, encodings.len() as u8])?;
        viewer.display.write_all(&encodings.map(i32::to_be_bytes).concat())?;
        viewer.ask(false)?;
        Ok(viewer)
    }

    /// Waits until the middle of the picture has a colour.
    pub(crate) fn await_colour(&mut self, colour: [u8; 3], limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let (width, height) = self.size;
            let middle = usize::from(height / 2) * usize::from(width) + usize::from(width / 2);
            let seen = self.pixels.get(middle).copied();
            if seen == Some(colour) {
                return Ok(());
            }
            interrupt::check()?;
            ensure!(Instant::now() < deadline, "Waited {limit:?} for {colour:?} and see {seen:?}");
            match self.see() {
                Ok(()) => {}
                Err(error) if is_late(&error) => self.ask(false)?,
                Err(error) => return Err(error),
            }
        }
    }

    fn ask(&mut self, only_changes: bool) -> Result<()> {
        let (width, height) = (self.size.0.to_be_bytes(), self.size.1.to_be_bytes());
        let area = [3, u8::from(only_changes), 0, 0, 0, 0, width[0], width[1], height[0], height[1]];
        self.display.write_all(&area).context("The display is gone")
    }

    fn resize(&mut self, width: u16, height: u16) {
        self.size = (width, height);
        self.pixels = vec![[0; 3]; usize::from(width) * usize::from(height)];
    }

    /// Takes one message.
    fn see(&mut self) -> Result<()> {
        let mut kind = [0];
        self.display.read_exact(&mut kind)?;
        match kind[0] {
            0 => {
                let [_, high, low] = read(&mut self.display)?;
                for _ in 0..u16::from_be_bytes([high, low]) {
                    self.see_rect()?;
                }
                self.ask(true)
            }
            2 => Ok(()),
            kind => anyhow::bail!("A message of kind {kind}"),
        }
    }

    fn see_rect(&mut self) -> Result<()> {
        let mut number = || Ok::<_, anyhow::Error>(u16::from_be_bytes(read(&mut self.display)?));
        let (x, y, width, height) = (number()?, number()?, number()?, number()?);
        match i32::from_be_bytes(read(&mut self.display)?) {
            RAW => {
                let mut line = vec![0; usize::from(width) * 4];
                for row in 0..usize::from(height) {
                    self.display.read_exact(&mut line).context("The display ends in the middle")?;
                    let begin = (usize::from(y) + row) * usize::from(self.size.0) + usize::from(x);
                    let place =
                        self.pixels.get_mut(begin..begin + usize::from(width)).context("Outside the display")?;
                    for (place, pixel) in place.iter_mut().zip(line.chunks_exact(4)) {
                        place.copy_from_slice(&pixel[..3]);
                    }
                }
            }
            DESKTOP_SIZE => self.resize(width, height),
            encoding => anyhow::bail!("Encoding {encoding}, which a viewer that moves can't follow"),
        }
        Ok(())
    }
}

fn is_late(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(kind, Some(ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

const RAW: i32 = 0;
const TIGHT: i32 = 7;
const ZRLE: i32 = 16;
const DESKTOP_SIZE: i32 = -223;
/// Without a change for so long all of the picture is asked for.
const READ_TIME: Duration = Duration::from_secs(2);
