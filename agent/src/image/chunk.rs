//! Chunks as files. A chunk in its place is durable and was whole when it was put there; whether it still is, reading
//! it tells.

use super::manifest::{CHUNK_BYTES, ZEROS};
use anyhow::{Context, ensure};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use virtuoso_overlay::ids::Digest;

/// A directory of chunks, split by the first byte of their digests.
#[derive(Debug)]
pub(super) struct Chunks {
    dir: PathBuf,
}

/// The digest that names `content`, or [`ZEROS`].
pub(super) fn digest(content: &[u8]) -> Digest {
    debug_assert!(content.len() <= CHUNK_BYTES);
    if is_zeros(content) { ZEROS } else { Digest(*blake3::hash(content).as_bytes()) }
}

/// Whether there is nothing but zeros. Comparing long runs lets the compiler use wide registers.
fn is_zeros(content: &[u8]) -> bool {
    const RUN: [u8; 4096] = [0; 4096];
    content.chunks(RUN.len()).all(|run| run == &RUN[..run.len()])
}

impl Chunks {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Reads a chunk of `length` bytes, and fails if it is not what its digest says.
    pub(super) fn read(&self, digest: Digest, length: usize) -> anyhow::Result<Vec<u8>> {
        let content = self.read_again(digest, length)?;
        let path = self.path(digest);
        ensure!(self::digest(&content) == digest, "{} has other content than its name says", path.display());
        Ok(content)
    }

    /// Reads a chunk that was whole when it was last read, and fails only if its length is another one.
    pub(super) fn read_again(&self, digest: Digest, length: usize) -> anyhow::Result<Vec<u8>> {
        let path = self.path(digest);
        let file = File::open(&path).with_context(|| format!("Can't open {}", path.display()))?;
        let mut content = Vec::with_capacity(length);
        // One byte more than it should have shows that it has too many.
        let read = file.take(length as u64 + 1).read_to_end(&mut content);
        read.with_context(|| format!("Can't read {}", path.display()))?;
        ensure!(content.len() == length, "{} has not its {length} bytes", path.display());
        Ok(content)
    }

    /// Puts a durable file in its place as the chunk `digest`.
    pub(super) fn adopt(&self, digest: Digest, file: &Path) -> io::Result<()> {
        let path = self.path(digest);
        match fs::rename(file, &path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(path.parent().expect("a chunk has a directory"))?;
                fs::rename(file, &path)
            }
            other => other,
        }
    }

    /// Removes all chunks that are not in `wanted`.
    pub(super) fn retain(&self, wanted: impl Fn(Digest) -> bool) -> io::Result<u64> {
        let mut removed = 0;
        for dir in fs::read_dir(&self.dir)? {
            let dir = dir?;
            if !dir.file_type()?.is_dir() {
                continue;
            }
            for chunk in fs::read_dir(dir.path())? {
                let chunk = chunk?;
                // What is not named by a digest is not ours.
                let digest = chunk.file_name().to_str().and_then(|name| name.parse().ok());
                if digest.is_some_and(|digest| !wanted(digest)) {
                    fs::remove_file(chunk.path())?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    pub(super) fn path(&self, digest: Digest) -> PathBuf {
        let name = digest.to_string();
        self.dir.join(&name[..2]).join(name)
    }
}

/// Writes a new file. It is durable after [`sync_file_system`].
pub(super) fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    File::create_new(path)?.write_all(content)
}

/// Makes all that was written to the file system of `dir` durable: one call instead of one for each of thousands of
/// chunks.
pub(super) fn sync_file_system(dir: &Path) -> io::Result<()> {
    let dir = File::open(dir)?;
    // SAFETY: the descriptor is open for the whole call; syncfs touches no memory of ours.
    if unsafe { libc::syncfs(dir.as_raw_fd()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_seen_at_any_length() {
        for length in [1, 4095, 4096, 4097, CHUNK_BYTES] {
            let mut content = vec![0; length];
            assert_eq!(digest(&content), ZEROS);
            content[length - 1] = 1;
            assert_ne!(digest(&content), ZEROS);
        }
    }

    #[test]
    fn a_wrong_chunk_is_not_read() {
        let tmp = tempfile::tempdir().unwrap();
        let chunks = Chunks::new(tmp.path().join("chunks"));
        let file = tmp.path().join("new");
        write_file(&file, b"content").unwrap();
        let name = digest(b"content");
        chunks.adopt(name, &file).unwrap();
        assert_eq!(chunks.read(name, 7).unwrap(), b"content");
        assert!(chunks.read(name, 6).is_err() && chunks.read(name, 8).is_err());
        fs::write(chunks.path(name), b"kontent").unwrap();
        assert!(chunks.read_again(name, 7).is_ok() && chunks.read_again(name, 6).is_err());
        assert!(chunks.read(name, 7).unwrap_err().to_string().contains("other content"));
    }
}
