//! Network devices of the host: the bridge and the TAP of each network, the interfaces in it, and what the kernel's
//! bridges learn. All of it by netlink, in the network namespace that the agent runs in.
//!
//! One Linux bridge per network joins what stands on this host; the agent's TAP in it leads to the other hosts. This
//! module makes and watches them. It moves no frame and decides nothing about networks.

mod address;
mod beacon;
mod bridge;
mod error;
mod fdb;
mod guard;
mod interface;
mod monitor;
mod port;
mod rest;
mod sysctl;
mod tap;
mod uplink;

pub use beacon::BeaconSocket;
pub use bridge::{BridgeRemoval, RemoveBridge};
pub use error::NetdevError;
pub use fdb::FdbEntry;
pub use interface::{Interface, InterfaceState};
pub use monitor::{Event, watch};
pub use rest::Rest;
pub use tap::Tap;

use anyhow::Context;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use virtuoso_overlay::ids::NetworkId;

/// The name of a network's bridge.
pub fn bridge_name(network: NetworkId) -> String {
    format!("{BRIDGE_PREFIX}{network}")
}

/// The name of the agent's TAP in a network's bridge.
pub fn tap_name(network: NetworkId) -> String {
    format!("{TAP_PREFIX}{network}")
}

/// The network whose bridge has this name.
pub fn network_of_bridge(name: &str) -> Option<NetworkId> {
    network_behind(BRIDGE_PREFIX, name)
}

/// The network whose TAP has this name. What a bridge learns behind it is on another host.
pub fn network_of_tap(name: &str) -> Option<NetworkId> {
    network_behind(TAP_PREFIX, name)
}

fn network_behind(prefix: &str, name: &str) -> Option<NetworkId> {
    let digits = name.strip_prefix(prefix)?;
    let canonical = digits.len() == 8 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if canonical { u32::from_str_radix(digits, 16).ok().map(NetworkId) } else { None }
}

const BRIDGE_PREFIX: &str = "vb-";
const TAP_PREFIX: &str = "vt-";

/// A netlink connection. Clones share it; it closes with the last one.
#[derive(Clone, Debug)]
pub struct Netdev {
    handle: rtnetlink::Handle,
    /// The kernel refuses a list on a socket while it still sends another: whoever lists holds this.
    listing: Arc<Mutex<()>>,
    _connection: Arc<AbortOnDrop>,
}

#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Netdev {
    /// Opens a connection, which a task of the current runtime serves.
    ///
    /// # Errors
    /// If the kernel offers no netlink socket.
    pub fn open() -> anyhow::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("Can't open a netlink socket")?;
        let task = tokio::spawn(connection);
        Ok(Self { handle, listing: Arc::default(), _connection: Arc::new(AbortOnDrop(task.abort_handle())) })
    }
}

#[cfg(test)]
mod tests;
