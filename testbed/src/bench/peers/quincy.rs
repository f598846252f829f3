//! quincy: IP over QUIC datagrams with segmentation offload, the closest relative on layer 3. It carries no Ethernet,
//! so its hosts route between the guests, who take them for each other by proxy ARP.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::{CONNECT_TIME_MAX, Connect, Peer, RIGHT_IP, Site, Sites};
use crate::command;
use crate::wait;

pub(super) const QUINCY: Peer = Peer {
    name: "quincy",
    about: "quincy, layer 3 over QUIC, Noise",
    tools: &["quincy-client", "quincy-server", "quincy-identity", "sh"],
    guest_mtu: 1400,
    connect: Connect::Sites(connect),
};

struct Key {
    private: String,
    public: String,
}

fn connect(sites: &Sites) -> Result<Vec<Child>> {
    let (client, server) = (Key::generate()?, Key::generate()?);
    let users = format!("[users.left]\nauthorized_keys = [\"{}\"]\nauthorized_certs = []\n", client.public);
    let users = sites.right.write("users.toml", &users)?;
    // The first free address of the tunnel's network is the left guest's own.
    let settings = format!(
        "name = \"bench\"\ninterface_name = \"{INTERFACE}\"\nbind_address = \"{RIGHT_IP}\"\nbind_port = {PORT}\n\
         tunnel_network = \"10.9.0.254/24\"\nusers_file = \"{}\"\n\
         [protocol]\nmode = \"noise\"\nprivate_key = \"{}\"\n[log]\nlevel = \"info\"\n",
        users.display(),
        server.private
    );
    let mut daemons = vec![start(&sites.right, "quincy-server", &settings)?];
    route(&sites.right, RIGHT_GUEST, LEFT_GUEST)?;
    let settings = format!(
        "connection_string = \"{RIGHT_IP}:{PORT}\"\n[network]\ninterface_name = \"{INTERFACE}\"\n\
         [protocol]\nmode = \"noise\"\nprivate_key = \"{}\"\nserver_public_key = \"{}\"\n[log]\nlevel = \"info\"\n",
        client.private, server.public
    );
    daemons.push(start(&sites.left, "quincy-client", &settings)?);
    route(&sites.left, LEFT_GUEST, RIGHT_GUEST)?;
    Ok(daemons)
}

fn start(site: &Site, program: &str, settings: &str) -> Result<Child> {
    let file = site.write("quincy.toml", settings)?;
    site.spawn(site.namespace.command(program).arg("--config-path").arg(file))
}

/// Sends what is for `here` to the bridge, and what is for `there` into the tunnel, whose interface needs no address.
fn route(site: &Site, here: &str, there: &str) -> Result<()> {
    let namespace = &site.namespace;
    wait::until_true(format!("an address of {INTERFACE}"), CONNECT_TIME_MAX, || {
        let shown = namespace.ip(&format!("-o -4 address show dev {INTERFACE}"))?;
        Ok((shown.contains("inet"), shown))
    })?;
    let settings = "echo 1 > /proc/sys/net/ipv4/ip_forward && echo 1 > /proc/sys/net/ipv4/conf/br0/proxy_arp";
    command::run(namespace.command("sh").args(["-c", settings]))?;
    namespace.ip(&format!("address flush dev {INTERFACE}"))?;
    namespace.ip(&format!("route replace {here}/32 dev br0"))?;
    namespace.ip(&format!("route replace {there}/32 dev {INTERFACE}")).map(drop)
}

impl Key {
    fn generate() -> Result<Self> {
        let private = command::run(Command::new("quincy-identity").args(["noise", "genkey"]))?.trim().to_owned();
        let mut derive = Command::new("sh");
        derive.args(["-c", "printf '%s\\n' \"$1\" | quincy-identity noise pubkey", "sh", &private]);
        let public = command::run(derive.stdin(Stdio::null())).context("Can't derive a key")?.trim().to_owned();
        Ok(Self { private, public })
    }
}

const INTERFACE: &str = "quincy0";
const LEFT_GUEST: &str = "10.9.0.1";
const RIGHT_GUEST: &str = "10.9.0.2";
const PORT: u16 = 55_555;
