//! Addresses in the configuration: whom to join, and where peers find this host.

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::net::SocketAddr;
use std::str::FromStr;

/// What every ticket begins with.
pub const TICKET_PREFIX: &str = "virtuoso-ticket:";

/// Characters of a ticket: a dozen addresses, a fingerprint and a secret stay far below.
const TICKET_CHARS_MAX: usize = 4096;

/// A way into a swarm.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub enum Bootstrap {
    /// A host's address: this host waits there until an admin approves it.
    Address(Multiaddr),
    /// A ticket: addresses, the authority's fingerprint and a one-time secret.
    Ticket(String),
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseAddressError {
    /// An address and port in the usual notation.
    #[error("Not a multiaddress: `{0}`: write `{1}`")]
    SocketAddr(String, String),
    /// No address and port.
    #[error("Not an address and port to listen on: `{0}`: expected IP:PORT such as [::]:4747 or 192.0.2.1:4747")]
    Listen(String),
    /// Neither address nor ticket.
    #[error("Not a multiaddress: `{0}`: expected one such as /ip4/192.0.2.1/udp/4747/quic-v1")]
    Multiaddr(String),
    /// A multiaddress over something else than QUIC or TCP.
    #[error("Not an address of an agent: `{0}`: expected /udp/PORT/quic-v1 or /tcp/PORT after an IP or DNS address")]
    Transport(String),
    /// A ticket cut short or mistyped.
    #[error(
        "Not a ticket: expected `virtuoso-ticket:` and base58 letters and digits, as `virtuoso swarm invite` prints"
    )]
    Ticket,
}

impl FromStr for Bootstrap {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        let Some(ticket) = text.strip_prefix(TICKET_PREFIX) else { return parse_address(text).map(Self::Address) };
        // Base58 has no 0, O, I and l.
        let base58 = ticket.bytes().all(|b| b.is_ascii_alphanumeric() && !b"0OIl".contains(&b));
        let fits = (1..=TICKET_CHARS_MAX).contains(&ticket.len());
        if base58 && fits { Ok(Self::Ticket(text.into())) } else { Err(ParseAddressError::Ticket) }
    }
}

/// An address that an agent can listen on: an IP or DNS address, then QUIC or TCP, then at most a peer.
pub fn parse_address(text: &str) -> Result<Multiaddr, ParseAddressError> {
    let Ok(address) = text.parse::<Multiaddr>() else {
        return Err(match text.parse::<SocketAddr>() {
            Ok(socket) => ParseAddressError::SocketAddr(text.into(), quic_address(socket)),
            Err(_) => ParseAddressError::Multiaddr(text.into()),
        });
    };
    let mut parts = address.iter();
    let host = matches!(
        parts.next(),
        Some(Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_))
    );
    let transport = match parts.next() {
        Some(Protocol::Udp(_)) => matches!(parts.next(), Some(Protocol::QuicV1)),
        Some(Protocol::Tcp(_)) => true,
        _ => false,
    };
    let end = match parts.next() {
        Some(Protocol::P2p(_)) => parts.next().is_none(),
        other => other.is_none(),
    };
    if host && transport && end { Ok(address) } else { Err(ParseAddressError::Transport(text.into())) }
}

fn quic_address(socket: SocketAddr) -> String {
    let family = if socket.is_ipv4() { "ip4" } else { "ip6" };
    format!("/{family}/{}/udp/{}/quic-v1", socket.ip(), socket.port())
}

/// An address and port to listen on.
pub fn parse_listen(text: &str) -> Result<SocketAddr, ParseAddressError> {
    text.parse().map_err(|_| ParseAddressError::Listen(text.into()))
}

impl TryFrom<String> for Bootstrap {
    type Error = ParseAddressError;

    fn try_from(text: String) -> Result<Self, ParseAddressError> {
        text.parse()
    }
}

/// A ticket's secret is not shown.
impl Serialize for Bootstrap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Address(address) => serializer.collect_str(address),
            Self::Ticket(_) => serializer.serialize_str("virtuoso-ticket:..."),
        }
    }
}

/// Reads `advertise` with the same care as `bootstrap`.
pub(super) fn deserialize_listen<'de, D: Deserializer<'de>>(input: D) -> Result<Option<SocketAddr>, D::Error> {
    parse_listen(&String::deserialize(input)?).map(Some).map_err(serde::de::Error::custom)
}

pub(super) fn deserialize_advertise<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Vec<Multiaddr>>, D::Error> {
    let texts = Vec::<String>::deserialize(input)?;
    let addresses: Result<_, _> = texts.iter().map(|text| parse_address(text)).collect();
    addresses.map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_addresses_of_agents() {
        let peer = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";
        for right in [
            "/ip4/192.0.2.1/udp/4747/quic-v1".to_string(),
            format!("/ip6/2001:db8::1/udp/4747/quic-v1/p2p/{peer}"),
            format!("/dns/host.example/tcp/4747/p2p/{peer}"),
        ] {
            assert!(matches!(right.parse(), Ok(Bootstrap::Address(_))), "{right}");
        }
    }

    #[test]
    fn says_what_to_write_instead() {
        let error = "192.0.2.1:4747".parse::<Bootstrap>().unwrap_err().to_string();
        assert!(error.ends_with("write `/ip4/192.0.2.1/udp/4747/quic-v1`"), "{error}");
        let error = "[2001:db8::1]:4747".parse::<Bootstrap>().unwrap_err().to_string();
        assert!(error.ends_with("write `/ip6/2001:db8::1/udp/4747/quic-v1`"), "{error}");
        for wrong in ["", "host", "/ip4/1.2.3", "/ip4/192.0.2.1", "/ip4/192.0.2.1/udp/4747", "/tcp/4747"] {
            assert!(wrong.parse::<Bootstrap>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn tickets_are_base58_and_stay_secret() {
        let ticket: Bootstrap = "virtuoso-ticket:2NEpo7TZRRrLZSi2U".parse().unwrap();
        assert_eq!(serde_json::to_string(&ticket).unwrap(), "\"virtuoso-ticket:...\"");
        for wrong in ["virtuoso-ticket:", "virtuoso-ticket:0OIl", "virtuoso-ticket:a b"] {
            assert_eq!(wrong.parse::<Bootstrap>(), Err(ParseAddressError::Ticket), "{wrong}");
        }
    }
}
