//! A file system that is soon full. The next lab needs its place.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::command;
use crate::console;

/// Mounted as long as it lives.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn mount(directory: &Path, mib: u64) -> Result<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(directory);
        command::run(&mut mount)?;
        Ok(Self(directory.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: an agent may have files open there until its lab is taken down.
        if let Err(error) = command::run(Command::new("umount").arg("--lazy").arg(&self.0)) {
            console::complain(format!("{error:#}"));
        }
    }
}
