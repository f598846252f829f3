//! The figures of a large swarm: how fast a change spreads, how long a healed partition and a late joiner take, what
//! it costs, and how fast talkers follow a move.

use crate::clock::{MILLISECOND, SECOND, Time};
use crate::host::Traffic;
use crate::options::{Options, Redial};
use crate::workload::Kind;
use crate::world::World;
use serde::Serialize;
use virtuoso_overlay::ids::{HostId, NetworkId};
use virtuoso_overlay::table::{Key, Version};

/// The figures, with the bound where there is one.
#[derive(Clone, Debug, Serialize)]
pub struct ScaleReport {
    /// Hosts.
    pub hosts: usize,
    /// Seed.
    pub seed: u64,
    /// Lost packets in a million.
    pub loss_ppm: u32,
    /// Whom hosts dial although they have enough connections. The time to heal depends on it.
    pub redial: Redial,
    /// From start of the last agent to equal tables everywhere, in seconds.
    pub join_s: Option<f64>,
    /// Until a change is known to half of the hosts: median of the changes.
    pub change_50_ms: f64,
    /// Until it is known to 99 % of them: worst change. At most 500.
    pub change_99_ms: Option<f64>,
    /// Until it is known to all: worst change.
    pub change_100_ms: Option<f64>,
    /// From the end of a partition into halves until all tables are equal, in seconds. At most 30.
    pub heal_s: Option<f64>,
    /// What a host sends in that time, on average.
    pub heal_bytes_per_host: u64,
    /// From start of a late joiner until it knows everybody, in seconds.
    pub late_joiner_s: Option<f64>,
    /// What a host sends in a quiet second: gossip.
    pub gossip_bytes_per_s: u64,
    /// And requests and answers.
    pub sync_bytes_per_s: u64,
    /// From the moment that a moved address is signed over until a talker knows, beyond its round trip to the former
    /// holder: worst talker, in milliseconds. At most 5.
    pub redirect_beyond_rtt_ms: Option<f64>,
    /// Frames sent to the guest that moved.
    pub move_frames_sent: u64,
    /// Those that were lost.
    pub move_frames_lost: u64,
    /// Which bounds are not kept.
    pub missed: Vec<String>,
    /// Depends on everything that happened.
    pub hash: String,
}

/// Measures a swarm.
pub fn run(hosts: usize, seed: u64, loss_ppm: u32, redial: Redial) -> ScaleReport {
    let latency_us_max = LATENCY_US_MAX;
    let options =
        Options { guests: 0, ports: 0, networks: 0, loss_ppm, latency_us_max, redial, ..Options::calm(seed, hosts) };
    let mut world = World::new(options);
    world.begin(STARTS_S);
    world.run_until(Time::from_secs(STARTS_S));
    let join_s = until_equal(&mut world, 120 * SECOND);
    let settled = world.now() + SETTLE_S * SECOND;
    world.run_until(settled);
    let changes = changes(&mut world);
    let (heal_s, heal_bytes_per_host) = partition(&mut world);
    let late_joiner_s = late_joiner(&mut world);
    // Last: for the first three leases after a start hosts say more.
    let quiet = quiet_second(&mut world);
    let violation = world.violations().first().map(|violation| violation.what.clone());
    let moved = move_under_load(seed);
    let mut report = ScaleReport {
        hosts,
        seed,
        loss_ppm,
        redial,
        join_s,
        change_50_ms: changes.median_ms,
        change_99_ms: changes.most_ms,
        change_100_ms: changes.all_ms,
        heal_s,
        heal_bytes_per_host,
        late_joiner_s,
        gossip_bytes_per_s: quiet.gossip_bytes,
        sync_bytes_per_s: quiet.sync_bytes,
        redirect_beyond_rtt_ms: moved.redirect_beyond_rtt_ms,
        move_frames_sent: moved.sent,
        move_frames_lost: moved.lost,
        missed: violation.into_iter().collect(),
        hash: format!("{:016x}", world.fingerprint().0),
    };
    report.judge();
    report
}

impl ScaleReport {
    fn judge(&mut self) {
        let bounds = [
            ("change_99_ms", self.change_99_ms, 500.0),
            ("heal_s", self.heal_s, 30.0),
            ("redirect_beyond_rtt_ms", self.redirect_beyond_rtt_ms, 5.0),
            ("move_frames_lost", Some(self.move_frames_lost as f64), 0.0),
        ];
        for (name, value, bound) in bounds {
            if value.is_none_or(|value| value > bound) {
                self.missed.push(format!("{name} is {value:?}, bound {bound}"));
            }
        }
    }

    /// A table.
    pub fn text(&self) -> String {
        let or_never = |value: Option<f64>| value.map_or_else(|| "never".into(), |value| format!("{value:.1}"));
        let rows = [
            ("equal tables after the last start (s)", or_never(self.join_s)),
            ("change known to 50 % (ms)", format!("{:.1}", self.change_50_ms)),
            ("change known to 99 % (ms, at most 500)", or_never(self.change_99_ms)),
            ("change known to all (ms)", or_never(self.change_100_ms)),
            ("equal tables after a healed partition (s, at most 30)", or_never(self.heal_s)),
            ("sent by a host meanwhile (bytes)", self.heal_bytes_per_host.to_string()),
            ("late joiner knows everybody (s)", or_never(self.late_joiner_s)),
            ("gossip of a host (bytes/s)", self.gossip_bytes_per_s.to_string()),
            ("comparisons of a host (bytes/s)", self.sync_bytes_per_s.to_string()),
            ("10 hosts: talkers redirected beyond one RTT (ms, at most 5)", or_never(self.redirect_beyond_rtt_ms)),
            (
                "10 hosts, no loss: frames lost or doubled in a move",
                format!("{} of {}", self.move_frames_lost, self.move_frames_sent),
            ),
        ];
        let Self { hosts, loss_ppm, seed, redial, hash, .. } = self;
        let head = format!("{hosts} hosts, loss {loss_ppm} ppm, seed {seed}, redial {redial:?}, hash {hash}");
        let lines = rows.iter().map(|(name, value)| format!("  {name:<58}{value:>12}"));
        let missed = self.missed.iter().map(|missed| format!("MISSED: {missed}"));
        std::iter::once(head).chain(lines).chain(missed).collect::<Vec<_>>().join("\n")
    }
}

/// How long the worst and the median change took.
struct Changes {
    median_ms: f64,
    most_ms: Option<f64>,
    all_ms: Option<f64>,
}

/// A frame stream to a guest that moved.
struct Moved {
    redirect_beyond_rtt_ms: Option<f64>,
    sent: u64,
    lost: u64,
}

fn sum(world: &World) -> Traffic {
    world.hosts.iter().fold(Traffic::default(), |sum, host| Traffic {
        gossip_bytes: sum.gossip_bytes + host.traffic.gossip_bytes,
        sync_bytes: sum.sync_bytes + host.traffic.sync_bytes,
        link_bytes: sum.link_bytes + host.traffic.link_bytes,
    })
}

fn quiet_second(world: &mut World) -> Traffic {
    let (before, start) = (sum(world), world.now());
    world.run_until(start + QUIET_S * SECOND);
    let (after, share) = (sum(world), QUIET_S * world.hosts.len() as u64);
    Traffic {
        gossip_bytes: (after.gossip_bytes - before.gossip_bytes) / share,
        sync_bytes: (after.sync_bytes - before.sync_bytes) / share,
        link_bytes: 0,
    }
}

/// Some hosts change their row, one after the other.
fn changes(world: &mut World) -> Changes {
    let count = world.hosts.len();
    let times: Vec<Reached> = (0..CHANGES).map(|n| change(world, n * count / CHANGES, n as u32 + 1)).collect();
    let worst = |pick: fn(&Reached) -> Option<u64>| -> Option<f64> {
        let all: Option<Vec<u64>> = times.iter().map(pick).collect();
        Some(*all?.iter().max()? as f64 / 1e3)
    };
    let mut half: Vec<u64> = times.iter().filter_map(|time| time.half).collect();
    half.sort_unstable();
    let median_ms = half.get(half.len() / 2).map_or(f64::NAN, |micros| *micros as f64 / 1e3);
    Changes { median_ms, most_ms: worst(|time| time.most), all_ms: worst(|time| time.all) }
}

/// How many microseconds one change took.
#[derive(Default)]
struct Reached {
    half: Option<u64>,
    most: Option<u64>,
    all: Option<u64>,
}

fn change(world: &mut World, writer: usize, load_centi: u32) -> Reached {
    let (start, count) = (world.now(), world.hosts.len());
    world.hosts[writer].change_load(start, load_centi);
    world.settle(writer);
    let version = version_at(world, writer, writer);
    let mut reached = Reached::default();
    while world.now().since(start) < CHANGE_TIME_MAX && reached.all.is_none() {
        let next = world.now() + 5 * MILLISECOND;
        world.run_until(next);
        let know = (0..count).filter(|host| version_at(world, *host, writer) >= version).count();
        let at = world.now().since(start);
        set_once(&mut reached.half, at, know * 2 >= count);
        set_once(&mut reached.most, at, know * 100 >= count * 99);
        set_once(&mut reached.all, at, know == count);
    }
    reached
}

fn set_once<T>(slot: &mut Option<T>, value: T, when: bool) {
    if when && slot.is_none() {
        *slot = Some(value);
    }
}

fn version_at(world: &World, host: usize, writer: usize) -> Option<Version> {
    let id: HostId = world.hosts[writer].id;
    let table = world.hosts[host].agent.as_ref()?.node.table();
    table.get(id, Key::Host).map(|row| row.version)
}

/// Halves that do not hear each other for long enough that all connections between them are gone.
fn partition(world: &mut World) -> (Option<f64>, u64) {
    let parts = halves(world);
    world.partition(parts);
    let cut = world.now();
    for host in (0..world.hosts.len()).step_by(10) {
        world.hosts[host].change_load(cut, 7);
        world.settle(host);
    }
    world.run_until(cut + PARTITION_S * SECOND);
    let before = sum(world);
    world.heal();
    let time = until_equal(world, 120 * SECOND);
    let after = sum(world);
    let bytes = after.gossip_bytes + after.sync_bytes - before.gossip_bytes - before.sync_bytes;
    (time, bytes / world.hosts.len() as u64)
}

/// A random half of the hosts is in each part, whatever their number.
fn halves(world: &mut World) -> Vec<u8> {
    let mut parts: Vec<u8> = (0..world.hosts.len()).map(|host| (host % 2) as u8).collect();
    for slot in (1..parts.len()).rev() {
        let other = world.rng.index(slot + 1);
        parts.swap(slot, other);
    }
    parts
}

/// A host that knows one other starts into a swarm that has long been there.
fn late_joiner(world: &mut World) -> Option<f64> {
    let joiner = world.hosts.len() - 1;
    world.kill(joiner);
    let start = world.now() + 60 * SECOND;
    world.run_until(start);
    let begin = world.now();
    if world.hosts[joiner].agent.is_none() {
        world.start(joiner);
    } else {
        world.kill(joiner);
        world.start(joiner);
    }
    let everybody = world.hosts.len();
    while world.now().since(begin) < 60 * SECOND {
        let next = world.now() + 10 * MILLISECOND;
        world.run_until(next);
        let known = world.hosts[joiner].agent.as_ref().map_or(0, |agent| agent.node.table().hosts().count());
        if known == everybody {
            return Some(world.now().since(begin) as f64 / 1e6);
        }
    }
    None
}

/// Seconds until no host lacks a row that was written by the time of the call.
fn until_equal(world: &mut World, limit: u64) -> Option<f64> {
    let start = world.now();
    let count = world.hosts.len();
    let newest: Vec<Option<Version>> = (0..count).map(|writer| version_at(world, writer, writer)).collect();
    let mut lacking: Vec<usize> = (0..count).collect();
    while world.now().since(start) < limit {
        lacking.retain(|host| (0..count).any(|writer| version_at(world, *host, writer) < newest[writer]));
        if lacking.is_empty() {
            return Some(world.now().since(start) as f64 / 1e6);
        }
        let next = world.now() + 50 * MILLISECOND;
        world.run_until(next);
    }
    None
}

/// A guest moves, with notice, while others send it 10,000 frames a second.
fn move_under_load(seed: u64) -> Moved {
    let mut world = world_of_talkers(seed);
    let mac = world.model.guests[GUEST].mac;
    let begin = world.now();
    let (leave, arrive, end) = (begin + SECOND, begin + SECOND + GAP, begin + 3 * SECOND);
    let first = world.model.frames.len();
    let target = Some(world.hosts[NEW].id);
    let holds = |world: &World, host: usize| {
        let agent = world.hosts[host].agent.as_ref();
        agent.and_then(|agent| agent.switch.holder(NetworkId(1), mac)) == target
    };
    let (mut signed, mut heard) = (None, vec![None; world.hosts.len()]);
    for (tick, talker) in (1..=TALKERS).cycle().enumerate() {
        let now = begin + (tick as u64 + 1) * FRAME_INTERVAL;
        if now > end {
            break;
        }
        world.run_until(now);
        if now == leave {
            let place = world.model.guests[GUEST].places[0];
            world.unplug(GUEST, place, Kind::Planned);
        } else if now == arrive {
            world.appear(GUEST, NEW);
        }
        world.send_numbered(talker, GUEST);
        set_once(&mut signed, now, holds(&world, OLD));
        for (host, heard) in heard.iter_mut().enumerate() {
            set_once(heard, now, holds(&world, host));
        }
    }
    world.run_until(end + 2 * SECOND);
    let frames = &world.model.frames[first..];
    let beyond = heard.iter().enumerate().skip(NEW + 1).map(|(host, heard): (usize, &Option<Time>)| {
        let rtt = 2 * world.fabric.latency_us(host, OLD);
        Some(heard.as_ref()?.since(signed?).saturating_sub(rtt) as f64 / 1e3)
    });
    Moved {
        redirect_beyond_rtt_ms: beyond.collect::<Option<Vec<f64>>>().and_then(|all| all.into_iter().reduce(f64::max)),
        sent: frames.len() as u64,
        lost: frames.iter().filter(|frame| frame.received.len() != 1).count() as u64,
    }
}

/// A guest that will move from one host to another, and one talker on each of the other hosts.
fn world_of_talkers(seed: u64) -> World {
    let hosts = TALKERS + 2;
    let calm = Options::calm(seed, hosts);
    let mut world = World::new(Options { guests: TALKERS + 1, ports: hosts, talk_mean_ms: 1_000_000, ..calm });
    world.begin(1);
    world.run_until(Time::from_secs(STARTS_S));
    for guest in 0..world.model.guests.len() {
        for place in world.model.guests[guest].places.clone() {
            world.unplug(guest, place, Kind::Planned);
        }
        world.appear(guest, if guest == GUEST { OLD } else { guest + 1 });
    }
    let ready = world.now() + 5 * SECOND;
    world.run_until(ready);
    world
}

/// One way across the world.
const LATENCY_US_MAX: u64 = 100 * MILLISECOND;
const STARTS_S: u64 = 10;
/// Until all rows were written by hosts that knew of all others: rows of the start promise too short leases, and a
/// partition would be noticed sooner than in a swarm that has long been there.
const SETTLE_S: u64 = 70;
const QUIET_S: u64 = 10;
const CHANGES: usize = 20;
const CHANGE_TIME_MAX: u64 = 15 * SECOND;
const PARTITION_S: u64 = 60;
const TALKERS: usize = 8;
const GUEST: usize = 0;
const OLD: usize = 0;
const NEW: usize = 1;
/// How long the guest is nowhere.
const GAP: u64 = 300 * MILLISECOND;
/// 10,000 frames a second.
const FRAME_INTERVAL: u64 = 100;
