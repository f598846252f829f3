//! `testbed lab FILE`: a whole site of a topology file, with its swarm, networks and guests, for trying things out.

use anyhow::Result;

use crate::console;
use crate::host::Start;
use crate::interrupt;
use crate::lab::{self, Lab, Settings};
use crate::topology::Topology;

/// Brings it up and keeps it until a signal comes.
pub(crate) fn run(topology: &Topology, settings: &Settings) -> Result<()> {
    lab::ensure_agent(&settings.agent)?;
    let mut lab = Lab::build(topology, &Settings { report: settings.report.join("lab"), ..settings.clone() })?;
    let founder = topology.founder().to_owned();
    console::line(format!("Starting the agent of {founder}, which makes the swarm"));
    lab.host_mut(&founder)?.start(&Start::alone())?;
    for name in lab.host_names().iter().filter(|name| **name != founder) {
        console::line(format!("Starting the agent of {name} with a ticket of {founder}"));
        lab.join_by_ticket(name)?;
    }
    lab.await_members(&lab.host_names(), lab::JOIN_TIME_MAX)?;
    for (name, network) in &topology.networks {
        lab.create_network(name, &["--mtu", &network.mtu.to_string()])?;
    }
    for (name, guest) in &topology.guests {
        let addresses: Vec<String> = guest.addresses.iter().map(ToString::to_string).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        lab.add_guest(name, &guest.host, &addresses, topology.networks[&guest.network].mtu)?;
        lab.attach(name, &guest.network)?;
        console::line(format!("Guest {name} on {} in network {}: {}", guest.host, guest.network, addresses.join(" ")));
    }
    for name in lab.host_names() {
        let answer = lab.host(&name)?.verb(&["host", "list"])?;
        console::line(format!("\n{name}$ virtuoso host list\n{}", answer.stdout.trim_end()));
    }
    lab.tell_how_to_enter();
    interrupt::wait();
    console::line("\nTaking the lab down");
    Ok(())
}
