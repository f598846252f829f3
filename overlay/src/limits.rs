//! Every bound and timer of the overlay, with its reason.

use std::time::Duration;

/// Bytes of one frame or super-frame without headers of ours: what TSO hands over at most, plus Ethernet and VLAN.
pub const FRAME_BYTES_MAX: usize = 65_535 + 18;

/// Smallest and largest MTU of a network. 1280 is IPv6's minimum, 9000 the usual jumbo frame.
pub const NETWORK_MTU_MIN: u16 = 1280;
/// See [`NETWORK_MTU_MIN`].
pub const NETWORK_MTU_MAX: u16 = 9000;
/// MTU of a network unless it says otherwise: guests keep Ethernet's own.
pub const NETWORK_MTU_DEFAULT: u16 = 1500;

/// How often a frame may be sent on by hosts that no longer hold its destination. One move needs one hop; a VM that
/// moves again before its talkers heard needs two; beyond four it is a loop.
pub const HOP_LIMIT: u8 = 4;

/// Characters in a host, network or image name: one DNS label.
pub const NAME_CHARS_MAX: usize = 63;

/// Time between two refreshes of a host row in a small swarm. Grows with the swarm (see `node::refresh_interval`), so
/// that rows received per second stay below about 33 whatever its size.
pub const REFRESH_INTERVAL_MIN: Duration = Duration::from_secs(5);
/// See [`REFRESH_INTERVAL_MIN`].
pub const REFRESH_INTERVAL_MAX: Duration = Duration::from_secs(300);

/// Bytes of one message on a link's stream: 64 claims of the largest size are 32 KiB.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Claims in one message.
pub const MESSAGE_CLAIMS_MAX: usize = 64;
/// IP addresses of one claim: a guest has a few; more would make claims a way to fill tables.
pub const CLAIM_IPS_MAX: usize = 8;
/// Claims of one network that a host keeps.
pub const CLAIMS_PER_NETWORK_MAX: usize = 65_536;
/// Addresses that one host claims in one network. A bridge to a physical LAN shows hundreds.
pub const LOCAL_CLAIMS_MAX: usize = 2_048;

/// How long an asked holder may look for the address on its bridge before it hands it over. An ARP answer on a bridge
/// takes a few milliseconds, tens under load.
pub const PROBE_TIME: Duration = Duration::from_millis(200);
/// Time after which an unanswered `Ask` is sent again.
pub const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// A conflict that has not shown for this long is a new one when it shows again.
pub const CONFLICT_INTERVAL: Duration = Duration::from_secs(60);
/// How long a refused address stays silenced before the holder is asked again.
pub const REFUSED_TIME: Duration = Duration::from_secs(2);
/// How long frames wait for an address that is between two hosts.
pub const HOLD_TIME_MAX: Duration = Duration::from_secs(5);
/// Bytes of frames that wait for one address: five seconds of 10,000 frames of 300 bytes a second.
pub const HOLD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of frames that wait on one host.
pub const HOLD_TOTAL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Frames that waited follow their address in slices, because the queues of links, TAPs and guests are short. 128
/// frames or 64 KiB each millisecond are more than what comes in meanwhile, and less than a virtio ring holds.
pub const RELEASE_INTERVAL: Duration = Duration::from_millis(1);
/// See [`RELEASE_INTERVAL`].
pub const RELEASE_FRAMES: usize = 128;
/// See [`RELEASE_INTERVAL`].
pub const RELEASE_BYTES: usize = 64 * 1024;
/// How long a host remembers frames to groups for a guest that comes: as long as their copies may wait where it was,
/// and a second for the way.
pub const HEARD_TIME: Duration = Duration::from_secs(6);
/// Frames that it remembers: 1.5 MiB, three seconds of the most that one port may flood.
pub const HEARD_FRAMES_MAX: usize = 65_536;
/// How much earlier than its copy was taken a frame may have come to the host that gets the copy: twice the way of half
/// a second's round trip.
pub const PARCEL_EARLY_MAX: Duration = Duration::from_millis(500);
/// How much later.
pub const PARCEL_LATE_MAX: Duration = Duration::from_millis(250);
/// How long a copy waits for the frame itself, which may come by a longer way, before it is delivered in its place.
pub const PARCEL_STRAY_TIME: Duration = Duration::from_millis(250);
/// How long after its copy the frame itself may come, to be known for what the guest has got already. Queues drop what
/// waits longer.
pub const PARCEL_ORIGINAL_TIME: Duration = Duration::from_secs(3);
/// Copies that wait so: 16 MiB if all of them are super-frames.
pub const PARCEL_STRAYS_MAX: usize = 256;
/// How long the guest's host waits for the copies of frames that came before the guest, to keep their order.
pub const CATCH_UP_TIME: Duration = Duration::from_millis(100);
/// How long it keeps later frames back at most, whatever else waits.
pub const CATCH_UP_TIME_MAX: Duration = Duration::from_millis(500);
/// Frames that it keeps back, or [`HOLD_BYTES_MAX`].
pub const CATCH_UP_FRAMES_MAX: usize = 4_096;
/// How long the host that a guest has left sends copies on once the guest runs elsewhere: senders may not know yet that
/// the other host has a port in the network.
pub const PARCEL_AFTER_TIME: Duration = Duration::from_secs(1);
/// How long copies are taken once the guest runs: longer than they are sent.
pub const PARCEL_TAKE_TIME: Duration = Duration::from_secs(3);
/// How long copies are taken of frames for a guest whose new host does not say that it runs.
pub const PARCEL_TIME_MAX: Duration = Duration::from_secs(30);
/// How long after its arrival here frames may come in that a guest sent from where it was before.
pub const STRAGGLER_TIME: Duration = Duration::from_secs(1);
/// How long frames may still come out of a TAP that an address sent before its port was taken out of the bridge.
pub const LEAVING_TIME: Duration = Duration::from_millis(500);
/// How long a departed address stays claimed for the host that will ask for it. A VM manager's cold move takes seconds.
pub const DEPARTED_TIME: Duration = Duration::from_secs(30);
/// How long a silent address without a known interface stays claimed.
pub const LOCAL_IDLE_TIME: Duration = Duration::from_secs(900);
/// Least time between two redirects of one address to one talker: a batch of stragglers needs one.
pub const REDIRECT_INTERVAL: Duration = Duration::from_millis(20);

/// Frames a second that a network's port may flood (broadcast, multicast, unknown), and the burst.
pub const FLOOD_FRAMES_PER_S: u64 = 20_000;
/// See [`FLOOD_FRAMES_PER_S`].
pub const FLOOD_BURST: u64 = 20_000;

/// Packets a second of a network's local ports for DHCP and DNS, and at once. Hundreds of guests that boot together
/// ask some times each; more would keep the control plane from its work.
pub const SERVICE_PACKETS_PER_S: u64 = 500;
/// See [`SERVICE_PACKETS_PER_S`].
pub const SERVICE_BURST: u64 = 500;
/// Bytes of a frame for DHCP or DNS: a question has some hundred.
pub const SERVICE_PACKET_BYTES_MAX: usize = 1514;
/// Hosts of a network to which links are made before there is traffic, so that claims reach them directly.
pub const EAGER_LINKS_MAX: usize = 32;

/// Time between two beacons of an uplink.
pub const BEACON_INTERVAL: Duration = Duration::from_secs(1);
/// A host whose beacons are missing for so long has no uplink to the LAN any more: three of them may be lost.
pub const UPLINK_SILENT_TIME: Duration = Duration::from_millis(3_500);
/// How long a new uplink listens before it takes part: longer than [`UPLINK_SILENT_TIME`], so that whoever joins the
/// LAN to the network has been heard.
pub const UPLINK_LISTEN_TIME: Duration = Duration::from_secs(4);
/// Hosts with an uplink to one LAN, as each of them remembers. The smallest ids are kept: they decide.
pub const UPLINK_HOSTS_MAX: usize = 64;
/// Addresses of other hosts that a host announces on a LAN when it becomes the one that joins it to a network. They are
/// frames in one go: 512 fit the queues of a TAP. The others are found again when they next speak.
pub const ANNOUNCEMENTS_MAX: usize = 512;

/// How far in the future a certificate may have been issued: hosts' clocks disagree.
pub const CERTIFICATE_SKEW_MAX: Duration = Duration::from_secs(600);
/// Addresses in a ticket.
pub const TICKET_ADDRESSES_MAX: usize = 8;
/// Tickets that one host has issued and that are still good.
pub const TICKETS_MAX: usize = 1_024;

/// Hosts of a swarm. A table of 10,000 hosts takes some 6 MB; beyond, tables want sharding.
pub const HOSTS_MAX: usize = 16_384;
/// Rows of one host: its claims are most of them.
pub const ROWS_PER_HOST_MAX: usize = 4_096;
/// Multiaddrs in a host row.
pub const HOST_ADDRESSES_MAX: usize = 16;
/// Labels in a host row.
pub const HOST_LABELS_MAX: usize = 32;
/// Networks in which one host has a port.
pub const HOST_NETWORKS_MAX: usize = 256;
/// Bytes of a free text in a row.
pub const ROW_TEXT_BYTES_MAX: usize = 128;
/// Network interfaces of a VM.
pub const VM_NICS_MAX: usize = 8;

/// A host that did not write for this many of its refresh intervals is silent: its lease ran out. Two lost or late
/// refreshes are forgiven.
pub const LEASE_REFRESHES: u32 = 3;
/// After this many, its rows are removed.
pub const GONE_AFTER_REFRESHES: u32 = 10;

/// Bytes of one gossip message: below the 64 KiB that gossipsub carries, several messages to a flow-control window.
pub const GOSSIP_BYTES_MAX: usize = 32 * 1024;
/// Bytes of a sync request.
pub const SYNC_REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a sync response.
pub const SYNC_RESPONSE_BYTES_MAX: usize = 1024 * 1024;
/// Time between two comparisons with a random peer. Gossip brings nearly everything; this bounds how long a lost row
/// stays lost.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(10);
/// Comparisons under way at once.
pub const SYNC_SESSIONS_MAX: usize = 8;
/// Requests of one comparison: enough for a late joiner of a swarm of [`HOSTS_MAX`] hosts.
pub const SYNC_ROUNDS_MAX: u32 = 64;
/// Hosts that wait for approval, as one member knows them.
pub const PENDING_MAX: usize = 256;

/// VMs that one host keeps, running or not: each has a directory, a row, and while it runs a process and two tasks.
pub const VMS_PER_HOST_MAX: usize = 256;
/// Names of VMs that are being made which one host keeps for others, each for a few seconds.
pub const NAME_PROMISES_MAX: usize = 1024;
/// How often a VM that fails begins again within [`VM_RESTARTS_TIME`]. More is a fault that restarts don't mend.
pub const VM_RESTARTS_MAX: usize = 3;
/// See [`VM_RESTARTS_MAX`].
pub const VM_RESTARTS_TIME: Duration = Duration::from_secs(600);
