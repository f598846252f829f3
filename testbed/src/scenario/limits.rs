//! What a network may take of the links.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{FAR, Scenario, WAN};
use crate::lab::Lab;
use crate::traffic::transfer::Transfer;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "network-limits",
        about: "a network's rate and rule of congestion hold on a link that it shares with another network",
        topology: WAN,
        tools: &["ping"],
        run: network_limits,
    },
    Scenario {
        name: "network-gives-way",
        about: "a network that listens to delay fills a path that nobody wants, and leaves it to others",
        topology: FAR,
        tools: &["ping"],
        run: network_gives_way,
    },
];

fn network_limits(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    lab.create_network("slow", &["--rate-mbit", "20"])?;
    lab.create_network("fair", &["--congestion", "cubic"])?;
    let shown = lab.host("gamma")?.json(&["net", "show", "slow"])?;
    ensure!(shown["rate_mbit"] == 20 && shown["congestion"] == "none", "The limits of slow did not spread: {shown}");
    for (guest, host, network) in
        [("vm1", "alpha", "slow"), ("vm2", "beta", "slow"), ("vm3", "alpha", "fair"), ("vm4", "beta", "fair")]
    {
        lab.place_guest(guest, host, network)?;
    }
    lab.await_contact("vm1", "vm2")?;
    lab.await_contact("vm3", "vm4")?;
    let slow = Transfer::start(lab.guest("vm1")?, lab.guest("vm2")?, UNLIMITED)?;
    slow.await_bytes(1 << 20, PATIENCE)?;
    let begin = Instant::now();
    // Cubic's first window would take half a minute: it has to grow, though the link itself has none.
    let fair = Transfer::start(lab.guest("vm3")?, lab.guest("vm4")?, UNLIMITED)?;
    fair.await_bytes(20 << 20, Duration::from_secs(20))?;
    let fair_took = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    slow.await_bytes(8 << 20, PATIENCE)?;
    let slow_took = begin.elapsed().as_secs_f64();
    fair.finish()?;
    slow.finish()?;
    // It is 3.4 s, less what waited in a receiver that stood still when the time began.
    ensure!(slow_took > 2.5, "8 MiB took {slow_took:.2} s, which is more than 20 Mbit/s");
    lab.note(format!("20 Mbit/s: 8 MiB in {slow_took:.1} s; beside it by cubic 20 MiB in {fair_took:.1} s"));
    Ok(())
}

fn network_gives_way(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    lab.create_network("patient", &["--congestion", "delay"])?;
    lab.create_network("eager", &[])?;
    for (guest, host, network) in
        [("vm1", "alpha", "patient"), ("vm2", "beta", "patient"), ("vm3", "alpha", "eager"), ("vm4", "beta", "eager")]
    {
        lab.place_guest(guest, host, network)?;
    }
    lab.await_contact("vm1", "vm2")?;
    lab.await_contact("vm3", "vm4")?;
    let patient = Transfer::start(lab.guest("vm1")?, lab.guest("vm2")?, UNLIMITED)?;
    patient.await_bytes(4 << 20, PATIENCE)?;
    let eager = Transfer::start(lab.guest("vm3")?, lab.guest("vm4")?, UNLIMITED)?;
    // Until it has found out how much the path carries, and the other one that it must share it.
    eager.await_bytes(12 << 20, PATIENCE)?;
    let before = patient.received();
    eager.await_bytes(16 << 20, PATIENCE)?;
    let meanwhile = patient.received() - before;
    eager.finish()?;
    let begin = Instant::now();
    patient.await_bytes(8 << 20, PATIENCE)?;
    let took = begin.elapsed().as_secs_f64();
    patient.finish()?;
    let mib = meanwhile as f64 / f64::from(1 << 20);
    ensure!(mib < 4.0, "It took {mib:.1} MiB beside 16 MiB of the other network");
    lab.note(format!("{mib:.1} MiB beside 16 MiB of the other network; when that had ended, 8 MiB in {took:.1} s"));
    Ok(())
}

const UNLIMITED: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(30);
