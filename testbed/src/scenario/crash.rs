//! Agents that end without a goodbye.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::network::blue_with_guests;
use super::{LAN, Scenario};
use crate::host::Start;
use crate::lab::{self, CONTACT_TIME_MAX, JOIN_TIME_MAX, Lab};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "crash-return",
        about: "an agent is killed and comes back with its identity, networks, ports and images",
        topology: LAN,
        tools: &["ping"],
        run: crash_and_return,
    },
    Scenario {
        name: "crash-lease",
        about: "a host that died loses its addresses after their lease; another host then takes one over",
        topology: LAN,
        tools: &["ping"],
        run: lease,
    },
];

fn crash_and_return(lab: &mut Lab) -> Result<()> {
    blue_with_guests(lab)?;
    let beta = lab.host("beta")?;
    let (id, image) = (beta.id()?, beta.state_dir().with_file_name("image"));
    std::fs::write(&image, vec![3; 1 << 20])?;
    beta.json(&["image", "import", &image.to_string_lossy(), "--name", "tool"])?;

    lab.host_mut("beta")?.kill()?;
    lab.guest("vm1")?.reaches(lab.guest("vm3")?.ipv4()?).context("The others should go on")?;
    let begin = Instant::now();
    lab.host_mut("beta")?.start(&Start::alone())?;
    ensure!(lab.host("beta")?.id()? == id, "beta came back as another host");
    lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)?;
    lab.await_contact("vm1", "vm2").context("The port of vm2 should still be there")?;
    lab.note(format!("in contact again {:.1?} after the start", begin.elapsed()));
    let images = lab.host("gamma")?.list(&["image", "list"])?;
    ensure!(images.iter().any(|row| row["name"] == "tool"), "The image is gone: {images:?}");
    lab.await_contact("vm2", "vm3")
}

fn lease(lab: &mut Lab) -> Result<()> {
    blue_with_guests(lab)?;
    let mac = lab.guest("vm2")?.mac().to_owned();
    lab.host_mut("beta")?.kill()?;
    let begin = Instant::now();
    for observer in ["alpha", "gamma"] {
        let host = lab.host(observer)?;
        wait::until_true(format!("{observer} to drop the claim of the dead host"), LEASE_TIME_MAX, || {
            let rows = lab::claims(host, "blue", &mac)?;
            let over = rows.iter().all(|row| row["state"] == "expired");
            Ok((over, format!("{rows:?}")))
        })?;
    }
    lab.note(format!("the lease was over {:.1?} after the death", begin.elapsed()));
    lab.plug("vm2", "gamma")?;
    lab.attach("vm2", "blue")?;
    // The guest lives on elsewhere and speaks.
    let (ipv4, vm1) = (lab.guest("vm1")?.ipv4()?, lab.guest("vm2")?);
    vm1.await_reach(ipv4, CONTACT_TIME_MAX)?;
    let id = lab.host("gamma")?.id()?;
    lab::await_claim(lab.host("alpha")?, "blue", &mac, &id, CONTACT_TIME_MAX)
}

const LEASE_TIME_MAX: Duration = Duration::from_secs(120);
