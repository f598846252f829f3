//! Images and the work on them.

use crate::name::Name;
use crate::size::ByteSize;
use crate::text::Text;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use utoipa::ToSchema;
use virtuoso_overlay::ids::{Digest, HostId};

/// An image somewhere in the swarm.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// Its content's digest, 64 hexadecimal digits.
    #[schema(value_type = String)]
    pub digest: Text<Digest>,
    /// Bytes that a VM sees.
    pub size_bytes: u64,
    /// Hosts that have it.
    #[schema(value_type = Vec<String>)]
    pub providers: Vec<Text<HostId>>,
    /// Names of those hosts, in the same order.
    pub provider_names: Vec<String>,
    /// Whether this host has it.
    pub local: bool,
    /// Bytes it takes on this host's disk, shared chunks counted in full; absent if it isn't here.
    pub stored_bytes: Option<u64>,
    /// Of these, what no other image of this host shares; only where one image is shown, and if it is here.
    pub unique_bytes: Option<u64>,
}

/// Asks to write an image of this host to a file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageExport {
    /// The file, as an absolute path on the agent's host. There must be none yet.
    #[schema(value_type = String)]
    pub path: PathBuf,
}

/// Asks to import a file into this host's store.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageImport {
    /// The file, as an absolute path on the agent's host. Raw content, or qcow2.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// The name it gets.
    #[schema(value_type = String)]
    pub name: Name,
}

/// How to fetch an image from other hosts.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImagePull {
    /// The name it gets here; the one it has elsewhere if absent.
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// Bytes per second at most.
    #[schema(value_type = Option<String>)]
    pub rate: Option<ByteSize>,
}

/// What a check of an image's content found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageVerification {
    /// The image's name.
    pub name: String,
    /// The image's digest.
    #[schema(value_type = String)]
    pub digest: Text<Digest>,
    /// No chunk is missing or damaged.
    pub ok: bool,
    /// Chunks that were read and hashed; chunks of zeros take no space and can't be damaged.
    pub chunks_checked: u64,
    /// How many of them are missing or damaged.
    pub chunks_damaged: u64,
    /// The first of those.
    pub damaged: Vec<DamagedChunk>,
}

/// A chunk whose content is not what its digest says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DamagedChunk {
    /// Where it stands in the image.
    pub offset_bytes: u64,
    /// Its digest.
    #[schema(value_type = String)]
    pub digest: Text<Digest>,
    /// What is wrong with it.
    pub problem: String,
}

/// How far long work has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}
