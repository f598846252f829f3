//! Pictures of what a VM's display shows. Its VNC server listens on a Unix socket only; `attach` leads viewers there.

use super::qmp::{Qmp, QmpError};
use super::vms::Vms;
use crate::entropy;
use crate::name::Name;
use anyhow::{Context, bail, ensure};
use serde_json::json;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of one picture: more than a screen of 4096 by 2160 in full colour.
const PICTURE_BYTES_MAX: u64 = 64 << 20;

impl Vms {
    /// What the display of a VM shows, as a PNG.
    ///
    /// # Errors
    /// If it does not run, or QEMU gives no picture.
    pub async fn screenshot(&self, name: &Name) -> anyhow::Result<Vec<u8>> {
        let (machine, live) = self.live(name, "take a picture of")?;
        let path = Unnamed(machine.files.dir().join(format!("screen-{:016x}", entropy::u64())));
        let is_png = dump(&live.qmp, &path.0).await?;
        tokio::task::spawn_blocking(move || {
            let picture = read(&path.0)?;
            if is_png { Ok(picture) } else { png_of(&picture) }
        })
        .await
        .context("Reading a picture broke off")?
    }
}

/// A file that is only there to be read once.
struct Unnamed(PathBuf);

impl Drop for Unnamed {
    fn drop(&mut self) {
        // QEMU may not have made it.
        fs::remove_file(&self.0).ok();
    }
}

/// Has QEMU write the picture; says whether as PNG. A QEMU that was built without libpng knows only PPM.
async fn dump(qmp: &Qmp, path: &Path) -> anyhow::Result<bool> {
    match qmp.run_with("screendump", json!({"filename": path, "format": "png"})).await {
        Ok(_) => Ok(true),
        Err(QmpError::Refused { .. }) => {
            qmp.run_with("screendump", json!({"filename": path})).await?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("Can't read the picture {}", path.display()))?;
    let mut picture = Vec::new();
    file.take(PICTURE_BYTES_MAX + 1).read_to_end(&mut picture).context("Can't read a picture")?;
    ensure!(picture.len() as u64 <= PICTURE_BYTES_MAX, "The picture has more than {PICTURE_BYTES_MAX} bytes");
    Ok(picture)
}

/// A PNG of a binary PPM as QEMU writes it: `P6`, width, height and 255, each followed by one blank, then the pixels.
fn png_of(ppm: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut fields = ppm.splitn(5, |byte| byte.is_ascii_whitespace());
    let mut field = || fields.next().context("The picture ends in its head");
    ensure!(field()? == b"P6", "The picture is no PPM");
    let width = number(field()?)?;
    let height = number(field()?)?;
    ensure!(number(field()?)? == 255, "The picture has an odd depth");
    let pixels = field()?;
    let expected = u64::from(width) * u64::from(height) * 3;
    if pixels.len() as u64 != expected || expected == 0 {
        bail!("The picture has {} bytes of pixels and should have {expected}", pixels.len());
    }
    let mut picture = Vec::new();
    let mut encoder = png::Encoder::new(&mut picture, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().context("Can't encode a picture")?;
    writer.write_image_data(pixels).context("Can't encode a picture")?;
    writer.finish().context("Can't encode a picture")?;
    Ok(picture)
}

fn number(text: &[u8]) -> anyhow::Result<u32> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).context("The picture's head has no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_converted_without_loss() {
        // Pixels that look like blanks and digits belong to the picture.
        let pixels = b" \n1\xff\x00 \t2  3\r";
        let ppm = [b"P6\n2 2\n255\n".as_slice(), pixels].concat();
        let png = png_of(&ppm).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut back = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut back).unwrap();
        assert_eq!((info.width, info.height, &back[..]), (2, 2, &pixels[..]));
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        for wrong in [b"".as_slice(), b"P6", b"P5 1 1 255 a", b"P6 1 1 255 ab", b"P6 0 0 255 ", b"P6 4294967295 x 255 "]
        {
            assert!(png_of(wrong).is_err(), "{wrong:?}");
        }
    }
}
