//! Additions to a guest's initial file system: a second archive behind the first one, which the kernel unpacks after
//! it. So a kernel with its initrd can be told who may log in, as cloud images are by their seed.
//!
//! The guest finds `/virtuoso/authorized_keys` and `/virtuoso/hostname`.

use super::spec::Spec;
use anyhow::Context;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// The type and mode of a directory and of a file.
const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;

/// Writes `original` with the additions for a VM behind it to `path`.
pub(super) fn write(spec: &Spec, original: &Path, path: &Path) -> anyhow::Result<()> {
    let copied = fs::copy(original, path);
    let length = copied.with_context(|| format!("Can't copy {} to {}", original.display(), path.display()))?;
    let append = || -> io::Result<()> {
        let mut file = File::options().append(true).open(path)?;
        // Archives begin at multiples of four bytes.
        file.write_all(&[0; 3][..padding(length as usize)])?;
        file.write_all(&archive(spec))?;
        file.sync_all()
    };
    append().with_context(|| format!("Can't write {}", path.display()))
}

fn archive(spec: &Spec) -> Vec<u8> {
    let keys: String = spec.ssh_keys.iter().map(|key| format!("{key}\n")).collect();
    let mut archive = Vec::new();
    entry(&mut archive, "virtuoso", DIRECTORY, b"");
    entry(&mut archive, "virtuoso/authorized_keys", FILE, keys.as_bytes());
    entry(&mut archive, "virtuoso/hostname", FILE, format!("{}\n", spec.name).as_bytes());
    entry(&mut archive, "TRAILER!!!", 0, b"");
    archive
}

/// One entry in the "newc" form (kernel documentation, early-userspace/buffer-format): thirteen fields of eight
/// hexadecimal digits, the name, the content, each padded to four bytes.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let links = 1;
    let fields = [0, mode, 0, 0, links, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len() + padding(archive.len()), 0);
}

/// Bytes up to the next multiple of four.
fn padding(length: usize) -> usize {
    (4 - length % 4) % 4
}

#[cfg(test)]
mod tests {
    use super::super::spec::tests::spec;
    use super::*;

    #[test]
    fn entries_are_aligned_and_complete() {
        let spec = Spec { ssh_keys: vec!["ssh-ed25519 AAAA me".into()], ..spec() };
        let archive = archive(&spec);
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive);
        assert!(text.contains("virtuoso/authorized_keys\0") && text.contains("ssh-ed25519 AAAA me\n"));
        assert!(text.contains("vm-8-1\n") && text.contains("TRAILER!!!"));
        assert_eq!(text.matches("070701").count(), 4);

        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&from, "12345").unwrap();
        write(&spec, &from, &to).unwrap();
        let written = fs::read(&to).unwrap();
        assert_eq!((&written[..8], written.len()), (&b"12345\0\0\0"[..], 8 + archive.len()));
    }
}
