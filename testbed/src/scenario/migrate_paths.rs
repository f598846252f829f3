//! A VM moves over good, long and lossy paths while everything goes on with it at once.

use anyhow::{Result, ensure};

use super::{FAR, LAN, LOSSY, Scenario};
use crate::lab::Lab;
use crate::travelling_vm::TravellingVm;
use crate::travelling_vm::company::Company;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "migrate-wan",
        about: "a VM moves over 40 ms and 50 Mbit/s under ping, TCP, ssh, names, multicast and its own writing to disk",
        topology: FAR,
        tools: TravellingVm::TOOLS,
        run: wan,
    },
    Scenario {
        name: "migrate-loss",
        about: "a VM moves over a path that loses 1 %: no connection breaks, its disk is whole",
        topology: LOSSY,
        tools: TravellingVm::TOOLS,
        run: loss,
    },
    Scenario {
        name: "migrate-many",
        about: "a VM moves there and back again and again under one ssh session and one TCP transfer: nothing is lost",
        topology: LAN,
        tools: TravellingVm::TOOLS,
        run: many,
    },
];

const DISK: [&str; 2] = ["--disk", "64MiB"];

fn wan(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    let vm = TravellingVm::start(lab, &DISK, "", 128 << 10)?;
    let company = Company::start(lab, &vm)?;
    // Its memory is on its way for 20 s: there and back is for shorter paths.
    move_to(lab, "beta")?;
    let experience = company.finish(lab, &vm)?;
    lab.note(experience.to_string());
    experience.ensure_whole()
}

fn loss(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    let vm = TravellingVm::start(lab, &DISK, "", 128 << 10)?;
    let company = Company::start(lab, &vm)?;
    move_to(lab, "beta")?;
    let experience = company.finish(lab, &vm)?;
    lab.note(experience.to_string());
    // An echo passes the path twice, once more when it is sent on; the rest is for the dice.
    let (lost, sent) = (experience.echoes.lost.len() as u64, experience.echoes.sent);
    ensure!(lost * 20 < sent, "Of {sent} echoes {lost} were lost");
    ensure!(experience.echoes.duplicated == 0, "Echoes came twice");
    Ok(())
}

fn many(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    let vm = TravellingVm::start(lab, &DISK, "", 1 << 20)?;
    let company = Company::start(lab, &vm)?;
    let mut longest_ms: f64 = 0.0;
    for to in ["beta", "alpha"].into_iter().cycle().take(2 * ROUND_TRIPS) {
        let told = TravellingVm::migrate(lab, to)?;
        ensure!(told.frames_lost == 0 && told.frames_duplicated == 0, "Frames were lost on the way to {to}: {told:?}");
        longest_ms = longest_ms.max(told.blackout_ms);
    }
    let experience = company.finish(lab, &vm)?;
    lab.note(format!("{} moves, longest blackout {longest_ms:.0} ms", 2 * ROUND_TRIPS));
    lab.note(experience.to_string());
    experience.ensure_whole()
}

fn move_to(lab: &mut Lab, to: &str) -> Result<()> {
    let told = TravellingVm::migrate(lab, to)?;
    lab.note(format!("to {to}: {told}"));
    Ok(())
}

/// `testbed bench migrations --moves 40` makes as many as 20.
const ROUND_TRIPS: usize = 6;
