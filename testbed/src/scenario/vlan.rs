//! Frames that are no plain IP: VLAN tags and RARP announcements pass as they are.

use anyhow::{Result, ensure};

use super::network::blue_with_guests;
use super::{LAN, Scenario};
use crate::lab::Lab;
use crate::traffic::ethernet::{
    BROADCAST, ETHERTYPE_EXPERIMENT, ETHERTYPE_RARP, RawNic, frame, parse_mac, rarp_announcement,
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "vlan",
        about: "802.1Q tags pass unchanged: broadcast, unicast, priority, and a full frame with its tag",
        topology: LAN,
        tools: &["ping"],
        run: vlan,
    },
    Scenario {
        name: "rarp",
        about: "a hypervisor's RARP announcement reaches every host of the network",
        topology: LAN,
        tools: &["ping"],
        run: rarp,
    },
];

fn vlan(lab: &mut Lab) -> Result<()> {
    blue_with_guests(lab)?;
    let (vm1, vm2) = (lab.guest("vm1")?, lab.guest("vm2")?);
    let (source, target) = (parse_mac(vm1.mac())?, parse_mac(vm2.mac())?);
    let (sender, receiver) = (RawNic::open(vm1)?, RawNic::open(vm2)?);
    // The upper three bits of a tag are the priority.
    for (destination, tag, length) in
        [(BROADCAST, 42, 46), (target, 42, 46), (target, 4094, 300), (target, (5 << 13) | 7, 1000), (target, 42, 1500)]
    {
        let payload: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        sender.send(&frame(destination, source, Some(tag), ETHERTYPE_EXPERIMENT, &payload))?;
        let received = receiver.await_frame(source, Some(tag), ETHERTYPE_EXPERIMENT)?;
        ensure!(received == payload, "The tagged frame of {length} bytes was changed");
    }
    sender.send(&frame(target, source, None, ETHERTYPE_EXPERIMENT, &[9; 60]))?;
    receiver.await_frame(source, None, ETHERTYPE_EXPERIMENT).map(drop)
}

fn rarp(lab: &mut Lab) -> Result<()> {
    blue_with_guests(lab)?;
    let vm1 = lab.guest("vm1")?;
    let source = parse_mac(vm1.mac())?;
    let sender = RawNic::open(vm1)?;
    let receivers = [RawNic::open(lab.guest("vm2")?)?, RawNic::open(lab.guest("vm3")?)?];
    sender.send(&rarp_announcement(source))?;
    for receiver in receivers {
        receiver.await_frame(source, None, ETHERTYPE_RARP)?;
    }
    Ok(())
}
