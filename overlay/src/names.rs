//! Addresses and names of what is in a network, without a server that hands them out: every host chooses for its own
//! stations, and every host decides collisions alike from the replicated rows.

pub mod addresses;
pub mod lease;
pub mod subnet;
pub mod zone;

pub use addresses::{Addresses, Owner};
pub use subnet::{AddressPlan, Subnet};

use crate::ids::{HostId, Mac, NetworkId};

/// The station that serves DHCP and DNS in every network, on every host: it answers where it is asked, and no frame
/// of it or for it leaves a host.
pub const SERVICE_MAC: Mac = Mac([0x02, b'v', b's', 0, 0, 1]);

/// The address of a host's bridge in a network. All hosts can tell by it which station of a network is the host.
pub fn host_mac(network: NetworkId, host: HostId) -> Mac {
    let digest = *blake3::Hasher::new()
        .update(b"host mac")
        .update(&network.0.to_be_bytes())
        .update(&host.0)
        .finalize()
        .as_bytes();
    let [a, b, c, d, ..] = digest;
    Mac([0x02, b'v', a, b, c, d])
}
