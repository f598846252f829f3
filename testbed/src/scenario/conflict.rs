//! Two guests with one MAC address: the first keeps it, the operator is told, and everybody decides alike.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::network::blue_with_guests;
use super::{Scenario, WAN};
use crate::host::Monitor;
use crate::lab::{self, CONTACT_TIME_MAX, Lab};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "duplicate-mac",
        about: "a second guest with the address of a living one is refused it and shown to the operator",
        topology: WAN,
        tools: &["ping"],
        run: duplicate,
    },
    Scenario {
        name: "conflict-heal",
        about: "two claims of one address made in a partition: after the heal all hosts name the same owner",
        topology: WAN,
        tools: &["ping"],
        run: after_partition,
    },
];

fn duplicate(lab: &mut Lab) -> Result<()> {
    lab.expect_anywhere("Two hosts have this address");
    blue_with_guests(lab)?;
    let mac = lab.guest("vm2")?.mac().to_owned();
    let owner = lab.host("beta")?.id()?;
    lab::await_claim(lab.host("alpha")?, "blue", &mac, &owner, CONTACT_TIME_MAX)?;
    let monitor = lab.host("gamma")?.monitor()?;
    add_twin(lab, "gamma", &mac)?;
    // Frames from both sides: neither may take the address from the other.
    let (vm1, vm2) = (lab.guest("vm1")?.ipv4()?, lab.guest("vm2")?.ipv4()?);
    let _ = lab.guest("twin")?.ping(vm1, "-c 10 -i 0.1 -W 1");
    await_conflict_told(lab, &monitor, &mac)?;
    lab.guest("vm1")?.reaches(vm2).context("The first owner should keep its address")?;
    for observer in lab.host_names() {
        let rows = lab::claims(lab.host(&observer)?, "blue", &mac)?;
        ensure!(rows.iter().any(|row| row["host"] == owner), "{observer} no longer knows the owner: {rows:?}");
    }
    Ok(())
}

fn after_partition(lab: &mut Lab) -> Result<()> {
    lab.expect_anywhere("Two hosts have this address");
    lab.expect_anywhere("unreachable");
    blue_with_guests(lab)?;
    let mac = "02:56:aa:00:00:07";
    lab.emulator("wan")?.isolate(&["gamma"]);
    add_twin(lab, "gamma", mac)?;
    lab.add_guest("other", "beta", &["10.9.0.201/24"], 1500)?;
    lab.guest("other")?.namespace().ip(&format!("link set eth0 address {mac}"))?;
    lab.attach("other", "blue")?;
    // Each side hears its own, so both claims stand before the heal.
    let (left, right) = (lab.guest("vm1")?.ipv4()?, lab.guest("vm3")?.ipv4()?);
    lab.guest("other")?.await_reach(left, CONTACT_TIME_MAX)?;
    lab.guest("twin")?.await_reach(right, CONTACT_TIME_MAX)?;
    lab.emulator("wan")?.heal();
    wait::until_true("all hosts to name one owner", AGREEMENT_TIME_MAX, || {
        let owners = owners(lab, mac)?;
        Ok((owners.len() == 1, format!("{owners:?}")))
    })
}

/// A guest on `host` with an address that another guest has.
fn add_twin(lab: &mut Lab, host: &str, mac: &str) -> Result<()> {
    lab.add_guest("twin", host, &["10.9.0.200/24"], 1500)?;
    lab.guest("twin")?.namespace().ip(&format!("link set eth0 address {mac}"))?;
    lab.attach("twin", "blue")
}

fn await_conflict_told(lab: &Lab, monitor: &Monitor, mac: &str) -> Result<()> {
    let host = lab.host("gamma")?;
    wait::until_true("the conflict to be told as event or in the table", CONTACT_TIME_MAX, || {
        let rows = lab::claims(host, "blue", mac)?;
        let events = monitor.events()?;
        let in_table = rows.iter().any(|row| row["state"] == "conflict");
        let as_event = events.iter().any(|event| {
            let kind = event["kind"].as_str().unwrap_or_default();
            (kind.contains("conflict") || kind.contains("refused") || kind.contains("duplicate"))
                && event.to_string().to_lowercase().contains(mac)
        });
        Ok((in_table || as_event, format!("{rows:?}, events {events:?}")))
    })
}

/// Every owner of `mac` that any host names.
fn owners(lab: &Lab, mac: &str) -> Result<BTreeSet<String>> {
    let mut owners = BTreeSet::new();
    for observer in lab.host_names() {
        let rows = lab::claims(lab.host(&observer)?, "blue", mac)?;
        owners.extend(rows.iter().map(|row| row["host"].as_str().unwrap_or("nobody").to_owned()));
        if rows.is_empty() {
            owners.insert(format!("nobody, says {observer}"));
        }
    }
    Ok(owners)
}

const AGREEMENT_TIME_MAX: Duration = Duration::from_secs(60);
