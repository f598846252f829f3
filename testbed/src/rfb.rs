//! The least of a VNC viewer: RFB 3.8 without a password.

use std::io::{Read, Write};

use anyhow::{Context, Result, ensure};

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
