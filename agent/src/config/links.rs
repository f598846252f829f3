//! `[links]`: what limits the links to other hosts, all of them and single ones.

use crate::name::Name;
use crate::text::Text;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use virtuoso_engine::{LinkLimits, LinkSettings, Threads};
use virtuoso_overlay::congestion::Congestion;
use virtuoso_overlay::ids::HostId;

/// What limits the links to other hosts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Links {
    /// Of every link without settings of its own, and of all together.
    #[serde(flatten)]
    pub all: LinkSettings,
    /// Of the links to single hosts, by name or id.
    pub peers: BTreeMap<String, LinkLimits>,
}

/// See [`Links`].
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinksLayer {
    pub congestion: Option<Text<Congestion>>,
    pub rate_mbit: Option<u32>,
    pub threads: Option<Threads>,
    pub peers: BTreeMap<String, PeerLayer>,
}

/// What differs for one peer.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeerLayer {
    pub congestion: Option<Text<Congestion>>,
    pub rate_mbit: Option<u32>,
}

impl Links {
    /// Limits of the link to a host. Its id counts before its name, which another host may have had before.
    pub fn of(&self, host: HostId, name: &str) -> LinkLimits {
        let own = self.peers.get(&host.to_string()).or_else(|| self.peers.get(name));
        own.copied().unwrap_or_else(|| self.all.limits())
    }

    /// What holds after a reload with `new`: threads stay.
    pub(super) fn reloaded(&self, new: Self) -> Self {
        Self { all: LinkSettings { threads: self.all.threads, ..new.all }, ..new }
    }

    /// Whether all keys can name a host.
    pub(super) fn validate(&self) -> anyhow::Result<()> {
        for key in self.peers.keys() {
            let names_host = key.parse::<HostId>().is_ok() || key.parse::<Name>().is_ok();
            anyhow::ensure!(names_host, "`links.peers` has `{key}`, which is neither the name of a host nor its id");
        }
        Ok(())
    }
}

impl From<LinksLayer> for Links {
    fn from(layer: LinksLayer) -> Self {
        let all = LinkSettings {
            congestion: layer.congestion.map_or_else(Congestion::default, |Text(rule)| rule),
            rate_mbit: layer.rate_mbit.unwrap_or_default(),
            threads: layer.threads.unwrap_or_default(),
        };
        let with = |peer: PeerLayer| LinkLimits {
            congestion: peer.congestion.map_or(all.congestion, |Text(rule)| rule),
            rate_mbit: peer.rate_mbit.unwrap_or(all.rate_mbit),
        };
        let peers = layer.peers.into_iter().map(|(key, peer)| (key, with(peer)));
        Self { all, peers: peers.collect() }
    }
}
