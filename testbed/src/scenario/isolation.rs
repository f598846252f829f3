//! Networks know nothing of each other, even with the same addresses in both.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{LAN, Scenario};
use crate::lab::{self, Lab};
use crate::traffic::ethernet::{BROADCAST, ETHERTYPE_EXPERIMENT, RawNic, frame, parse_mac};
use crate::traffic::group;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "isolation",
    about: "no frame passes between networks, on one host or two, with equal addresses in both",
    topology: LAN,
    tools: &["ping"],
    run,
}];

fn run(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    lab.create_network("blue", &[])?;
    lab.create_network("red", &[])?;
    for (guest, host, network) in
        [("b1", "alpha", "blue"), ("b2", "beta", "blue"), ("r1", "alpha", "red"), ("r2", "beta", "red")]
    {
        lab.place_guest(guest, host, network)?;
    }
    lab.await_contact("b1", "b2")?;
    lab.await_contact("r1", "r2")?;
    let (b1, r1, r2) = (lab.guest("b1")?, lab.guest("r1")?, lab.guest("r2")?);
    b1.ensure_unreachable(r1.ipv4()?)?;
    b1.ensure_unreachable(r2.ipv4()?)?;

    let received = group::send(b1, &[lab.guest("b2")?, r1, r2], Ipv4Addr::new(10, 9, 0, 255), 20)?;
    ensure!(received["b2"] == 20 && received["r1"] + received["r2"] == 0, "A broadcast in blue reached {received:?}");

    // A forged destination: the address of a guest of the other network.
    let (source, target) = (parse_mac(b1.mac())?, parse_mac(r2.mac())?);
    let (sender, receiver) = (RawNic::open(b1)?, RawNic::open(r2)?);
    for destination in [target, BROADCAST] {
        sender.send(&frame(destination, source, None, ETHERTYPE_EXPERIMENT, &[1; 60]))?;
    }
    let leaked = receiver.find_frame(source, None, ETHERTYPE_EXPERIMENT, Duration::from_millis(500))?;
    ensure!(leaked.is_none(), "A frame of blue reached red");
    same_address_twice(lab)
}

/// One MAC and IP address in both networks: two claims, no conflict.
fn same_address_twice(lab: &mut Lab) -> Result<()> {
    for (guest, host, network) in [("twin1", "alpha", "blue"), ("twin2", "beta", "red")] {
        lab.add_guest(guest, host, &["10.9.0.100/24"], 1500)?;
        lab.guest(guest)?.namespace().ip(&format!("link set eth0 address {MAC}"))?;
        lab.attach(guest, network)?;
    }
    let target = lab.guest("twin1")?.ipv4()?;
    lab.guest("b2")?.await_reach(target, lab::CONTACT_TIME_MAX)?;
    lab.guest("r1")?.await_reach(target, lab::CONTACT_TIME_MAX)?;
    for (network, owner) in [("blue", "alpha"), ("red", "beta")] {
        let id = lab.host(owner)?.id()?;
        for observer in ["alpha", "beta"] {
            lab::await_claim(lab.host(observer)?, network, MAC, &id, lab::CONTACT_TIME_MAX)?;
        }
    }
    Ok(())
}

const MAC: &str = "02:56:aa:00:00:01";
