//! How hosts come in: by ticket, by approval, over UDP, TCP and IPv6, over a bad line.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{LAN, ROUGH, Scenario};
use crate::host::{Host, PORT, Start};
use crate::lab::{JOIN_TIME_MAX, Lab, present_hosts};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "join-ticket",
        about: "three hosts form a swarm by tickets; all list the same hosts, members and images",
        topology: LAN,
        tools: &[],
        run: by_ticket,
    },
    Scenario {
        name: "join-approve",
        about: "hosts that know only an address (QUIC, TCP) wait as pending until approved",
        topology: LAN,
        tools: &[],
        run: by_approval,
    },
    Scenario {
        name: "join-ipv6",
        about: "a swarm whose hosts see each other by IPv6 only",
        topology: IPV6,
        tools: &[],
        run: by_ipv6,
    },
    Scenario {
        name: "join-rough",
        about: "a swarm over 30 ms, 5 ms jitter, 1 % loss, 1 % reordering, 50 Mbit/s",
        topology: ROUGH,
        tools: &[],
        run: over_a_bad_line,
    },
];

const IPV6: &str = r#"
    [hosts.alpha]
    [hosts.beta]
    [hosts.gamma]
    [links.lan.members]
    alpha = ["fd77::1/64"]
    beta = ["fd77::2/64"]
    gamma = ["fd77::3/64"]
"#;

fn by_ticket(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    for name in lab.host_names() {
        let host = lab.host(&name)?;
        wait::until_true(format!("{name} to see itself in a swarm of three"), JOIN_TIME_MAX, || {
            let status = host.json(&["status"])?;
            let whole = status["name"] == name && status["members"] == 3 && status["peers_connected"] == 2;
            Ok((whole, status.to_string()))
        })?;
        let members = host.list(&["swarm", "members"])?;
        ensure!(members.len() == 3, "{name} lists the members {members:?}");
    }
    check_facts(lab.host("beta")?)?;
    find_hosts(lab)?;
    share_an_image(lab)
}

fn check_facts(observer: &Host) -> Result<()> {
    for row in observer.list(&["host", "list"])? {
        let facts = ["vcpus_total", "memory_total_bytes", "memory_free_bytes", "disk_free_bytes"];
        for fact in facts {
            ensure!(row[fact].as_u64().is_some_and(|value| value > 0), "No {fact} in {row}");
        }
        ensure!(row["arch"] == std::env::consts::ARCH, "Wrong architecture in {row}");
    }
    Ok(())
}

fn find_hosts(lab: &Lab) -> Result<()> {
    let host = lab.host("gamma")?;
    let small = host.list(&["host", "find", "--vcpus", "1", "--memory", "1MiB"])?;
    ensure!(small.len() == 3, "Every host should fit: {small:?}");
    let explained = host.list(&["host", "find", "--memory", "900TiB", "--explain"])?;
    ensure!(explained.len() == 3, "Each host's refusal should be told: {explained:?}");
    Ok(())
}

fn share_an_image(lab: &Lab) -> Result<()> {
    let file = lab.host("beta")?.state_dir().with_file_name("debian.raw");
    std::fs::write(&file, vec![7; 3 << 20]).context("Cannot write a test image")?;
    let file = file.to_string_lossy();
    lab.host("beta")?.json(&["image", "import", &file, "--name", "debian-12"])?;
    let provider = lab.host("beta")?.id()?;
    for name in lab.host_names() {
        let host = lab.host(&name)?;
        wait::until_true(format!("{name} to list the image"), JOIN_TIME_MAX, || {
            let images = host.list(&["image", "list"])?;
            let is_ours = |image: &Value| {
                let providers = image["providers"].as_array();
                image["name"] == "debian-12"
                    && image["size_bytes"] == 3 << 20
                    && providers.is_some_and(|ids| ids.iter().any(|id| *id == provider))
            };
            Ok((images.iter().any(is_ours), format!("{images:?}")))
        })?;
    }
    let with_image = lab.host("alpha")?.list(&["host", "find", "--image", "debian-12"])?;
    ensure!(with_image.first().is_some_and(|row| row["name"] == "beta"), "beta has the image: {with_image:?}");
    Ok(())
}

fn by_approval(lab: &mut Lab) -> Result<()> {
    lab.host_mut("alpha")?.start(&Start::alone())?;
    let founder = lab.host("alpha")?;
    let quic = founder.multiaddr()?;
    let tcp = format!("/ip4/{}/tcp/{PORT}/p2p/{}", founder.address().ip(), founder.id()?);
    for (name, bootstrap) in [("beta", quic), ("gamma", tcp)] {
        lab.host_mut(name)?.start(&Start::by(bootstrap))?;
        approve(lab, name)?;
    }
    lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)
}

fn approve(lab: &Lab, name: &str) -> Result<()> {
    let (founder, newcomer) = (lab.host("alpha")?, lab.host(name)?);
    let id = newcomer.id()?;
    wait::until_true(format!("{name} to be pending on alpha"), JOIN_TIME_MAX, || {
        let pending = founder.list(&["swarm", "pending"])?;
        Ok((pending.iter().any(|item| item["id"] == id), format!("{pending:?}")))
    })?;
    let status = newcomer.json(&["status"])?;
    ensure!(status["state"] == "pending", "{name} should say that it waits: {status}");
    ensure!(!present_hosts(founder)?.contains(name), "{name} is listed before it was approved");
    ensure!(present_hosts(newcomer)?.iter().all(|host| host == name), "{name} was told about the swarm too early");
    founder.json(&["swarm", "approve", &id]).map(drop)
}

fn by_ipv6(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    lab.create_network("blue", &[])?;
    lab.place_guest("vm1", "beta", "blue")?;
    lab.place_guest("vm2", "gamma", "blue")?;
    lab.await_contact("vm1", "vm2")
}

fn over_a_bad_line(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    lab.create_network("blue", &[])?;
    lab.place_guest("vm1", "alpha", "blue")?;
    lab.place_guest("vm2", "gamma", "blue")?;
    lab.await_contact("vm1", "vm2")?;
    let transfer = crate::traffic::transfer::Transfer::start(lab.guest("vm1")?, lab.guest("vm2")?, 1 << 20)?;
    transfer.await_bytes(4 << 20, Duration::from_secs(60))?;
    let report = transfer.finish()?;
    lab.note(format!("{} bytes by TCP, longest stall {} ms", report.bytes, report.stall_max_ms));
    Ok(())
}
