//! Networks, their ports, the addresses on them, and the links between hosts.

use crate::name::Name;
use crate::text::Text;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use utoipa::ToSchema;
use virtuoso_overlay::congestion::Congestion;
use virtuoso_overlay::ids::{HostId, Mac};
use virtuoso_overlay::names::Subnet;

/// One virtual Ethernet segment.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its id, eight hexadecimal digits.
    pub id: String,
    /// Largest IP packet of its guests.
    pub mtu_bytes: u32,
    /// What limits how much each link has of it on its way: `none`, `cubic` or `delay`. It holds beside what limits the
    /// link.
    #[serde(default)]
    pub congestion: String,
    /// The most that each link sends of it, in Mbit/s; 0 is no limit.
    #[serde(default)]
    pub rate_mbit: u32,
    /// This host's bridge; absent unless the network is attached here.
    pub bridge: Option<String>,
    /// This host's ports.
    pub ports: Vec<Port>,
    /// Names of the hosts that have ports in it, as far as known.
    pub hosts: Vec<String>,
    /// Where its stations have their addresses from; absent if that is not the swarm's to care for, and so are the
    /// next three.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub subnet: Option<Text<Subnet>>,
    /// Whether hosts answer DHCP in it.
    #[serde(default)]
    pub dhcp: bool,
    /// Where DHCP and DNS are served, on every host.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub service_address: Option<Ipv4Addr>,
    /// This host's own address on its bridge, if it has one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub host_address: Option<Ipv4Addr>,
    /// What went between the bridge and the links; absent unless the network is attached here.
    #[serde(default)]
    pub traffic: Option<NetworkTraffic>,
}

/// Frames of a network on this host, between its bridge and the links.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NetworkTraffic {
    /// Bytes of frames delivered to the bridge.
    pub tx_bytes: u64,
    /// Bytes of frames taken from the bridge.
    pub rx_bytes: u64,
    /// Frames delivered to the bridge.
    pub tx_frames: u64,
    /// Frames taken from the bridge.
    pub rx_frames: u64,
    /// Frames that went no further, by reason; some reasons are good ones, as `local` and `answered`.
    pub drops: BTreeMap<String, u64>,
}

/// Asks for a network.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkCreate {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Largest IP packet of its guests, 1280 to 9000; 1500 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu_bytes: Option<u32>,
    /// Where its stations get addresses from, as `10.8.0.0/24`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub subnet: Option<Text<Subnet>>,
    /// With a subnet, whether hosts answer DHCP in it; they do by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<bool>,
    /// With a subnet, whether each host has an address of its own in it; it does by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_addresses: Option<bool>,
    /// What limits how much each link has of it on its way: `none`, `cubic` or `delay`; `none` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub congestion: Option<Text<Congestion>>,
    /// The most that each link sends of it, in Mbit/s; no limit by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_mbit: Option<u32>,
}

/// Asks to attach a network on this host.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Attach {
    /// An existing veth, TAP or NIC to put into the bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// A NIC of this host that is the user's own LAN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// Addresses known to be behind the interface: claimed at once, not when the first frame comes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub mac: Vec<Text<Mac>>,
}

/// Asks to take an interface out of a network, or the network off this host.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Detach {
    /// The interface; without it the bridge and all its ports go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

/// Where a network meets the world on this host.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// The network's name.
    pub network: String,
    /// The interface in the bridge.
    pub interface: String,
    /// What it is.
    pub kind: PortKind,
    /// Whether frames can pass.
    pub state: PortState,
    /// Addresses behind it.
    #[schema(value_type = Vec<String>)]
    pub macs: Vec<Text<Mac>>,
}

/// What a port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortKind {
    /// The agent's own TAP, the way to other hosts.
    Agent,
    /// A guest's TAP, a veth or another interface.
    Interface,
    /// A NIC to the user's LAN.
    Uplink,
}

/// Whether frames can pass a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortState {
    /// They can.
    Up,
    /// They can't: the interface is down or has no carrier.
    Down,
    /// They don't yet: another uplink to the same LAN is elected, or a move is on its way.
    Silent,
}

/// An address on a network, and who has it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct FdbEntry {
    /// The address.
    #[schema(value_type = String)]
    pub mac: Text<Mac>,
    /// Its IP addresses, as far as seen.
    #[schema(value_type = Vec<String>)]
    pub ips: Vec<IpAddr>,
    /// The host that has it.
    #[schema(value_type = String)]
    pub host: Text<HostId>,
    /// That host's name.
    pub host_name: String,
    /// The interface it is behind, if the host is this one.
    pub interface: Option<String>,
    /// Version of the claim.
    pub epoch: u64,
    /// State of the claim.
    pub state: ClaimState,
    /// Seconds since it was confirmed.
    pub age_s: f64,
}

/// State of a claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClaimState {
    /// Held by this host.
    Local,
    /// Held by another host.
    Remote,
    /// Handed off, the target has not claimed it yet.
    Moving,
    /// Its holder is silent; another host may claim it.
    Expired,
    /// Two hosts claim it.
    Conflict,
}

/// The encrypted connection to another host, for frames.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// The other host.
    #[schema(value_type = String)]
    pub peer: Text<HostId>,
    /// Its name.
    pub name: String,
    /// The way the packets take, as `udp 192.0.2.1:4747`; absent if there is none now.
    pub path: Option<String>,
    /// Whether frames can pass.
    pub state: LinkState,
    /// Smoothed round trip; absent until measured.
    pub rtt_us: Option<u64>,
    /// Share of packets lost, 0 to 1.
    pub loss: f64,
    /// Bytes of the largest UDP datagram that the path carries, as far as it is known.
    pub mtu_bytes: u32,
    /// How often the path was found to carry less than before.
    pub black_holes: u64,
    /// Sent in the last half second, in Mbit/s of UDP payload: what `rate_mbit` limits, with headers and repairs.
    pub tx_mbit: f64,
    /// Received in the last half second, in Mbit/s of UDP payload.
    pub rx_mbit: f64,
    /// Bytes of frames sent.
    pub tx_bytes: u64,
    /// Bytes of frames received.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Frames received.
    pub rx_frames: u64,
    /// Frames that died, by reason.
    pub drops: BTreeMap<String, u64>,
    /// QUIC datagrams that one send passes to the kernel; one where the device does not segment.
    pub batch_packets: u64,
    /// What limits how much is on its way: `none`, `cubic` or `delay`. A flood turns `none` into `cubic` for a while.
    pub congestion: String,
    /// The most that is sent, in Mbit/s; 0 is no limit.
    pub rate_mbit: u32,
    /// Frames that came without a part, and were delivered as far as they came.
    pub repaired_frames: u64,
    /// Frames that wait for the link.
    pub queued_frames: u64,
    /// Frames that were marked because they had waited for too long, where their sender understands that.
    pub marked_frames: u64,
    /// Super-frames that lost one segment because they had waited for too long, so that their flow slows down.
    pub cut_frames: u64,
    /// Seconds since the link came up.
    pub age_s: f64,
}

/// Whether frames can pass a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// Handshake or certificates are on their way.
    Connecting,
    /// They can.
    Up,
    /// No way to the peer works; it is tried again.
    Down,
}
