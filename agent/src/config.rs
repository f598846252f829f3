//! What the operator decides: one TOML file, `VIRTUOSO_*` variables and flags, merged and validated once into types
//! that can't be wrong. Nothing here opens a socket or looks at the machine, except for the default host name.

pub mod address;
pub mod dns;
pub mod file;
mod links;
pub(crate) mod nearest;

use crate::logging::{LogFilter, LogFormat};
use crate::name::Name;
use crate::size::ByteSize;
use address::Bootstrap;
use anyhow::Context;
pub use dns::DnsListen;
use libp2p::Multiaddr;
pub use links::{Links, LinksLayer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use virtuoso_engine::TapOffloads;

/// The configuration file, if no other is named.
pub const DEFAULT_FILE: &str = "/etc/virtuoso/agent.toml";
/// The control socket, if no other is named.
pub const DEFAULT_SOCKET: &str = "/run/virtuoso/virtuoso.sock";
/// The state directory, if no other is named.
const DEFAULT_STATE_DIR: &str = "/var/lib/virtuoso";
/// The group whose members may use the control socket.
const DEFAULT_SOCKET_GROUP: &str = "virtuoso";
/// One port number, for UDP and TCP.
const DEFAULT_PORT: u16 = 4747;

/// Seconds in which VMs may move away from a host that stops: dist/virtuoso.service gives it a little more.
const DRAIN_TIME_S: u32 = 300;
/// An hour: the service manager counts on.
const DRAIN_TIME_S_MAX: u32 = 3600;

/// Entries of `bootstrap` and `advertise`: each is dialled or told to every peer.
const ADDRESSES_MAX: usize = 64;
/// Labels of one host: they ride in its row of a replicated table.
const LABELS_MAX: usize = 64;
/// Characters of a label's key and of its value.
const LABEL_CHARS_MAX: usize = 63;

/// The effective configuration.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Config {
    /// This host's name; by default the first label of the machine's.
    pub name: Name,
    /// Where identity, certificates and images live. 0700, one agent at a time.
    pub state_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The group that may use the control socket, if it exists.
    pub socket_group: String,
    /// Address and port for UDP and TCP, all interfaces and both IP versions by default.
    pub listen: SocketAddr,
    /// Hosts to join through: multiaddresses or tickets.
    pub bootstrap: Vec<Bootstrap>,
    /// Addresses to tell peers beside those the machine has, for a port forwarded by a NAT.
    pub advertise: Vec<Multiaddr>,
    /// Whether hosts on the same link are found by multicast DNS.
    pub mdns: bool,
    /// What `host find --label` looks for.
    pub labels: BTreeMap<String, String>,
    /// The share of this machine that its owner lends to the swarm.
    pub limits: Limits,
    /// Whether VMs move away before the agent stops.
    pub drain_on_stop: bool,
    /// How many seconds that may take.
    pub drain_time_s: u32,
    /// This host's resolver.
    pub dns: Dns,
    /// What limits the links to other hosts.
    pub links: Links,
    /// What the TAPs of networks leave to the last hop.
    pub offloads: TapOffloads,
    /// What goes to stderr.
    pub log: Log,
}

/// The most that VMs of others may use here; `None` is all of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Virtual CPUs.
    pub vcpus: Option<u32>,
    /// Memory of all VMs together.
    pub memory: Option<ByteSize>,
    /// Disk space of images and volumes together.
    pub disk: Option<ByteSize>,
}

/// The resolver for this host's users.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Dns {
    /// A loopback address and port, or `off`.
    pub listen: DnsListen,
}

/// Logging.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,virtuoso_engine=debug`.
    pub level: LogFilter,
    /// `text` or `json`.
    pub format: LogFormat,
}

/// One source of settings: the file, or the flags and variables. What it leaves out, the next source decides.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Layer {
    /// See [`Config::name`]; so are all others.
    pub name: Option<Name>,
    pub state_dir: Option<PathBuf>,
    pub socket: Option<PathBuf>,
    pub socket_group: Option<String>,
    #[serde(deserialize_with = "address::deserialize_listen")]
    pub listen: Option<SocketAddr>,
    pub bootstrap: Option<Vec<Bootstrap>>,
    #[serde(deserialize_with = "address::deserialize_advertise")]
    pub advertise: Option<Vec<Multiaddr>>,
    pub mdns: Option<bool>,
    #[serde(deserialize_with = "file::deserialize_labels")]
    pub labels: Option<BTreeMap<String, String>>,
    pub limits: Option<Limits>,
    pub drain_on_stop: Option<bool>,
    pub drain_time_s: Option<u32>,
    pub dns: DnsLayer,
    pub links: Option<LinksLayer>,
    pub offloads: Option<TapOffloads>,
    pub log: LogLayer,
}

/// See [`Dns`].
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsLayer {
    pub listen: Option<DnsListen>,
}

/// See [`Log`].
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogLayer {
    pub level: Option<LogFilter>,
    pub format: Option<LogFormat>,
}

/// Where the configuration comes from, so that SIGHUP can read it again.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The file that was named; without one the default file is read if it exists.
    pub file: Option<PathBuf>,
    /// Flags and `VIRTUOSO_*` variables.
    pub flags: Layer,
}

/// What a new configuration changes in a running agent. The names are those of the file's keys.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Takes effect now.
    pub applied: Vec<&'static str>,
    /// Takes effect at the next start.
    pub needs_restart: Vec<&'static str>,
}

impl Source {
    /// Reads the file and merges it with flags, variables and defaults.
    pub fn load(&self) -> anyhow::Result<Config> {
        let file = match &self.file {
            Some(path) => file::read(path)?.with_context(|| format!("No configuration file at {}", path.display()))?,
            None => file::read(Path::new(DEFAULT_FILE))?.unwrap_or_default(),
        };
        Config::merge(self.flags.clone(), file)
    }

    /// The file that [`Self::load`] reads, if it exists.
    pub fn path(&self) -> Option<PathBuf> {
        self.file.clone().or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()))
    }
}

impl Config {
    /// The first source that has an opinion decides each key.
    fn merge(flags: Layer, file: Layer) -> anyhow::Result<Self> {
        let name = match flags.name.or(file.name) {
            Some(name) => name,
            None => machine_name()?,
        };
        let listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, DEFAULT_PORT));
        let config = Self {
            name,
            state_dir: absolute(flags.state_dir.or(file.state_dir), DEFAULT_STATE_DIR)?,
            socket: absolute(flags.socket.or(file.socket), DEFAULT_SOCKET)?,
            socket_group: flags.socket_group.or(file.socket_group).unwrap_or_else(|| DEFAULT_SOCKET_GROUP.into()),
            listen: flags.listen.or(file.listen).unwrap_or(listen),
            bootstrap: flags.bootstrap.or(file.bootstrap).unwrap_or_default(),
            advertise: flags.advertise.or(file.advertise).unwrap_or_default(),
            mdns: flags.mdns.or(file.mdns).unwrap_or(true),
            labels: flags.labels.or(file.labels).unwrap_or_default(),
            limits: flags.limits.or(file.limits).unwrap_or_default(),
            drain_on_stop: flags.drain_on_stop.or(file.drain_on_stop).unwrap_or_default(),
            drain_time_s: flags.drain_time_s.or(file.drain_time_s).unwrap_or(DRAIN_TIME_S),
            dns: Dns { listen: flags.dns.listen.or(file.dns.listen).unwrap_or_default() },
            links: flags.links.or(file.links).unwrap_or_default().into(),
            offloads: flags.offloads.or(file.offloads).unwrap_or_default(),
            log: Log {
                level: flags.log.level.or(file.log.level).unwrap_or_default(),
                format: flags.log.format.or(file.log.format).unwrap_or_default(),
            },
        };
        config.validate()?;
        Ok(config)
    }

    /// What no single value can get wrong.
    fn validate(&self) -> anyhow::Result<()> {
        for (key, entries) in [("bootstrap", self.bootstrap.len()), ("advertise", self.advertise.len())] {
            anyhow::ensure!(entries <= ADDRESSES_MAX, "`{key}` has {entries} entries; {ADDRESSES_MAX} are allowed");
        }
        let labels = self.labels.len();
        anyhow::ensure!(labels <= LABELS_MAX, "`labels` has {labels} entries; {LABELS_MAX} are allowed");
        for (key, value) in &self.labels {
            check_label(key, value)?;
        }
        anyhow::ensure!(self.limits.vcpus != Some(0), "`limits.vcpus` is 0; leave it out to lend all of them");
        anyhow::ensure!(
            (1..=DRAIN_TIME_S_MAX).contains(&self.drain_time_s),
            "`drain_time_s` is {}; 1 to {DRAIN_TIME_S_MAX} seconds are possible",
            self.drain_time_s
        );
        self.links.validate()?;
        let has_segmentation = self.offloads.tso4 || self.offloads.tso6 || self.offloads.uso;
        anyhow::ensure!(
            self.offloads.csum || !has_segmentation,
            "`offloads.csum` is off, but segments need partial checksums: switch off tso4, tso6 and uso as well"
        );
        anyhow::ensure!(self.listen.port() != 0, "`listen` needs a fixed port; the default is [::]:{DEFAULT_PORT}");
        Ok(())
    }

    /// Which keys differ, and which of them a running agent takes over without a restart.
    pub fn reloadable_changes(old: &Self, new: &Self) -> Changes {
        let mut changes = Changes::default();
        let reloadable = [
            ("labels", old.labels != new.labels),
            ("limits", old.limits != new.limits),
            ("drain_on_stop", old.drain_on_stop != new.drain_on_stop),
            ("drain_time_s", old.drain_time_s != new.drain_time_s),
            ("links", old.links != old.links.reloaded(new.links.clone())),
            ("log.level", old.log.level != new.log.level),
        ];
        let fixed = [
            ("name", old.name != new.name),
            ("state_dir", old.state_dir != new.state_dir),
            ("socket", old.socket != new.socket),
            ("socket_group", old.socket_group != new.socket_group),
            ("listen", old.listen != new.listen),
            ("bootstrap", old.bootstrap != new.bootstrap),
            ("advertise", old.advertise != new.advertise),
            ("mdns", old.mdns != new.mdns),
            ("dns.listen", old.dns != new.dns),
            ("links.threads", old.links.all.threads != new.links.all.threads),
            ("offloads", old.offloads != new.offloads),
            ("log.format", old.log.format != new.log.format),
        ];
        changes.applied.extend(reloadable.iter().filter(|(_, differs)| *differs).map(|(key, _)| key));
        changes.needs_restart.extend(fixed.iter().filter(|(_, differs)| *differs).map(|(key, _)| key));
        changes
    }

    /// The configuration that runs after a reload: `self` with the reloadable keys of `new`.
    #[must_use]
    pub fn reloaded(&self, new: Self) -> Self {
        let log = Log { level: new.log.level, format: self.log.format };
        let Self { labels, limits, drain_on_stop, drain_time_s, links, .. } = new;
        let links = self.links.reloaded(links);
        Self { labels, limits, drain_on_stop, drain_time_s, links, log, ..self.clone() }
    }
}

/// Whether a label can be told apart from its neighbours in `--label key=value` and in a table.
pub fn check_label(key: &str, value: &str) -> anyhow::Result<()> {
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:".contains(&b));
    let key_fits = (1..=LABEL_CHARS_MAX).contains(&key.len()) && plain(key);
    anyhow::ensure!(key_fits, "Not a label: `{key}`: expected 1 to {LABEL_CHARS_MAX} of A-Z, a-z, 0-9 and ._-/:");
    let value_fits = value.len() <= LABEL_CHARS_MAX && plain(value);
    anyhow::ensure!(
        value_fits,
        "Not a value of label `{key}`: `{value}`: expected up to {LABEL_CHARS_MAX} of A-Z, a-z, 0-9 and ._-/:"
    );
    Ok(())
}

/// The first label of the machine's host name.
fn machine_name() -> anyhow::Result<Name> {
    let path = "/proc/sys/kernel/hostname";
    let text =
        std::fs::read_to_string(path).with_context(|| format!("Can't read {path}: name this host with --name"))?;
    let label = text.trim().split('.').next().unwrap_or_default().to_ascii_lowercase();
    label.parse().context("The machine's host name can't name this host: choose one with --name")
}

/// A path that stays true when the working directory changes.
fn absolute(path: Option<PathBuf>, default: &str) -> anyhow::Result<PathBuf> {
    let path = path.unwrap_or_else(|| default.into());
    std::path::absolute(&path).with_context(|| format!("Not a path: `{}`", path.display()))
}

#[cfg(test)]
mod tests;
