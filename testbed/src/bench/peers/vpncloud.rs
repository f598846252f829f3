//! vpncloud in switch mode with AES-128.

use std::process::Child;

use anyhow::Result;

use super::{Connect, Peer, Site, Sites};

pub(super) const VPNCLOUD: Peer = Peer {
    name: "vpncloud",
    about: "vpncloud in switch mode, AES-128",
    tools: &["vpncloud"],
    guest_mtu: 1400,
    connect: Connect::Sites(connect),
};

fn connect(sites: &Sites) -> Result<Vec<Child>> {
    let daemons = vec![start(&sites.left, &sites.right)?, start(&sites.right, &sites.left)?];
    sites.left.await_and_bridge("tap0")?;
    sites.right.await_and_bridge("tap0")?;
    Ok(daemons)
}

fn start(site: &Site, other: &Site) -> Result<Child> {
    let mut command = site.namespace.command("vpncloud");
    command.args(["--type", "tap", "--mode", "switch", "--device", "tap0", "--algorithm", "AES128"]);
    command.args(["--password", "between the two of us", "--no-port-forwarding"]);
    command.args(["--listen", &format!("{}:3210", site.ip), "--peer", &format!("{}:3210", other.ip)]);
    site.spawn(&mut command)
}
