//! fastd in TAP mode with its usual cipher.

use std::process::{Child, Command};

use anyhow::{Context, Result};

use super::{Connect, Peer, Site, Sites};
use crate::command;

pub(super) const FASTD: Peer = Peer {
    name: "fastd",
    about: "fastd in TAP mode, salsa2012+umac",
    tools: &["fastd"],
    guest_mtu: 1406,
    connect: Connect::Sites(connect),
};

struct Key {
    secret: String,
    public: String,
}

fn connect(sites: &Sites) -> Result<Vec<Child>> {
    let (left, right) = (Key::generate()?, Key::generate()?);
    let daemons =
        vec![start(&sites.left, &left, &sites.right, &right)?, start(&sites.right, &right, &sites.left, &left)?];
    sites.left.await_and_bridge("tap0")?;
    sites.right.await_and_bridge("tap0")?;
    Ok(daemons)
}

fn start(site: &Site, key: &Key, other: &Site, other_key: &Key) -> Result<Child> {
    let config = format!(
        "mode tap;\ninterface \"tap0\";\nmethod \"salsa2012+umac\";\nmtu 1406;\nbind {}:{PORT};\nsecret \"{}\";\n\
         peer \"other\" {{ key \"{}\"; remote {}:{PORT}; }}\n",
        site.ip, key.secret, other_key.public, other.ip
    );
    let file = site.write("fastd.conf", &config)?;
    site.spawn(site.namespace.command("fastd").arg("--config").arg(file))
}

impl Key {
    fn generate() -> Result<Self> {
        let output = command::run(Command::new("fastd").arg("--generate-key"))?;
        let value = |name: &str| {
            let line = output.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned()).with_context(|| format!("No {name} from fastd: {output}"))
        };
        Ok(Self { secret: value("Secret:")?, public: value("Public:")? })
    }
}

const PORT: u16 = 10_000;
