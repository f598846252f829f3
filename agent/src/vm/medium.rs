//! What can be in a VM's CD-ROM drive.

use crate::name::Name;
use crate::text::Text;
use serde::{Deserialize, Serialize};
use virtuoso_overlay::ids::{Digest, DiscKey, HostId};

/// A medium. It moves with its VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Medium {
    /// A file that a user of some host lent to this drive.
    Disc {
        /// What opens it.
        key: Text<DiscKey>,
        /// Whose file it is.
        host: Text<HostId>,
        /// Its name there.
        path: String,
        /// Its size.
        size_bytes: u64,
    },
    /// An image of the swarm.
    Image {
        /// Its name, for people.
        name: Name,
        /// Its content.
        digest: Text<Digest>,
        /// Its size.
        size_bytes: u64,
    },
}

impl Medium {
    /// What it is, for people.
    pub fn source(&self) -> String {
        match self {
            Self::Disc { path, .. } => path.clone(),
            Self::Image { name, .. } => name.to_string(),
        }
    }

    /// The host whose file it is.
    pub fn host(&self) -> Option<HostId> {
        match self {
            Self::Disc { host, .. } => Some(host.0),
            Self::Image { .. } => None,
        }
    }

    /// The image that it is.
    pub fn image(&self) -> Option<Digest> {
        match self {
            Self::Disc { .. } => None,
            Self::Image { digest, .. } => Some(digest.0),
        }
    }

    /// Its size.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Disc { size_bytes, .. } | Self::Image { size_bytes, .. } => *size_bytes,
        }
    }
}
