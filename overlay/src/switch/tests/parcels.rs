//! Frames to groups for a guest that moves.

use super::*;
use crate::limits::{CATCH_UP_TIME, PARCEL_AFTER_TIME, PARCEL_ORIGINAL_TIME, PARCEL_STRAY_TIME, PARCEL_TAKE_TIME};
use proptest::prelude::*;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const SOURCE: usize = 0;
const TARGET: usize = 1;
const GROUP: Mac = Mac([1, 0, 0x5e, 0, 0, 9]);

/// A move, by milliseconds from its beginning, and what happens beside it.
#[derive(Clone, Debug)]
struct Plan {
    /// Where the hosts are on a line, as milliseconds of travel: source, target, and others.
    places: Vec<u64>,
    /// Microseconds between two frames of a host's neighbour of the guest, from the same host or another.
    periods: Vec<u64>,
    /// From the port's leaving the floods until the addresses are signed over.
    downtime_ms: u64,
    /// From then until the guest runs.
    resume_ms: u64,
    /// Instead of that the guest stays.
    stays: bool,
    /// Who does not know for so many milliseconds that the target has a port in the network.
    unaware: Option<(usize, u64)>,
    /// From whom what is flooded since the port left the floods needs so many milliseconds more to the target.
    late: Option<(usize, u64)>,
    /// Whether all frames of a host look the same.
    is_monotonous: bool,
}

enum Event {
    Frame { from: usize, to: usize, header: FrameHeader, packet: Vec<u8> },
    Message { from: usize, to: usize, message: Vec<u8> },
    Speak(usize),
    Expect,
    Close,
    HandOver,
    Run(Claim),
    Stay,
    Ran,
    Aware,
}

/// Hosts at some distance from each other, links that lose nothing, and the bridges' part.
struct World {
    plan: Plan,
    switches: Vec<Switch>,
    now: Instant,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    events: BTreeMap<u64, Event>,
    count: u64,
    /// Whether the bridge floods the guest's port at source and target.
    floods: [bool; 2],
    /// Where the port is that the guest gets its frames from, or will.
    got: [Vec<(usize, u32)>; 2],
    spoken: Vec<u32>,
}

const TALK_MS: u64 = 2_000;
const CLOSE_MS: u64 = 700;

impl World {
    fn new(plan: Plan) -> Self {
        let hosts = plan.places.len();
        let lab = Lab::new(hosts as u8);
        let mut world = Self {
            switches: lab.switches,
            now: lab.now,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            count: 0,
            floods: [true, false],
            got: [vec![], vec![]],
            spoken: vec![0; hosts],
            plan,
        };
        world.switches[SOURCE].handle_local(world.now, NET, GUEST, PORT, &[]);
        for host in 0..hosts {
            world.at(host as u64 * 137, Event::Speak(host));
        }
        if let Some((host, ms)) = world.plan.unaware {
            let all: Vec<HostId> = world.switches.iter().map(|switch| switch.me).collect();
            let others: Vec<HostId> = all.into_iter().filter(|id| *id != Toy(TARGET as u8).host()).collect();
            world.switches[host].set_participants(NET, &others);
            world.at(ms * 1000, Event::Aware);
        }
        world.at(50_000, Event::Expect);
        world.at(CLOSE_MS * 1000, Event::Close);
        let end = (CLOSE_MS + world.plan.downtime_ms) * 1000;
        let end_event = if world.plan.stays { Event::Stay } else { Event::HandOver };
        world.at(end, end_event);
        world
    }

    fn at(&mut self, us: u64, event: Event) {
        self.queue.push(Reverse((self.now + Duration::from_micros(us), self.count)));
        self.events.insert(self.count, event);
        self.count += 1;
    }

    fn distance_us(&self, a: usize, b: usize) -> u64 {
        self.plan.places[a].abs_diff(self.plan.places[b]) * 1000 + 100
    }

    fn run(&mut self) {
        let talk = Duration::from_millis(TALK_MS);
        let end = self.now + talk + PARCEL_TAKE_TIME + PARCEL_AFTER_TIME + PARCEL_ORIGINAL_TIME;
        while self.step(end) {}
    }

    /// Goes on to what happens next; false if that is after `end`.
    fn step(&mut self, end: Instant) -> bool {
        let event = self.queue.peek().map(|Reverse((at, _))| *at);
        let timer = self.switches.iter().filter_map(Switch::poll_timeout).min();
        let Some(next) = event.into_iter().chain(timer).min().filter(|at| *at <= end) else { return false };
        self.now = self.now.max(next);
        if timer.is_some_and(|at| at <= self.now) {
            for host in 0..self.switches.len() {
                self.switches[host].handle_timeout(self.now);
                self.settle(host);
            }
        } else if let Some(Reverse((_, number))) = self.queue.pop() {
            let event = self.events.remove(&number).unwrap();
            self.handle(event);
        }
        true
    }

    fn handle(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Speak(host) => self.speak(host),
            Event::Frame { from, to, header, packet } => {
                let sender = self.switches[from].me;
                match self.switches[to].egress(now, sender, header, &packet) {
                    Egress::Deliver => self.flood(to, &packet),
                    Egress::Forward(next, header) => {
                        let next = next_index(&self.switches, next);
                        self.transmit(to, next, header, packet);
                    }
                    Egress::Hold(mac, header) => self.switches[to].hold(now, NET, mac, header, packet),
                    Egress::Taken | Egress::Drop(_) => {}
                }
                self.settle(to);
            }
            Event::Message { from, to, message } => {
                let sender = self.switches[from].me;
                self.switches[to].handle_message(now, sender, &message).unwrap();
                self.settle(to);
            }
            Event::Expect => {
                let source = self.switches[SOURCE].me;
                self.switches[TARGET].expect_move(now, NET, GUEST, source);
            }
            Event::Close => {
                self.switches[SOURCE].begin_move(now, NET, GUEST);
                self.settle(SOURCE);
                assert!(!self.floods[SOURCE]);
            }
            Event::HandOver => {
                let target = self.switches[TARGET].me;
                let claim = self.switches[SOURCE].hand_over(now, NET, GUEST, target).unwrap();
                self.settle(SOURCE);
                let run = self.distance_us(SOURCE, TARGET) + self.plan.resume_ms * 1000;
                self.at(run, Event::Run(claim));
            }
            Event::Run(claim) => {
                self.switches[TARGET].handle_handoff(now, claim);
                self.switches[TARGET].handle_running(now, NET, GUEST);
                self.switches[TARGET].handle_local(now, NET, GUEST, PORT, &[]);
                self.switches[TARGET].end_expectation(now, NET, GUEST);
                self.settle(TARGET);
                self.at(self.distance_us(SOURCE, TARGET), Event::Ran);
            }
            Event::Ran => self.switches[SOURCE].end_copies(now, NET, GUEST),
            Event::Stay => {
                self.switches[SOURCE].handle_running(now, NET, GUEST);
                self.switches[SOURCE].handle_local(now, NET, GUEST, PORT, &[]);
                self.switches[TARGET].end_expectation(now, NET, GUEST);
                self.settle(SOURCE);
                self.settle(TARGET);
            }
            Event::Aware => {
                let all: Vec<HostId> = self.switches.iter().map(|switch| switch.me).collect();
                if let Some((host, _)) = self.plan.unaware {
                    self.switches[host].set_participants(NET, &all);
                }
            }
        }
    }

    /// A neighbour of the guest, or a guest of another host, speaks to the group.
    fn speak(&mut self, host: usize) {
        if self.now.0 > 1_000_000 + TALK_MS * 1000 {
            return;
        }
        let number = self.spoken[host];
        self.spoken[host] += 1;
        let mut frame = frame(GROUP, station(host));
        let shown = if self.plan.is_monotonous { 0 } else { number };
        frame[14..18].copy_from_slice(&shown.to_be_bytes());
        let packet = [&[0; VNET_BYTES][..], &frame].concat();
        self.flood(host, &packet);
        let sent = match self.switches[host].ingress(self.now, NET, &packet, packet.len()) {
            Ingress::Flood(hosts, header) => Some((hosts.to_vec(), header)),
            other => panic!("{other:?}"),
        };
        for (to, header) in sent.into_iter().flat_map(|(hosts, header)| hosts.into_iter().map(move |to| (to, header))) {
            let to = next_index(&self.switches, to);
            let is_late = to == TARGET && self.now.0 >= 1_000_000 + CLOSE_MS * 1000;
            let late_ms = self.plan.late.filter(|(from, _)| *from == host && is_late).map_or(0, |(_, ms)| ms);
            let event = Event::Frame { from: host, to, header, packet: packet.clone() };
            self.at(self.distance_us(host, to) + late_ms * 1000, event);
        }
        self.settle(host);
        self.at(self.plan.periods[host], Event::Speak(host));
    }

    /// What the bridge of a host does.
    fn flood(&mut self, host: usize, packet: &[u8]) {
        if self.floods.get(host) == Some(&true) {
            self.get(host, packet);
        }
    }

    fn get(&mut self, host: usize, packet: &[u8]) {
        let view = EthernetView::new_checked(&packet[VNET_BYTES..]).unwrap();
        assert_eq!(view.dst(), GROUP);
        let number = u32::from_be_bytes(*view.payload().first_chunk().unwrap());
        self.got[host].push((usize::from(view.src().0[5]), number));
    }

    fn transmit(&mut self, from: usize, to: usize, header: FrameHeader, packet: Vec<u8>) {
        self.at(self.distance_us(from, to), Event::Frame { from, to, header, packet });
    }

    fn settle(&mut self, host: usize) {
        while let Some(effect) = self.switches[host].poll_effect() {
            match effect {
                SwitchEffect::Send { to, message } => {
                    let to = next_index(&self.switches, to);
                    self.at(self.distance_us(host, to), Event::Message { from: host, to, message });
                }
                SwitchEffect::Transmit { to, header, packet } => {
                    let to = next_index(&self.switches, to);
                    self.transmit(host, to, header, packet);
                }
                SwitchEffect::DeliverTo { packet, mac, .. } => {
                    assert_eq!(mac, GUEST);
                    self.get(host, &packet);
                }
                SwitchEffect::Flood { on, .. } => self.floods[host] = on,
                SwitchEffect::Deliver { .. } => panic!("nothing was for one station"),
                SwitchEffect::Connect(_) | SwitchEffect::Upward(_) => {}
            }
        }
    }

    /// What the guest got from one host's neighbour, in order.
    fn heard_from(&self, host: usize) -> Vec<u32> {
        let numbers = self.got.iter().flatten().filter(|(from, _)| *from == host + 10);
        numbers.map(|(_, number)| *number).collect()
    }

    fn assert_exact(&self) {
        let end = if self.plan.stays { SOURCE } else { TARGET };
        assert!(self.plan.stays != self.got[TARGET].iter().any(|_| true));
        assert!(self.floods[end], "the guest's port is on the floods again: {:?}", self.plan);
        for host in 0..self.spoken.len() {
            assert!(self.spoken[host] > 20 && self.got[SOURCE].len() > 20);
            let expected: Vec<u32> = match self.plan.is_monotonous {
                true => vec![0; self.spoken[host] as usize],
                false => (0..self.spoken[host]).collect(),
            };
            let heard = self.heard_from(host);
            let wrong = heard.iter().zip(&expected).position(|(heard, expected)| heard != expected);
            let at = wrong.map(|at| &heard[at..heard.len().min(at + 8)]);
            assert!(
                heard == expected,
                "from host {host} {} of {}, {at:?}: {:?}",
                heard.len(),
                expected.len(),
                self.plan
            );
        }
        assert!(self.switches.iter().all(|switch| switch.escort_timers.is_empty()), "nothing is left to do");
    }
}

fn station(host: usize) -> Mac {
    Mac([2, 0, 0, 0, 1, host as u8 + 10])
}

fn next_index(switches: &[Switch], id: HostId) -> usize {
    switches.iter().position(|switch| switch.me == id).unwrap()
}

fn plan() -> Plan {
    Plan {
        places: vec![0, 0, 0, 0],
        periods: vec![20_000; 4],
        downtime_ms: 40,
        resume_ms: 5,
        stays: false,
        unaware: None,
        late: None,
        is_monotonous: false,
    }
}

fn run(plan: Plan) -> World {
    let mut world = World::new(plan);
    world.run();
    world
}

prop_compose! {
    fn plans()(
        places in prop::collection::vec(0u64..40, 4),
        periods in prop::collection::vec(1_000u64..60_000, 4),
        downtime_ms in 1u64..200,
        resume_ms in 1u64..60,
        stays: bool,
        late in prop::option::of((0usize..4, 1u64..1_500)),
    ) -> Plan {
        Plan { places, periods, downtime_ms, resume_ms, stays, late, ..plan() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_frame_to_a_group_comes_once_and_in_its_senders_order(plan in plans()) {
        run(plan).assert_exact();
    }
}

#[test]
fn a_sender_that_does_not_know_the_target_yet_is_heard_all_the_same() {
    run(Plan { unaware: Some((2, CLOSE_MS + 300)), ..plan() }).assert_exact();
}

#[test]
fn a_frame_that_comes_long_after_its_copy_was_delivered_is_one_too_many() {
    let ms = PARCEL_STRAY_TIME.as_millis() as u64;
    for late in [ms - 50, ms + 50, 4 * ms] {
        run(Plan { late: Some((3, late)), ..plan() }).assert_exact();
    }
}

#[test]
fn frames_that_look_the_same_are_told_apart_by_time() {
    run(Plan { is_monotonous: true, ..plan() }).assert_exact();
}

#[test]
fn frames_of_others_are_not_delayed_soon_after_the_guest_runs() {
    let mut world = World::new(Plan { unaware: Some((2, TALK_MS)), ..plan() });
    let runs_at = world.now + Duration::from_millis(CLOSE_MS + world.plan.downtime_ms + world.plan.resume_ms);
    while world.step(runs_at + CATCH_UP_TIME) {}
    for host in [0, 1, 3] {
        // Whoever has just spoken may not be heard yet.
        assert!(world.heard_from(host).len() as u32 + 1 >= world.spoken[host]);
    }
    assert!((world.heard_from(2).len() as u32) < world.spoken[2] - 5, "it is waited for what its host sends");
}

#[test]
fn a_guest_that_leaves_again_at_once_gets_no_frame_at_the_next_host_that_it_has_got() {
    let mut lab = Lab::new(3);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    let (packet, source) = ([&[0; VNET_BYTES][..], &frame(GROUP, TALKER)].concat(), Toy(0).host());
    let flooded = FrameHeader { network: NET, hops: HOP_LIMIT, flags: Flags::VNET.with(Flags::FLOOD) };
    let parcel = crate::wire::parcel::pack(GUEST, TALKER, 0, &packet).unwrap();
    let header = FrameHeader { flags: crate::wire::parcel::FLAGS, ..flooded };

    lab.switches[1].expect_move(lab.now, NET, GUEST, source);
    lab.switches[0].begin_move(lab.now, NET, GUEST);
    let claim = lab.switches[0].hand_over(lab.now, NET, GUEST, Toy(1).host()).unwrap();
    lab.switches[1].handle_handoff(lab.now, claim);
    lab.switches[1].handle_running(lab.now, NET, GUEST);
    lab.switches[1].handle_local(lab.now, NET, GUEST, PORT, &[]);
    let mut copies = 0;
    let mut take_effects = |switch: &mut Switch| {
        while let Some(effect) = switch.poll_effect() {
            copies += u32::from(matches!(effect, SwitchEffect::DeliverTo { .. }));
        }
        copies
    };
    assert_eq!(lab.switches[1].egress(lab.now, source, header, &parcel), Egress::Taken);
    assert_eq!(take_effects(&mut lab.switches[1]), 0, "the frame itself may come");
    lab.now = lab.now + PARCEL_STRAY_TIME;
    lab.switches[1].handle_timeout(lab.now);
    assert_eq!(take_effects(&mut lab.switches[1]), 1);

    lab.switches[1].begin_move(lab.now, NET, GUEST);
    for waiting in [0, 1] {
        assert_eq!(lab.switches[1].egress(lab.now, Toy(2).host(), flooded, &packet), Egress::Deliver);
        assert_eq!(lab.switches[1].move_counts(NET, GUEST).buffered, waiting, "the second one is another frame");
    }
}

#[test]
fn parcels_of_strangers_and_for_guests_that_do_not_come_go_nowhere() {
    let mut lab = Lab::new(3);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    let packet = [&[0; VNET_BYTES][..], &frame(GROUP, TALKER)].concat();
    let parcel = crate::wire::parcel::pack(GUEST, TALKER, 0, &packet).unwrap();
    let header = FrameHeader { network: NET, hops: HOP_LIMIT, flags: crate::wire::parcel::FLAGS };
    let (source, stranger) = (Toy(0).host(), Toy(2).host());
    let now = lab.now;
    assert_eq!(lab.switches[1].egress(now, source, header, &parcel), Egress::Drop(DropReason::Duplicate));
    lab.switches[1].expect_move(now, NET, GUEST, source);
    assert_eq!(lab.switches[1].egress(now, stranger, header, &parcel), Egress::Drop(DropReason::Duplicate));
    assert_eq!(lab.switches[1].egress(now, source, header, &parcel), Egress::Hold(GUEST, header));
    assert_eq!(lab.switches[1].egress(now, source, header, &packet), Egress::Drop(DropReason::Malformed));
    lab.switches[1].end_expectation(now, NET, GUEST);
    assert_eq!(lab.switches[1].egress(now, source, header, &parcel), Egress::Drop(DropReason::Duplicate));
}
