//! The service station, and guests that speak in another's name.

use super::*;
use crate::names::{AddressPlan, SERVICE_MAC};
use crate::wire::udp;
use std::net::{Ipv4Addr, SocketAddrV4};

const IP: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 7);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 8);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);

fn plan() -> AddressPlan {
    AddressPlan { subnet: "10.8.0.0/24".parse().unwrap(), dhcp: true, host_addresses: true }
}

fn served() -> Lab {
    let mut lab = Lab::new(2);
    lab.switches.iter_mut().for_each(|switch| switch.set_service(NET, Some(plan())));
    lab
}

fn packet(frame: &[u8]) -> Vec<u8> {
    [&[0; VNET_BYTES], frame].concat()
}

fn datagram(src: (Mac, Ipv4Addr), dst: (Mac, Ipv4Addr), port: u16) -> Vec<u8> {
    let (from, to) = (SocketAddrV4::new(src.1, 68), SocketAddrV4::new(dst.1, port));
    packet(&udp::build((src.0, from), (dst.0, to), b"question").unwrap())
}

fn ingress(lab: &mut Lab, packet: &[u8]) -> (bool, Option<DropReason>) {
    match lab.switches[0].ingress(lab.now, NET, packet, packet.len()) {
        Ingress::Reply(_, reason) => (true, Some(reason)),
        Ingress::Drop(reason) => (false, Some(reason)),
        Ingress::Unicast(..) | Ingress::Flood(..) | Ingress::Hold(..) => (false, None),
    }
}

fn assign(lab: &mut Lab, ip: Ipv4Addr, guarded: bool) {
    let (subnet, now) = (plan().subnet, lab.now);
    lab.switches[0].assign(now, NET, GUEST, PORT, Assignment { ip, subnet, guarded });
}

#[test]
fn the_service_station_is_answered_here_and_its_frames_go_nowhere_else() {
    let mut lab = served();
    let question = packet(&arp::build_request(Mac::BROADCAST, SERVICE, GUEST, IP, VlanTags::NONE));
    let Ingress::Reply(reply, _) = lab.switches[0].ingress(lab.now, NET, &question, question.len()) else {
        panic!("no answer")
    };
    let view = EthernetView::new_checked(&reply[VNET_BYTES..]).unwrap();
    let answer = ArpView::new_checked(view.payload()).unwrap();
    assert_eq!((view.dst(), answer.sender_mac(), answer.sender_ip()), (GUEST, SERVICE_MAC, SERVICE));

    for asked in [datagram((GUEST, IP), (SERVICE_MAC, SERVICE), 53), datagram((GUEST, IP), (Mac::BROADCAST, IP), 67)] {
        assert_eq!(ingress(&mut lab, &asked), (false, Some(DropReason::Answered)));
        let up: Vec<SwitchEffect> = std::iter::from_fn(|| lab.switches[0].poll_effect()).collect();
        let frame = asked[VNET_BYTES..].to_vec();
        assert!(up.contains(&SwitchEffect::Upward(Upward::Service { network: NET, frame })), "{up:?}");
    }
    let header = FrameHeader { network: NET, hops: HOP_LIMIT, flags: Flags::VNET };
    let host = lab.switches[1].me;
    for (src, dst) in [(SERVICE_MAC, GUEST), (TALKER, SERVICE_MAC)] {
        let frame = datagram((src, IP), (dst, OTHER), 1);
        assert_eq!(lab.switches[0].egress(lab.now, host, header, &frame), Egress::Drop(DropReason::Spoofed));
    }
}

#[test]
fn without_a_plan_nothing_is_served() {
    let mut lab = Lab::new(2);
    let asked = datagram((GUEST, Ipv4Addr::UNSPECIFIED), (Mac::BROADCAST, Ipv4Addr::BROADCAST), 67);
    assert_eq!(ingress(&mut lab, &asked), (false, None));
}

#[test]
fn a_storm_of_questions_is_bounded() {
    let mut lab = served();
    let asked = datagram((GUEST, IP), (SERVICE_MAC, SERVICE), 53);
    let answered = (0..2000).filter(|_| ingress(&mut lab, &asked).1 == Some(DropReason::Answered)).count();
    assert_eq!(answered as u64, crate::limits::SERVICE_BURST);
    assert_eq!(ingress(&mut lab, &asked).1, Some(DropReason::FloodLimit));
}

#[test]
fn a_guarded_guest_speaks_in_its_own_name_only() {
    let mut lab = served();
    assign(&mut lab, IP, true);
    let arp = |sender| packet(&arp::build_request(Mac::BROADCAST, OTHER, GUEST, sender, VlanTags::NONE));
    let spoofed = (false, Some(DropReason::Spoofed));
    assert_eq!(ingress(&mut lab, &datagram((GUEST, OTHER), (TALKER, IP), 9)), spoofed);
    assert_eq!(ingress(&mut lab, &arp(OTHER)), spoofed);
    assert_eq!(ingress(&mut lab, &arp(SERVICE)), spoofed);
    assert!(ingress(&mut lab, &datagram((GUEST, IP), (TALKER, OTHER), 9)) != spoofed);
    assert!(ingress(&mut lab, &arp(Ipv4Addr::UNSPECIFIED)) != spoofed && ingress(&mut lab, &arp(IP)) != spoofed);
    // A station without a guard is free, but for the service's name.
    assert_eq!(ingress(&mut lab, &datagram((SERVICE_MAC, SERVICE), (TALKER, IP), 9)), spoofed);
    assert!(ingress(&mut lab, &datagram((TALKER, OTHER), (GUEST, IP), 9)) != spoofed);

    assign(&mut lab, IP, false);
    assert!(ingress(&mut lab, &arp(OTHER)) != spoofed);
}

#[test]
fn a_new_address_replaces_the_old_one_in_the_claim() {
    let mut lab = served();
    assign(&mut lab, IP, true);
    let ips = |lab: &Lab| lab.switches[0].fdb(NET).into_iter().find(|entry| entry.mac == GUEST).unwrap().ips;
    assert_eq!(ips(&lab), [IpAddr::from(IP)]);
    assign(&mut lab, OTHER, true);
    assert_eq!(ips(&lab), [IpAddr::from(OTHER)]);
}
