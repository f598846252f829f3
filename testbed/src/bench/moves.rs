//! What a move under load costs, several times.

use anyhow::Result;

use crate::console;
use crate::lab::{Lab, Settings};
use crate::move_figures::{FRAMES_PER_SECOND, MoveFigures};

pub(super) fn measure(settings: &Settings, rounds: usize) -> Result<Vec<MoveFigures>> {
    let mut figures = Vec::new();
    for round in 0..rounds {
        let settings = Settings { report: settings.report.join(format!("move-{round}")), ..settings.clone() };
        let mut lab = Lab::build(&include_str!("../../topologies/wan3.toml").parse()?, &settings)?;
        lab.start_swarm()?;
        lab.create_network("blue", &[])?;
        for (guest, host) in [("vm1", "alpha"), ("vm2", "beta")] {
            lab.place_guest(guest, host, "blue")?;
        }
        // The target has the network before the move, as a hypervisor host would.
        lab.host("gamma")?.json(&["net", "attach", "blue"])?;
        lab.await_contact("vm1", "vm2")?;
        figures.push(MoveFigures::measure(&mut lab, FRAMES_PER_SECOND)?);
    }
    console::line("\nA port moves between two hosts under 10,000 frames a second (wanted: 0 lost, 0 doubled,");
    console::line("talkers redirected within one round trip + 5 ms):");
    let header = ["sent", "lost", "doubled", "longest gap", "redirected after", "round trip"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(figures.iter().map(row));
    console::table(&rows);
    Ok(figures)
}

fn row(figures: &MoveFigures) -> Vec<String> {
    let stream = &figures.stream;
    vec![
        stream.sent.to_string(),
        stream.lost.to_string(),
        stream.duplicated.to_string(),
        format!("{:.1} ms", stream.gap_max_us as f64 / 1e3),
        format!("{:.1} ms", figures.redirect_ms),
        format!("{:.1} ms", figures.round_trip_ms),
    ]
}
