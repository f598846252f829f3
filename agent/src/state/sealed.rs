//! Files that know whether they are whole: one header line with name, format version, length and BLAKE3 digest, then
//! the content. Written to a second file, synced and renamed, so that a crash leaves the old content or the new.

use anyhow::{Context, anyhow};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use virtuoso_overlay::ids::Digest;

/// First word of each header.
const MAGIC: &str = "virtuoso-state";
/// Bytes of a state file. The largest is the list of image names, a few megabytes at its bound.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Bytes of a header line: magic, name, three numbers.
const HEADER_BYTES_MAX: usize = 256;

/// What a file is: its name and the version of its format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// File name.
    pub name: &'static str,
    /// Raised when the content changes its shape.
    pub version: u32,
}

/// A state file that can't be used. It is kept as it is.
#[derive(Debug, thiserror::Error)]
#[error(
    "State file {} can't be used: {reason}. It is kept as it is: restore it from a backup, or move it away to go on \
     without it", path.display()
)]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with a state file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Not one of our headers.
    #[error("its first line is not a header of this program")]
    Header,
    /// The header of another file.
    #[error("it is a copy of `{0}`")]
    Name(String),
    /// Written by a newer agent.
    #[error("its format version is {0}, this agent knows {1}")]
    Version(u32, u32),
    /// Shorter or longer than the header says.
    #[error("it has {0} bytes of content, its header says {1}")]
    Length(u64, u64),
    /// Same length, other content.
    #[error("its content does not match its checksum")]
    Checksum,
    /// Larger than any state file.
    #[error("it is larger than 64 MiB")]
    TooLarge,
    /// Whole, but not what its owner expects.
    #[error("its content has the wrong shape ({0})")]
    Content(String),
    /// The operating system won't read it.
    #[error("{0}")]
    Io(String),
}

/// Reads a file, or `None` if there is none.
pub fn read(path: &Path, kind: &Kind) -> anyhow::Result<Option<Vec<u8>>> {
    let unreadable = |reason| anyhow!(Unreadable { path: path.into(), reason });
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(Reason::Io(error.to_string()))),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| unreadable(Reason::Io(error.to_string())))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(Reason::TooLarge));
    }
    open(bytes, kind).map(Some).map_err(unreadable)
}

/// Replaces a file or creates it, readable by its owner only.
pub fn write(path: &Path, kind: &Kind, content: &[u8]) -> anyhow::Result<()> {
    let unfinished = write_unfinished(path, kind, content)?;
    fs::rename(&unfinished, path).with_context(|| format!("Can't replace {}", path.display()))?;
    sync_dir(path)
}

/// Writes what a file shall become, beside it and for good, so that [`replace`] is quick.
pub fn stage(path: &Path, kind: &Kind, content: &[u8]) -> anyhow::Result<()> {
    let unfinished = write_unfinished(path, kind, content)?;
    let staged = staged(path);
    fs::rename(&unfinished, &staged).with_context(|| format!("Can't write {}", staged.display()))
}

/// Replaces a file by what was staged for it, if that has this content; false if it has not.
pub fn replace(path: &Path, kind: &Kind, content: &[u8]) -> anyhow::Result<bool> {
    let staged = staged(path);
    if !read(&staged, kind).is_ok_and(|found| found.is_some_and(|found| found == content)) {
        return Ok(false);
    }
    fs::rename(&staged, path).with_context(|| format!("Can't replace {}", path.display()))?;
    sync_dir(path)?;
    Ok(true)
}

/// Where it is staged what `path` shall become.
pub fn staged(path: &Path) -> PathBuf {
    path.with_extension("next")
}

/// Creates a file; one that exists is left alone and is an error.
pub fn create(path: &Path, kind: &Kind, content: &[u8]) -> anyhow::Result<()> {
    let unfinished = write_unfinished(path, kind, content)?;
    // A link is refused if the name is taken; a rename would replace the file.
    let linked = fs::hard_link(&unfinished, path).with_context(|| format!("Can't create {}", path.display()));
    fs::remove_file(&unfinished).with_context(|| format!("Can't remove {}", unfinished.display()))?;
    linked?;
    sync_dir(path)
}

fn write_unfinished(path: &Path, kind: &Kind, content: &[u8]) -> anyhow::Result<PathBuf> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    let written = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(header(kind, content).as_bytes())?;
        file.write_all(content)?;
        file.sync_all()
    };
    written().with_context(|| format!("Can't write {}", unfinished.display()))?;
    Ok(unfinished)
}

fn header(kind: &Kind, content: &[u8]) -> String {
    let digest = Digest(*blake3::hash(content).as_bytes());
    format!("{MAGIC} {} {} {} {digest}\n", kind.name, kind.version, content.len())
}

/// The content of a whole file.
fn open(mut bytes: Vec<u8>, kind: &Kind) -> Result<Vec<u8>, Reason> {
    let line_end = bytes.iter().take(HEADER_BYTES_MAX).position(|b| *b == b'\n').ok_or(Reason::Header)?;
    let line = std::str::from_utf8(&bytes[..line_end]).map_err(|_| Reason::Header)?;
    let fields: Vec<&str> = line.split(' ').collect();
    let [MAGIC, name, version, length, digest] = fields[..] else { return Err(Reason::Header) };
    if name != kind.name {
        return Err(Reason::Name(name.into()));
    }
    let version: u32 = version.parse().map_err(|_| Reason::Header)?;
    if version > kind.version {
        return Err(Reason::Version(version, kind.version));
    }
    let length: u64 = length.parse().map_err(|_| Reason::Header)?;
    let digest: Digest = digest.parse().map_err(|_| Reason::Header)?;
    bytes.drain(..=line_end);
    if bytes.len() as u64 != length {
        return Err(Reason::Length(bytes.len() as u64, length));
    }
    if *blake3::hash(&bytes).as_bytes() == digest.0 { Ok(bytes) } else { Err(Reason::Checksum) }
}

/// A rename or a link is durable once its directory is.
pub fn sync_dir(path: &Path) -> anyhow::Result<()> {
    let dir = path.parent().context("A file has a directory")?;
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("Can't sync {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KIND: Kind = Kind { name: "x", version: 2 };

    fn seal(kind: &Kind, content: &[u8]) -> Vec<u8> {
        [header(kind, content).as_bytes(), content].concat()
    }

    #[test]
    fn says_what_is_wrong() {
        let newer = Kind { version: 3, ..KIND };
        let other = Kind { name: "y", ..KIND };
        assert_eq!(open(seal(&newer, b"a"), &KIND), Err(Reason::Version(3, 2)));
        assert_eq!(open(seal(&other, b"a"), &KIND), Err(Reason::Name("y".into())));
        assert_eq!(open(b"{}".into(), &KIND), Err(Reason::Header));
        assert_eq!(open([seal(&KIND, b"a"), b"b".into()].concat(), &KIND), Err(Reason::Length(2, 1)));
        let mut flipped = seal(&KIND, b"abc");
        *flipped.last_mut().unwrap() ^= 1;
        assert_eq!(open(flipped, &KIND), Err(Reason::Checksum));
    }

    #[test]
    fn create_never_replaces() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("x");
        create(&path, &KIND, b"first").unwrap();
        create(&path, &KIND, b"second").unwrap_err();
        assert_eq!(read(&path, &KIND).unwrap(), Some(b"first".to_vec()));
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);
    }

    proptest! {
        #[test]
        fn content_round_trips(content: Vec<u8>) {
            prop_assert_eq!(open(seal(&KIND, &content), &KIND), Ok(content));
        }

        #[test]
        fn any_bytes_are_handled(bytes: Vec<u8>, cut in 0_usize..80) {
            let _ = open(bytes.clone(), &KIND);
            let sealed = seal(&KIND, &bytes);
            let cut = cut.min(sealed.len());
            prop_assert!(cut == 0 || open(sealed[..sealed.len() - cut].to_vec(), &KIND).is_err());
        }
    }
}
