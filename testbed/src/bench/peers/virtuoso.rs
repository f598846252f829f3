//! Our own agents, set up as a user would.

use anyhow::Result;

use super::{Connect, Daemons, Peer, Tunnel};
use crate::guest::Guest;
use crate::lab::{Lab, Settings};

pub(super) const VIRTUOSO: Peer = Peer {
    name: "virtuoso",
    about: "virtuoso agents, encrypted",
    tools: &[],
    guest_mtu: 1500,
    connect: Connect::Agents { threads: 1 },
};

/// For machines with cores to spare; on others it shows what the hand-over between threads costs.
pub(super) const THREADS: Peer = Peer {
    name: "threads",
    about: "virtuoso agents, encrypted, the links on a thread of their own",
    connect: Connect::Agents { threads: 2 },
    ..VIRTUOSO
};

/// `{}` is the name of the peer, so that two of them can be measured in turn.
const TOPOLOGY: &str = r#"
    [hosts.{}-a]
    [hosts.{}-b]
    [links.wan.members]
    {}-a = ["10.77.0.1/24"]
    {}-b = ["10.77.0.2/24"]
"#;

pub(super) fn start(peer: &Peer, threads: u16, settings: &Settings) -> Result<Tunnel> {
    let settings = Settings { report: settings.report.join("tunnels"), ..settings.clone() };
    let mut lab = Lab::build(&TOPOLOGY.replace("{}", peer.name).parse()?, &settings)?;
    lab.configure(&format!("[links]\nthreads = {threads}\n"));
    lab.start_swarm()?;
    lab.create_network("bench", &[])?;
    let (left, right) = (guest(&lab, peer, "a", 1)?, guest(&lab, peer, "b", 2)?);
    Ok(Tunnel { name: peer.name, about: peer.about, left, right, daemons: Daemons(Vec::new()), lab: Some(lab) })
}

pub(super) fn pids(lab: &Lab) -> Result<Vec<u32>> {
    lab.host_names().iter().map(|name| lab.host(name)?.pid()).collect()
}

fn guest(lab: &Lab, peer: &Peer, side: &str, number: u8) -> Result<Guest> {
    let host = lab.host(&format!("{}-{side}", peer.name))?;
    let address = format!("10.9.0.{number}/24").parse()?;
    let name = format!("{}-g{side}", peer.name);
    let guest = Guest::create(&name, number, host.namespace(), &[address], peer.guest_mtu)?;
    host.json(&["net", "attach", "bench", "--interface", &guest.port()])?;
    Ok(guest)
}
