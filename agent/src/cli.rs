//! The command line. `agent` starts the daemon; every other verb asks a running one through its socket.

mod agent;
mod cdrom;
mod display;
mod format;
mod host;
mod image;
mod migrate;
mod net;
mod node;
mod output;
mod progress;
mod shell;
mod ssh;
mod swarm;
mod table;
mod terminal;
mod vm;
mod vm_wait;

use crate::config::{Config, DEFAULT_SOCKET, Source};
use crate::control::client::{Call, Client, ClientError};
use crate::logging::LogHandle;
use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use table::Table;

/// Refused or failed.
const FAILED: u8 = 1;
/// The command line makes no sense.
const USAGE: u8 = 2;
/// Nobody listens at the socket.
const UNREACHABLE: u8 = 3;
/// There is no such thing.
const NOT_FOUND: u8 = 4;

/// What the daemon starts with.
pub struct AgentStart {
    /// Reads the configuration again.
    pub source: Source,
    /// The configuration.
    pub config: Config,
    /// Changes the log level.
    pub log: LogHandle,
}

/// A peer-to-peer pool for virtual machines and the Ethernet networks between them.
#[derive(Parser)]
#[command(name = "virtuoso", version, propagate_version = true, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args)]
struct Global {
    /// The agent's control socket [default: /run/virtuoso/virtuoso.sock]
    #[arg(long, global = true, value_name = "PATH", env = "VIRTUOSO_SOCKET")]
    socket: Option<PathBuf>,
    /// Print the agent's JSON instead of tables
    #[arg(long, global = true)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  virtuoso agent                            Run the agent of this host (as root)
  virtuoso status                           See how it is
  virtuoso net create blue                  Make a network ...
  virtuoso net attach blue --interface veth0   ... and plug something in
  virtuoso host find --vcpus 4 --memory 8GiB   Find room for a VM

Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 agent not reachable, 4 not found.";

#[derive(Subcommand)]
enum Verb {
    Agent(Box<agent::AgentArgs>),
    #[command(flatten)]
    Node(node::NodeVerb),
    /// Hosts of the swarm
    #[command(subcommand)]
    Host(host::HostVerb),
    /// Networks
    #[command(subcommand)]
    Net(net::NetVerb),
    /// Ports of this host
    #[command(subcommand)]
    Port(net::PortVerb),
    Fdb(net::FdbArgs),
    /// Images
    #[command(subcommand)]
    Image(image::ImageVerb),
    /// Virtual machines
    #[command(subcommand)]
    Vm(Box<vm::VmVerb>),
    Ssh(ssh::SshArgs),
    /// Members of the swarm, and the way in
    #[command(subcommand)]
    Swarm(swarm::SwarmVerb),
    /// The configuration
    #[command(subcommand)]
    Config(agent::ConfigVerb),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
}

/// Runs one command line. `run_agent` runs the daemon until it stops.
pub fn run(
    args: impl IntoIterator<Item = OsString>,
    run_agent: impl FnOnce(AgentStart) -> anyhow::Result<()>,
) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout and are no failure. If nobody reads them, there is nothing to tell.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let done = match cli.verb {
        Verb::Agent(args) => args.run(cli.global.socket, run_agent),
        Verb::Config(verb) => verb.run(cli.global.socket, cli.global.json),
        Verb::Completions(args) => args.run(),
        Verb::Man(args) => args.run(),
        verb => ask(verb, &Asking::new(&cli.global)),
    };
    done.unwrap_or_else(|error| fail(&error))
}

/// Runs a verb that asks the agent.
fn ask(verb: Verb, asking: &Asking) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("Can't start")?;
    runtime.block_on(async {
        match verb {
            Verb::Node(verb) => verb.run(asking).await,
            Verb::Host(verb) => verb.run(asking).await,
            Verb::Net(verb) => verb.run(asking).await,
            Verb::Port(verb) => verb.run(asking).await,
            Verb::Fdb(args) => args.run(asking).await,
            Verb::Image(verb) => verb.run(asking).await,
            Verb::Vm(verb) => verb.run(asking).await,
            Verb::Ssh(args) => args.run(asking).await,
            Verb::Swarm(verb) => verb.run(asking).await,
            Verb::Agent(_) | Verb::Config(_) | Verb::Completions(_) | Verb::Man(_) => {
                unreachable!("these verbs run without an agent")
            }
        }
    })
}

/// A failure as text and exit status.
fn fail(error: &anyhow::Error) -> ExitCode {
    if output::is_broken_pipe(error) {
        // The reader has seen enough: `virtuoso host list | head -1`.
        return ExitCode::SUCCESS;
    }
    output::complain(&format!("{error:#}"));
    ExitCode::from(match error.downcast_ref::<ClientError>() {
        Some(ClientError::Unreachable { .. }) => UNREACHABLE,
        Some(ClientError::Refused(problem)) if problem.status == 404 => NOT_FOUND,
        Some(ClientError::Refused(_) | ClientError::Broken(_)) | None => FAILED,
    })
}

/// How a verb asks the agent and shows the answer.
struct Asking {
    client: Client,
    json: bool,
}

impl Asking {
    fn new(global: &Global) -> Self {
        let socket = global.socket.clone().unwrap_or_else(|| DEFAULT_SOCKET.into());
        Self { client: Client::new(socket), json: global.json }
    }

    /// Shows the agent's JSON, or the table that `tell` makes of it.
    async fn show<T: DeserializeOwned>(&self, call: Call, tell: impl FnOnce(T) -> Table) -> anyhow::Result<ExitCode> {
        if self.json {
            return self.show_json(&self.client.call(call).await?);
        }
        let answer = self.client.fetch(call).await?;
        output::write(tell(answer).to_string().as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }

    /// Shows the agent's JSON, or one line.
    async fn tell<T: DeserializeOwned>(&self, call: Call, tell: impl FnOnce(T) -> String) -> anyhow::Result<ExitCode> {
        if self.json {
            return self.show_json(&self.client.call(call).await?);
        }
        let answer = self.client.fetch(call).await?;
        output::line(&tell(answer))?;
        Ok(ExitCode::SUCCESS)
    }

    /// For verbs whose answer is empty: says nothing in JSON.
    async fn done(&self, call: Call, told: &str) -> anyhow::Result<ExitCode> {
        self.client.call(call).await?;
        if !self.json {
            output::line(told)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn show_json(&self, json: &[u8]) -> anyhow::Result<ExitCode> {
        output::write(&[json, b"\n"].concat())?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests;
