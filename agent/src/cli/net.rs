//! `virtuoso net`, `virtuoso port`, `virtuoso fdb`: networks and what is on them.

use super::Asking;
use super::format::{bytes, counts, list, seconds, word, yes};
use super::table::Table;
use crate::control::client::Call;
use crate::control::model::{Attach, Detach, FdbEntry, Network, NetworkCreate, Port};
use crate::name::Name;
use crate::text::Text;
use clap::builder::BoolishValueParser;
use clap::{Args, Subcommand};
use std::process::ExitCode;
use virtuoso_overlay::congestion::Congestion;
use virtuoso_overlay::ids::Mac;
use virtuoso_overlay::names::Subnet;

#[derive(Subcommand)]
pub(super) enum NetVerb {
    /// Make a network
    #[command(after_help = "\
Examples:
  virtuoso net create blue --subnet 10.8.0.0/24        VMs get addresses and names, and hosts reach them
  virtuoso net create storage --mtu 9000               Addresses are the guests' affair
  virtuoso net create backup --congestion delay        Gives way where others use the path
  virtuoso net create guests --rate-mbit 50            The most that a host sends of it to each other host")]
    Create {
        /// Its name
        name: Name,
        /// Largest IP packet of its guests, 1280 to 9000 bytes [default: 1500]
        #[arg(long, allow_negative_numbers = true, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1280..=9000))]
        mtu: Option<u32>,
        /// Where its guests and hosts get IPv4 addresses from; the first one serves DHCP and DNS
        #[arg(long, value_name = "NET/PREFIX")]
        subnet: Option<Subnet>,
        /// Whether hosts answer DHCP in it [default: on]
        #[arg(long, value_name = "on|off", requires = "subnet")]
        #[arg(value_parser = BoolishValueParser::new(), hide_possible_values = true)]
        dhcp: Option<bool>,
        /// Whether each host gets an address of its own in it [default: on]
        #[arg(long = "host-address", value_name = "on|off", requires = "subnet")]
        #[arg(value_parser = BoolishValueParser::new(), hide_possible_values = true)]
        host_addresses: Option<bool>,
        /// How its frames share the path to another host: none, cubic (as one TCP connection) or delay (as long as
        /// nothing waits on the path) [default: none]
        #[arg(long, value_name = "RULE")]
        congestion: Option<Congestion>,
        /// The most that a host sends of it to each other host, in Mbit/s; 0 is no limit [default: 0]
        #[arg(long, value_name = "MBIT", allow_negative_numbers = true)]
        rate_mbit: Option<u32>,
    },
    /// All networks
    #[command(after_help = "Examples:\n  virtuoso net list")]
    List,
    /// One network and this host's ports in it
    #[command(after_help = "Examples:\n  virtuoso net show blue\n  virtuoso net show blue --json | jq -r .bridge")]
    Show {
        /// The network
        name: Name,
    },
    /// Attach a network on this host, or an interface to it
    #[command(after_help = "\
Examples:
  virtuoso net attach blue                          Make its bridge here, for a VM manager to use
  virtuoso net attach blue --interface tap0         Plug in an existing TAP, veth or NIC
  virtuoso net attach blue --interface tap0 --mac 52:54:00:12:34:56
  virtuoso net attach blue --uplink eth1            Join it with the LAN behind a NIC")]
    Attach {
        /// The network
        name: Name,
        /// An existing TAP, veth or NIC to plug in
        #[arg(long, value_name = "IF", conflicts_with = "uplink")]
        interface: Option<String>,
        /// A NIC to a LAN of yours
        #[arg(long, value_name = "IF")]
        uplink: Option<String>,
        /// An address known to be behind the interface; can be repeated
        #[arg(long, value_name = "MAC", requires = "interface")]
        mac: Vec<Mac>,
    },
    /// Take an interface out of a network, or the network off this host
    #[command(after_help = "Examples:\n  virtuoso net detach blue --interface tap0\n  virtuoso net detach blue")]
    Detach {
        /// The network
        name: Name,
        /// The interface to take out
        #[arg(long, value_name = "IF")]
        interface: Option<String>,
    },
    /// Remove a network that is attached nowhere
    #[command(after_help = "Examples:\n  virtuoso net delete blue")]
    Delete {
        /// The network
        name: Name,
    },
}

#[derive(Subcommand)]
pub(super) enum PortVerb {
    /// This host's ports, of all networks
    #[command(after_help = "Examples:\n  virtuoso port list")]
    List,
}

/// Addresses on a network, and which host has them
#[derive(Args)]
#[command(
    after_help = "Examples:\n  virtuoso fdb blue\n  virtuoso fdb blue --json | jq -r '.[] | [.mac, .host_name] | @tsv'"
)]
pub(super) struct FdbArgs {
    /// The network
    network: Name,
}

impl NetVerb {
    pub(super) async fn run(self, asking: &Asking) -> anyhow::Result<ExitCode> {
        let at = |name: &Name, verb: &str| format!("/v1/networks/{name}{verb}");
        match self {
            Self::Create { name, mtu, subnet, dhcp, host_addresses, congestion, rate_mbit } => {
                let (subnet, congestion) = (subnet.map(Text), congestion.map(Text));
                let request =
                    NetworkCreate { name, mtu_bytes: mtu, subnet, dhcp, host_addresses, congestion, rate_mbit };
                let call = Call::post("/v1/networks", &request);
                asking.tell(call, |made: Network| format!("Made network {} with id {}", made.name, made.id)).await
            }
            Self::List => asking.show(Call::get("/v1/networks"), networks).await,
            Self::Show { name } => asking.show(Call::get(at(&name, "")), network).await,
            Self::Attach { name, interface, uplink, mac } => {
                let mac = mac.into_iter().map(Text).collect();
                let call = Call::post(at(&name, "/attach"), &Attach { interface, uplink, mac });
                let bridge = |network: &Network| network.bridge.clone().unwrap_or_default();
                asking
                    .tell(call, |done: Network| format!("{} is attached at bridge {}", done.name, bridge(&done)))
                    .await
            }
            Self::Detach { name, interface } => {
                let what = interface.clone().unwrap_or_else(|| "This host".into());
                let call = Call::post(at(&name, "/detach"), &Detach { interface });
                asking.tell(call, |done: Network| format!("{what} is detached from {}", done.name)).await
            }
            Self::Delete { name } => asking.done(Call::delete(at(&name, "")), &format!("Removed network {name}")).await,
        }
    }
}

impl PortVerb {
    pub(super) async fn run(self, asking: &Asking) -> anyhow::Result<ExitCode> {
        let Self::List = self;
        asking.show(Call::get("/v1/ports"), ports).await
    }
}

impl FdbArgs {
    pub(super) async fn run(self, asking: &Asking) -> anyhow::Result<ExitCode> {
        asking.show(Call::get(format!("/v1/networks/{}/fdb", self.network)), fdb).await
    }
}

fn networks(networks: Vec<Network>) -> Table {
    let mut table = Table::new(&["NAME", "ID", ">MTU", "BRIDGE", ">PORTS", "HOSTS"]);
    for network in networks {
        table.row([
            network.name,
            network.id,
            network.mtu_bytes.to_string(),
            network.bridge.unwrap_or_default(),
            network.ports.len().to_string(),
            list(network.hosts),
        ]);
    }
    table
}

/// The most that each link sends, as users read it.
fn rate(mbit: u32) -> String {
    if mbit == 0 { "no limit".into() } else { format!("{mbit} Mbit/s") }
}

fn network(network: Network) -> Table {
    let mut table = Table::list();
    table.row(["name".into(), network.name]);
    table.row(["id".into(), network.id]);
    table.row(["mtu".into(), network.mtu_bytes.to_string()]);
    table.row(["congestion".into(), network.congestion]);
    table.row(["rate".into(), rate(network.rate_mbit)]);
    table.row(["bridge".into(), network.bridge.unwrap_or_default()]);
    table.row(["hosts".into(), list(network.hosts)]);
    if let Some(traffic) = network.traffic {
        table.row(["from bridge".into(), format!("{} frames, {}", traffic.rx_frames, bytes(traffic.rx_bytes))]);
        table.row(["to bridge".into(), format!("{} frames, {}", traffic.tx_frames, bytes(traffic.tx_bytes))]);
        table.row(["drops".into(), counts(&traffic.drops)]);
    }
    if let Some(subnet) = network.subnet {
        let address = |ip: Option<std::net::Ipv4Addr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
        table.row(["subnet".into(), subnet.to_string()]);
        table.row(["dhcp".into(), yes(network.dhcp)]);
        table.row(["service".into(), address(network.service_address)]);
        table.row(["host address".into(), address(network.host_address)]);
    }
    for port in network.ports {
        let text = format!("{} {} {} {}", port.interface, word(&port.kind), word(&port.state), list(port.macs));
        table.row(["port".into(), text.trim_end().into()]);
    }
    table
}

fn ports(ports: Vec<Port>) -> Table {
    let mut table = Table::new(&["NETWORK", "INTERFACE", "KIND", "STATE", "MACS"]);
    for port in ports {
        table.row([port.network, port.interface, word(&port.kind), word(&port.state), list(port.macs)]);
    }
    table
}

fn fdb(entries: Vec<FdbEntry>) -> Table {
    let mut table = Table::new(&["MAC", "IPS", "HOST", "INTERFACE", ">EPOCH", "STATE", ">AGE"]);
    for entry in entries {
        table.row([
            entry.mac.to_string(),
            list(entry.ips),
            entry.host_name,
            entry.interface.unwrap_or_default(),
            entry.epoch.to_string(),
            word(&entry.state),
            seconds(entry.age_s),
        ]);
    }
    table
}
