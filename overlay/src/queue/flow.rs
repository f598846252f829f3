//! Which frames belong together: those of one conversation, whose order counts and who share one turn.

use crate::ids::NetworkId;
use crate::wire::ethernet::{EtherType, EthernetView};
use crate::wire::ip::{Ipv4View, Ipv6View, Protocol};

/// IPv6's fragment header.
const FRAGMENT: Protocol = Protocol(44);
/// SCTP begins with two ports, as TCP and UDP do.
const SCTP: Protocol = Protocol(132);

/// A number that all frames of one conversation share: of one pair of addresses and ports where there are any, else of
/// one pair of stations. Fragments have no ports, so they count by address. A guest that does not know `seed` can't
/// choose conversations that share a number.
// HOT PATH
pub fn flow_hash(seed: u64, network: NetworkId, frame: &[u8]) -> u64 {
    let hash = mix(seed ^ u64::from(network.0), NOISE[0]);
    let Ok(view) = EthernetView::new_checked(frame) else { return hash };
    let ip = match view.ethertype() {
        EtherType::IPV4 => Ipv4View::new_checked(view.payload()).ok().map(|ip| v4(hash, &ip)),
        EtherType::IPV6 => Ipv6View::new_checked(view.payload()).ok().map(|ip| v6(hash, &ip)),
        _ => None,
    };
    ip.unwrap_or_else(|| {
        let hash = absorb(hash, &frame[..12]);
        mix(hash ^ u64::from(view.ethertype().0), NOISE[2])
    })
}

fn v4(hash: u64, ip: &Ipv4View<'_>) -> u64 {
    let header = ip.header();
    let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    let ports = if is_fragment { [0; 4] } else { ports(ip.protocol(), ip.payload()) };
    conversation(absorb(hash, &header[12..20]), ip.protocol(), ports)
}

fn v6(hash: u64, ip: &Ipv6View<'_>) -> u64 {
    let hash = absorb(hash, &ip.header()[8..40]);
    match ip.upper_layer() {
        Ok(upper) if ip.next_header() != FRAGMENT && upper.fragment_offset == 0 => {
            conversation(hash, upper.protocol, ports(upper.protocol, upper.bytes))
        }
        _ => conversation(hash, FRAGMENT, [0; 4]),
    }
}

fn ports(protocol: Protocol, bytes: &[u8]) -> [u8; 4] {
    let has_ports = matches!(protocol, Protocol::TCP | Protocol::UDP | SCTP);
    bytes.first_chunk().filter(|_| has_ports).copied().unwrap_or_default()
}

fn conversation(hash: u64, protocol: Protocol, ports: [u8; 4]) -> u64 {
    mix(hash ^ u64::from(u32::from_be_bytes(ports)) ^ (u64::from(protocol.0) << 32), NOISE[1])
}

/// Mixes in up to four words of eight bytes; what lacks to a whole word is zero.
fn absorb(hash: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(hash, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(hash ^ u64::from_be_bytes(word), NOISE[0])
    })
}

/// Both halves of a product: each bit depends on all bits of both factors.
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Odd numbers with as many ones as zeros.
const NOISE: [u64; 3] = [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db, 0x8ebc_6af0_9c88_c6e3];
