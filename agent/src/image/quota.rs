//! How much of the disk images may take: what the owner lends, without what VMs' own disks hold.

use super::partial::SPACE_KEPT_BYTES;
use super::{ImageError, ImageStore};
use crate::disk;
use anyhow::Context;
use std::fs;
use std::sync::atomic::Ordering;

impl ImageStore {
    /// Sets what all chunks may take; `None` for as much as the disk has.
    pub fn set_limit(&self, bytes: Option<u64>) {
        self.limit_bytes.store(bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Refuses before the work what would fail in its middle. Blocks on the disk.
    pub(super) fn check_free(&self, needed_bytes: u64) -> Result<(), ImageError> {
        let free_bytes = disk::free_bytes(&self.dir)?.saturating_sub(SPACE_KEPT_BYTES);
        if needed_bytes > free_bytes {
            return Err(ImageError::NoSpace { dir: self.dir.clone(), needed_bytes, free_bytes });
        }
        self.check_quota(needed_bytes)
    }

    /// Refuses what is more than the owner lends.
    pub(super) fn check_quota(&self, needed_bytes: u64) -> Result<(), ImageError> {
        let limit_bytes = self.limit_bytes.load(Ordering::Relaxed);
        if limit_bytes == u64::MAX || needed_bytes == 0 {
            return Ok(());
        }
        let used_bytes = self.used_bytes().context("Can't tell what images take")?;
        if used_bytes.saturating_add(needed_bytes) <= limit_bytes {
            return Ok(());
        }
        Err(ImageError::Quota { limit_bytes, used_bytes, needed_bytes })
    }

    /// Bytes of all chunks.
    fn used_bytes(&self) -> std::io::Result<u64> {
        let mut used_bytes = 0;
        for dir in fs::read_dir(self.dir.join("chunks"))? {
            for chunk in fs::read_dir(dir?.path())? {
                // A sweep may just have removed it.
                used_bytes += chunk?.metadata().map_or(0, |metadata| metadata.len());
            }
        }
        Ok(used_bytes)
    }
}
