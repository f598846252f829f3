//! Compressed files are unpacked before they are imported, by the tools that every system has for that.

use super::ImageError;
use super::import::{OnStep, step};
use super::manifest::IMAGE_BYTES_MAX;
use super::partial::SPACE_KEPT_BYTES;
use crate::disk;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Bytes that are unpacked between two looks at the disk and the caller.
const STEP_BYTES: usize = 4 << 20;
/// Zeros of this length and place become holes.
const HOLE_BYTES: usize = 64 << 10;
/// Of what a tool complains.
const COMPLAINT_BYTES_MAX: u64 = 4 << 10;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packing {
    tool: &'static str,
    package: &'static str,
    magic: &'static [u8],
}

const PACKINGS: [Packing; 3] = [
    Packing { tool: "gzip", package: "gzip", magic: b"\x1f\x8b" },
    Packing { tool: "xz", package: "xz-utils", magic: b"\xfd7zXZ\0" },
    Packing { tool: "zstd", package: "zstd", magic: b"\x28\xb5\x2f\xfd" },
];

impl Packing {
    /// How the file is compressed, if it is. What can't be opened is for the import itself to complain about.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
        let mut begin = [0; 6];
        let length = file.read_at(&mut begin, 0).ok()?;
        PACKINGS.into_iter().find(|packing| begin[..length].starts_with(packing.magic))
    }

    /// Writes what is in the file to `to`, a new file with holes for zeros.
    pub(super) fn unpack(self, path: &Path, to: &Path, on_step: OnStep<'_>) -> Result<(), ImageError> {
        let Self { tool, package, .. } = self;
        let wrong = |reason: String| ImageError::Source { path: path.into(), reason };
        let read = |error: io::Error| wrong(format!("can't unpack it: {error}"));
        let source = File::open(path).map_err(read)?;
        let mut command = Command::new(tool);
        command.arg("-dc").stdin(source).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                wrong(format!("it is compressed, and `{tool}` is not installed: install the package {package}"))
            }
            _ => read(error),
        })?;
        let mut running = Running(child);
        let mut content = running.0.stdout.take().expect("its output is piped");
        let mut file = File::create_new(to).map_err(|error| ImageError::from(anyhow::anyhow!(error)))?;
        let mut buffer = vec![0; STEP_BYTES];
        let mut done_bytes = 0;
        loop {
            let length = read_full(&mut content, &mut buffer).map_err(read)?;
            done_bytes += length as u64;
            if done_bytes > IMAGE_BYTES_MAX {
                return Err(wrong("it is larger than 1TiB".into()));
            }
            check_space(to)?;
            write_sparse(&mut file, &buffer[..length]).map_err(|error| wrong(format!("can't keep it: {error}")))?;
            step(on_step, 0, 0)?;
            if length < buffer.len() {
                break;
            }
        }
        file.set_len(done_bytes).map_err(read)?;
        let status = running.0.wait().map_err(read)?;
        if status.success() {
            return Ok(());
        }
        let mut complaint = String::new();
        if let Some(stderr) = running.0.stderr.take() {
            stderr.take(COMPLAINT_BYTES_MAX).read_to_string(&mut complaint).ok();
        }
        Err(wrong(format!("`{tool}` can't unpack it: {}", complaint.trim())))
    }
}

fn read_full(content: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match content.read(&mut buffer[length..])? {
            0 => break,
            count => length += count,
        }
    }
    Ok(length)
}

fn write_sparse(file: &mut File, content: &[u8]) -> io::Result<()> {
    static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];
    for piece in content.chunks(HOLE_BYTES) {
        if *piece == ZEROS[..piece.len()] {
            file.seek(SeekFrom::Current(piece.len() as i64))?;
        } else {
            file.write_all(piece)?;
        }
    }
    Ok(())
}

/// A small file may become a large one: not so large that nothing else can be written.
fn check_space(to: &Path) -> Result<(), ImageError> {
    let dir = to.parent().unwrap_or(to);
    let free_bytes = disk::free_bytes(dir)?;
    let needed_bytes = STEP_BYTES as u64;
    if free_bytes >= SPACE_KEPT_BYTES + needed_bytes {
        return Ok(());
    }
    Err(ImageError::NoSpace { dir: dir.into(), needed_bytes, free_bytes: free_bytes.saturating_sub(SPACE_KEPT_BYTES) })
}

/// Ends the tool that it stands for.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
