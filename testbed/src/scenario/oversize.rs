//! Frames larger than the way below them, and frames larger than their network allows.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{JUMBO, LAN, Scenario, WAN};
use crate::command;
use crate::guest::Guest;
use crate::lab::Lab;
use crate::topology::{Impairment, Span};
use crate::traffic::transfer::Transfer;
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "jumbo",
        about: "a network with MTU 9000 over links with MTU 1500 carries frames of 9000 bytes whole",
        topology: LAN,
        tools: &["ping"],
        run: jumbo,
    },
    Scenario {
        name: "too-big",
        about: "what exceeds the network's MTU is answered by ICMP and ICMPv6, and counted",
        topology: LAN,
        tools: &["ping"],
        run: too_big,
    },
    Scenario {
        name: "black-hole",
        about: "a path that carries less than before, without a word, is noticed and used within seconds",
        topology: WAN,
        tools: &["ping"],
        run: black_hole,
    },
    Scenario {
        name: "jumbo-underlay",
        about: "a path for jumbo frames is found and used; when it carries less, networks of MTU 9000 go on in seconds",
        topology: JUMBO,
        tools: &["ping"],
        run: jumbo_underlay,
    },
];

fn jumbo(lab: &mut Lab) -> Result<()> {
    two_guests(lab, &["--mtu", "9000"], 9000)?;
    let (vm1, vm2) = (lab.guest("vm1")?, lab.guest("vm2")?);
    for (target, payload) in [(vm2.ipv4()?, 8972), (vm2.ipv6()?, 8952)] {
        vm1.ping(target, &format!("-c 5 -i 0.1 -W 2 -M do -s {payload}"))?;
    }
    let transfer = Transfer::start(vm1, vm2, 64 << 20)?;
    transfer.await_bytes(64 << 20, Duration::from_secs(30))?;
    transfer.finish().map(drop)
}

fn too_big(lab: &mut Lab) -> Result<()> {
    two_guests(lab, &["--mtu", "1280"], 1500)?;
    let (vm1, vm2) = (lab.guest("vm1")?, lab.guest("vm2")?);
    vm1.ping(vm2.ipv4()?, "-c 1 -W 2 -M do -s 1252")?;
    for (target, payload) in [(vm2.ipv4()?, 1472), (vm2.ipv6()?, 1452)] {
        let words = refused_ping(vm1, target, payload)?;
        ensure!(words.contains("1280"), "No word of MTU 1280 to {} after a packet too big: {words}", vm1.port());
    }
    let transfer = Transfer::start(vm1, vm2, 16 << 20)?;
    transfer.await_bytes(4 << 20, Duration::from_secs(30))?;
    transfer.finish()?;
    let status = lab.host("alpha")?.json(&["net", "show", "blue"])?;
    ensure!(status["mtu_bytes"] == 1280, "The network's MTU is not shown: {status}");
    Ok(())
}

fn black_hole(lab: &mut Lab) -> Result<()> {
    two_guests(lab, &[], 1500)?;
    let delay = Span(Duration::from_millis(5));
    let narrow = Impairment { delay, path_mtu: Some(1400), ..Impairment::default() };
    let wide = Impairment { path_mtu: None, ..narrow };
    lab.emulator("wan")?.impair(wide);
    let transfer = Transfer::start(lab.guest("vm1")?, lab.guest("vm2")?, 4 << 20)?;
    await_mtu(lab, 1472)?;
    lab.emulator("wan")?.impair(narrow);
    let begin = Instant::now();
    transfer.await_bytes(1 << 20, Duration::from_secs(10))?;
    lab.note(format!("1 MiB through the narrow path after {:.1} s", begin.elapsed().as_secs_f64()));
    await_mtu(lab, 1372)?;
    lab.note(format!("the narrow path is used fully after {:.1} s", begin.elapsed().as_secs_f64()));
    lab.emulator("wan")?.impair(wide);
    let begin = Instant::now();
    await_mtu(lab, 1472)?;
    lab.note(format!("the wide path is used fully after {:.1} s", begin.elapsed().as_secs_f64()));
    transfer.finish().map(drop)
}

fn jumbo_underlay(lab: &mut Lab) -> Result<()> {
    two_guests(lab, &["--mtu", "9000"], 9000)?;
    await_mtu(lab, 8972)?;
    let (vm1, vm2) = (lab.guest("vm1")?, lab.guest("vm2")?);
    for (target, payload) in [(vm2.ipv4()?, 8972), (vm2.ipv6()?, 8952)] {
        vm1.ping(target, &format!("-c 3 -i 0.1 -W 2 -M do -s {payload}"))?;
    }
    let transfer = Transfer::start(vm1, vm2, 32 << 20)?;
    transfer.await_bytes(16 << 20, Duration::from_secs(30))?;
    let wide = Impairment { delay: Span(Duration::from_millis(1)), ..Impairment::default() };
    lab.emulator("lan")?.impair(Impairment { path_mtu: Some(1500), ..wide });
    let begin = Instant::now();
    let target = vm2.ipv4()?;
    wait::until_true("frames of 9000 bytes to pass", Duration::from_secs(30), || {
        vm1.ping(target, "-c 1 -W 0.3 -M do -s 8900")?;
        Ok((true, String::new()))
    })?;
    let pass = begin.elapsed().as_secs_f64();
    transfer.finish()?;
    await_mtu(lab, 1472)?;
    let full = begin.elapsed().as_secs_f64();
    vm1.ping(target, "-c 3 -i 0.1 -W 2 -M do -s 8972")?;
    lab.note(format!(
        "frames of 9000 bytes pass the narrow path after {pass:.1} s, which is used fully after {full:.1} s"
    ));
    Ok(())
}

/// Waits until the link from the transfer's sender carries datagrams of `bytes`.
fn await_mtu(lab: &Lab, bytes: u64) -> Result<()> {
    wait::until_true(format!("datagrams of {bytes} bytes"), Duration::from_secs(60), || {
        let links = lab.host("alpha")?.list(&["links"])?;
        let link = links.iter().find(|link| link["name"] == "beta");
        let mtu = link.map_or(0, |link| link["mtu_bytes"].as_u64().unwrap_or(0));
        Ok((mtu == bytes, format!("{mtu} bytes")))
    })
}

fn two_guests(lab: &mut Lab, options: &[&str], guest_mtu: u16) -> Result<()> {
    lab.start_swarm()?;
    lab.create_network("blue", options)?;
    lab.add_guest("vm1", "alpha", &["10.9.0.1/24", "fd09::1/64"], guest_mtu)?;
    lab.add_guest("vm2", "beta", &["10.9.0.2/24", "fd09::2/64"], guest_mtu)?;
    lab.attach("vm1", "blue")?;
    lab.attach("vm2", "blue")?;
    lab.await_contact("vm1", "vm2")
}

/// All that `ping` says about packets that must not get through.
fn refused_ping(guest: &Guest, target: IpAddr, payload: u16) -> Result<String> {
    let mut ping = guest.namespace().command("ping");
    ping.args(["-n", "-c", "3", "-i", "0.2", "-W", "1", "-M", "do", "-s", &payload.to_string(), &target.to_string()]);
    let output = command::output(&mut ping)?;
    ensure!(!output.status.success(), "A packet of {payload} bytes passed to {target}");
    let words = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&words).into_owned())
}
