//! A host that comes when there is much to know already.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{LAN, Scenario};
use crate::host::Host;
use crate::lab::{self, CONTACT_TIME_MAX, JOIN_TIME_MAX, Lab};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "late-joiner",
    about: "a host that comes later has all hosts, images, networks and addresses of the others",
    topology: LAN,
    tools: &["ping"],
    run,
}];

fn run(lab: &mut Lab) -> Result<()> {
    lab.host_mut("alpha")?.start(&crate::host::Start::alone())?;
    lab.join_by_ticket("beta")?;
    lab.await_members(&["alpha", "beta"], JOIN_TIME_MAX)?;
    for network in ["blue", "red", "green"] {
        lab.create_network(network, &[])?;
    }
    lab.place_guest("vm1", "alpha", "blue")?;
    lab.place_guest("vm2", "beta", "blue")?;
    lab.await_contact("vm1", "vm2")?;
    for (name, number) in [("one", 1u8), ("two", 2)] {
        let file = lab.host("alpha")?.state_dir().with_file_name(name);
        std::fs::write(&file, vec![number; 100_000])?;
        lab.host("alpha")?.json(&["image", "import", &file.to_string_lossy(), "--name", name])?;
    }
    lab.host("alpha")?.json(&["net", "delete", "green"])?;

    lab.join_by_ticket("gamma")?;
    lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)?;
    let gamma = lab.host("gamma")?;
    await_names(gamma, &["net", "list"], &["blue", "red"])?;
    await_names(gamma, &["image", "list"], &["one", "two"])?;
    lab.place_guest("vm3", "gamma", "blue")?;
    lab.await_contact("vm3", "vm1")?;
    lab.await_contact("vm3", "vm2")?;
    let (gamma, alpha) = (lab.host("gamma")?, lab.host("alpha")?.id()?);
    lab::await_claim(gamma, "blue", lab.guest("vm1")?.mac(), &alpha, CONTACT_TIME_MAX)?;
    ensure!(gamma.json(&["net", "show", "blue"])?["mtu_bytes"] == 1500, "The MTU of blue did not reach gamma");
    Ok(())
}

fn await_names(host: &Host, verb: &[&str], wanted: &[&str]) -> Result<()> {
    wait::until_true(format!("{} to list {wanted:?}", host.name()), CONTACT_TIME_MAX, || {
        let rows = host.list(verb)?;
        let mut names: Vec<&str> = rows.iter().filter_map(|row: &Value| row["name"].as_str()).collect();
        names.sort_unstable();
        Ok((names == wanted, format!("{names:?}")))
    })
}
