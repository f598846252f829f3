//! A guest: a network namespace that stands for a VM, with one veth pair whose other end is plugged into a host.
//! Which network that end is in is the agent's business (`Lab::attach`).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command;
use crate::netns::Namespace;
use crate::topology::Address;
use crate::wait;

pub(crate) struct Guest {
    name: String,
    namespace: Namespace,
    mac: String,
    addresses: Vec<Address>,
    mtu: u16,
    /// Where the other end of its cable is.
    host: Namespace,
}

impl Guest {
    /// Makes the guest, its cable plugged into `host`. `number` makes its MAC address.
    pub(crate) fn create(name: &str, number: u8, host: &Namespace, addresses: &[Address], mtu: u16) -> Result<Self> {
        let namespace = Namespace::create(name)?;
        let mac = format!("02:56:00:00:00:{number:02x}");
        let guest =
            Self { name: name.to_owned(), namespace, mac, addresses: addresses.to_vec(), mtu, host: host.clone() };
        let (port, mac) = (guest.port(), &guest.mac);
        host.ip(&format!(
            "link add name {port} mtu {mtu} type veth peer name {NIC} netns {name} address {mac} mtu {mtu}"
        ))?;
        host.ip(&format!("link set {port} up"))?;
        guest.namespace.ip(&format!("link set {NIC} up"))?;
        for address in addresses {
            guest.namespace.ip(&format!("address add {address} dev {NIC}"))?;
        }
        guest.await_carrier()?;
        Ok(guest)
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(crate) fn mac(&self) -> &str {
        &self.mac
    }

    pub(crate) fn mtu(&self) -> u16 {
        self.mtu
    }

    /// The interface on the host that is this guest's port.
    pub(crate) fn port(&self) -> String {
        format!("p-{}", self.name)
    }

    /// The name of the host it is plugged into.
    pub(crate) fn host(&self) -> &str {
        self.host.name()
    }

    pub(crate) fn ipv4(&self) -> Result<IpAddr> {
        self.ip(IpAddr::is_ipv4)
    }

    pub(crate) fn ipv6(&self) -> Result<IpAddr> {
        self.ip(IpAddr::is_ipv6)
    }

    pub(crate) fn socket_address(&self, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.ipv4()?, port))
    }

    /// Pulls the cable and plugs it into `host`. Interfaces lose their "up" on the way.
    pub(crate) fn plug_into(&mut self, host: &Namespace) -> Result<()> {
        let port = self.port();
        self.host.ip(&format!("link set {port} nomaster"))?;
        self.host.ip(&format!("link set {port} netns {}", host.name()))?;
        host.ip(&format!("link set {port} up"))?;
        self.host = host.clone();
        self.await_carrier()
    }

    /// Waits until the kernel counts the port as up. It may take its time (up to a second) to notice a carrier, and
    /// until then a bridge passes nothing to the port.
    fn await_carrier(&self) -> Result<()> {
        let port = self.port();
        wait::until_true(format!("{port} to be up"), CARRIER_TIME_MAX, || {
            let state = self.host.ip(&format!("-o link show {port}"))?;
            Ok((state.contains("state UP"), state))
        })
    }

    /// Runs `ping` with these options; its output.
    pub(crate) fn ping(&self, target: IpAddr, options: &str) -> Result<String> {
        let mut ping = self.namespace.command("ping");
        command::run(ping.arg("-n").args(options.split_whitespace()).arg(target.to_string()))
    }

    /// One echo that must come back.
    pub(crate) fn reaches(&self, target: IpAddr) -> Result<()> {
        self.ping(target, "-c 1 -W 1").map(drop)
    }

    /// Waits until echoes come back.
    pub(crate) fn await_reach(&self, target: IpAddr, limit: Duration) -> Result<()> {
        wait::until_true(format!("{} to reach {target}", self.name), limit, || {
            self.reaches(target)?;
            Ok((true, String::new()))
        })
    }

    /// No echo may come back.
    pub(crate) fn ensure_unreachable(&self, target: IpAddr) -> Result<()> {
        let got_through = self.ping(target, "-c 3 -i 0.2 -W 1").is_ok();
        ensure!(!got_through, "{} reaches {target} and must not", self.name);
        Ok(())
    }

    fn ip(&self, wanted: impl Fn(&IpAddr) -> bool) -> Result<IpAddr> {
        let mut ips = self.addresses.iter().map(|address| address.ip);
        ips.find(wanted).with_context(|| format!("Guest {} lacks an address of that kind", self.name))
    }
}

const CARRIER_TIME_MAX: Duration = Duration::from_secs(5);
/// The guest's own interface, as in most VMs.
pub(crate) const NIC: &str = "eth0";
