//! Where this host's resolver listens.

use serde::{Deserialize, Serialize, Serializer};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// A loopback address that nothing else is known to use.
const DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 47)), 53);

/// Where this host's resolver listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum DnsListen {
    /// At the usual place, if it is free.
    #[default]
    Usual,
    /// Here.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

/// Why a text says no place for a resolver.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseDnsListenError {
    /// It is no address.
    #[error("Not an address and port for a resolver, as 127.0.0.47:53, nor `off`: `{0}`")]
    Form(String),
    /// Others could ask there.
    #[error("A resolver for this host's users listens on a loopback address, which {0} is not")]
    NotLoopback(SocketAddr),
}

impl DnsListen {
    /// The address and port.
    pub const fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Usual => Some(DEFAULT),
            Self::At(address) => Some(address),
            Self::Off => None,
        }
    }

    /// Whether the operator chose it.
    pub fn is_asked_for(self) -> bool {
        self != Self::Usual
    }
}

impl FromStr for DnsListen {
    type Err = ParseDnsListenError;

    fn from_str(text: &str) -> Result<Self, ParseDnsListenError> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let address: SocketAddr = text.parse().map_err(|_| ParseDnsListenError::Form(text.into()))?;
        if address.ip().is_loopback() { Ok(Self::At(address)) } else { Err(ParseDnsListenError::NotLoopback(address)) }
    }
}

impl TryFrom<String> for DnsListen {
    type Error = ParseDnsListenError;

    fn try_from(text: String) -> Result<Self, ParseDnsListenError> {
        text.parse()
    }
}

impl Serialize for DnsListen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.address() {
            Some(address) => serializer.collect_str(&address),
            None => serializer.serialize_str("off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_hosts_users_can_ask() {
        assert_eq!("off".parse(), Ok(DnsListen::Off));
        assert_eq!("127.0.0.9:5353".parse::<DnsListen>().unwrap().address(), "127.0.0.9:5353".parse().ok());
        for (wrong, part) in [("0.0.0.0:53", "loopback"), ("127.0.0.9", "Not an address"), ("on", "Not an address")] {
            assert!(wrong.parse::<DnsListen>().unwrap_err().to_string().contains(part), "{wrong}");
        }
    }
}
