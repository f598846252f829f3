//! tinc 1.0 in switch mode with its default ciphers.

use std::process::{Child, Command};

use anyhow::{Context, Result};

use super::{Connect, Peer, Site, Sites};
use crate::command;

pub(super) const TINC: Peer = Peer {
    name: "tinc",
    about: "tinc in switch mode, default ciphers",
    tools: &["tincd"],
    guest_mtu: 1400,
    connect: Connect::Sites(connect),
};

fn connect(sites: &Sites) -> Result<Vec<Child>> {
    let pairs = [(&sites.left, "a", &sites.right, "b"), (&sites.right, "b", &sites.left, "a")];
    for (site, name, _, other) in pairs {
        let config = format!("Name = {name}\nMode = switch\nDeviceType = tap\nInterface = tap0\nConnectTo = {other}\n");
        site.write("tinc.conf", &config)?;
        site.write(&format!("hosts/{name}"), &format!("Address = {}\nPort = 655\n", site.ip))?;
        command::run(tincd(&mut Command::new("tincd"), site).arg("-K2048"))?;
    }
    for (site, name, other_site, _) in pairs {
        let file = site.dir.join("hosts").join(name);
        let text = std::fs::read_to_string(&file).with_context(|| format!("Cannot read {}", file.display()))?;
        other_site.write(&format!("hosts/{name}"), &text)?;
    }
    let daemons = [&sites.left, &sites.right].map(|site| {
        let mut daemon = site.namespace.command("tincd");
        site.spawn(tincd(&mut daemon, site).args(["-D", "-d1", "--pidfile"]).arg(site.dir.join("pid")))
    });
    let daemons = daemons.into_iter().collect::<Result<Vec<_>>>()?;
    sites.left.await_and_bridge("tap0")?;
    sites.right.await_and_bridge("tap0")?;
    Ok(daemons)
}

fn tincd<'a>(command: &'a mut Command, site: &Site) -> &'a mut Command {
    command.arg("-c").arg(&site.dir)
}
