//! `virtuoso agent` and `virtuoso config`: flags and variables to a configuration.

use super::{AgentStart, output};
use crate::config::address::{Bootstrap, parse_address, parse_listen};
use crate::config::{DEFAULT_FILE, DnsLayer, DnsListen, Layer, LogLayer, Source, check_label};
use crate::logging::{self, LogFilter, LogFormat};
use crate::name::Name;
use anyhow::Context;
use clap::{Args, Subcommand};
use libp2p::Multiaddr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Run the agent of this host in the foreground
///
/// Each flag wins over its variable, the variable over the file, the file over the default. Lists replace each other.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  virtuoso agent
  virtuoso agent --bootstrap virtuoso-ticket:2NEpo7TZRRrLZSi2U...
  virtuoso agent --bootstrap /ip4/192.0.2.1/udp/4747/quic-v1
  virtuoso agent --name alpha --state-dir /srv/virtuoso --label gpu=1

A host with no bootstrap starts a swarm of its own and prints how to join it.
SIGTERM says goodbye to the swarm, with drain_on_stop once its VMs have moved away. SIGHUP reads labels, limits,
drain_on_stop, drain_time_s and log.level again.")]
pub(super) struct AgentArgs {
    /// Configuration file [default: /etc/virtuoso/agent.toml, if it exists]
    #[arg(long, value_name = "FILE", env = "VIRTUOSO_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args, Clone, Debug, Default)]
struct Settings {
    /// This host's name [default: the machine's]
    #[arg(long, env = "VIRTUOSO_NAME")]
    name: Option<Name>,
    /// Where keys, certificates and images live [default: /var/lib/virtuoso]
    #[arg(long, value_name = "DIR", env = "VIRTUOSO_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// The group that may use the control socket [default: virtuoso]
    #[arg(long, value_name = "GROUP", env = "VIRTUOSO_SOCKET_GROUP")]
    socket_group: Option<String>,
    /// Address and port for UDP and TCP [default: [::]:4747]
    #[arg(long, value_name = "IP:PORT", env = "VIRTUOSO_LISTEN", value_parser = parse_listen)]
    listen: Option<SocketAddr>,
    /// A ticket or the address of a host to join through; can be repeated
    #[arg(long, value_name = "TICKET|ADDRESS", env = "VIRTUOSO_BOOTSTRAP", value_delimiter = ',')]
    bootstrap: Option<Vec<Bootstrap>>,
    /// An address to tell peers beside the machine's own; can be repeated
    #[arg(long, value_name = "ADDRESS", env = "VIRTUOSO_ADVERTISE", value_delimiter = ',', value_parser = parse_address)]
    advertise: Option<Vec<Multiaddr>>,
    /// Whether to find hosts on the same link by multicast DNS [default: true]
    #[arg(long, value_name = "BOOL", env = "VIRTUOSO_MDNS")]
    mdns: Option<bool>,
    /// A label of this host; can be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", env = "VIRTUOSO_LABELS", value_delimiter = ',', value_parser = parse_label)]
    labels: Option<Vec<(String, String)>>,
    /// Whether VMs move to other hosts before the agent stops; a second SIGTERM ends that [default: false]
    #[arg(long, value_name = "BOOL", env = "VIRTUOSO_DRAIN_ON_STOP")]
    drain_on_stop: Option<bool>,
    /// How many seconds that may take [default: 300]
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS", env = "VIRTUOSO_DRAIN_TIME_S")]
    drain_time_s: Option<u32>,
    /// A loopback address and port where names are resolved for this host's users, or off [default: 127.0.0.47:53]
    #[arg(long, value_name = "IP:PORT|off", env = "VIRTUOSO_DNS_LISTEN")]
    dns_listen: Option<DnsListen>,
    /// error, warn, info, debug, trace, or TARGET=LEVEL pairs with commas between [default: info]
    #[arg(long, value_name = "LEVEL", env = "VIRTUOSO_LOG_LEVEL")]
    log_level: Option<LogFilter>,
    /// What the log looks like [default: text]
    #[arg(long, value_name = "FORMAT", env = "VIRTUOSO_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Subcommand)]
pub(super) enum ConfigVerb {
    /// Check a configuration file, and print the settings it leads to with --json
    #[command(after_help = "Examples:\n  virtuoso config check\n  virtuoso config check --config ./agent.toml --json")]
    Check {
        /// The file [default: /etc/virtuoso/agent.toml]
        #[arg(long, value_name = "FILE", env = "VIRTUOSO_CONFIG")]
        config: Option<PathBuf>,
    },
}

impl AgentArgs {
    pub(super) fn run(
        self,
        socket: Option<PathBuf>,
        run_agent: impl FnOnce(AgentStart) -> anyhow::Result<()>,
    ) -> anyhow::Result<ExitCode> {
        let source = Source { file: self.config, flags: self.settings.layer(socket) };
        let config = source.load()?;
        let log = logging::start(&config.log.level, config.log.format)?;
        Ok(match run_agent(AgentStart { source, config, log }) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("{error:#}");
                ExitCode::from(super::FAILED)
            }
        })
    }
}

impl Settings {
    fn layer(self, socket: Option<PathBuf>) -> Layer {
        Layer {
            name: self.name,
            state_dir: self.state_dir,
            socket,
            socket_group: self.socket_group,
            listen: self.listen,
            bootstrap: self.bootstrap,
            advertise: self.advertise,
            mdns: self.mdns,
            labels: self.labels.map(|labels| labels.into_iter().collect()),
            limits: None,
            drain_on_stop: self.drain_on_stop,
            drain_time_s: self.drain_time_s,
            dns: DnsLayer { listen: self.dns_listen },
            links: None,
            offloads: None,
            log: LogLayer { level: self.log_level, format: self.log_format },
        }
    }
}

impl ConfigVerb {
    pub(super) fn run(self, socket: Option<PathBuf>, json: bool) -> anyhow::Result<ExitCode> {
        let Self::Check { config: file } = self;
        let source = Source { file, flags: Settings::default().layer(socket) };
        let config = source.load()?;
        if json {
            output::line(&serde_json::to_string(&config).context("Can't print the configuration")?)?;
        } else {
            match source.path() {
                Some(path) => output::line(&format!("{} is valid", path.display()))?,
                None => output::line(&format!("There is no {DEFAULT_FILE}: defaults apply"))?,
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// `KEY=VALUE`, or a lone key with an empty value.
fn parse_label(text: &str) -> anyhow::Result<(String, String)> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    check_label(key, value)?;
    Ok((key.into(), value.into()))
}
