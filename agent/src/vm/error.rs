//! Why a VM was not made, started or changed.

use crate::control::problem::{ApiError, ErrorCode};
use crate::name::Name;
use crate::shortage::explain_refusal;
use crate::size::ByteSize;
use virtuoso_overlay::vm::lifecycle::Denied;
use virtuoso_overlay::vm::reservations::Refusal;

/// A refusal that scripts can tell from others.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// No such VM here.
    #[error("There is no VM {0} on this host: `virtuoso vm list` shows all")]
    NotFound(Name),
    /// There is no room.
    #[error("This host has no room for VM {0}: {why}", why = explain_refusal(.1))]
    NoRoom(Name, Refusal),
    /// Another VM has the name, or gets it.
    #[error("There is a VM {name} already, on host {host}")]
    NameTaken {
        /// The name.
        name: String,
        /// The other VM's host.
        host: String,
    },
    /// Too many VMs are made at once.
    #[error("Too many VMs are being made in the swarm at once: try again in a few seconds")]
    NamesBusy,
    /// Too many clones are made at once.
    #[error("Too many disks are being copied on this host: try again when one is done")]
    ManyClones,
    /// The VM's state forbids it.
    #[error("Can't {verb} VM {name}: {why}")]
    Denied {
        /// The VM.
        name: Name,
        /// What was wanted.
        verb: &'static str,
        /// Why not.
        why: Denied,
    },
    /// QEMU ended before the VM ran.
    #[error("QEMU did not start VM {name}: {words}")]
    DidNotStart {
        /// The VM.
        name: Name,
        /// The last lines that QEMU wrote.
        words: String,
    },
    /// Something that QEMU needs is not there.
    #[error("{0}")]
    Missing(String),
    /// The image does not fit on the disk.
    #[error(
        "A disk of {} is smaller than image {image}, which has {}",
        ByteSize(*disk_bytes).rounded(), ByteSize(*image_bytes).rounded()
    )]
    SmallDisk {
        /// The image.
        image: Name,
        /// Its size.
        image_bytes: u64,
        /// The disk's.
        disk_bytes: u64,
    },
    /// The definition makes no sense here.
    #[error("{0}")]
    Invalid(String),
}

impl VmError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound(_) => ErrorCode::NotFound,
            Self::NoRoom(_, Refusal::NameTaken(_)) | Self::NameTaken { .. } | Self::Denied { .. } => {
                ErrorCode::Conflict
            }
            Self::NamesBusy | Self::ManyClones => ErrorCode::Unavailable,
            Self::NoRoom(..) => ErrorCode::NoSpace,
            Self::DidNotStart { .. } => ErrorCode::Internal,
            Self::Missing(_) => ErrorCode::MissingRights,
            Self::Invalid(_) | Self::SmallDisk { .. } => ErrorCode::InvalidRequest,
        }
    }
}

impl From<VmError> for ApiError {
    fn from(error: VmError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
