//! CD-ROM drives of virtual machines.

use crate::name::Name;
use crate::text::Text;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use utoipa::ToSchema;
use virtuoso_overlay::ids::{DiscKey, HostId};

/// What is in a VM's CD-ROM drive.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Cdrom {
    /// A file's path or an image's name.
    pub source: String,
    /// The host whose file it is; absent for an image.
    #[schema(value_type = Option<String>)]
    pub host: Option<Text<HostId>>,
    /// That host's name.
    pub host_name: Option<String>,
    /// Its size.
    pub size_bytes: u64,
}

/// What to put into a drive.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CdromInsert {
    /// A file of the host whose agent is asked, which the caller may read.
    #[schema(value_type = String)]
    File(PathBuf),
    /// An image of the swarm.
    #[schema(value_type = String)]
    Image(Name),
    /// A file that another host lends. Agents say this to each other.
    Disc(Loan),
}

/// A file that a host lends.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Loan {
    /// What opens it: a secret.
    #[schema(value_type = String)]
    pub key: Text<DiscKey>,
    /// The host.
    #[schema(value_type = String)]
    pub host: Text<HostId>,
    /// The file's path there.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
}
