//! Who is not let in: strangers, holders of wrong, used and expired tickets, members of another swarm. Both sides
//! must say so.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::startup::refused_start;
use super::{LAN, Scenario};
use crate::host::{Host, Start};
use crate::interrupt;
use crate::lab::{JOIN_TIME_MAX, Lab, present_hosts};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "used-ticket",
        about: "a ticket admits one host; the second holder is refused, and both sides say so",
        topology: LAN,
        tools: &[],
        run: used_ticket,
    },
    Scenario {
        name: "expired-ticket",
        about: "a ticket ends at its time",
        topology: LAN,
        tools: &[],
        run: expired_ticket,
    },
    Scenario {
        name: "wrong-ticket",
        about: "a damaged ticket is named as such; one of a founder's earlier swarm admits nobody",
        topology: LAN,
        tools: &[],
        run: wrong_ticket,
    },
    Scenario {
        name: "other-swarm",
        about: "a member of another swarm is refused, and both sides say so",
        topology: LAN,
        tools: &[],
        run: other_swarm,
    },
    Scenario {
        name: "stranger",
        about: "a host that nobody approves learns nothing and moves no frame",
        topology: LAN,
        tools: &[],
        run: stranger,
    },
];

fn used_ticket(lab: &mut Lab) -> Result<()> {
    lab.expect("alpha", "icket");
    lab.expect("gamma", "icket");
    lab.host_mut("alpha")?.start(&Start::alone())?;
    let ticket = lab.host("alpha")?.ticket()?;
    lab.host_mut("beta")?.start(&Start::by(&ticket))?;
    lab.await_members(&["alpha", "beta"], JOIN_TIME_MAX)?;
    lab.host_mut("gamma")?.launch(&Start::by(&ticket))?;
    await_refusal(lab, "gamma", "used")
}

fn expired_ticket(lab: &mut Lab) -> Result<()> {
    lab.expect("alpha", "icket");
    lab.expect("gamma", "icket");
    lab.host_mut("alpha")?.start(&Start::alone())?;
    let invitation = lab.host("alpha")?.json(&["swarm", "invite", "--valid", "1"])?;
    let ticket = invitation["ticket"].as_str().context("No ticket in the invitation")?.to_owned();
    // Tickets count in whole seconds: after two, one second has surely passed.
    interrupt::pause(Duration::from_secs(2))?;
    lab.host_mut("gamma")?.launch(&Start::by(&ticket))?;
    await_refusal(lab, "gamma", "expired")
}

fn wrong_ticket(lab: &mut Lab) -> Result<()> {
    lab.expect("alpha", "icket");
    lab.expect("beta", "icket");
    lab.host_mut("alpha")?.start(&Start::alone())?;
    let ticket = lab.host("alpha")?.ticket()?;
    let damaged = &ticket[..ticket.len() / 2];
    refused_start(&mut lab.host("beta")?.agent_command(&Start::by(damaged))?, &["icket"])?;

    // The founder forgets everything: its new swarm never made this ticket.
    lab.host_mut("alpha")?.terminate()?;
    std::fs::remove_dir_all(lab.host("alpha")?.state_dir()).context("Cannot remove the founder's state")?;
    lab.host_mut("alpha")?.start(&Start::alone())?;
    lab.host_mut("beta")?.launch(&Start::by(&ticket))?;
    stays_outside(lab, "beta")
}

fn other_swarm(lab: &mut Lab) -> Result<()> {
    lab.expect("alpha", "swarm");
    lab.expect("beta", "swarm");
    lab.host_mut("alpha")?.start(&Start::alone())?;
    lab.host_mut("beta")?.start(&Start::alone())?;
    lab.host_mut("beta")?.terminate()?;
    let address = lab.host("alpha")?.multiaddr()?;
    lab.host_mut("beta")?.start(&Start::by(address))?;
    for name in ["alpha", "beta"] {
        await_words(lab.host(name)?, "belongs to swarm")?;
    }
    ensure!(!present_hosts(lab.host("alpha")?)?.contains("beta"), "alpha lists a host of another swarm");
    ensure!(!present_hosts(lab.host("beta")?)?.contains("alpha"), "beta lists a host of another swarm");
    Ok(())
}

fn stranger(lab: &mut Lab) -> Result<()> {
    lab.host_mut("alpha")?.start(&Start::alone())?;
    lab.join_by_ticket("beta")?;
    lab.await_members(&["alpha", "beta"], JOIN_TIME_MAX)?;
    lab.host("alpha")?.json(&["net", "create", "blue"])?;
    let address = lab.host("alpha")?.multiaddr()?;
    lab.host_mut("gamma")?.start(&Start::by(address))?;
    let id = lab.host("gamma")?.id()?;
    wait::until_true("the stranger to be pending", JOIN_TIME_MAX, || {
        let pending = lab.host("alpha")?.list(&["swarm", "pending"])?;
        Ok((pending.iter().any(|item| item["id"] == id), format!("{pending:?}")))
    })?;
    let gamma = lab.host("gamma")?;
    ensure!(gamma.list(&["net", "list"])?.is_empty(), "The stranger knows the networks");
    ensure!(gamma.list(&["swarm", "members"])?.is_empty(), "The stranger knows the members");
    ensure!(present_hosts(gamma)?.iter().all(|name| name == "gamma"), "The stranger knows the hosts");
    ensure!(lab.host("alpha")?.list(&["links"])?.iter().all(|link| link["peer"] != id), "A link to the stranger");
    Ok(())
}

/// `name` must stay outside, and both it and the founder must say why.
fn await_refusal(lab: &mut Lab, name: &str, why: &str) -> Result<()> {
    for side in [name, "alpha"] {
        await_words(lab.host(side)?, why)?;
    }
    stays_outside(lab, name)
}

fn await_words(host: &Host, words: &str) -> Result<()> {
    wait::until_true(format!("{} to say {words:?} in its log or status", host.name()), JOIN_TIME_MAX, || {
        let log = host.log_text();
        let status = host.verb(&["status", "--json"])?;
        let said = log.contains(words) || status.stdout.contains(words);
        Ok((said, log.lines().last().unwrap_or("an empty log").to_owned()))
    })
}

fn stays_outside(lab: &Lab, name: &str) -> Result<()> {
    let hosts = present_hosts(lab.host("alpha")?)?;
    ensure!(!hosts.contains(name), "{name} was let in: {hosts:?}");
    Ok(())
}
