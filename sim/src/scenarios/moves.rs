//! Many moves in a very large swarm: how soon everybody who talks to a guest sends to its new host.
//!
//! Only the switches run. A table of ten thousand rows on each of ten thousand hosts has no place here, and talkers do
//! not follow a guest by the tables: a row is a message that reaches every host of the network some time later.

use crate::clock::{MILLISECOND, SECOND, Time};
use crate::fabric::Fabric;
use crate::frames::{self, Content};
use crate::keys::{Key, Keyring};
use crate::options::Options;
use crate::rng::Rng;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use virtuoso_overlay::claims::Claim;
use virtuoso_overlay::ids::{Epoch, HostId, Mac, NetworkId};
use virtuoso_overlay::limits::NETWORK_MTU_DEFAULT;
use virtuoso_overlay::switch::{Egress, Ingress, NetworkSpec, Switch, SwitchEffect, Upward};
use virtuoso_overlay::time::Instant;
use virtuoso_overlay::wire::frame::FrameHeader;

/// What happened.
#[derive(Clone, Debug, Serialize)]
pub struct MovesReport {
    /// Hosts.
    pub hosts: usize,
    /// Seed.
    pub seed: u64,
    /// Moves.
    pub moves: usize,
    /// Moves in a second.
    pub moves_per_s: u64,
    /// From a guest's arrival until the last of its talkers sends to its new host: median, in milliseconds.
    pub followed_50_ms: f64,
    /// 99 of 100 moves. At most 250.
    pub followed_99_ms: f64,
    /// The slowest.
    pub followed_max_ms: f64,
    /// Moves after which some talker never did.
    pub not_followed: usize,
    /// Frames sent to guests that moved.
    pub frames_sent: usize,
    /// Those that did not arrive.
    pub frames_lost: usize,
    /// Those that arrived more than once.
    pub frames_doubled: usize,
    /// Addresses that not exactly one host holds in the end.
    pub odd_owners: usize,
    /// What links carried besides frames, for each move.
    pub messages_per_move: f64,
    /// Which bounds are not kept.
    pub missed: Vec<String>,
}

/// Moves guests for `seconds`, `moves_per_s` at a time, while others talk to them.
pub fn run(hosts: usize, seed: u64, moves_per_s: u64, seconds: u64) -> MovesReport {
    let mut crowd = Crowd::new(hosts, seed);
    crowd.settle_in();
    let messages = crowd.messages;
    let begin = crowd.now;
    for number in 0..moves_per_s * seconds {
        crowd.run_until(begin + number * SECOND / moves_per_s);
        crowd.begin_move();
    }
    let end = crowd.now + AFTERMATH;
    crowd.run_until(end);
    let messages = crowd.messages - messages;
    report(&crowd, seed, moves_per_s, messages)
}

impl MovesReport {
    /// A table.
    pub fn text(&self) -> String {
        let Self { hosts, seed, moves, moves_per_s, .. } = self;
        let rows = [
            ("all talkers send to the new host, median (ms)", format!("{:.1}", self.followed_50_ms)),
            ("99 of 100 moves (ms, at most 250)", format!("{:.1}", self.followed_99_ms)),
            ("slowest move (ms)", format!("{:.1}", self.followed_max_ms)),
            ("moves that somebody did not follow", self.not_followed.to_string()),
            ("frames lost, doubled", format!("{}, {} of {}", self.frames_lost, self.frames_doubled, self.frames_sent)),
            ("addresses with no holder or several", self.odd_owners.to_string()),
            ("messages of links for each move", format!("{:.1}", self.messages_per_move)),
        ];
        let head = format!("{hosts} hosts, {moves} moves at {moves_per_s}/s, seed {seed}");
        let lines = rows.iter().map(|(name, value)| format!("  {name:<58}{value:>12}"));
        let missed = self.missed.iter().map(|missed| format!("MISSED: {missed}"));
        std::iter::once(head).chain(lines).chain(missed).collect::<Vec<_>>().join("\n")
    }
}

fn report(crowd: &Crowd, seed: u64, moves_per_s: u64, messages: u64) -> MovesReport {
    let mut times: Vec<u64> = crowd.moves.iter().filter_map(Move::followed).collect();
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
    let millis = |micros: Option<&u64>| micros.map_or(f64::NAN, |micros| *micros as f64 / 1e3);
    let mut report = MovesReport {
        hosts: crowd.switches.len(),
        seed,
        moves: crowd.moves.len(),
        moves_per_s,
        followed_50_ms: millis(at(50)),
        followed_99_ms: millis(at(99)),
        followed_max_ms: millis(times.last()),
        not_followed: crowd.moves.len() - times.len(),
        frames_sent: crowd.received.len(),
        frames_lost: crowd.received.iter().filter(|count| **count == 0).count(),
        frames_doubled: crowd.received.iter().filter(|count| **count > 1).count(),
        odd_owners: crowd.odd_owners(),
        messages_per_move: messages as f64 / crowd.moves.len().max(1) as f64,
        missed: Vec::new(),
    };
    if report.followed_99_ms.is_nan() || report.followed_99_ms > 250.0 {
        report.missed.push(format!("followed_99_ms is {:.1}, bound 250", report.followed_99_ms));
    }
    for (name, count) in [
        ("not_followed", report.not_followed),
        ("frames_lost", report.frames_lost),
        ("frames_doubled", report.frames_doubled),
        ("odd_owners", report.odd_owners),
    ] {
        if count > 0 {
            report.missed.push(format!("{name} is {count}, bound 0"));
        }
    }
    report
}

/// A guest and where it is.
struct Guest {
    network: usize,
    mac: Mac,
    host: Option<usize>,
    /// No move of it begins before.
    rests_until: Time,
}

struct Move {
    guest: usize,
    to: usize,
    arrives: Time,
    /// Guests that talk to it from other hosts than its new one, and when the first frame of each went there.
    talkers: Vec<(usize, Option<Time>)>,
}

impl Move {
    fn followed(&self) -> Option<u64> {
        let times: Option<Vec<Time>> = self.talkers.iter().map(|(_, at)| *at).collect();
        Some(times?.into_iter().max().map_or(0, |last| last.since(self.arrives)))
    }
}

/// One direction of a link.
#[derive(Default)]
struct Side {
    is_up: bool,
    messages: Vec<Vec<u8>>,
    frames: Vec<(FrameHeader, Vec<u8>)>,
    /// When the last message arrives.
    last: Time,
}

enum Event {
    LinkUp { host: usize, peer: usize },
    Message { from: usize, to: usize, bytes: Vec<u8> },
    Frame { from: usize, to: usize, header: FrameHeader, packet: Vec<u8> },
    Timer { host: usize },
    Row { to: usize, claim: Claim },
    RowGone { to: usize, network: NetworkId, mac: Mac, holder: HostId },
    Appear { guest: usize, host: usize },
    Talk { number: usize, talker: usize },
    Depart { number: usize },
}

struct Crowd {
    now: Time,
    rng: Rng,
    fabric: Fabric,
    queue: BinaryHeap<Reverse<(Time, u64)>>,
    events: HashMap<u64, Event>,
    scheduled: u64,
    switches: Vec<Switch>,
    timers: Vec<Time>,
    ids: HashMap<HostId, usize>,
    /// Hosts with a port in each network.
    networks: Vec<Vec<usize>>,
    links: HashMap<(usize, usize), Side>,
    guests: Vec<Guest>,
    by_mac: HashMap<Mac, usize>,
    moves: Vec<Move>,
    /// How often each frame arrived where its guest is.
    received: Vec<u8>,
    messages: u64,
}

impl Crowd {
    fn new(hosts: usize, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let options = Options { latency_us_max: LATENCY_US_MAX, ..Options::calm(seed, hosts) };
        let mut fabric = Fabric::new(&options, &mut rng);
        let switches: Vec<Switch> =
            (0..hosts).map(|host| Switch::new(Key::of_host(host).signer(), Arc::new(Keyring), rng.next())).collect();
        (0..hosts).for_each(|host| fabric.set_alive(Time(0), host, true));
        let networks = (0..(hosts * NETWORKS_PER_HOST).div_ceil(HOSTS_PER_NETWORK))
            .map(|_| draw(&mut rng, hosts, HOSTS_PER_NETWORK.min(hosts)))
            .collect();
        Self {
            now: Time(0),
            rng,
            fabric,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            scheduled: 0,
            timers: vec![Time(u64::MAX); hosts],
            ids: (0..hosts).map(|host| (Key::of_host(host).host_id(), host)).collect(),
            switches,
            networks,
            links: HashMap::new(),
            guests: Vec::new(),
            by_mac: HashMap::new(),
            moves: Vec::new(),
            received: Vec::new(),
            messages: 0,
        }
    }

    /// Networks are attached, guests appear, and everybody hears of them.
    fn settle_in(&mut self) {
        for network in 0..self.networks.len() {
            let hosts = self.networks[network].clone();
            let ids: Vec<HostId> = hosts.iter().map(|host| Key::of_host(*host).host_id()).collect();
            for host in &hosts {
                let switch = &mut self.switches[*host];
                switch.set_network(NetworkSpec { id: id_of(network), mtu: NETWORK_MTU_DEFAULT });
                switch.attach(id_of(network));
                switch.set_participants(id_of(network), &ids);
                self.settle(*host);
            }
            for _ in 0..GUESTS_PER_NETWORK {
                let number = self.guests.len();
                let [.., a, b, c, d] = (number as u64).to_be_bytes();
                let mac = Mac([0x52, 0x54, a, b, c, d]);
                self.by_mac.insert(mac, number);
                self.guests.push(Guest { network, mac, host: None, rests_until: Time(0) });
                let (host, delay) = (hosts[self.rng.index(hosts.len())], self.rng.below(SETTLE / 2));
                self.schedule(delay, Event::Appear { guest: number, host });
            }
        }
        self.run_until(Time(SETTLE));
    }

    /// Draws a guest, where it goes, and who talks to it meanwhile.
    fn begin_move(&mut self) {
        let leaves = self.now + LEAD;
        let Some(guest) = self.draw_guest() else { return };
        let network = self.guests[guest].network;
        let from = self.guests[guest].host;
        let others: Vec<usize> = self.networks[network].iter().copied().filter(|host| Some(*host) != from).collect();
        let to = others[self.rng.index(others.len())];
        let neighbours: Vec<usize> = (0..self.guests.len() / self.networks.len())
            .map(|offset| network * GUESTS_PER_NETWORK + offset)
            .filter(|other| *other != guest && self.guests[*other].host.is_some_and(|host| host != to))
            .filter(|other| self.guests[*other].rests_until < self.now)
            .collect();
        let talkers: Vec<usize> =
            draw(&mut self.rng, neighbours.len(), TALKERS).into_iter().map(|slot| neighbours[slot]).collect();
        let number = self.moves.len();
        self.guests[guest].rests_until = leaves + REST;
        // Who talks stays where it is, so that only one move is measured at a time.
        talkers.iter().for_each(|talker| self.guests[*talker].rests_until = leaves + REST);
        for slot in 0..talkers.len() {
            let delay = self.rng.below(TALK_INTERVAL);
            self.schedule(delay, Event::Talk { number, talker: slot });
        }
        let talkers = talkers.into_iter().map(|talker| (talker, None)).collect();
        self.moves.push(Move { guest, to, arrives: leaves + GAP, talkers });
        self.schedule(LEAD, Event::Depart { number });
        self.schedule(LEAD + GAP, Event::Appear { guest, host: to });
    }

    fn draw_guest(&mut self) -> Option<usize> {
        let draws = (0..DRAWS_MAX).map(|_| self.rng.index(self.guests.len())).collect::<Vec<_>>();
        draws.into_iter().find(|guest| self.guests[*guest].rests_until < self.now)
    }

    fn run_until(&mut self, end: Time) {
        while let Some(Reverse((at, number))) = self.queue.peek().copied().filter(|Reverse((at, _))| *at <= end) {
            self.queue.pop();
            self.now = self.now.max(at);
            if let Some(event) = self.events.remove(&number) {
                self.dispatch(event);
            }
        }
        self.now = end;
    }

    fn schedule(&mut self, delay: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse((self.now + delay, self.scheduled)));
        self.events.insert(self.scheduled, event);
    }

    fn instant(&self) -> Instant {
        Instant(self.now.0 + ORIGIN)
    }

    fn dispatch(&mut self, event: Event) {
        let now = self.instant();
        let host = match event {
            Event::LinkUp { host, peer } => return self.link_up(host, peer),
            Event::Message { from, to, bytes } => {
                let from = Key::of_host(from).host_id();
                self.switches[to].handle_message(now, from, &bytes).expect("switches understand each other");
                to
            }
            Event::Frame { from, to, header, packet } => return self.on_frame(from, to, header, packet),
            Event::Timer { host } => {
                self.timers[host] = Time(u64::MAX);
                self.switches[host].handle_timeout(now);
                host
            }
            Event::Row { to, claim } => {
                self.switches[to].handle_claim(now, claim);
                to
            }
            Event::RowGone { to, network, mac, holder } => {
                self.switches[to].handle_released(now, network, mac, holder, Epoch(u64::MAX));
                to
            }
            Event::Appear { guest, host } => {
                self.guests[guest].host = Some(host);
                let Guest { network, mac, .. } = self.guests[guest];
                self.switches[host].handle_local(now, id_of(network), mac, None, &[]);
                host
            }
            Event::Talk { number, talker } => return self.talk(number, talker),
            Event::Depart { number } => {
                let guest = &mut self.guests[self.moves[number].guest];
                let Some(host) = guest.host.take() else { return };
                self.switches[host].depart(now, id_of(guest.network), guest.mac);
                host
            }
        };
        self.settle(host);
    }

    fn talk(&mut self, number: usize, talker: usize) {
        let Move { guest, to, arrives, ref talkers } = self.moves[number];
        if self.now > arrives + TALK_AFTER {
            return;
        }
        let from = talkers[talker].0;
        let (network, src) = (self.guests[from].network, self.guests[from].mac);
        let host = self.guests[from].host.expect("who talks stays where it is");
        let packet = frames::numbered(self.guests[guest].mac, src, self.received.len() as u64);
        self.received.push(0);
        if self.guests[guest].host == Some(host) {
            // Over the bridge that both are plugged into.
            *self.received.last_mut().expect("just pushed") += 1;
        } else {
            self.ingress(host, network, packet, (number, talker, to));
        }
        self.schedule(TALK_INTERVAL, Event::Talk { number, talker });
        self.settle(host);
    }

    fn ingress(
        &mut self,
        host: usize,
        network: usize,
        packet: Vec<u8>,
        (number, talker, target): (usize, usize, usize),
    ) {
        let now = self.instant();
        match self.switches[host].ingress(now, id_of(network), &packet, packet.len()) {
            Ingress::Unicast(to, header) => {
                let is_new = self.ids[&to] == target;
                if is_new && self.now >= self.moves[number].arrives {
                    self.moves[number].talkers[talker].1.get_or_insert(self.now);
                }
                self.transmit(host, to, header, packet);
            }
            Ingress::Flood(hosts, header) => {
                let hosts = hosts.to_vec();
                hosts.into_iter().for_each(|to| self.transmit(host, to, header, packet.clone()));
            }
            Ingress::Hold(mac, header) => self.switches[host].hold(now, id_of(network), mac, header, packet),
            Ingress::Reply(..) | Ingress::Drop(_) => {}
        }
    }

    fn on_frame(&mut self, from: usize, to: usize, header: FrameHeader, packet: Vec<u8>) {
        let (now, from) = (self.instant(), Key::of_host(from).host_id());
        match self.switches[to].egress(now, from, header, &packet) {
            Egress::Deliver => self.deliver(to, &packet),
            Egress::Forward(next, header) => self.transmit(to, next, header, packet),
            Egress::Hold(mac, header) => self.switches[to].hold(now, header.network, mac, header, packet),
            Egress::Taken => {}
            Egress::Drop(_) => {}
        }
        self.settle(to);
    }

    fn deliver(&mut self, host: usize, packet: &[u8]) {
        let Some(read) = frames::read(packet) else { return };
        let Content::Numbered(number) = read.content else { return };
        if self.by_mac.get(&read.dst).is_some_and(|guest| self.guests[*guest].host == Some(host)) {
            let count = &mut self.received[number as usize];
            *count = count.saturating_add(1);
        }
    }

    fn settle(&mut self, host: usize) {
        while let Some(effect) = self.switches[host].poll_effect() {
            match effect {
                SwitchEffect::Connect(to) => self.connect(host, self.ids[&to]),
                SwitchEffect::Send { to, message } => {
                    let peer = self.ids[&to];
                    self.links.entry((host, peer)).or_default().messages.push(message);
                    self.pump(host, peer);
                }
                SwitchEffect::Transmit { to, header, packet } => self.transmit(host, to, header, packet),
                SwitchEffect::Deliver { packet, .. } | SwitchEffect::DeliverTo { packet, .. } => {
                    self.deliver(host, &packet);
                }
                // Its guests get what is for them only.
                SwitchEffect::Flood { .. } => {}
                SwitchEffect::Upward(upward) => self.on_upward(host, upward),
            }
        }
        let due = self.switches[host].poll_timeout().map(|at| Time(at.0.saturating_sub(ORIGIN)));
        if let Some(due) = due.filter(|due| *due < self.timers[host]) {
            self.timers[host] = due;
            self.schedule(due.since(self.now), Event::Timer { host });
        }
    }

    fn on_upward(&mut self, host: usize, upward: Upward) {
        match upward {
            Upward::Publish(claim) => {
                for to in self.listeners(claim.network, host) {
                    let delay = self.rng.range(ROW_DELAY_MIN..ROW_DELAY_MAX);
                    self.schedule(delay, Event::Row { to, claim: claim.clone() });
                }
            }
            Upward::Withdraw { network, mac } => {
                let holder = Key::of_host(host).host_id();
                for to in self.listeners(network, host) {
                    let delay = self.rng.range(ROW_DELAY_MIN..ROW_DELAY_MAX);
                    self.schedule(delay, Event::RowGone { to, network, mac, holder });
                }
            }
            Upward::FindPort { network, mac } => {
                let found = self.by_mac.get(&mac).is_some_and(|guest| self.guests[*guest].host == Some(host));
                let now = self.instant();
                self.switches[host].handle_port_found(now, network, mac, found);
            }
            Upward::Event(_) | Upward::Service { .. } => {}
        }
    }

    fn listeners(&self, network: NetworkId, but: usize) -> Vec<usize> {
        self.networks[network.0 as usize - 1].iter().copied().filter(|host| *host != but).collect()
    }

    fn connect(&mut self, host: usize, peer: usize) {
        let is_known = self.links.contains_key(&(host, peer)) && self.links.contains_key(&(peer, host));
        if is_known {
            return;
        }
        self.links.entry((host, peer)).or_default();
        self.links.entry((peer, host)).or_default();
        let latency = self.fabric.latency_us(host, peer);
        self.schedule(3 * latency, Event::LinkUp { host: peer, peer: host });
        self.schedule(4 * latency, Event::LinkUp { host, peer });
    }

    fn link_up(&mut self, host: usize, peer: usize) {
        let (now, id) = (self.instant(), Key::of_host(peer).host_id());
        let side = self.links.entry((host, peer)).or_default();
        side.is_up = true;
        let waiting = std::mem::take(&mut side.frames);
        self.switches[host].handle_link_up(now, id);
        for (header, packet) in waiting {
            self.transmit(host, id, header, packet);
        }
        self.pump(host, peer);
        self.settle(host);
    }

    fn pump(&mut self, host: usize, peer: usize) {
        let Some(side) = self.links.get_mut(&(host, peer)).filter(|side| side.is_up) else { return };
        for bytes in std::mem::take(&mut side.messages) {
            self.messages += 1;
            let delay = self.fabric.stream(&mut self.rng, host, peer, bytes.len()).unwrap_or(0);
            let side = self.links.entry((host, peer)).or_default();
            side.last = (self.now + delay).max(side.last + 1);
            let delay = side.last.since(self.now);
            self.schedule(delay, Event::Message { from: host, to: peer, bytes });
        }
    }

    fn transmit(&mut self, host: usize, to: HostId, header: FrameHeader, packet: Vec<u8>) {
        let peer = self.ids[&to];
        self.connect(host, peer);
        let side = self.links.entry((host, peer)).or_default();
        if !side.is_up {
            return side.frames.push((header, packet));
        }
        if let Some(delay) = self.fabric.datagram(&mut self.rng, host, peer) {
            self.schedule(delay, Event::Frame { from: host, to: peer, header, packet });
        }
    }

    /// Addresses of guests that no host, or several, take for their own, or the wrong one.
    fn odd_owners(&self) -> usize {
        let is_odd = |guest: &&Guest| {
            let network = id_of(guest.network);
            let owners: Vec<usize> = self.networks[guest.network]
                .iter()
                .copied()
                .filter(|host| self.switches[*host].holder(network, guest.mac) == Some(Key::of_host(*host).host_id()))
                .collect();
            owners != guest.host.into_iter().collect::<Vec<_>>()
        };
        self.guests.iter().filter(is_odd).count()
    }
}

fn id_of(network: usize) -> NetworkId {
    NetworkId(network as u32 + 1)
}

/// Up to `count` different numbers below `end`.
fn draw(rng: &mut Rng, end: usize, count: usize) -> Vec<usize> {
    let mut drawn: Vec<usize> = Vec::new();
    while drawn.len() < count.min(end) {
        let number = rng.index(end);
        if !drawn.contains(&number) {
            drawn.push(number);
        }
    }
    drawn
}

/// One way across the world.
const LATENCY_US_MAX: u64 = 100 * MILLISECOND;
/// Clocks of hosts do not begin at zero.
const ORIGIN: u64 = 3_600 * SECOND;
const NETWORKS_PER_HOST: usize = 2;
const HOSTS_PER_NETWORK: usize = 32;
const GUESTS_PER_NETWORK: usize = 16;
const TALKERS: usize = 8;
/// Until links are up and claims are known.
const SETTLE: u64 = 20 * SECOND;
/// Talkers begin so long before the guest leaves.
const LEAD: u64 = 200 * MILLISECOND;
/// How long the guest is nowhere: the downtime of a hypervisor.
const GAP: u64 = 60 * MILLISECOND;
const TALK_INTERVAL: u64 = 5 * MILLISECOND;
const TALK_AFTER: u64 = SECOND;
/// From one move of a guest to its next.
const REST: u64 = 5 * SECOND;
const AFTERMATH: u64 = 10 * SECOND;
/// A row reaches 99 % of a thousand hosts in 125 ms (`scale`); here it takes longer, so that rows never help.
const ROW_DELAY_MIN: u64 = 300 * MILLISECOND;
const ROW_DELAY_MAX: u64 = 2 * SECOND;
const DRAWS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn talkers_follow_and_nothing_is_lost() {
        let report = run(400, 1, 5, 4);
        assert_eq!(report.moves, 20);
        assert!(report.frames_sent > 10_000, "{report:?}");
        assert_eq!(report.missed, Vec::<String>::new(), "{}", report.text());
    }
}
