//! A disk image from which the test guest runs: its initial file system on ext4, beside a large file of random bytes.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;
use crate::sandbox;
use crate::test_guest::TestGuest;

pub(crate) struct RootImage {
    path: PathBuf,
    payload_sha256: String,
}

/// Where the guest finds the large file.
pub(crate) const PAYLOAD: &str = "/payload";
/// What the guest takes and writes, and ext4 for its own purposes.
const SYSTEM_MIB: u64 = 40;
/// One part in so many more is for the inodes of a larger file system.
const INODE_SHARE: u64 = 32;

impl RootImage {
    /// Makes an image with a payload of `payload_mib` MiB that `seed` decides.
    pub(crate) fn make(guest: &TestGuest, name: &str, payload_mib: u64, seed: u64) -> Result<Self> {
        let directory = sandbox::fresh_dir(name)?;
        let tree = directory.join("tree");
        fs::create_dir(&tree).with_context(|| format!("Cannot make {}", tree.display()))?;
        let mut unpack = Command::new("cpio");
        command::run(unpack.args(["--quiet", "-idm", "-F", guest.initrd()]).current_dir(&tree))?;
        let payload = tree.join("payload");
        write_random(&payload, payload_mib, seed)?;
        let sum = command::run(Command::new("sha256sum").arg(&payload))?;
        let payload_sha256 = sum.split_whitespace().next().context("sha256sum said nothing")?.to_owned();
        let path = directory.join("root.img");
        let mut mke2fs = Command::new("mke2fs");
        // Or else the guest's kernel writes zeros for a while when it mounts it.
        let at_once = "lazy_itable_init=0,lazy_journal_init=0";
        mke2fs.args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", at_once, "-d"]).arg(&tree).arg(&path);
        command::run(mke2fs.arg(format!("{}M", payload_mib + SYSTEM_MIB + payload_mib / INODE_SHARE)))?;
        fs::remove_dir_all(&tree).with_context(|| format!("Cannot remove {}", tree.display()))?;
        Ok(Self { path, payload_sha256 })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The checksum that the guest should find.
    pub(crate) fn payload_sha256(&self) -> &str {
        &self.payload_sha256
    }
}

/// A file of bytes that no two chunks share and nothing makes smaller.
pub(crate) fn write_random(path: &Path, mib: u64, seed: u64) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("Cannot make {}", path.display()))?;
    append_random(&mut file, mib, seed)
}

/// The same bytes at the end of a file.
pub(crate) fn append_random(file: &mut File, mib: u64, seed: u64) -> Result<()> {
    std::io::copy(&mut Random(seed).take(mib << 20), file).context("Cannot write random bytes")?;
    Ok(())
}

/// SplitMix64.
struct Random(u64);

impl Read for Random {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        for piece in buffer.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut value = self.0;
            value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            piece.copy_from_slice(&(value ^ (value >> 31)).to_le_bytes()[..piece.len()]);
        }
        Ok(buffer.len())
    }
}
