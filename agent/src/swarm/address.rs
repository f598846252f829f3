//! Addresses of peers: between multiaddrs, socket addresses and host ids. No I/O, no name resolution.

use anyhow::Context;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use std::net::{IpAddr, SocketAddr};
use virtuoso_overlay::ids::HostId;

/// The host of a peer, or `None` if its key is not Ed25519: no host of a swarm has such a key.
pub fn host_of(peer: &PeerId) -> Option<HostId> {
    HostId::from_peer_id_bytes(&peer.to_bytes())
}

/// The libp2p name of a host.
pub fn peer_of(host: &HostId) -> PeerId {
    PeerId::from_bytes(&host.peer_id_bytes()).expect("an identity multihash of 36 bytes is a PeerId")
}

/// The form of an address that does not depend on how the socket was opened: IPv4 in IPv6 becomes IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// `/ip4|ip6/../udp/P/quic-v1`.
pub fn quic_address(address: SocketAddr) -> Multiaddr {
    let address = canonical(address);
    Multiaddr::from(address.ip()).with(Protocol::Udp(address.port())).with(Protocol::QuicV1)
}

/// `/ip4|ip6/../tcp/P`.
pub fn tcp_address(address: SocketAddr) -> Multiaddr {
    let address = canonical(address);
    Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()))
}

/// The parts of `/ip4|ip6/../udp/P/quic-v1[/p2p/..]`, or `None` for every other form.
pub fn quic_parts(address: &Multiaddr) -> Option<(SocketAddr, Option<PeerId>)> {
    let mut parts = address.iter();
    let ip = ip_part(parts.next()?)?;
    let Protocol::Udp(port) = parts.next()? else { return None };
    let Protocol::QuicV1 = parts.next()? else { return None };
    let peer = match parts.next() {
        None => None,
        Some(Protocol::P2p(peer)) => Some(peer),
        Some(_) => return None,
    };
    if parts.next().is_some() { None } else { Some((SocketAddr::new(ip, port), peer)) }
}

/// The UDP socket of a QUIC address, which serves the data plane too.
pub fn udp_of(address: &Multiaddr) -> Option<SocketAddr> {
    quic_parts(address).map(|(socket, _)| socket)
}

/// The IP address that a multiaddr begins with.
pub fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    ip_part(address.iter().next()?).map(|ip| ip.to_canonical())
}

fn ip_part(part: Protocol<'_>) -> Option<IpAddr> {
    match part {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip)),
        _ => None,
    }
}

/// The peer named at the end of an address.
pub fn named_peer(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// The address without the peer at its end.
pub fn without_peer(mut address: Multiaddr) -> Multiaddr {
    if named_peer(&address).is_some() {
        address.pop();
    }
    address
}

/// Whether the agent can dial an address of this form: an IP address or a DNS name, then QUIC or TCP.
///
/// Unspecified and multicast addresses, port 0, and link-local IPv6 (which needs a zone) are nobody's address.
pub fn is_dialable(address: &Multiaddr) -> bool {
    let mut parts = address.iter();
    let host_fits = match parts.next() {
        Some(Protocol::Ip4(ip)) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        Some(Protocol::Ip6(ip)) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local(),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)) => true,
        _ => false,
    };
    let port_fits = match parts.next() {
        Some(Protocol::Udp(port)) => port != 0 && parts.next() == Some(Protocol::QuicV1),
        Some(Protocol::Tcp(port)) => port != 0,
        _ => false,
    };
    let rest_fits = matches!(parts.next(), None | Some(Protocol::P2p(_))) && parts.next().is_none();
    host_fits && port_fits && rest_fits
}

/// Whether an address says the same to every host: not loopback.
pub fn is_loopback(address: &Multiaddr) -> bool {
    ip_of(address).is_some_and(|ip| ip.is_loopback())
}

/// An address that a user gave to join a swarm.
pub fn parse_bootstrap(text: &str) -> anyhow::Result<Multiaddr> {
    const FORM: &str = "expected /ip4/ADDRESS/udp/PORT/quic-v1/p2p/PEER or /ip4/ADDRESS/tcp/PORT/p2p/PEER \
                        (also ip6, dns4, dns6; /p2p/PEER may be left out)";
    let address: Multiaddr = text.parse().with_context(|| format!("Bad bootstrap address {text:?}: {FORM}"))?;
    anyhow::ensure!(is_dialable(&address), "Bad bootstrap address {text:?}: {FORM}");
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_peers_convert() {
        let host = HostId([9; 32]);
        assert_eq!(host_of(&peer_of(&host)), Some(host));
        assert_eq!(peer_of(&host).to_string(), host.to_string());
    }

    #[test]
    fn quic_addresses_round_trip() {
        for text in ["127.0.0.1:4747", "[2001:db8::1]:1"] {
            let socket: SocketAddr = text.parse().unwrap();
            assert_eq!(quic_parts(&quic_address(socket)), Some((socket, None)));
        }
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:7".parse().unwrap();
        assert_eq!(quic_address(mapped).to_string(), "/ip4/10.0.0.1/udp/7/quic-v1");
        assert_eq!(quic_parts(&"/ip4/1.2.3.4/tcp/5".parse().unwrap()), None);
    }

    #[test]
    fn bootstrap_addresses_are_checked() {
        let peer = peer_of(&HostId([1; 32]));
        for good in [
            "/ip4/10.0.0.1/udp/4747/quic-v1".to_owned(),
            format!("/ip6/2001:db8::1/udp/4747/quic-v1/p2p/{peer}"),
            format!("/dns4/host.example/udp/4747/quic-v1/p2p/{peer}"),
            format!("/ip4/10.0.0.1/tcp/4747/p2p/{peer}"),
        ] {
            let address = parse_bootstrap(&good).unwrap();
            assert_eq!(named_peer(&address).is_some(), good.contains("p2p"));
            assert_eq!(named_peer(&without_peer(address)), None);
        }
        for bad in [
            "",
            "10.0.0.1:4747",
            "/ip4/0.0.0.0/udp/4747/quic-v1",
            "/ip4/10.0.0.1/udp/0/quic-v1",
            "/ip4/10.0.0.1/udp/4747",
            "/ip6/fe80::1/tcp/4747",
            "/ip4/10.0.0.1/tcp/4747/ws",
        ] {
            let error = parse_bootstrap(bad).unwrap_err().to_string();
            assert!(error.contains("expected /ip4/"), "{bad}: {error}");
        }
    }
}
