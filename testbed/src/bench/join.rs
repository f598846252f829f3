//! How long it takes from the start of the third agent until all three have the same tables.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::figure;
use crate::console;
use crate::host::{Host, Start};
use crate::lab::{JOIN_TIME_MAX, Lab, Settings};
use crate::traffic::latency::percentile;
use crate::wait;

#[derive(Debug, Serialize)]
pub(super) struct Join {
    /// Of each round; looking takes some of it, up to 0.3 s.
    seconds: Vec<f64>,
    median_seconds: f64,
}

pub(super) fn measure(settings: &Settings, rounds: usize) -> Result<Join> {
    let mut seconds = Vec::new();
    for round in 0..rounds {
        let settings = Settings { report: settings.report.join(format!("join-{round}")), ..settings.clone() };
        let mut lab = Lab::build(&include_str!("../../topologies/lan3.toml").parse()?, &settings)?;
        seconds.push(measure_once(&mut lab)?.as_secs_f64());
    }
    let median_seconds = percentile(&mut seconds.clone(), 50);
    console::line("\nFrom the start of the third agent to equal tables on all three:");
    console::table(&[figure("median", median_seconds, "s", 3.0)]);
    Ok(Join { seconds, median_seconds })
}

fn measure_once(lab: &mut Lab) -> Result<Duration> {
    lab.host_mut("alpha")?.start(&Start::alone())?;
    lab.join_by_ticket("beta")?;
    lab.await_members(&["alpha", "beta"], JOIN_TIME_MAX)?;
    lab.create_network("blue", &[])?;
    let ticket = lab.founder()?.ticket()?;
    let begin = Instant::now();
    let notify = lab.host_mut("gamma")?.launch(&Start::by(ticket))?;
    lab.host_mut("gamma")?.await_ready(&notify)?;
    wait::until_true("equal tables on all three", JOIN_TIME_MAX, || {
        // The newcomer last knows: as long as it lacks something, the others need not be asked.
        let newcomer = tables(lab.host("gamma")?)?;
        let whole = newcomer.len() == 4;
        let equal = whole && tables(lab.host("alpha")?)? == newcomer && tables(lab.host("beta")?)? == newcomer;
        Ok((equal, format!("{newcomer:?}")))
    })?;
    Ok(begin.elapsed())
}

/// Every host and network that `host` knows.
fn tables(host: &Host) -> Result<BTreeSet<String>> {
    let mut rows = BTreeSet::new();
    for verb in ["host", "net"] {
        let items = host.list(&[verb, "list"])?;
        rows.extend(items.iter().map(|item| format!("{verb} {} {}", item["id"], item["name"])));
    }
    Ok(rows)
}
