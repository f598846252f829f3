//! The bootstrap host is only a way in: nothing depends on it afterwards.

use anyhow::{Result, ensure};

use super::{LAN, Scenario};
use crate::host::Start;
use crate::lab::{CONTACT_TIME_MAX, JOIN_TIME_MAX, Lab};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "bootstrap-gone",
        about: "without the first host the others go on, and a restarted one finds them by itself",
        topology: LAN,
        tools: &["ping"],
        run: gone,
    },
    Scenario {
        name: "bootstrap-down",
        about: "a host whose bootstrap is down says so, keeps trying, and comes in when it is back",
        topology: LAN,
        tools: &[],
        run: down,
    },
];

fn gone(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    lab.create_network("blue", &[])?;
    lab.place_guest("vm2", "beta", "blue")?;
    lab.place_guest("vm3", "gamma", "blue")?;
    lab.await_contact("vm2", "vm3")?;

    let status = lab.host_mut("alpha")?.terminate()?;
    ensure!(status.success(), "alpha ended with {status} on SIGTERM");
    // It said goodbye: nobody has to wait for a timeout.
    lab.await_members(&["beta", "gamma"], JOIN_TIME_MAX)?;
    lab.guest("vm2")?.reaches(lab.guest("vm3")?.ipv4()?)?;

    lab.host_mut("beta")?.terminate()?;
    lab.await_members(&["gamma"], JOIN_TIME_MAX)?;
    lab.host_mut("beta")?.start(&Start::alone())?;
    lab.await_members(&["beta", "gamma"], JOIN_TIME_MAX)?;
    lab.host("gamma")?.json(&["net", "create", "red"])?;
    crate::lab::await_network(lab.host("beta")?, "red")?;

    lab.host_mut("alpha")?.start(&Start::alone())?;
    lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)
}

fn down(lab: &mut Lab) -> Result<()> {
    lab.expect("beta", "ootstrap");
    lab.host_mut("alpha")?.start(&Start::alone())?;
    let ticket = lab.host("alpha")?.ticket()?;
    let founder = lab.host("alpha")?.address().ip().to_string();
    lab.host_mut("alpha")?.terminate()?;

    lab.host_mut("beta")?.start(&Start::by(ticket))?;
    let beta = lab.host("beta")?;
    wait::until_true("beta to say that its bootstrap is down", CONTACT_TIME_MAX, || {
        let status = beta.json(&["status"])?;
        let entry = &status["bootstrap"][0];
        let told = entry["connected"] == false
            && entry["attempts"].as_u64().is_some_and(|attempts| attempts >= 2)
            && entry["address"].as_str().is_some_and(|address| address.contains(&founder))
            && entry["error"].is_string();
        Ok((told, status.to_string()))
    })?;
    lab.host_mut("alpha")?.start(&Start::alone())?;
    lab.await_members(&["alpha", "beta"], CONTACT_TIME_MAX)
}
