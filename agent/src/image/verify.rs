//! Is an image's content still what its digest says?

use super::import::OnStep;
use super::{ImageError, ImageStore};
use crate::control::model::{DamagedChunk, ImageVerification, Progress};
use crate::name::Name;
use std::ops::ControlFlow;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// Damaged chunks that are told one by one; beyond that the disk is the problem.
const DAMAGED_TOLD_MAX: usize = 64;

/// What a check found.
pub type Verification = ImageVerification;

impl ImageStore {
    /// Reads and hashes each chunk of an image.
    pub(super) fn verify_blocking(&self, name: &Name, on_step: OnStep<'_>) -> Result<Verification, ImageError> {
        let found = {
            // A removal meanwhile must not look like damage.
            let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            self.check_chunks(name, on_step)
        };
        if self.sweep_due.load(Ordering::SeqCst) {
            self.sweep()?;
        }
        found
    }

    fn check_chunks(&self, name: &Name, on_step: OnStep<'_>) -> Result<Verification, ImageError> {
        let manifest = self.manifest(name)?;
        let total_bytes = manifest.stored_bytes();
        let (mut done_bytes, mut chunks_checked, mut chunks_damaged) = (0, 0, 0);
        let mut damaged = Vec::new();
        for (digest, offset_bytes, length) in manifest.stored() {
            chunks_checked += 1;
            if let Err(error) = self.chunks.read(digest, length) {
                chunks_damaged += 1;
                if damaged.len() < DAMAGED_TOLD_MAX {
                    damaged.push(DamagedChunk { offset_bytes, digest: digest.into(), problem: format!("{error:#}") });
                }
            }
            done_bytes += length as u64;
            if on_step(Progress { done_bytes, total_bytes }) == ControlFlow::Break(()) {
                return Err(ImageError::Cancelled);
            }
        }
        let digest = manifest.digest().into();
        let ok = chunks_damaged == 0;
        Ok(Verification { name: name.to_string(), digest, ok, chunks_checked, chunks_damaged, damaged })
    }
}
