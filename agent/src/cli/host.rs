//! `virtuoso host`: hosts of the swarm.

use super::Asking;
use super::format::{bytes, list, seconds, word, yes};
use super::table::Table;
use crate::config::check_label;
use crate::control::client::Call;
use crate::control::model::{DrainReport, Host, HostMatch};
use crate::name::Name;
use crate::size::ByteSize;
use clap::{Args, Subcommand};
use std::process::ExitCode;

#[derive(Subcommand)]
pub(super) enum HostVerb {
    /// All hosts
    #[command(after_help = "Examples:\n  virtuoso host list\n  virtuoso host list --json | jq -r '.[].name'")]
    List,
    /// Hosts that a VM fits on, best first
    #[command(after_help = "\
Examples:
  virtuoso host find --vcpus 4 --memory 8GiB --disk 20GiB
  virtuoso host find --label gpu=1 --label site --image debian-12
  virtuoso host find --memory 512GiB --explain")]
    Find(FindArgs),
    /// Take no VMs on this host any more, and move those that run to other hosts
    #[command(after_help = "Examples:\n  virtuoso host drain\n  virtuoso host drain --json | jq '.stayed'")]
    Drain,
    /// Take VMs on this host again
    #[command(after_help = "Examples:\n  virtuoso host undrain")]
    Undrain,
}

#[derive(Args)]
pub(super) struct FindArgs {
    /// Free virtual CPUs
    #[arg(long, allow_negative_numbers = true)]
    vcpus: Option<u32>,
    /// Free memory, as 8GiB
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Free disk space, as 20GiB
    #[arg(long, value_name = "SIZE")]
    disk: Option<ByteSize>,
    /// A label the host has, with this value or with any; can be repeated
    #[arg(long = "label", value_name = "KEY[=VALUE]", value_parser = parse_wanted_label)]
    labels: Vec<String>,
    /// Hosts that have this image come first
    #[arg(long, value_name = "NAME")]
    image: Option<Name>,
    /// Also list the hosts that were left out, and why
    #[arg(long)]
    explain: bool,
}

impl HostVerb {
    pub(super) async fn run(self, asking: &Asking) -> anyhow::Result<ExitCode> {
        match self {
            Self::List => asking.show(Call::get("/v1/hosts"), hosts).await,
            Self::Drain => asking.tell(Call::post("/v1/host/drain", &()), drained).await,
            Self::Undrain => asking.done(Call::delete("/v1/host/drain"), "This host takes VMs again").await,
            Self::Find(args) => {
                let explain = args.explain;
                asking.show(Call::get(args.path()), move |found| matches(found, explain)).await
            }
        }
    }
}

impl FindArgs {
    /// None of the values needs escaping: their types leave no room for it.
    fn path(self) -> String {
        let mut query = Vec::new();
        query.extend(self.vcpus.map(|vcpus| format!("vcpus={vcpus}")));
        query.extend(self.memory.map(|size| format!("memory={}", size.0)));
        query.extend(self.disk.map(|size| format!("disk={}", size.0)));
        query.extend(self.labels.iter().map(|label| format!("label={label}")));
        query.extend(self.image.map(|image| format!("image={image}")));
        query.extend(self.explain.then(|| "explain=true".into()));
        format!("/v1/hosts/find?{}", query.join("&"))
    }
}

fn drained(report: DrainReport) -> String {
    let moved = report.moved.iter().map(|moved| format!("VM {} went to host {}", moved.name, moved.host_name));
    let stayed = report.stayed.iter().map(|stayed| format!("VM {} stays: {}", stayed.name, stayed.reason));
    let end = "This host takes no VMs until `virtuoso host undrain`".to_owned();
    moved.chain(stayed).chain([end]).collect::<Vec<_>>().join("\n")
}

fn parse_wanted_label(text: &str) -> anyhow::Result<String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    check_label(key, value)?;
    Ok(text.into())
}

const HEADINGS: [&str; 11] =
    ["NAME", "STATE", ">VCPUS", ">MEMORY", ">DISK", "ARCH", "KVM", ">LOAD", "LABELS", ">AGE", "ID"];

fn hosts(hosts: Vec<Host>) -> Table {
    let mut table = Table::new(&HEADINGS);
    hosts.iter().for_each(|host| table.row(cells(host)));
    table
}

fn matches(matches: Vec<HostMatch>, explain: bool) -> Table {
    let mut headings = vec![">RANK"];
    headings.extend(HEADINGS);
    if explain {
        headings.push("LEFT OUT");
    }
    let mut table = Table::new(&headings);
    for found in matches {
        let mut row = vec![found.rank.map(|rank| rank.to_string()).unwrap_or_default()];
        row.extend(cells(&found.host));
        if explain {
            row.push(found.left_out.join("; "));
        }
        table.row(row);
    }
    table
}

fn cells(host: &Host) -> [String; 11] {
    [
        host.name.clone(),
        word(&host.state),
        format!("{}/{}", host.vcpus_free, host.vcpus_total),
        format!("{}/{}", bytes(host.memory_free_bytes), bytes(host.memory_total_bytes)),
        bytes(host.disk_free_bytes),
        host.arch.clone(),
        yes(host.kvm),
        format!("{:.2}", host.load),
        list(
            host.labels
                .iter()
                .map(|(key, value)| if value.is_empty() { key.clone() } else { format!("{key}={value}") }),
        ),
        seconds(host.age_s),
        host.id.to_string(),
    ]
}
