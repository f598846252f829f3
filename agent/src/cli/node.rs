//! `status`, `peers`, `links`, `monitor`, `doctor`: this agent.

use super::format::{bytes, counts, list, rtt, seconds, word, yes};
use super::table::Table;
use super::{Asking, FAILED, UNREACHABLE, output};
use crate::control::client::{Call, parse};
use crate::control::model::{Doctor, Link, Peer, Status};
use crate::events::Event;
use clap::Subcommand;
use std::process::ExitCode;

#[derive(Subcommand)]
pub(super) enum NodeVerb {
    /// This agent at a glance
    #[command(after_help = "Examples:\n  virtuoso status\n  virtuoso status --json | jq .members")]
    Status,
    /// Control connections to other hosts
    #[command(after_help = "Examples:\n  virtuoso peers")]
    Peers,
    /// Encrypted links to other hosts, for frames
    #[command(after_help = "Examples:\n  virtuoso links\n  virtuoso links --json | jq '.[] | {name, drops}'")]
    Links,
    /// Follow what happens
    #[command(
        after_help = "Examples:\n  virtuoso monitor\n  virtuoso monitor --json | jq -c 'select(.kind == \"link_down\")'"
    )]
    Monitor {
        /// Begin after the event with this id, as far as the agent remembers
        #[arg(long, allow_negative_numbers = true, value_name = "ID")]
        after: Option<u64>,
    },
    /// Check this host, and say how to mend what is wrong
    #[command(after_help = "Examples:\n  virtuoso doctor\n\nExit status is 1 if a check failed.")]
    Doctor,
}

impl NodeVerb {
    pub(super) async fn run(self, asking: &Asking) -> anyhow::Result<ExitCode> {
        match self {
            Self::Status => asking.show(Call::get("/v1/status"), status).await,
            Self::Peers => asking.show(Call::get("/v1/peers"), peers).await,
            Self::Links => asking.show(Call::get("/v1/links"), links).await,
            Self::Monitor { after } => monitor(asking, after).await,
            Self::Doctor => doctor(asking).await,
        }
    }
}

fn status(status: Status) -> Table {
    let mut table = Table::list();
    let mut add = |key: &str, value: String| table.row([key.into(), value]);
    add("name", status.name.to_string());
    add("id", status.id.to_string());
    add("version", status.version);
    add("swarm", status.swarm.map(|swarm| swarm.to_string()).unwrap_or_default());
    add("state", word(&status.state));
    if let Some(refused) = status.refused {
        add("refused", refused);
    }
    add("admin", yes(status.admin));
    add("members", format!("{}, {} alive", status.members, status.members_alive));
    add("peers", format!("{} connected", status.peers_connected));
    add("networks", list(status.networks));
    add("addresses", list(status.addresses));
    add("drops", counts(&status.drops));
    add("uptime", seconds(status.uptime_s as f64));
    for way in status.bootstrap {
        let state = match (way.connected, way.error) {
            (true, _) => "connected".into(),
            (false, error) => {
                let next = way.next_attempt_s.map(|s| format!(", next attempt in {}", seconds(s))).unwrap_or_default();
                let error = error.map(|error| format!(": {error}")).unwrap_or_default();
                format!("not connected after {} attempts{next}{error}", way.attempts)
            }
        };
        add("bootstrap", format!("{} {state}", way.address));
    }
    table
}

fn peers(peers: Vec<Peer>) -> Table {
    let mut table = Table::new(&["NAME", "MEMBER", "ADDRESS", "OPENED", ">RTT", ">AGE", "VERSION", "ID"]);
    for peer in peers {
        table.row([
            peer.name.unwrap_or_default(),
            yes(peer.member),
            peer.address,
            if peer.outbound { "here" } else { "there" }.into(),
            rtt(peer.rtt_us),
            seconds(peer.age_s),
            peer.version.unwrap_or_default(),
            peer.id.to_string(),
        ]);
    }
    table
}

fn links(links: Vec<Link>) -> Table {
    let mut table =
        Table::new(&["NAME", "STATE", "PATH", ">RTT", ">LOSS", ">MTU", ">SENT", ">RECEIVED", ">DROPS", ">AGE", "PEER"]);
    for link in links {
        table.row([
            link.name,
            word(&link.state),
            link.path.unwrap_or_default(),
            rtt(link.rtt_us),
            format!("{:.2}%", 100.0 * link.loss),
            link.mtu_bytes.to_string(),
            bytes(link.tx_bytes),
            bytes(link.rx_bytes),
            link.drops.values().sum::<u64>().to_string(),
            seconds(link.age_s),
            link.peer.to_string(),
        ]);
    }
    table
}

async fn monitor(asking: &Asking, after: Option<u64>) -> anyhow::Result<ExitCode> {
    let after = after.map(|id| id.to_string());
    let mut stream = asking.client.stream(Call::get("/v1/events"), after.as_deref()).await?;
    while let Some(event) = stream.next().await? {
        if asking.json {
            output::line(&event.data)?;
        } else {
            output::line(&event_line(&parse(event.data.as_bytes())?))?;
        }
    }
    output::complain("The agent has stopped");
    Ok(ExitCode::from(UNREACHABLE))
}

/// Time, kind and fields.
fn event_line(event: &Event) -> String {
    let mut table = Table::list();
    let mut cells = vec![event.time.clone()];
    if let Ok(serde_json::Value::Object(mut fields)) = serde_json::to_value(&event.kind) {
        let kind = fields.remove("kind").unwrap_or_default();
        cells.push(kind.as_str().unwrap_or_default().into());
        for (key, value) in fields {
            cells.push(format!("{key}={}", value.as_str().map_or_else(|| value.to_string(), Into::into)));
        }
    }
    table.row(cells);
    table.to_string().trim_end().into()
}

async fn doctor(asking: &Asking) -> anyhow::Result<ExitCode> {
    let json = asking.client.call(Call::get("/v1/doctor")).await?;
    let doctor: Doctor = parse(&json)?;
    if asking.json {
        asking.show_json(&json)?;
    } else {
        let mut table = Table::new(&["CHECK", "RESULT", "DETAIL"]);
        for check in doctor.checks {
            let fix = check.fix.map(|fix| format!(". To mend it: {fix}")).unwrap_or_default();
            table.row([check.name, word(&check.result), check.detail + &fix]);
        }
        output::write(table.to_string().as_bytes())?;
    }
    Ok(ExitCode::from(if doctor.ok { 0 } else { FAILED }))
}
