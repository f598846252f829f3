//! The line between hosts breaks and is mended.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::network::blue_with_guests;
use super::{Scenario, WAN};
use crate::lab::{self, CONTACT_TIME_MAX, JOIN_TIME_MAX, Lab};
use crate::traffic::transfer::Transfer;
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "partition",
        about: "both sides go on alone; after the heal all know what happened on the other side",
        topology: WAN,
        tools: &["ping"],
        run: heal,
    },
    Scenario {
        name: "short-cut",
        about: "a connection through the network survives a line that is dead for three seconds",
        topology: WAN,
        tools: &["ping"],
        run: short_cut,
    },
];

fn heal(lab: &mut Lab) -> Result<()> {
    lab.expect_anywhere("unreachable");
    blue_with_guests(lab)?;
    lab.emulator("wan")?.isolate(&["gamma"]);
    lab.guest("vm1")?.ensure_unreachable(lab.guest("vm3")?.ipv4()?)?;
    lab.guest("vm1")?.reaches(lab.guest("vm2")?.ipv4()?).context("The larger side should go on")?;
    await_loss(lab, "alpha", "gamma")?;
    await_loss(lab, "gamma", "alpha")?;

    lab.host("alpha")?.json(&["net", "create", "left"])?;
    lab.host("gamma")?.json(&["net", "create", "right"])?;
    lab.emulator("wan")?.heal();
    let begin = std::time::Instant::now();
    lab.await_members(&["alpha", "beta", "gamma"], HEAL_TIME_MAX)?;
    for (host, network) in [("gamma", "left"), ("alpha", "right"), ("beta", "right")] {
        lab::await_network(lab.host(host)?, network)?;
    }
    for (a, b) in [("vm1", "vm3"), ("vm3", "vm2")] {
        lab.await_contact(a, b)?;
    }
    lab.note(format!("everything known everywhere {:.1?} after the heal", begin.elapsed()));
    Ok(())
}

/// Waits until `observer` no longer counts `lost` as present.
fn await_loss(lab: &Lab, observer: &str, lost: &str) -> Result<()> {
    let host = lab.host(observer)?;
    wait::until_true(format!("{observer} to miss {lost}"), LOSS_TIME_MAX, || {
        let hosts = lab::present_hosts(host)?;
        Ok((!hosts.contains(lost), format!("{hosts:?}")))
    })
}

fn short_cut(lab: &mut Lab) -> Result<()> {
    lab.expect_anywhere("unreachable");
    blue_with_guests(lab)?;
    let transfer = Transfer::start(lab.guest("vm1")?, lab.guest("vm3")?, 4 << 20)?;
    transfer.await_bytes(2 << 20, JOIN_TIME_MAX)?;
    lab.emulator("wan")?.isolate(&["gamma"]);
    // The length of the cut is what is tested; nothing tells its end.
    crate::interrupt::pause(Duration::from_secs(3))?;
    lab.emulator("wan")?.heal();
    transfer.await_bytes(2 << 20, CONTACT_TIME_MAX)?;
    let report = transfer.finish()?;
    ensure!(report.stall_max_ms >= 2500, "The cut was not felt: longest stall {} ms", report.stall_max_ms);
    lab.note(format!("stalled for {} ms by a cut of 3000 ms", report.stall_max_ms));
    Ok(())
}

/// Suspicion and removal of a silent host.
const LOSS_TIME_MAX: Duration = Duration::from_secs(90);
const HEAL_TIME_MAX: Duration = Duration::from_secs(60);
