//! n2n: an edge on each host, and the supernode that introduces them on the left one.

use std::process::Child;

use anyhow::Result;

use super::{Connect, LEFT_IP, Peer, Site, Sites};

pub(super) const N2N: Peer = Peer {
    name: "n2n",
    about: "n2n with its default cipher",
    tools: &["edge", "supernode"],
    guest_mtu: 1400,
    connect: Connect::Sites(connect),
};

fn connect(sites: &Sites) -> Result<Vec<Child>> {
    let mut supernode = sites.left.namespace.command("supernode");
    let supernode = sites.left.spawn(supernode.args(["-l", &PORT.to_string()]))?;
    let daemons = vec![supernode, start(&sites.left, 1)?, start(&sites.right, 2)?];
    sites.left.await_and_bridge("edge0")?;
    sites.right.await_and_bridge("edge0")?;
    Ok(daemons)
}

fn start(site: &Site, number: u8) -> Result<Child> {
    let mut command = site.namespace.command("edge");
    command.args(["-d", "edge0", "-a", &format!("10.99.0.{number}"), "-s", "255.255.255.0"]);
    command.args(["-c", "bench", "-k", "between the two of us", "-l", &format!("{LEFT_IP}:{PORT}"), "-r"]);
    site.spawn(&mut command)
}

const PORT: u16 = 7_654;
