//! Peers, members and the way in.

use crate::name::Name;
use crate::text::Text;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use virtuoso_overlay::ids::HostId;

/// A host with a control connection to this one.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Peer {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Text<HostId>,
    /// Its name; absent until it has told.
    pub name: Option<String>,
    /// Whether its certificate was verified.
    pub member: bool,
    /// The connection's remote address.
    pub address: String,
    /// Whether this host opened the connection.
    pub outbound: bool,
    /// Last round trip.
    pub rtt_us: Option<u64>,
    /// The agent's version, as it tells.
    pub version: Option<String>,
    /// Seconds since the connection opened.
    pub age_s: f64,
}

/// A host that the swarm has admitted.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Text<HostId>,
    /// The name in its certificate.
    pub name: String,
    /// Whether it may admit others.
    pub admin: bool,
    /// End of its certificate, RFC 3339.
    pub expires: String,
    /// Whether it is connected to this host.
    pub connected: bool,
}

/// A host that waits to be admitted.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PendingHost {
    /// Its id.
    #[schema(value_type = String)]
    pub id: Text<HostId>,
    /// The name it asks for.
    pub name: String,
    /// Where it asks from.
    pub address: String,
    /// Seconds since it first asked.
    pub age_s: f64,
}

/// Admits a host that waits.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Approve {
    /// Its id, or its name if only one waits under that name.
    pub peer: String,
}

/// Asks for a ticket.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InviteRequest {
    /// How long it can be used; a day by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_s: Option<u64>,
    /// The only name that it admits; any by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
}

/// A ticket: whoever has it can join once.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Invite {
    /// What `virtuoso agent --bootstrap` takes.
    pub ticket: String,
    /// When it ends, RFC 3339.
    pub expires: String,
}
