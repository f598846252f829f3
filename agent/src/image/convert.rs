//! Disks in QEMU's own format become raw ones, by `qemu-img`.

use super::ImageError;
use super::import::{OnStep, step};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const MAGIC: &[u8; 4] = b"QFI\xfb";
/// Of an incompatible feature: the content stands in another file.
const EXTERNAL_DATA: u64 = 1 << 2;
/// How often a conversion is looked at, to cancel it.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Of what `qemu-img` complains.
const COMPLAINT_BYTES_MAX: u64 = 4 << 10;

/// Whether the file is a qcow2 image that stands alone. One that leads to other files of this host is refused: its
/// author could name any.
pub(super) fn is_qcow2(path: &Path) -> Result<bool, ImageError> {
    let wrong = |reason: &str| ImageError::Source { path: path.into(), reason: reason.into() };
    // What can't be opened or is too short is for the import itself to complain about.
    let Ok(file) = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path) else { return Ok(false) };
    let mut header = [0; 80];
    if file.read_exact_at(&mut header, 0).is_err() || header[..4] != *MAGIC {
        return Ok(false);
    }
    let number = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    let is_version_3 = header[4..8] == [0, 0, 0, 3];
    if number(8) != 0 {
        return Err(wrong("it has a backing file: flatten it first with `qemu-img convert`"));
    }
    if is_version_3 && number(72) & EXTERNAL_DATA != 0 {
        return Err(wrong("its data stands in another file: flatten it first with `qemu-img convert`"));
    }
    Ok(true)
}

/// Makes `raw` of the qcow2 image at `path`.
pub(super) fn convert(path: &Path, raw: &Path, on_step: OnStep<'_>) -> Result<(), ImageError> {
    let wrong = |reason: String| ImageError::Source { path: path.into(), reason };
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "qcow2", "-O", "raw"]).arg(path).arg(raw);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            wrong("it is qcow2, and `qemu-img` is not installed: install the package qemu-utils".into())
        }
        _ => wrong(format!("can't run `qemu-img`: {error}")),
    })?;
    let mut running = Running(child);
    let status = loop {
        if let Some(status) = running.0.try_wait().map_err(|error| wrong(error.to_string()))? {
            break status;
        }
        step(on_step, 0, 0)?;
        std::thread::sleep(LOOK_INTERVAL);
    };
    if status.success() {
        return Ok(());
    }
    let mut complaint = String::new();
    if let Some(stderr) = running.0.stderr.take() {
        stderr.take(COMPLAINT_BYTES_MAX).read_to_string(&mut complaint).ok();
    }
    Err(wrong(format!("`qemu-img` can't convert it: {}", complaint.trim())))
}

/// Ends the conversion that it stands for.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
