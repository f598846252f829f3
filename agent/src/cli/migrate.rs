//! `virtuoso vm migrate`: a VM goes to another host while it runs.

use super::format::bytes as size;
use super::{Asking, output};
use crate::control::client::{Call, ClientError, parse};
use crate::control::model::{MigrationProgress, MigrationReport, PostCopyPolicy, VmMigrate, VmResolve, WhichCopy};
use crate::control::problem::ApiError;
use crate::name::Name;
use crate::size::ByteSize;
use anyhow::bail;
use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "\
Examples:
  virtuoso vm migrate web --to beta
  virtuoso vm migrate web --best --bandwidth 50MiB
  virtuoso vm migrate web --cancel
  virtuoso vm migrate web --resolve here

--resolve is for a VM whose other host is gone for good at the very moment of the hand-over, or before all of its
memory has followed it, which the event `vm_in_doubt` and `virtuoso vm show` tell. Should that host come back, its copy
is ended and kept aside.";

#[derive(Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["to", "best", "cancel", "resolve"]))]
pub(super) struct MigrateArgs {
    /// The VM
    name: Name,
    /// The host it goes to
    #[arg(long, value_name = "HOST")]
    to: Option<String>,
    /// It goes to the best host that has room
    #[arg(long)]
    best: bool,
    /// When memory may be fetched after the guest has begun to run there
    #[arg(long, value_enum, default_value_t)]
    post_copy: PostCopyPolicy,
    /// Bytes per second at most, as 50MiB
    #[arg(long, value_name = "SIZE")]
    bandwidth: Option<ByteSize>,
    /// Give the migration that is under way up
    #[arg(long)]
    cancel: bool,
    /// Say which copy runs, because the other host is gone for good
    #[arg(long, value_enum, value_name = "COPY")]
    resolve: Option<WhichCopy>,
}

impl MigrateArgs {
    pub(super) async fn run(self, asking: &Asking) -> anyhow::Result<ExitCode> {
        let path = format!("/v1/vms/{}/migrate", self.name);
        if self.cancel {
            return asking.done(Call::delete(path), &format!("VM {} stays", self.name)).await;
        }
        if let Some(copy) = self.resolve {
            let call = Call::post(format!("{path}/resolve"), &VmResolve { copy });
            return asking.done(call, &format!("VM {}: that copy runs", self.name)).await;
        }
        let Self { to, best, post_copy, bandwidth, .. } = self;
        let call = Call::post(path, &VmMigrate { to, best, post_copy, bandwidth });
        let report = tokio::select! {
            report = follow(asking, call) => report?,
            // Leaving closes the connection, and with that the agent gives the migration up.
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                bail!("Cancelled");
            }
        };
        if asking.json {
            return asking.show_json(&report);
        }
        output::line(&text(&parse(&report)?))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Follows the migration to its end, with a line of figures on a terminal.
async fn follow(asking: &Asking, call: Call) -> anyhow::Result<Bytes> {
    let mut stream = asking.client.stream(call, None).await?;
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("the template is valid"));
    let is_shown = std::io::stderr().is_terminal();
    while let Some(event) = stream.next().await? {
        match event.name.as_str() {
            "progress" if is_shown => {
                bar.set_message(line(&parse(event.data.as_bytes())?));
                bar.tick();
            }
            "done" => {
                bar.finish_and_clear();
                return Ok(event.data.into());
            }
            "error" => {
                bar.finish_and_clear();
                return Err(ClientError::from(parse::<ApiError>(event.data.as_bytes())?).into());
            }
            _ => {}
        }
    }
    output::hint("The agent went away. `virtuoso vm show` tells where the VM is");
    bail!("The migration's end is not known")
}

fn line(progress: &MigrationProgress) -> String {
    let MigrationProgress { phase, disk_bytes, memory_bytes, remaining_bytes, rate_bytes_s, dirty_bytes_s, .. } =
        progress;
    let estimate = progress.estimate_s.map(|seconds| format!(", {seconds} s to go")).unwrap_or_default();
    format!(
        "{phase}: disk {}, memory {} sent, {} left at {}/s, {}/s changed{estimate}",
        size(*disk_bytes),
        size(*memory_bytes),
        size(*remaining_bytes),
        size(*rate_bytes_s),
        size(*dirty_bytes_s)
    )
}

fn text(report: &MigrationReport) -> String {
    let frames = format!(
        "{} forwarded, {} buffered, {} lost, {} duplicated",
        report.frames_forwarded, report.frames_buffered, report.frames_lost, report.frames_duplicated
    );
    format!(
        "VM {} runs on host {}\n\
         total      {:.0} ms\n\
         downtime   {:.1} ms\n\
         blackout   {:.1} ms\n\
         frames     {frames}\n\
         memory     {}\n\
         disk       {}",
        report.name,
        report.host_name,
        report.total_ms,
        report.downtime_ms,
        report.blackout_ms,
        size(report.bytes.memory),
        size(report.bytes.disk),
    )
}
