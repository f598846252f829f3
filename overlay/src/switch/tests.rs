//! What a few switches do together.

mod departing;
mod migrating;
mod parcels;
mod service;
mod takeover;

use super::*;
use crate::crypto::testing::Toy;
use crate::drop_reason::DropReason;
use crate::ids::SwarmId;
use crate::limits::{DEPARTED_TIME, HOP_LIMIT, LEAVING_TIME, PROBE_TIME, RELEASE_FRAMES, RELEASE_INTERVAL};
use crate::wire::arp::{self, ArpView, Operation};
use crate::wire::beacon::{Beacon, Standing};
use crate::wire::ethernet::{EthernetView, VlanTags};
use crate::wire::frame::{Flags, VNET_BYTES};

const NET: NetworkId = NetworkId(7);
const GUEST: Mac = Mac([2, 0, 0, 0, 0, 1]);
const TALKER: Mac = Mac([2, 0, 0, 0, 0, 2]);
const PORT: Option<PortId> = Some(PortId(3));

/// Switches whose links are up and lose nothing.
struct Lab {
    switches: Vec<Switch>,
    now: Instant,
    /// What each switch wrote to its port.
    delivered: Vec<Vec<Vec<u8>>>,
    upward: Vec<Vec<Upward>>,
    linked: bool,
    /// Whether bridges know the address behind one of their interfaces.
    bridge_knows: bool,
}

impl Lab {
    fn new(count: u8) -> Self {
        let ids: Vec<HostId> = (0..count).map(|n| Toy(n).host()).collect();
        let switches = (0..count)
            .map(|n| {
                let mut switch = Switch::new(Arc::new(Toy(n)), Arc::new(Toy(0)), n.into());
                switch.set_network(NetworkSpec { id: NET, mtu: 1500 });
                switch.set_participants(NET, &ids);
                switch.attach(NET);
                switch
            })
            .collect();
        let mut lab = Self {
            switches,
            now: Instant(1_000_000),
            delivered: vec![vec![]; count.into()],
            upward: vec![vec![]; count.into()],
            linked: true,
            bridge_knows: true,
        };
        lab.link(true);
        lab
    }

    fn link(&mut self, up: bool) {
        self.linked = up;
        let ids: Vec<HostId> = self.switches.iter().map(|switch| switch.me).collect();
        for switch in &mut self.switches {
            for id in ids.iter().filter(|id| **id != switch.me).copied().collect::<Vec<_>>() {
                match up {
                    true => switch.handle_link_up(self.now, id),
                    false => switch.handle_link_down(self.now, id),
                }
            }
        }
        self.settle();
    }

    fn index(&self, host: HostId) -> usize {
        self.switches.iter().position(|switch| switch.me == host).unwrap()
    }

    fn settle(&mut self) {
        for from in (0..self.switches.len()).cycle().take(self.switches.len() * 12) {
            while let Some(effect) = self.switches[from].poll_effect() {
                self.carry_out(from, effect);
            }
        }
    }

    fn carry_out(&mut self, from: usize, effect: SwitchEffect) {
        let (now, me) = (self.now, self.switches[from].me);
        match effect {
            SwitchEffect::Send { to, message } if self.linked => {
                let to = self.index(to);
                self.switches[to].handle_message(now, me, &message).unwrap();
            }
            SwitchEffect::Transmit { to, header, packet } if self.linked => self.arrive(from, to, header, packet),
            SwitchEffect::Deliver { packet, .. } | SwitchEffect::DeliverTo { packet, .. } => {
                self.delivered[from].push(packet);
            }
            SwitchEffect::Flood { .. } => {}
            SwitchEffect::Upward(Upward::FindPort { network, mac }) => {
                self.switches[from].handle_port_found(now, network, mac, self.bridge_knows);
            }
            SwitchEffect::Upward(upward) => self.upward[from].push(upward),
            SwitchEffect::Connect(_) | SwitchEffect::Send { .. } | SwitchEffect::Transmit { .. } => {}
        }
    }

    fn arrive(&mut self, from: usize, to: HostId, header: FrameHeader, packet: Vec<u8>) {
        let (from, to) = (self.switches[from].me, self.index(to));
        match self.switches[to].egress(self.now, from, header, &packet) {
            Egress::Deliver => self.delivered[to].push(packet),
            Egress::Forward(next, header) => self.arrive(to, next, header, packet),
            Egress::Hold(mac, header) => self.switches[to].hold(self.now, NET, mac, header, packet),
            Egress::Taken => {}
            Egress::Drop(_) => {}
        }
    }

    /// A port of `host` sends a frame. Returns why it died, if it did.
    fn send(&mut self, host: usize, frame: &[u8]) -> Option<DropReason> {
        let packet = [&[0; VNET_BYTES], frame].concat();
        let (hosts, header) = match self.switches[host].ingress(self.now, NET, &packet, packet.len()) {
            Ingress::Unicast(to, header) => (vec![to], header),
            Ingress::Flood(to, header) => (to.to_vec(), header),
            Ingress::Reply(reply, reason) => {
                let reply = reply.to_vec();
                self.delivered[host].push(reply);
                self.settle();
                return Some(reason);
            }
            Ingress::Hold(mac, header) => {
                self.switches[host].hold(self.now, NET, mac, header, packet);
                return None;
            }
            Ingress::Drop(reason) => {
                self.settle();
                return Some(reason);
            }
        };
        for to in hosts {
            self.arrive(host, to, header, packet.clone());
        }
        self.settle();
        None
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.switches.iter().filter_map(Switch::poll_timeout).min().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            for switch in &mut self.switches {
                switch.handle_timeout(self.now);
            }
            self.settle();
        }
        self.now = end;
    }

    /// Every switch agrees that `host` holds the guest's address.
    fn assert_held_by(&self, host: usize) {
        for (n, switch) in self.switches.iter().enumerate() {
            let entry = switch.fdb(NET).into_iter().find(|entry| entry.mac == GUEST);
            assert_eq!(entry.map(|entry| entry.holder), Some(self.switches[host].me), "as host {n} sees it");
        }
    }

    fn events(&self, host: usize) -> Vec<SwitchEvent> {
        self.upward[host]
            .iter()
            .filter_map(|upward| match upward {
                Upward::Event(event) => Some(*event),
                _ => None,
            })
            .collect()
    }

    fn conflicts(&self, host: usize) -> usize {
        self.events(host).iter().filter(|event| matches!(event, SwitchEvent::Conflict { .. })).count()
    }
}

fn frame(dst: Mac, src: Mac) -> Vec<u8> {
    let mut frame = [dst.0, src.0].concat();
    frame.extend([0x88, 0xb5]);
    frame.resize(60, 0);
    frame
}

#[test]
fn known_addresses_get_unicast_and_unknown_ones_are_flooded() {
    let mut lab = Lab::new(3);
    assert_eq!(lab.send(0, &frame(GUEST, TALKER)), None);
    assert_eq!([lab.delivered[1].len(), lab.delivered[2].len()], [1, 1]);
    lab.send(1, &frame(TALKER, GUEST));
    assert_eq!([lab.delivered[0].len(), lab.delivered[2].len()], [1, 1]);
    lab.send(0, &frame(GUEST, TALKER));
    assert_eq!([lab.delivered[1].len(), lab.delivered[2].len()], [2, 1]);
    lab.assert_held_by(1);
}

#[test]
fn frames_that_must_not_travel_die_with_a_reason() {
    let mut lab = Lab::new(2);
    assert_eq!(lab.send(0, &frame(GUEST, Mac::BROADCAST)), Some(DropReason::BadSource));
    assert_eq!(lab.send(0, &frame(Mac([1, 0x80, 0xc2, 0, 0, 0]), TALKER)), Some(DropReason::LinkLocal));
    let beacon = Beacon { swarm: SwarmId([1; 32]), network: NET, host: Toy(0).host(), standing: Standing::Active };
    assert_eq!(lab.send(0, &beacon.encode(TALKER)), Some(DropReason::LinkLocal));
    assert!(lab.switches[0].fdb(NET).is_empty(), "nothing is learned from a beacon");
    assert_eq!(lab.send(0, &[0; 10]), Some(DropReason::Malformed));
    assert_eq!(lab.send(0, &frame(TALKER, TALKER)), Some(DropReason::Local));
    let header = FrameHeader { network: NetworkId(8), hops: 1, flags: Flags::VNET };
    let verdict = lab.switches[1].egress(lab.now, Toy(0).host(), header, &[0; 70]);
    assert_eq!(verdict, Egress::Drop(DropReason::UnknownNetwork));
}

#[test]
fn arp_is_answered_from_claims() {
    let mut lab = Lab::new(2);
    let (ip, asker) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    lab.switches[1].handle_local(lab.now, NET, GUEST, PORT, &[IpAddr::V4(ip)]);
    lab.settle();
    let request = arp::build_request(Mac::BROADCAST, ip, TALKER, asker, VlanTags::NONE);
    assert_eq!(lab.send(0, &request), Some(DropReason::Answered));
    assert!(lab.delivered[1].is_empty());
    let reply = EthernetView::new_checked(&lab.delivered[0][0][VNET_BYTES..]).unwrap();
    let arp = ArpView::new_checked(reply.payload()).unwrap();
    assert_eq!((arp.operation(), arp.sender_mac(), arp.sender_ip()), (Operation::Reply, GUEST, ip));
}

#[test]
fn oversized_packets_are_answered_with_too_big() {
    let mut lab = Lab::new(2);
    let mut big = frame(GUEST, TALKER);
    big.resize(1515, 0);
    assert_eq!(lab.send(0, &big), Some(DropReason::TooBig));
    big.resize(1514, 0);
    assert_eq!(lab.send(0, &big), None);
}

#[test]
fn a_planned_move_loses_and_duplicates_nothing() {
    let mut lab = Lab::new(3);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    let mut sent = 0;
    for step in 0..30 {
        match step {
            10 => lab.switches[0].depart(lab.now, NET, GUEST),
            20 => lab.switches[1].handle_local(lab.now, NET, GUEST, PORT, &[]),
            _ => {}
        }
        assert_eq!(lab.send(2, &frame(GUEST, TALKER)), None);
        sent += 1;
        lab.pass(Duration::from_millis(10));
    }
    assert_eq!(lab.delivered[0].len() + lab.delivered[1].len(), sent);
    assert_eq!(lab.delivered[0].len(), 10);
    lab.assert_held_by(1);
    assert_eq!(lab.conflicts(0) + lab.conflicts(1) + lab.conflicts(2), 0);
}

#[test]
fn frames_that_waited_follow_in_slices_and_in_order() {
    let mut lab = Lab::new(3);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    lab.switches[0].depart(lab.now, NET, GUEST);
    let numbered = |n: u16| {
        let mut frame = frame(GUEST, TALKER);
        frame[14..16].copy_from_slice(&n.to_be_bytes());
        frame
    };
    for n in 0..1000 {
        lab.send(2, &numbered(n));
    }
    lab.switches[1].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    assert_eq!(lab.delivered[1].len(), RELEASE_FRAMES);
    // A straggler queues behind those that waited.
    let header = FrameHeader { network: NET, hops: HOP_LIMIT, flags: Flags::VNET };
    lab.arrive(2, Toy(0).host(), header, [&[0; VNET_BYTES][..], &numbered(1000)].concat());
    lab.pass(RELEASE_INTERVAL * 20);
    let order: Vec<u16> =
        lab.delivered[1].iter().map(|p| u16::from_be_bytes([p[VNET_BYTES + 14], p[VNET_BYTES + 15]])).collect();
    assert_eq!(order, (0..=1000).collect::<Vec<u16>>());
    assert_eq!(lab.switches[0].poll_timeout(), None, "nothing is left to do");
}

#[test]
fn a_talker_that_has_not_heard_is_redirected() {
    let mut lab = Lab::new(3);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    // Only the two parties hear of the move.
    lab.switches[2].handle_link_down(lab.now, Toy(0).host());
    for switch in 0..2 {
        lab.switches[switch].handle_link_down(lab.now, Toy(2).host());
    }
    lab.switches[0].depart(lab.now, NET, GUEST);
    lab.switches[1].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    lab.send(2, &frame(GUEST, TALKER));
    assert_eq!(lab.delivered[1].len(), 1, "the former holder sends stragglers on");
    lab.assert_held_by(1);
}

#[test]
fn a_duplicate_is_refused_and_shown() {
    let mut lab = Lab::new(2);
    let ip = IpAddr::from([10, 0, 0, 1]);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[ip]);
    lab.settle();
    lab.send(1, &frame(TALKER, GUEST));
    let probe = lab.delivered[0].pop().expect("the holder looks for its guest");
    assert_eq!(EthernetView::new_checked(&probe[VNET_BYTES..]).unwrap().dst(), GUEST);
    lab.send(0, &frame(TALKER, GUEST));
    lab.assert_held_by(0);
    assert_eq!(lab.switches[1].fdb(NET)[0].state, AddressState::Duplicate);
    assert_eq!(lab.send(1, &frame(TALKER, GUEST)), Some(DropReason::Duplicate));
    for _ in 0..20 {
        lab.pass(Duration::from_secs(1));
        lab.send(1, &frame(TALKER, GUEST));
        lab.send(0, &frame(TALKER, GUEST));
    }
    assert_eq!([lab.conflicts(0), lab.conflicts(1)], [1, 1], "told once while it lasts");
}

#[test]
fn an_address_whose_guest_does_not_answer_is_handed_over() {
    let mut lab = Lab::new(2);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[IpAddr::from([10, 0, 0, 1])]);
    lab.settle();
    lab.send(1, &frame(TALKER, GUEST));
    lab.assert_held_by(0);
    lab.pass(PROBE_TIME * 2);
    lab.assert_held_by(1);
}

#[test]
fn an_address_that_the_bridge_has_lost_is_handed_over_at_once() {
    let mut lab = Lab::new(2);
    lab.bridge_knows = false;
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    lab.send(1, &frame(TALKER, GUEST));
    lab.assert_held_by(1);
}

#[test]
fn a_dead_holder_loses_its_claims_after_its_lease() {
    let mut lab = Lab::new(3);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    lab.link(false);
    lab.send(1, &frame(TALKER, GUEST));
    assert_eq!(lab.switches[1].fdb(NET)[0].state, AddressState::Wanted);
    for survivor in 1..3 {
        lab.switches[survivor].handle_lapsed(lab.now, Toy(0).host());
    }
    lab.settle();
    assert_eq!(lab.switches[1].fdb(NET)[0].state, AddressState::Local);
    assert_eq!(lab.switches[2].fdb(NET)[0].state, AddressState::Lapsed);
}

#[test]
fn a_partition_heals_to_one_holder_everywhere() {
    let mut lab = Lab::new(3);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    lab.link(false);
    for survivor in 1..3 {
        lab.switches[survivor].handle_lapsed(lab.now, Toy(0).host());
    }
    lab.send(1, &frame(TALKER, GUEST));
    for survivor in 1..3 {
        lab.switches[survivor].handle_alive(Toy(0).host());
    }
    lab.link(true);
    // The former holder's guest lives and answers.
    lab.send(0, &frame(TALKER, GUEST));
    lab.pass(Duration::from_secs(5));
    lab.assert_held_by(0);
}

#[test]
fn a_restarted_holder_hears_which_epoch_it_had() {
    let mut lab = Lab::new(2);
    for host in [0, 1, 0] {
        for other in 0..2 {
            lab.switches[other].depart(lab.now, NET, GUEST);
        }
        lab.switches[host].handle_local(lab.now, NET, GUEST, PORT, &[]);
        lab.settle();
    }
    assert_eq!(lab.switches[1].fdb(NET)[0].epoch, Epoch(3));
    let mut fresh = Switch::new(Arc::new(Toy(0)), Arc::new(Toy(0)), 0);
    fresh.set_network(NetworkSpec { id: NET, mtu: 1500 });
    fresh.set_participants(NET, &[Toy(1).host()]);
    fresh.attach(NET);
    lab.switches[0] = fresh;
    lab.link(true);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    lab.assert_held_by(0);
    assert!(lab.switches[0].fdb(NET)[0].epoch >= Epoch(3));
}

#[test]
fn stragglers_do_not_loop() {
    let mut lab = Lab::new(2);
    // Each believes that the other has it.
    for host in 0..2u8 {
        let claim = Claim::first(NET, GUEST, Toy(1 - host).host(), Epoch(1));
        lab.switches[usize::from(host)].handle_claim(lab.now, claim);
    }
    let header = FrameHeader { network: NET, hops: HOP_LIMIT, flags: Flags::VNET };
    let packet = [&[0; VNET_BYTES][..], &frame(GUEST, TALKER)].concat();
    lab.arrive(1, Toy(0).host(), header, packet);
    assert!(lab.delivered.iter().all(|frames| frames.len() <= 1));
}

fn claim_of(host: u8, epoch: u64) -> Claim {
    Claim::first(NET, GUEST, Toy(host).host(), Epoch(epoch))
}

fn state_at(lab: &Lab, host: usize) -> Option<AddressState> {
    lab.switches[host].fdb(NET).into_iter().find(|entry| entry.mac == GUEST).map(|entry| entry.state)
}

#[test]
fn whoever_gives_way_takes_its_row_back() {
    let mut lab = Lab::new(2);
    lab.link(false);
    lab.switches[1].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.switches[1].depart(lab.now, NET, GUEST);
    let winner = claim_of(0, 1);
    assert!(Toy(0).host() < Toy(1).host());
    lab.switches[1].handle_claim(lab.now, winner);
    lab.settle();
    assert!(lab.upward[1].contains(&Upward::Withdraw { network: NET, mac: GUEST }));
}

#[test]
fn an_address_that_its_holder_releases_is_claimed_where_it_shows() {
    let mut lab = Lab::new(2);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    lab.link(false);
    lab.send(1, &frame(TALKER, GUEST));
    assert_eq!(state_at(&lab, 1), Some(AddressState::Wanted));
    lab.switches[1].handle_released(lab.now, NET, GUEST, Toy(0).host(), Epoch(u64::MAX));
    assert_eq!(state_at(&lab, 1), Some(AddressState::Local));
}

#[test]
fn what_a_host_claimed_before_it_began_anew_is_void() {
    let mut lab = Lab::new(2);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    lab.switches[1].handle_gone(lab.now, Toy(0).host());
    assert_eq!(state_at(&lab, 1), None);
}

#[test]
fn flooded_frames_do_not_wait_for_a_departed_address() {
    let mut lab = Lab::new(2);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.switches[0].depart(lab.now, NET, GUEST);
    let flags = Flags::VNET.with(Flags::FLOOD);
    let header = FrameHeader { network: NET, hops: HOP_LIMIT, flags };
    let packet = [&[0; VNET_BYTES][..], &frame(GUEST, TALKER)].concat();
    assert_eq!(lab.switches[0].egress(lab.now, Toy(1).host(), header, &packet), Egress::Deliver);
}

#[test]
fn a_grant_for_an_address_that_was_forgotten_is_taken_and_told() {
    let mut lab = Lab::new(2);
    let granted = claim_of(0, 1).hand_off(Toy(1).host(), &Toy(0));
    let message = Message::Grant(granted.clone()).encode();
    lab.switches[1].handle_message(lab.now, Toy(0).host(), &message).unwrap();
    lab.settle();
    assert_eq!(state_at(&lab, 1), Some(AddressState::Departed));
    assert!(lab.upward[1].contains(&Upward::Publish(granted)));
}

#[test]
fn the_holder_itself_may_say_that_another_host_has_the_address() {
    let mut lab = Lab::new(4);
    lab.link(false);
    lab.switches[3].handle_claim(lab.now, claim_of(1, 3));
    // Signed by a host that had the address in the same epoch, somewhere else.
    let moved = claim_of(0, 3).hand_off(Toy(2).host(), &Toy(0));
    lab.switches[3].handle_claim(lab.now, moved.clone());
    assert_eq!(lab.switches[3].holder(NET, GUEST), Some(Toy(1).host()));
    let message = Message::Claims(vec![moved]).encode();
    lab.switches[3].handle_message(lab.now, Toy(1).host(), &message).unwrap();
    assert_eq!(lab.switches[3].holder(NET, GUEST), Some(Toy(2).host()));
}

#[test]
fn a_probe_ends_although_the_claim_is_kept_meanwhile() {
    let mut lab = Lab::new(2);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[IpAddr::from([10, 0, 0, 1])]);
    lab.settle();
    lab.send(1, &frame(TALKER, GUEST));
    assert_eq!(state_at(&lab, 0), Some(AddressState::Probed));
    let taken = Claim { ground: crate::claims::Ground::Lapsed { from: Toy(0).host() }, ..claim_of(1, 2) };
    lab.switches[0].handle_claim(lab.now, taken);
    lab.pass(PROBE_TIME * 4);
    lab.assert_held_by(1);
}

#[test]
fn whoever_claims_what_moved_on_long_ago_hears_of_it() {
    let mut lab = Lab::new(3);
    lab.link(false);
    let moved = claim_of(0, 5).hand_off(Toy(1).host(), &Toy(0));
    lab.switches[0].handle_claim(lab.now, moved);
    lab.switches[2].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.link(true);
    assert_eq!(lab.switches[2].fdb(NET)[0].epoch, Epoch(7), "host 1 has it no more and signs it over");
}

#[test]
fn frames_that_a_guest_sent_before_it_came_here_arrive() {
    let mut lab = Lab::new(2);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    let header = FrameHeader { network: NET, hops: HOP_LIMIT, flags: Flags::VNET };
    let packet = [&[0; VNET_BYTES][..], &frame(TALKER, GUEST)].concat();
    assert_eq!(lab.switches[0].egress(lab.now, Toy(1).host(), header, &packet), Egress::Deliver);
    lab.pass(Duration::from_secs(2));
    let late = lab.switches[0].egress(lab.now, Toy(1).host(), header, &packet);
    assert_eq!(late, Egress::Drop(DropReason::Duplicate));
}

#[test]
fn frames_follow_their_destination_back_to_where_they_came_from() {
    let mut lab = Lab::new(2);
    lab.switches[1].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.send(0, &frame(GUEST, TALKER));
    lab.pass(Duration::from_secs(2));
    lab.switches[1].depart(lab.now, NET, GUEST);
    lab.send(0, &frame(GUEST, TALKER));
    let before = lab.delivered[0].len();
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    assert_eq!(lab.delivered[0].len(), before + 1);
}

#[test]
fn a_frame_that_crosses_the_grant_goes_back_to_the_new_holder_once() {
    let mut lab = Lab::new(2);
    lab.switches[0].handle_claim(lab.now, claim_of(1, 2));
    let header = FrameHeader { network: NET, hops: HOP_LIMIT, flags: Flags::VNET };
    let packet = [&[0; VNET_BYTES][..], &frame(GUEST, TALKER)].concat();
    let back = lab.switches[0].egress(lab.now, Toy(1).host(), header, &packet);
    let Egress::Forward(to, header) = back else { panic!("{back:?}") };
    assert_eq!(to, Toy(1).host());
    assert_eq!(lab.switches[0].egress(lab.now, Toy(1).host(), header, &packet), Egress::Deliver);
}
