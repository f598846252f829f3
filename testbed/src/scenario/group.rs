//! Frames for many: multicast and broadcast go to every host with a port in the network, once, and to no other.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

use super::network::blue_with_guests;
use super::{LAN, Scenario};
use crate::lab::Lab;
use crate::traffic::group;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "multicast",
    about: "multicast and broadcast reach every guest of the network once, and no host without a port in it",
    topology: LAN,
    tools: &["ping"],
    run,
}];

fn run(lab: &mut Lab) -> Result<()> {
    blue_with_guests(lab)?;
    let (vm1, vm2, vm3) = (lab.guest("vm1")?, lab.guest("vm2")?, lab.guest("vm3")?);
    for target in [MULTICAST, BROADCAST] {
        let received = group::send(vm1, &[vm2, vm3], target, COUNT)?;
        ensure!(received.values().all(|count| *count == COUNT), "{target}: received of {COUNT}: {received:?}");
    }

    lab.detach("vm3", "blue")?;
    lab.host("gamma")?.json(&["net", "detach", "blue"])?;
    let sent_before = sent_to(lab, "gamma")?;
    let received = group::send(lab.guest("vm1")?, &[lab.guest("vm2")?], BROADCAST, COUNT)?;
    ensure!(received["vm2"] == COUNT, "vm2 received {received:?}");
    let frames = sent_to(lab, "gamma")? - sent_before;
    ensure!(frames < u64::from(COUNT), "gamma has no port in blue and was sent {frames} frames");
    Ok(())
}

/// Frames that alpha has sent to `name`.
fn sent_to(lab: &Lab, name: &str) -> Result<u64> {
    let links = lab.host("alpha")?.list(&["links"])?;
    Ok(links.iter().find(|link| link["name"] == name).and_then(|link| link["tx_frames"].as_u64()).unwrap_or(0))
}

const MULTICAST: Ipv4Addr = Ipv4Addr::new(239, 77, 0, 1);
const BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 255);
const COUNT: u32 = 40;
