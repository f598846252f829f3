//! Who is an admitted member now: one set, shared by the control plane's gate and the data plane's links.

use super::address::host_of;
use dashmap::DashSet;
use libp2p::PeerId;
use std::sync::Arc;
use virtuoso_overlay::ids::HostId;

/// The admitted hosts. Clones share one set.
#[derive(Clone, Debug, Default)]
pub struct Members(Arc<DashSet<HostId>>);

impl Members {
    /// Whether the swarm has admitted `host`.
    pub fn contains(&self, host: &HostId) -> bool {
        self.0.contains(host)
    }

    /// The same for libp2p's name of a host.
    pub fn contains_peer(&self, peer: &PeerId) -> bool {
        host_of(peer).is_some_and(|host| self.contains(&host))
    }

    /// How many hosts are admitted.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Changes one host's standing; says whether that was a change.
    pub(super) fn set(&self, host: HostId, admitted: bool) -> bool {
        if admitted { self.0.insert(host) } else { self.0.remove(&host).is_some() }
    }
}
