//! The ways to carry Ethernet between two hosts that are measured beside each other. Each gets two hosts of its
//! own with a veth between them, a bridge on each with one guest, and a generated configuration.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command;
use crate::guest::Guest;
use crate::lab::{Lab, Settings};
use crate::netns::Namespace;
use crate::process;
use crate::sandbox;
use crate::wait;

mod fastd;
mod kernel;
mod n2n;
mod openvpn;
mod quincy;
mod tinc;
mod virtuoso;
mod vpncloud;

pub(super) struct Peer {
    pub(super) name: &'static str,
    about: &'static str,
    /// Programs it consists of.
    tools: &'static [&'static str],
    /// The largest that is carried whole.
    guest_mtu: u16,
    connect: Connect,
}

enum Connect {
    /// Puts an interface into the bridge of each site, and starts what is behind it.
    Sites(fn(&Sites) -> Result<Vec<Child>>),
    /// The agents have so many threads for frames.
    Agents { threads: u16 },
}

/// Two hosts, their underlay and where to keep files.
struct Sites {
    left: Site,
    right: Site,
}

struct Site {
    namespace: Namespace,
    /// Its address on the underlay.
    ip: &'static str,
    dir: PathBuf,
}

/// A running tunnel with a guest at each end.
pub(super) struct Tunnel {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) left: Guest,
    pub(super) right: Guest,
    daemons: Daemons,
    /// Agents live in a lab of their own.
    lab: Option<Lab>,
}

struct Daemons(Vec<Child>);

pub(super) fn all() -> Vec<Peer> {
    let ours = [kernel::RAW, kernel::VXLAN, virtuoso::VIRTUOSO];
    let others = [tinc::TINC, fastd::FASTD, openvpn::OPENVPN, n2n::N2N, vpncloud::VPNCLOUD, quincy::QUINCY];
    ours.into_iter().chain(others).collect()
}

/// Those that are measured when they are named.
pub(super) fn special() -> Vec<Peer> {
    vec![virtuoso::THREADS]
}

/// Our own agents.
pub(super) fn own() -> Peer {
    virtuoso::VIRTUOSO
}

impl Peer {
    /// Sets everything up, and waits until the guests reach each other.
    pub(super) fn start(&self, settings: &Settings) -> Result<Tunnel> {
        for tool in [self.tools, &["iperf3", "ping"]].concat() {
            ensure!(command::is_installed(tool), "{tool} is not installed");
        }
        let tunnel = match self.connect {
            Connect::Agents { threads } => virtuoso::start(self, threads, settings)?,
            Connect::Sites(connect) => {
                let sites = Sites::lay(self.name)?;
                let (left, right) = (self.guest("a", 1, &sites.left)?, self.guest("b", 2, &sites.right)?);
                let daemons = Daemons(connect(&sites)?);
                Tunnel { name: self.name, about: self.about, left, right, daemons, lab: None }
            }
        };
        tunnel.left.await_reach(tunnel.right.ipv4()?, CONNECT_TIME_MAX)?;
        Ok(tunnel)
    }

    fn guest(&self, side: &str, number: u8, site: &Site) -> Result<Guest> {
        let address = format!("10.9.0.{number}/24").parse()?;
        let name = format!("{}-g{side}", self.name);
        let guest = Guest::create(&name, number, &site.namespace, &[address], self.guest_mtu)?;
        site.bridge(&guest.port())?;
        Ok(guest)
    }
}

impl Tunnel {
    /// The processes that carry the frames.
    pub(super) fn pids(&self) -> Result<Vec<u32>> {
        let agents = self.lab.as_ref().map_or_else(|| Ok(Vec::new()), virtuoso::pids)?;
        Ok(self.daemons.0.iter().map(Child::id).chain(agents).collect())
    }

    /// Used by them so far.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        self.pids()?.into_iter().map(process::cpu_seconds).sum()
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        for daemon in &mut self.0 {
            // It may have ended by itself.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Sites {
    fn lay(name: &str) -> Result<Self> {
        let sites = Self { left: Site::create(name, "a", LEFT_IP)?, right: Site::create(name, "b", RIGHT_IP)? };
        let (left, right) = (&sites.left.namespace, &sites.right.namespace);
        left.ip(&format!("link add wan type veth peer name wan netns {}", right.name()))?;
        for site in [&sites.left, &sites.right] {
            site.namespace.ip(&format!("address add {}/24 dev wan", site.ip))?;
            site.namespace.ip("link set wan up")?;
        }
        // Some daemons look for the way to the internet when they start.
        left.ip(&format!("route add default via {RIGHT_IP}"))?;
        right.ip(&format!("route add default via {LEFT_IP}"))?;
        Ok(sites)
    }
}

impl Site {
    fn create(name: &str, side: &str, ip: &'static str) -> Result<Self> {
        let name = format!("{name}-{side}");
        let namespace = Namespace::create(&name)?;
        namespace.ip("link add name br0 type bridge")?;
        namespace.ip("link set br0 up")?;
        Ok(Self { namespace, ip, dir: sandbox::fresh_dir(&name)? })
    }

    /// Puts `interface` into the bridge.
    fn bridge(&self, interface: &str) -> Result<()> {
        self.namespace.ip(&format!("link set {interface} master br0 up")).map(drop)
    }

    /// Waits until a daemon has made `interface`, and puts it into the bridge.
    fn await_and_bridge(&self, interface: &str) -> Result<()> {
        wait::until_true(format!("interface {interface}"), CONNECT_TIME_MAX, || {
            self.namespace.ip(&format!("link show {interface}"))?;
            Ok((true, String::new()))
        })?;
        self.bridge(interface)
    }

    fn write(&self, file: &str, content: &str) -> Result<PathBuf> {
        let path = self.dir.join(file);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::write(&path, content).with_context(|| format!("Cannot write {}", path.display()))?;
        Ok(path)
    }

    /// A daemon in the foreground, its words in `daemon.log`.
    fn spawn(&self, command: &mut Command) -> Result<Child> {
        let log = std::fs::File::create(self.dir.join("daemon.log"))?;
        command::spawn(command.stdout(Stdio::null()).stderr(log))
    }
}

const LEFT_IP: &str = "10.77.0.1";
const RIGHT_IP: &str = "10.77.0.2";
const CONNECT_TIME_MAX: Duration = Duration::from_secs(30);
