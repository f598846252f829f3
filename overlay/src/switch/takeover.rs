//! This host becomes the one that joins a LAN to a network.
//!
//! Until now another host did, or nobody. The stations of the LAN are this host's from now on, and the LAN must learn
//! that the way to everybody else is here.

use super::segment::{PortId, State};
use super::{Switch, SwitchEffect};
use crate::ids::{HostId, Mac, NetworkId};
use crate::limits::ANNOUNCEMENTS_MAX;
use crate::time::Instant;
use crate::wire::arp;
use crate::wire::frame::VNET_BYTES;

impl Switch {
    /// Attaches a network whose port leads to a LAN as well. `lan` are the hosts that stand on the same LAN, `behind`
    /// the addresses that the bridge knows behind the uplink: stations of the LAN, and others that were reached
    /// through it. Returns those others: they are elsewhere now, and as the bridge does not learn from the overlay it
    /// would drop what comes from the LAN for them, until it forgets them.
    #[must_use = "the bridge must forget these"]
    pub fn join_lan(&mut self, now: Instant, network: NetworkId, lan: &[HostId], behind: &[(Mac, PortId)]) -> Vec<Mac> {
        self.attach(network);
        let mut elsewhere = Vec::new();
        for (mac, port) in behind {
            let holder = self.segments.get(&network).and_then(|s| s.bindings.get(mac)).map(|b| b.claim.holder);
            // What a host beyond the LAN holds was reached through the LAN and is not on it.
            if holder.is_none_or(|holder| holder == self.me || lan.contains(&holder) || self.is_lapsed(holder)) {
                self.handle_local(now, network, *mac, Some(*port), &[]);
            } else {
                elsewhere.push(*mac);
            }
        }
        self.announce_beyond(network, lan);
        elsewhere
    }

    /// Shows the bridges of the LAN that what other hosts hold is behind this one. Without it they send on to where it
    /// was until they forget, which takes minutes.
    fn announce_beyond(&mut self, network: NetworkId, lan: &[HostId]) {
        let Some(segment) = self.segments.get(&network) else { return };
        let mut beyond: Vec<Mac> = segment
            .bindings
            .iter()
            .filter(|(_, binding)| matches!(binding.state, State::Remote))
            // The claims of hosts on this LAN are of its own stations.
            .filter(|(_, binding)| !lan.contains(&binding.claim.holder) && !self.is_lapsed(binding.claim.holder))
            .map(|(mac, _)| *mac)
            .collect();
        beyond.sort_unstable();
        beyond.truncate(ANNOUNCEMENTS_MAX);
        let packets = beyond.into_iter().map(|mac| [&[0; VNET_BYTES], &arp::build_announcement(mac)[..]].concat());
        self.effects.extend(packets.map(|packet| SwitchEffect::Deliver { network, packet }));
    }
}
