//! What ordinary guests do in a network that spans three hosts.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{LAN, Scenario, WAN};
use crate::lab::Lab;
use crate::traffic::stream::Stream;
use crate::traffic::transfer::Transfer;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "traffic",
        about: "ping, TCP and UDP between guests on three hosts, IPv4 and IPv6",
        topology: WAN,
        tools: &["ping"],
        run: traffic,
    },
    Scenario {
        name: "iperf",
        about: "iperf3 between guests, both ways and with four streams",
        topology: LAN,
        tools: &["ping", "iperf3"],
        run: iperf,
    },
    Scenario {
        name: "local-switching",
        about: "guests of one host talk without the agent, also while it is down",
        topology: LAN,
        tools: &["ping"],
        run: local_switching,
    },
];

/// A network with a guest on each host, all in contact.
pub(super) fn blue_with_guests(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    lab.create_network("blue", &[])?;
    for (guest, host) in [("vm1", "alpha"), ("vm2", "beta"), ("vm3", "gamma")] {
        lab.place_guest(guest, host, "blue")?;
    }
    for (a, b) in [("vm1", "vm2"), ("vm2", "vm3"), ("vm3", "vm1")] {
        lab.await_contact(a, b)?;
    }
    Ok(())
}

fn traffic(lab: &mut Lab) -> Result<()> {
    blue_with_guests(lab)?;
    let (vm1, vm2, vm3) = (lab.guest("vm1")?, lab.guest("vm2")?, lab.guest("vm3")?);
    for target in [vm2, vm3] {
        vm1.ping(target.ipv4()?, "-c 5 -i 0.1 -W 2")?;
        vm1.ping(target.ipv6()?, "-c 5 -i 0.1 -W 2").context("IPv6 by neighbour discovery")?;
        vm1.ping(target.ipv4()?, "-c 2 -i 0.1 -W 2 -M do -s 1472").context("A full packet")?;
        vm1.ping(target.ipv4()?, "-c 2 -i 0.1 -W 2 -M dont -s 8000").context("A fragmented packet")?;
    }
    let transfer = Transfer::start(vm1, vm3, 4 << 20)?;
    let stream = Stream::start(vm3, vm2, 1_000, 400)?;
    transfer.await_bytes(6 << 20, Duration::from_secs(30))?;
    let stream = stream.finish()?;
    let transfer = transfer.finish()?;
    ensure!(stream.lost == 0 && stream.duplicated == 0, "The stream was not carried whole: {stream:?}");
    lab.note(format!("{} bytes by TCP, {} datagrams by UDP, none lost or doubled", transfer.bytes, stream.sent));
    Ok(())
}

fn iperf(lab: &mut Lab) -> Result<()> {
    blue_with_guests(lab)?;
    for options in ["", "-R", "-P 4"] {
        let figures = crate::traffic::iperf::run(lab.guest("vm1")?, lab.guest("vm2")?, &format!("-t 2 {options}"))?;
        lab.note(format!("iperf3 {options:<4} {:.2} Gbit/s", figures.bits_per_second / 1e9));
    }
    Ok(())
}

fn local_switching(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    lab.create_network("blue", &[])?;
    lab.place_guest("vm1", "alpha", "blue")?;
    lab.place_guest("vm2", "alpha", "blue")?;
    lab.await_contact("vm1", "vm2")?;
    lab.host_mut("alpha")?.kill()?;
    let (vm1, vm2) = (lab.guest("vm1")?, lab.guest("vm2")?);
    vm1.reaches(vm2.ipv4()?).context("The bridge should go on without its agent")
}
