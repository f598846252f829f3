//! A running lab: the hosts, links and guests of a topology, and the steps that most scenarios take with them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::console;
use crate::guest::Guest;
use crate::host::{Host, Start};
use crate::log_check::{self, Expected};
use crate::losses;
use crate::netns::Namespace;
use crate::topology::{Address, LinkSpec, Topology};
use crate::wait;
use crate::wan::Emulator;

/// What a lab is run with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) agent: PathBuf,
    /// Logs and results go here.
    pub(crate) report: PathBuf,
}

// Dropped in this order: processes first, then what they hang on.
pub(crate) struct Lab {
    guests: BTreeMap<String, Guest>,
    hosts: BTreeMap<String, Host>,
    emulators: BTreeMap<String, Emulator>,
    /// Switches of the LAN segments with more than two members and nothing wrong.
    segments: Vec<Namespace>,
    founder: String,
    expected: Vec<Expected>,
    notes: Vec<String>,
}

impl Lab {
    /// Makes the namespaces and links; starts no agent.
    pub(crate) fn build(topology: &Topology, settings: &Settings) -> Result<Self> {
        std::fs::create_dir_all(&settings.report)
            .with_context(|| format!("Cannot make {}", settings.report.display()))?;
        let mut hosts = BTreeMap::new();
        for name in topology.hosts.keys() {
            let address = topology.address_of(name).with_context(|| format!("Host {name} has no address"))?;
            hosts.insert(name.clone(), Host::create(name, address, &settings.agent, &settings.report)?);
        }
        let mut lab = Self {
            guests: BTreeMap::new(),
            hosts,
            emulators: BTreeMap::new(),
            segments: Vec::new(),
            founder: topology.founder().to_owned(),
            expected: Vec::new(),
            notes: Vec::new(),
        };
        for (name, spec) in &topology.links {
            lab.lay(name, spec).with_context(|| format!("Cannot make link {name}"))?;
        }
        Ok(lab)
    }

    pub(crate) fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.get(name).with_context(|| format!("No host {name}"))
    }

    pub(crate) fn host_mut(&mut self, name: &str) -> Result<&mut Host> {
        self.hosts.get_mut(name).with_context(|| format!("No host {name}"))
    }

    pub(crate) fn host_names(&self) -> Vec<String> {
        self.hosts.keys().cloned().collect()
    }

    pub(crate) fn founder(&self) -> Result<&Host> {
        self.host(&self.founder)
    }

    pub(crate) fn guest(&self, name: &str) -> Result<&Guest> {
        self.guests.get(name).with_context(|| format!("No guest {name}"))
    }

    pub(crate) fn emulator(&self, link: &str) -> Result<&Emulator> {
        self.emulators.get(link).with_context(|| format!("Link {link} is not emulated"))
    }

    /// Adds to the configuration file of all agents that are started from now on.
    pub(crate) fn configure(&mut self, text: &str) {
        for host in self.hosts.values_mut() {
            host.configure(text);
        }
    }

    /// Starts all agents: the founder makes the swarm, the others join by ticket; waits until all know all.
    pub(crate) fn start_swarm(&mut self) -> Result<()> {
        let founder = self.founder.clone();
        self.host_mut(&founder)?.start(&Start::alone())?;
        for name in self.host_names().into_iter().filter(|name| *name != founder) {
            self.join_by_ticket(&name)?;
        }
        self.await_members(&self.host_names(), JOIN_TIME_MAX)
    }

    /// Starts the agent of `name` with a fresh invitation of the founder.
    pub(crate) fn join_by_ticket(&mut self, name: &str) -> Result<()> {
        let ticket = self.founder()?.ticket()?;
        self.host_mut(name)?.start(&Start::by(ticket))
    }

    /// Waits until each of `names` lists exactly those of `names` as hosts that are there.
    pub(crate) fn await_members<N: AsRef<str>>(&self, names: &[N], limit: Duration) -> Result<()> {
        let wanted: BTreeSet<String> = names.iter().map(|name| name.as_ref().to_owned()).collect();
        for name in &wanted {
            let host = self.host(name)?;
            wait::until_true(format!("{name} to list the hosts {wanted:?}"), limit, || {
                let seen = present_hosts(host)?;
                Ok((seen == wanted, format!("{seen:?}")))
            })?;
        }
        Ok(())
    }

    /// Makes a network on the founder and waits until every running host knows it.
    pub(crate) fn create_network(&self, network: &str, options: &[&str]) -> Result<()> {
        self.founder()?.json(&[&["net", "create", network], options].concat())?;
        for host in self.hosts.values().filter(|host| host.pid().is_ok()) {
            await_network(host, network)?;
        }
        Ok(())
    }

    /// Waits until every running host knows a VM: an agent that begins again tells of its VMs a moment after itself.
    pub(crate) fn await_vm(&self, vm: &str) -> Result<()> {
        for host in self.hosts.values().filter(|host| host.pid().is_ok()) {
            wait::until_true(format!("{} to know VM {vm}", host.name()), CONTACT_TIME_MAX, || {
                let vms = host.list(&["vm", "list"])?;
                Ok((vms.iter().any(|item| item["name"] == vm), format!("{vms:?}")))
            })?;
        }
        Ok(())
    }

    /// Makes a guest that is plugged into `host` and in no network yet.
    pub(crate) fn add_guest(&mut self, name: &str, host: &str, addresses: &[&str], mtu: u16) -> Result<()> {
        let addresses = addresses.iter().map(|text| text.parse()).collect::<Result<Vec<Address>>>()?;
        let number = u8::try_from(self.guests.len() + 1).context("A lab has at most 255 guests")?;
        let guest = Guest::create(name, number, self.host(host)?.namespace(), &addresses, mtu)
            .with_context(|| format!("Cannot make guest {name}"))?;
        self.guests.insert(name.to_owned(), guest);
        Ok(())
    }

    /// `add_guest`, numbered addresses of both families in the lab's usual guest subnet, attached to `network`.
    pub(crate) fn place_guest(&mut self, name: &str, host: &str, network: &str) -> Result<()> {
        let number = self.guests.len() + 1;
        let (ipv4, ipv6) = (format!("10.9.0.{number}/24"), format!("fd09::{number:x}/64"));
        self.add_guest(name, host, &[&ipv4, &ipv6], 1500)?;
        self.attach(name, network)
    }

    pub(crate) fn attach(&self, guest: &str, network: &str) -> Result<()> {
        let guest = self.guest(guest)?;
        let host = self.host(guest.host())?;
        host.json(&["net", "attach", network, "--interface", &guest.port()]).map(drop)
    }

    /// `attach` by someone who knows the guest's address, as a VM manager does: it is claimed at once.
    pub(crate) fn attach_known(&self, guest: &str, network: &str) -> Result<()> {
        let guest = self.guest(guest)?;
        let host = self.host(guest.host())?;
        host.json(&["net", "attach", network, "--interface", &guest.port(), "--mac", guest.mac()]).map(drop)
    }

    pub(crate) fn detach(&self, guest: &str, network: &str) -> Result<()> {
        let guest = self.guest(guest)?;
        let host = self.host(guest.host())?;
        host.json(&["net", "detach", network, "--interface", &guest.port()]).map(drop)
    }

    /// Detaches `guest`, plugs its cable into host `to`, attaches it there.
    pub(crate) fn move_guest(&mut self, guest: &str, network: &str, to: &str) -> Result<()> {
        self.detach(guest, network)?;
        self.plug(guest, to)?;
        self.attach_known(guest, network)
    }

    /// Plugs the cable of `guest` into another host, and tells no agent.
    pub(crate) fn plug(&mut self, guest: &str, to: &str) -> Result<()> {
        let namespace = self.host(to)?.namespace().clone();
        self.guests.get_mut(guest).with_context(|| format!("No guest {guest}"))?.plug_into(&namespace)
    }

    /// Waits until all hosts know `guest` to be on host `holder`.
    pub(crate) fn await_holder(&self, guest: &str, network: &str, holder: &str) -> Result<()> {
        let (id, mac) = (self.host(holder)?.id()?, self.guest(guest)?.mac());
        self.hosts.values().try_for_each(|observer| await_claim(observer, network, mac, &id, CONTACT_TIME_MAX))
    }

    /// Waits until the guests `a` and `b` reach each other.
    pub(crate) fn await_contact(&self, a: &str, b: &str) -> Result<()> {
        let target = self.guest(b)?.ipv4()?;
        self.guest(a)?.await_reach(target, CONTACT_TIME_MAX)
    }

    /// Declares that warnings or errors with `text` in the log of `host` belong to what is tested.
    pub(crate) fn expect(&mut self, host: &str, text: &str) {
        self.expected.push(Expected { host: Some(host.to_owned()), text: text.to_owned() });
    }

    /// `expect` for all hosts.
    pub(crate) fn expect_anywhere(&mut self, text: &str) {
        self.expected.push(Expected { host: None, text: text.to_owned() });
    }

    /// Puts a measured value into the report.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// What is wrong at the end: agents that died and log lines that nobody declared.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        let mut complaints = Vec::new();
        for host in self.hosts.values_mut() {
            complaints.extend(host.check_alive().err().map(|error| format!("{error:#}")));
            let lines = log_check::unexpected(host.name(), &host.log_text(), &self.expected);
            complaints.extend(lines.iter().map(|line| format!("Unexpected in the log of {}: {line}", host.name())));
        }
        complaints
    }

    /// Where frames died so far, as far as those who counted them still answer.
    pub(crate) fn losses(&self) -> Vec<String> {
        let agents = self.hosts.values().filter(|host| host.pid().is_ok()).map(losses::of_agent);
        let hosts = self.hosts.values().map(Host::namespace);
        let kernels = hosts.chain(self.guests.values().map(Guest::namespace)).map(losses::of_kernel);
        let links = self.emulators.iter().map(|(name, emulator)| Ok(losses::of_link(name, emulator)));
        let told = agents.chain(kernels).chain(links);
        told.flat_map(|told| told.unwrap_or_else(|error| vec![format!("{error:#}")])).collect()
    }

    /// For a second terminal: the lab's namespaces are private to this process.
    pub(crate) fn tell_how_to_enter(&self) {
        let pid = std::process::id();
        let user = if crate::sandbox::has_own_users() { " --user --preserve-credentials" } else { "" };
        console::line("\nThe lab stays until Ctrl-C. To enter it from another terminal:");
        for name in self.hosts.keys().chain(self.guests.keys()) {
            console::line(format!("  nsenter --target {pid} --mount{user} ip netns exec {name} bash"));
        }
        console::line("Inside, the agent of a host answers like this:");
        for host in self.hosts.values() {
            let (agent, socket) = (host.binary().display(), host.socket());
            console::line(format!("  {agent} status --socket {}", socket.display()));
        }
    }

    fn lay(&mut self, name: &str, spec: &LinkSpec) -> Result<()> {
        if spec.is_emulated() {
            let namespace_of = |member: &str| Ok(self.host(member)?.namespace().clone());
            let emulator = Emulator::start(name, spec, namespace_of, SEED)?;
            self.emulators.insert(name.to_owned(), emulator);
            return Ok(());
        }
        let members: Vec<&String> = spec.members.keys().collect();
        if let [left, right] = members[..] {
            let mtu = spec.mtu;
            let ends = format!("link add name {name} mtu {mtu} type veth peer name {name} netns {right} mtu {mtu}");
            self.host(left)?.namespace().ip(&ends)?;
        } else {
            self.lay_segment(name, spec)?;
        }
        for (member, addresses) in &spec.members {
            let namespace = self.host(member)?.namespace();
            namespace.ip(&format!("link set {name} up"))?;
            for address in addresses {
                namespace.ip(&format!("address add {address} dev {name}"))?;
            }
        }
        Ok(())
    }

    fn lay_segment(&mut self, name: &str, spec: &LinkSpec) -> Result<()> {
        let switch = Namespace::create(&format!("{name}-switch"))?;
        // Longer than a host's name may be, so that no member's end clashes with it.
        switch.ip("link add name switch-bridge type bridge")?;
        switch.ip("link set switch-bridge up")?;
        for member in spec.members.keys() {
            let mtu = spec.mtu;
            switch
                .ip(&format!("link add name {member} mtu {mtu} type veth peer name {name} netns {member} mtu {mtu}"))?;
            switch.ip(&format!("link set {member} master switch-bridge up"))?;
        }
        self.segments.push(switch);
        Ok(())
    }
}

/// Names of the hosts that `host` counts as present.
pub(crate) fn present_hosts(host: &Host) -> Result<BTreeSet<String>> {
    let present = |item: &Value| !matches!(item["state"].as_str(), Some("gone" | "dead" | "left" | "suspect"));
    let rows = host.list(&["host", "list"])?;
    Ok(rows.iter().filter(|item| present(item)).filter_map(|item| item["name"].as_str()).map(str::to_owned).collect())
}

pub(crate) fn await_network(host: &Host, network: &str) -> Result<()> {
    wait::until_true(format!("{} to know network {network}", host.name()), CONTACT_TIME_MAX, || {
        let networks = host.list(&["net", "list"])?;
        let known = networks.iter().any(|item| item["name"] == network);
        Ok((known, format!("{networks:?}")))
    })
}

/// The rows about `mac` in what `host` knows of `network`.
pub(crate) fn claims(host: &Host, network: &str, mac: &str) -> Result<Vec<Value>> {
    let rows = host.list(&["fdb", network])?;
    let same = |row: &Value| row["mac"].as_str().is_some_and(|text| text.eq_ignore_ascii_case(mac));
    Ok(rows.into_iter().filter(same).collect())
}

/// Waits until `observer` knows `mac` to be at the host with `id`, and nowhere else.
pub(crate) fn await_claim(observer: &Host, network: &str, mac: &str, id: &str, limit: Duration) -> Result<()> {
    let what = format!("{} to know {mac} of {network} at {id}", observer.name());
    wait::until_true(what, limit, || {
        let rows = claims(observer, network, mac)?;
        let there = rows.len() == 1 && rows[0]["host"] == id;
        Ok((there, format!("{rows:?}")))
    })
}

pub(crate) fn ensure_agent(path: &Path) -> Result<()> {
    ensure!(
        path.is_file(),
        "There is no agent at {}: build it (cargo build -p virtuoso) or give --agent PATH",
        path.display()
    );
    Ok(())
}

/// Joins take a second; the rest is for a loaded machine.
pub(crate) const JOIN_TIME_MAX: Duration = Duration::from_secs(20);
/// From a change at one place until another place has it.
pub(crate) const CONTACT_TIME_MAX: Duration = Duration::from_secs(20);
/// Of the emulators' dice: a lab behaves alike in every run.
const SEED: u64 = 4747;
