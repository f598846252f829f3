//! What is kept of this host's networks over restarts.

use super::Attachment;
use crate::name::Name;
use crate::state::sealed::Kind;
use crate::text::Text;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use virtuoso_overlay::congestion::Congestion;
use virtuoso_overlay::ids::{NetworkId, SwarmId};
use virtuoso_overlay::names::{AddressPlan, Subnet};
use virtuoso_overlay::table::NetworkRow;
use virtuoso_overlay::time::UnixTime;

/// The networks that this host made or has a port in.
pub(crate) const NETWORKS: Kind = Kind { name: "networks", version: 1 };

/// What is kept of networks over restarts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedNetworks {
    pub(super) networks: BTreeMap<Name, SavedNetwork>,
}

/// What is kept of one network.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedNetwork {
    mtu: u16,
    created: u64,
    #[serde(default)]
    plan: Option<SavedPlan>,
    #[serde(default = "no_rule")]
    congestion: Text<Congestion>,
    #[serde(default)]
    rate_mbit: u32,
    pub(super) attached: bool,
    /// Interfaces that were put into the bridge.
    pub(super) interfaces: BTreeSet<String>,
    /// Those of them that are the user's own LAN.
    pub(super) uplinks: BTreeSet<String>,
}

/// How its stations get addresses.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedPlan {
    subnet: Text<Subnet>,
    dhcp: bool,
    host_addresses: bool,
}

impl SavedNetwork {
    pub(super) fn of(row: &NetworkRow) -> Self {
        let plan = row.plan.map(|AddressPlan { subnet, dhcp, host_addresses }| SavedPlan {
            subnet: Text(subnet),
            dhcp,
            host_addresses,
        });
        let (interfaces, uplinks) = (BTreeSet::new(), BTreeSet::new());
        Self {
            mtu: row.mtu,
            created: row.created.0,
            plan,
            congestion: Text(row.congestion),
            rate_mbit: row.rate_mbit,
            attached: false,
            interfaces,
            uplinks,
        }
    }

    /// What the swarm is told of it.
    pub(super) fn row(&self, swarm: SwarmId, name: &Name) -> NetworkRow {
        NetworkRow {
            id: NetworkId::of(swarm, name),
            name: name.to_string(),
            mtu: self.mtu,
            created: UnixTime(self.created),
            plan: self.plan(),
            congestion: self.congestion.0,
            rate_mbit: self.rate_mbit,
        }
    }

    fn plan(&self) -> Option<AddressPlan> {
        self.plan.map(|SavedPlan { subnet: Text(subnet), dhcp, host_addresses }| AddressPlan {
            subnet,
            dhcp,
            host_addresses,
        })
    }

    /// The interfaces that were put into the bridge.
    pub(super) fn attachments(&self) -> Vec<(String, Attachment)> {
        let interfaces = self.interfaces.iter().map(|name| (name.clone(), Attachment::Interface));
        interfaces.chain(self.uplinks.iter().map(|name| (name.clone(), Attachment::Uplink))).collect()
    }
}

fn no_rule() -> Text<Congestion> {
    Text(Congestion::None)
}
