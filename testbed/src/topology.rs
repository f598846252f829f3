//! The TOML description of a lab: hosts, the links between them and what is wrong with those, and, for labs
//! that are brought up as a whole, networks and guests. Parsed once into types that cannot be wrong.
//!
//! ```toml
//! [hosts.alpha]
//! [hosts.beta]
//!
//! [links.wan]                  # two members: a point link; more: one LAN segment
//! delay = "20ms"               # one way
//! jitter = "2ms"               # uniform, around the delay; keeps the order of frames
//! loss = "0.5%"
//! rate = "100Mbit"             # per direction and pair of members
//! queue = "50ms"               # in front of the rate limit
//! reorder = "1%"               # of the frames are held back so that later ones overtake them
//! mtu = 1500                   # of the hosts' interfaces
//! path_mtu = 1400              # larger packets vanish on the way
//! emulated = true              # relayed by the testbed even with nothing wrong, so that it can be cut
//! [links.wan.members]          # the interface of each member carries the link's name
//! alpha = ["10.77.0.1/24", "fd77::1/64"]
//! beta = ["10.77.0.2/24", "fd77::2/64"]
//!
//! [networks.blue]
//! mtu = 1500
//!
//! [guests.vm1]
//! host = "alpha"
//! network = "blue"
//! addresses = ["10.9.0.1/24", "fd09::1/64"]
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

pub(crate) use crate::topology::quantity::{BitRate, Fraction, Span};

mod quantity;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Topology {
    /// The host that makes the swarm; the first by name if not given.
    pub(crate) founder: Option<String>,
    pub(crate) hosts: BTreeMap<String, HostSpec>,
    #[serde(default)]
    pub(crate) links: BTreeMap<String, LinkSpec>,
    #[serde(default)]
    pub(crate) networks: BTreeMap<String, NetworkSpec>,
    #[serde(default)]
    pub(crate) guests: BTreeMap<String, GuestSpec>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostSpec {}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LinkSpec {
    #[serde(default = "default_mtu")]
    pub(crate) mtu: u16,
    #[serde(default)]
    pub(crate) emulated: bool,
    #[serde(flatten)]
    pub(crate) impairment: Impairment,
    pub(crate) members: BTreeMap<String, Vec<Address>>,
}

/// What a link does to the frames of one direction. The default does nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
pub(crate) struct Impairment {
    #[serde(default)]
    pub(crate) delay: Span,
    #[serde(default)]
    pub(crate) jitter: Span,
    #[serde(default)]
    pub(crate) loss: Fraction,
    #[serde(default)]
    pub(crate) reorder: Fraction,
    pub(crate) rate: Option<BitRate>,
    /// How long a frame may wait for the rate limit before it is dropped.
    pub(crate) queue: Option<Span>,
    pub(crate) path_mtu: Option<u16>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkSpec {
    #[serde(default = "default_mtu")]
    pub(crate) mtu: u16,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GuestSpec {
    pub(crate) host: String,
    pub(crate) network: String,
    #[serde(default)]
    pub(crate) addresses: Vec<Address>,
}

/// An address with the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Address {
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
}

impl Topology {
    pub(crate) fn load(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("Cannot read topology {}", file.display()))?;
        text.parse().with_context(|| format!("Bad topology {}", file.display()))
    }

    /// The name of the host that makes the swarm.
    pub(crate) fn founder(&self) -> &str {
        let first = || self.hosts.keys().next().map_or("", String::as_str);
        self.founder.as_deref().unwrap_or_else(first)
    }

    /// The first IPv4 address of `host` on any link, or else its first address.
    pub(crate) fn address_of(&self, host: &str) -> Option<IpAddr> {
        let addresses = || self.links.values().filter_map(|link| link.members.get(host)).flatten().map(|a| a.ip);
        addresses().find(IpAddr::is_ipv4).or_else(|| addresses().next())
    }

    fn validate(&self) -> Result<()> {
        ensure!(!self.hosts.is_empty(), "A lab needs at least one host");
        ensure!(self.hosts.contains_key(self.founder()), "The founder {} is not a host", self.founder());
        for name in self.hosts.keys().chain(self.links.keys()).chain(self.guests.keys()) {
            check_name(name)?;
        }
        for (name, link) in &self.links {
            link.validate(&self.hosts).with_context(|| format!("Link {name}"))?;
        }
        for (name, guest) in &self.guests {
            ensure!(!self.hosts.contains_key(name), "{name} is both a guest and a host");
            ensure!(self.hosts.contains_key(&guest.host), "Guest {name}: {} is not a host", guest.host);
            ensure!(self.networks.contains_key(&guest.network), "Guest {name}: no network {}", guest.network);
        }
        Ok(())
    }
}

impl FromStr for Topology {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let topology: Self = toml::from_str(text)?;
        topology.validate()?;
        Ok(topology)
    }
}

impl LinkSpec {
    /// Whether the testbed itself must carry the frames.
    pub(crate) fn is_emulated(&self) -> bool {
        self.emulated || self.impairment != Impairment::default()
    }

    fn validate(&self, hosts: &BTreeMap<String, HostSpec>) -> Result<()> {
        ensure!(self.members.len() >= 2, "A link needs at least two members");
        ensure!((MTU_MIN..=MTU_MAX).contains(&self.mtu), "The MTU {} is not in {MTU_MIN}..={MTU_MAX}", self.mtu);
        if let Some(stranger) = self.members.keys().find(|member| !hosts.contains_key(*member)) {
            bail!("Its member {stranger} is not a host");
        }
        self.impairment.validate()
    }
}

impl Impairment {
    fn validate(&self) -> Result<()> {
        ensure!(self.jitter <= self.delay, "The jitter is larger than the delay");
        ensure!(self.queue.is_none() || self.rate.is_some(), "A queue without a rate never fills");
        Ok(())
    }
}

impl TryFrom<String> for Address {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (ip, prefix) = text.split_once('/')?;
            Some(Self { ip: ip.parse().ok()?, prefix: prefix.parse().ok()? })
        };
        let address = parse().with_context(|| format!("{text:?} is no address like 10.0.0.1/24"))?;
        let longest = if address.ip.is_ipv4() { 32 } else { 128 };
        ensure!(address.prefix <= longest, "{text:?}: the prefix is longer than {longest}");
        Ok(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// What every IPv4 host must take.
const MTU_MIN: u16 = 576;
/// What a TAP device takes.
const MTU_MAX: u16 = 65_521;

fn default_mtu() -> u16 {
    1500
}

/// Hosts, links and guests name namespaces and interfaces; an interface name has at most 15 bytes and ours a prefix.
fn check_name(name: &str) -> Result<()> {
    let well_formed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    ensure!(
        (1..=12).contains(&name.len()) && name.bytes().all(well_formed),
        "The name {name:?} must have 1 to 12 of a-z, 0-9 and -"
    );
    Ok(())
}

#[cfg(test)]
mod tests;
