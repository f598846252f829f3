//! A port moves to another host while its guest talks. The network follows: no connection breaks, no frame is lost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::network::blue_with_guests;
use super::{Scenario, WAN};
use crate::lab::{CONTACT_TIME_MAX, Lab};
use crate::move_figures::{FRAMES_PER_SECOND, MoveFigures};
use crate::process;
use crate::traffic::transfer::Transfer;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "move-tcp",
        about: "a TCP connection survives five moves of its guest, every byte right",
        topology: WAN,
        tools: &["ping"],
        run: under_tcp,
    },
    Scenario {
        name: "move-stream",
        about: "a move under 10,000 frames a second loses and doubles none; talkers are redirected in one round trip",
        topology: WAN,
        tools: &["ping"],
        run: under_stream,
    },
    Scenario {
        name: "move-threads",
        about: "links on threads of their own: TCP survives five moves, and a stream loses nothing in a sixth",
        topology: WAN,
        tools: &["ping"],
        run: with_threads,
    },
    Scenario {
        name: "move-silent",
        about: "a guest that says nothing after its move is found again, IPv4 and IPv6",
        topology: WAN,
        tools: &["ping"],
        run: of_a_silent_guest,
    },
];

fn under_tcp(lab: &mut Lab) -> Result<()> {
    blue_with_guests(lab)?;
    move_under_tcp(lab)
}

fn with_threads(lab: &mut Lab) -> Result<()> {
    lab.configure("[links]\nthreads = 3\n");
    blue_with_guests(lab)?;
    for name in lab.host_names() {
        let threads = process::thread_names(lab.host(&name)?.pid()?)?;
        let has = |wanted: &str| threads.iter().any(|thread| thread == wanted);
        ensure!(has("engine") && has("engine-1") && has("engine-2"), "{name} has the threads {threads:?}");
    }
    move_under_tcp(lab)?;
    let figures = MoveFigures::measure(lab, THREADED_FRAMES_PER_SECOND)?;
    lab.note(format!("{figures:?}"));
    let stream = &figures.stream;
    ensure!(stream.lost == 0 && stream.duplicated == 0, "The move was noticed: {stream:?}");
    Ok(())
}

fn move_under_tcp(lab: &mut Lab) -> Result<()> {
    let transfer = Transfer::start(lab.guest("vm1")?, lab.guest("vm2")?, 8 << 20)?;
    for host in ["gamma", "alpha", "beta", "gamma", "beta"] {
        transfer.await_bytes(1 << 20, Duration::from_secs(30))?;
        lab.move_guest("vm2", "blue", host)?;
        transfer.await_bytes(1 << 20, Duration::from_secs(30)).with_context(|| format!("After the move to {host}"))?;
        lab.await_holder("vm2", "blue", host)?;
    }
    let report = transfer.finish()?;
    lab.note(format!("{} bytes over five moves, longest stall {} ms", report.bytes, report.stall_max_ms));
    Ok(())
}

fn under_stream(lab: &mut Lab) -> Result<()> {
    blue_with_guests(lab)?;
    let figures = MoveFigures::measure(lab, FRAMES_PER_SECOND)?;
    lab.note(format!("{figures:?}"));
    let stream = &figures.stream;
    ensure!(stream.lost == 0 && stream.duplicated == 0, "The move was noticed: {stream:?}");
    ensure!(
        figures.redirect_ms <= figures.round_trip_ms + REDIRECT_SLACK_MS,
        "The talker was redirected after {:.1} ms, the round trip takes {:.1} ms",
        figures.redirect_ms,
        figures.round_trip_ms
    );
    Ok(())
}

fn of_a_silent_guest(lab: &mut Lab) -> Result<()> {
    blue_with_guests(lab)?;
    lab.move_guest("vm2", "blue", "gamma")?;
    let (ipv4, ipv6) = (lab.guest("vm2")?.ipv4()?, lab.guest("vm2")?.ipv6()?);
    lab.guest("vm1")?.await_reach(ipv4, CONTACT_TIME_MAX)?;
    lab.guest("vm3")?.await_reach(ipv6, CONTACT_TIME_MAX)?;
    lab.await_holder("vm2", "blue", "gamma")
}

const REDIRECT_SLACK_MS: f64 = 5.0;
/// Nine threads of three agents without optimisation share two processors: more than they carry would be lost.
const THREADED_FRAMES_PER_SECOND: u64 = 4_000;
