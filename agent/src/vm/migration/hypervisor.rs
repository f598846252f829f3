//! What QEMU is told in a migration, and what its events mean. The sequences are those that were tried and measured;
//! the order matters.

use super::super::machine::{Live, News};
use super::super::moving;
use super::super::qmp::{Event, Qmp, QmpError};
use super::super::store::Files;
use super::valve::{ALL, Shut};
use crate::netdev::Rest;
use anyhow::Context;
use serde_json::{Value, json};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::time::Duration;
use virtuoso_engine::GuestPorts;
use virtuoso_overlay::migrate::{PAUSE_TIME_MAX, SourceInput, TargetInput};

/// The job that copies the disk, the node it writes to, and the export at the target.
const JOB: &str = "move0";
const NODE: &str = "moved0";
const EXPORT: &str = "disk0";
const DISK: &str = "disk0";
/// What QEMU calls the way that its memory takes.
const WAY: &str = "memory0";

/// When QEMU pauses the guest by itself: when it can send in this time what is left. The least that it takes, because
/// the agent means to be faster: QEMU loses frames that come while it pauses a guest.
const DOWNTIME_LIMIT_MS: u64 = 1;
/// When the agent has the guest paused: when what is left can be sent in this time.
const PAUSE_BELOW: Duration = Duration::from_millis(20);
/// How long the first pass may take after which the guest is paused though nobody knows what it has changed meanwhile.
const TRY_WITHIN: Duration = Duration::from_secs(2);
/// A guest is quiet that changes less in a pass than can be sent in this time. As much again may have changed until it
/// is paused.
const QUIET: Duration = Duration::from_millis(PAUSE_TIME_MAX.as_millis() as u64 / 2);
/// Passes after which it may be given up to copy the memory of a guest that is not quiet.
const ROUNDS_MIN: u64 = 4;
/// How often the agent looks how much is left: the sooner, the less that is.
const LOOK_MIN: Duration = Duration::from_millis(2);
const LOOK_MAX: Duration = Duration::from_millis(250);
/// Bytes of empty memory that QEMU passes in a second at most. It costs a look and no sending, and a display has 16 MiB
/// of it at the very end.
const EMPTY_RATE: u64 = 8 << 30;
/// Bytes per second at which memory may be sent before it is known how fast it is.
const RATE_MIN: u64 = 256 << 20;
/// Bytes that QEMU may send between two looks in any case: some pages.
const ALLOWANCE_MIN: u64 = 16 << 10;
/// How long a guest may take to take all frames before it is paused. It runs meanwhile, but hears nothing new: one that
/// is not quicker gets too little of a processor, or takes no frames at all.
const DRAIN_TIME_MAX: Duration = PAUSE_TIME_MAX;
/// How often the agent looks for that without a break. Each time QEMU's main loop has gone round, which is some 100 us.
const DRAIN_LOOKS: u32 = 100;
/// Time between two later looks, which must not keep QEMU from what it is to do.
const DRAIN_BREAK: Duration = Duration::from_millis(1);
/// Bytes per second without a limit of the operator's: more than any link has.
const BANDWIDTH_MAX: u64 = 10 << 30;
/// How long QEMU may take to notice that a stream of memory was closed.
const NOTICE_TIME_MAX: Duration = Duration::from_secs(5);
/// How long QEMU may take to give a migration up.
const CANCEL_TIME_MAX: Duration = Duration::from_secs(10);
const CANCEL_POLL: Duration = Duration::from_millis(5);

/// What may be sent when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) post_copy: bool,
    pub(super) bandwidth: Option<u64>,
}

/// How far QEMU has come with the memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    /// Memory is being copied while the guest runs.
    pub(super) is_active: bool,
    pub(super) transferred: u64,
    pub(super) remaining: u64,
    pub(super) rate: u64,
    pub(super) dirty: u64,
    pub(super) rounds: u64,
    /// How long it has been at it.
    pub(super) elapsed: Duration,
}

impl Figures {
    /// How much may be left when the guest is to be paused.
    fn pause_below(&self) -> u64 {
        bytes_in(self.rate, PAUSE_BELOW)
    }
}

/// Has QEMU at the source copy the disk to the socket.
pub(super) async fn mirror(qmp: &Qmp, files: &Files, bandwidth: Option<u64>) -> Result<(), QmpError> {
    // An earlier one may have been given up by an agent that did not see its end.
    end_mirror(qmp).await;
    let server = json!({"type": "unix", "path": files.mirror_socket()});
    let node = json!({"driver": "nbd", "node-name": NODE, "server": server, "export": EXPORT});
    qmp.run_with("blockdev-add", node).await?;
    // A copy that ended while QEMU waits for it, to pause the guest, would leave its filter above the disk for good
    // (seen with QEMU 7.2). So it stops at an error, and is ended later.
    let mut job = json!({
        "job-id": JOB, "device": DISK, "target": NODE, "sync": "top", "copy-mode": "write-blocking",
        "on-target-error": "stop",
    });
    if let Some(bandwidth) = bandwidth {
        job["speed"] = json!(bandwidth);
    }
    qmp.run_with("blockdev-mirror", job).await.map(|_| ())
}

/// Has the copy of the disk come to its end.
pub(super) async fn finish_mirror(qmp: &Qmp) -> Result<(), QmpError> {
    qmp.run_with("block-job-cancel", json!({"device": JOB})).await.map(|_| ())
}

/// Lets go of the target's disk.
pub(super) async fn release_mirror(qmp: &Qmp) -> Result<(), QmpError> {
    qmp.run_with("blockdev-del", json!({"node-name": NODE})).await.map(|_| ())
}

/// Has QEMU at the source send the memory by `way`.
pub(super) async fn send_memory(qmp: &Qmp, way: OwnedFd, terms: Terms) -> Result<(), QmpError> {
    capabilities(qmp, terms.post_copy).await?;
    let parameters = json!({
        "max-bandwidth": terms.bandwidth.unwrap_or(BANDWIDTH_MAX),
        "max-postcopy-bandwidth": terms.bandwidth.unwrap_or_default(),
        "downtime-limit": DOWNTIME_LIMIT_MS,
    });
    qmp.run_with("migrate-set-parameters", parameters).await?;
    qmp.give(WAY, way).await?;
    qmp.run_with("migrate", json!({"uri": format!("fd:{WAY}")})).await.map(drop)
}

async fn capabilities(qmp: &Qmp, post_copy: bool) -> Result<(), QmpError> {
    let switch = |name: &str, state: bool| json!({"capability": name, "state": state});
    let capabilities = json!([
        switch("events", true),
        switch("pause-before-switchover", true),
        switch("postcopy-ram", post_copy),
        // Where post-copy is no way out, the guest is slowed down until its memory can be copied.
        switch("auto-converge", !post_copy),
    ]);
    qmp.run_with("migrate-set-capabilities", json!({"capabilities": capabilities})).await.map(|_| ())
}

/// Has QEMU send what is left once the guest runs at the target.
pub(super) async fn begin_post_copy(qmp: &Qmp) -> Result<(), QmpError> {
    qmp.run("migrate-start-postcopy").await.map(|_| ())
}

/// Whether the stream broke from which the guest at the target fetches its memory: both QEMUs wait for another one.
pub(super) async fn is_interrupted(qmp: &Qmp) -> bool {
    status(qmp).await.is_ok_and(|status| status == "postcopy-paused")
}

/// Has QEMU at the source send by another `way` what the target still fetches.
pub(super) async fn send_again(qmp: &Qmp, way: OwnedFd) -> Result<(), QmpError> {
    qmp.give(WAY, way).await?;
    qmp.run_with("migrate", json!({"uri": format!("fd:{WAY}"), "resume": true})).await.map(drop)
}

/// Has QEMU at the target wait at its socket for what it still fetches. Its main loop may hang meanwhile, because it
/// needs a page itself.
pub(super) async fn receive_again(live: &Live, files: &Files) -> anyhow::Result<()> {
    let mut events = live.events.subscribe();
    match listen_again(&live.qmp, files).await {
        // It may not know yet that the stream broke.
        Err(QmpError::Refused { .. }) => {}
        other => return Ok(other?),
    }
    live.qmp.run_beside("migrate-pause", json!({})).await?;
    let is_paused = async {
        while events.recv().await?.data["status"] != "postcopy-paused" {}
        anyhow::Ok(())
    };
    tokio::time::timeout(NOTICE_TIME_MAX, is_paused).await.context("QEMU does not let go of a stream")??;
    Ok(listen_again(&live.qmp, files).await?)
}

async fn listen_again(qmp: &Qmp, files: &Files) -> Result<(), QmpError> {
    let uri = format!("unix:{}", files.memory_socket().display());
    qmp.run_beside("migrate-recover", json!({"uri": uri})).await.map(drop)
}

/// Has QEMU write the last bytes.
pub(super) async fn go_on(qmp: &Qmp) -> Result<(), QmpError> {
    qmp.run_with("migrate-continue", json!({"state": "pre-switchover"})).await.map(|_| ())
}

/// How far the memory is.
pub(super) async fn figures(qmp: &Qmp) -> Option<Figures> {
    let info = qmp.run("query-migrate").await.ok()?;
    let ram = &info["ram"];
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let page = number(&ram["page-size"]).max(1);
    Some(Figures {
        is_active: info["status"] == "active",
        transferred: number(&ram["transferred"]),
        remaining: number(&ram["remaining"]),
        rate: (ram["mbps"].as_f64().unwrap_or_default() * 125_000.0) as u64,
        dirty: number(&ram["dirty-pages-rate"]).saturating_mul(page),
        rounds: number(&ram["dirty-sync-count"]),
        elapsed: Duration::from_millis(number(&info["total-time"])),
    })
}

/// What the guest had changed each time that QEMU looked, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changes {
    last: Option<u64>,
    before: Option<u64>,
}

impl Changes {
    /// QEMU has looked again.
    pub(super) fn see(&mut self, bytes: u64) {
        (self.before, self.last) = (self.last, Some(bytes));
    }

    /// Whether the memory does not come to an end by copying it again: it is much, and hardly less than before.
    pub(super) fn are_diverging(&self, figures: &Figures) -> bool {
        let (Some(last), Some(before)) = (self.last, self.before) else { return false };
        figures.rounds >= ROUNDS_MIN && last > bytes_in(figures.rate, QUIET) && last > before / 4 * 3
    }

    /// Whether what is left can be sent while the guest is paused. In the first pass nobody knows what it has changed
    /// meanwhile; it is worth a try if that pass was short.
    pub(super) fn are_converging(&self, figures: &Figures) -> bool {
        let is_quiet = match self.last {
            Some(bytes) => bytes <= bytes_in(figures.rate, QUIET),
            None => figures.elapsed <= TRY_WITHIN,
        };
        figures.is_active && figures.rate > 0 && is_quiet && figures.remaining <= figures.pause_below()
    }
}

/// When to look again: before so little can be left that the guest has to be paused.
pub(super) fn next_look(figures: &Figures) -> Duration {
    if !figures.is_active {
        return LOOK_MAX;
    }
    let ahead = figures.remaining.saturating_sub(figures.pause_below());
    Duration::from_micros(ahead / (EMPTY_RATE / 1_000_000)).clamp(LOOK_MIN, LOOK_MAX)
}

/// How much QEMU may send until the agent has looked again: it must not come unseen to where the guest is to be paused.
/// A rate that is measured may be that of empty memory.
pub(super) fn allowance(figures: &Figures) -> u64 {
    if !figures.is_active {
        return ALL;
    }
    let ahead = figures.remaining.saturating_sub(figures.pause_below());
    let in_time = bytes_in(figures.rate.max(RATE_MIN), 2 * next_look(figures));
    ahead.min(in_time).max(bytes_in(figures.rate, LOOK_MIN)).max(ALLOWANCE_MIN)
}

fn bytes_in(rate: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(rate) * time.as_micros() / 1_000_000).unwrap_or(u64::MAX)
}

/// Waits until the guest has taken what is on its way to it: queues, each with the index of its interface. QEMU has one
/// frame in its own hands for which the guest has no room, and drops that when it pauses the guest. So a frame for
/// nobody goes last: when it is gone, no other can be that one.
pub(super) async fn drain(qmp: &Qmp, ports: &mut GuestPorts, queues: &[(Rest, u32)]) -> Result<(), QmpError> {
    // What an agent has written to the bridge is there when it has written it.
    for (queue, index) in queues {
        if let Err(error) = queue.put_last(ports, *index) {
            tracing::debug!("Can't put a frame behind all others: {error}");
        }
    }
    let is_taken = || queues.iter().all(|(queue, _)| queue.is_empty().unwrap_or(true));
    let deadline = tokio::time::Instant::now() + DRAIN_TIME_MAX;
    let mut looks = 0;
    while !is_taken() && tokio::time::Instant::now() < deadline {
        if looks >= DRAIN_LOOKS {
            tokio::time::sleep(DRAIN_BREAK).await;
        }
        if qmp.run("query-status").await?["running"] == false {
            // QEMU was faster: the guest takes nothing any more.
            break;
        }
        looks += 1;
    }
    Ok(())
}

/// Pauses the guest. Memory is sent again as soon as it stands, while QEMU still writes what the disk's caches have.
pub(super) async fn pause(live: &Live, shut: Shut) -> Result<(), QmpError> {
    let mut events = live.events.subscribe();
    let stands = async move { while events.recv().await.is_ok_and(|event| event.event != "STOP") {} };
    let mut stopping = pin!(live.qmp.run("stop"));
    tokio::select! {
        stopped = &mut stopping => return stopped.map(drop),
        () = stands => drop(shut),
    }
    stopping.await.map(drop)
}

/// Why the copy of the disk goes no further.
pub(super) async fn why_stuck(qmp: &Qmp) -> &'static str {
    let jobs = qmp.run("query-block-jobs").await.unwrap_or_default();
    let job = jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["device"] == JOB));
    match job.and_then(|job| job["io-status"].as_str()) {
        Some("nospace") => "the target has no space for it",
        _ => "it can't be read here, or not be written at the target",
    }
}

/// Lets a paused guest go on; false if QEMU is at the last bytes already.
pub(super) async fn unpause(qmp: &Qmp) -> Result<bool, QmpError> {
    match qmp.run("cont").await {
        Ok(_) => Ok(true),
        Err(QmpError::Refused { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Ends what runs of a migration at the source, and lets the guest run. QEMU refuses that once memory is fetched: it
/// waits for the target for ever.
pub(super) async fn take_back(live: &Live) -> Result<(), QmpError> {
    let qmp = &live.qmp;
    if status(qmp).await?.starts_with("postcopy") {
        let (command, reason) = ("migrate_cancel".into(), "some of the memory is at the target".into());
        return Err(QmpError::Refused { command, reason });
    }
    qmp.run("migrate_cancel").await?;
    let deadline = tokio::time::Instant::now() + CANCEL_TIME_MAX;
    while is_under_way(&status(qmp).await?) && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(CANCEL_POLL).await;
    }
    end_mirror(qmp).await;
    qmp.run("cont").await.map(|_| ())
}

/// Ends a copy of the disk, whatever has become of it; there may be none.
async fn end_mirror(qmp: &Qmp) {
    let deadline = tokio::time::Instant::now() + CANCEL_TIME_MAX;
    // Refused to one that is ending by itself, which takes its time too.
    qmp.run_with("block-job-cancel", json!({"device": JOB, "force": true})).await.ok();
    while has_mirror(qmp).await && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(CANCEL_POLL).await;
    }
    release_mirror(qmp).await.ok();
}

/// Whether a copy of the disk is under way. A QEMU that does not answer is still busy with it.
async fn has_mirror(qmp: &Qmp) -> bool {
    match qmp.run("query-jobs").await {
        Ok(jobs) => jobs.as_array().is_some_and(|jobs| jobs.iter().any(|job| job["id"] == JOB)),
        Err(QmpError::Timeout) => true,
        Err(_) => false,
    }
}

async fn status(qmp: &Qmp) -> Result<String, QmpError> {
    let info = qmp.run("query-migrate").await?;
    Ok(info["status"].as_str().unwrap_or("none").to_owned())
}

fn is_under_way(status: &str) -> bool {
    matches!(status, "setup" | "active" | "cancelling" | "pre-switchover" | "device" | "wait-unplug")
}

/// What an agent that was started again finds at a source that has given its VM away.
pub(super) async fn what_is_left(qmp: &Qmp) -> SourceInput {
    match status(qmp).await.as_deref() {
        Ok(status) if status.starts_with("postcopy") => SourceInput::PostCopyBegun,
        Ok(_) => SourceInput::Sent,
        Err(_) => SourceInput::Ended,
    }
}

/// What an event of the source's QEMU means.
pub(super) enum SourceNews {
    Input(SourceInput),
    /// The copy of the disk has ended, because it was asked to or by itself.
    MirrorEnded(Option<String>),
    /// The copy of the disk goes no further.
    MirrorStuck,
    /// Memory that the target fetches goes nowhere: its stream broke.
    MemoryCut,
    /// Memory is being sent.
    MemoryFlows,
    /// What the guest has changed in the memory is known anew.
    Pass,
    Nothing,
}

/// Reads an event of the source's QEMU.
pub(super) async fn source_news(qmp: Option<&Qmp>, news: &News) -> SourceNews {
    let event = match news {
        News::Ended => return SourceNews::Input(SourceInput::Ended),
        News::Said(event, _) => event,
    };
    let is_ours = event.data["device"] == JOB;
    match event.event.as_str() {
        "STOP" => SourceNews::Input(SourceInput::Stopped),
        "BLOCK_JOB_READY" if is_ours => SourceNews::Input(SourceInput::DiskReady),
        "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED" if is_ours => {
            SourceNews::MirrorEnded(event.data["error"].as_str().map(str::to_owned))
        }
        "BLOCK_JOB_ERROR" if is_ours => SourceNews::MirrorStuck,
        "MIGRATION_PASS" => SourceNews::Pass,
        "MIGRATION" => match event.data["status"].as_str() {
            Some("active") => SourceNews::MemoryFlows,
            Some("pre-switchover") => SourceNews::Input(SourceInput::Paused),
            Some("completed") => SourceNews::Input(SourceInput::Sent),
            Some("postcopy-active") => SourceNews::Input(SourceInput::PostCopyBegun),
            Some("postcopy-paused") => SourceNews::MemoryCut,
            Some("failed") => SourceNews::Input(SourceInput::Broken(why(qmp).await)),
            _ => SourceNews::Nothing,
        },
        _ => SourceNews::Nothing,
    }
}

async fn why(qmp: Option<&Qmp>) -> String {
    let told = match qmp {
        Some(qmp) => qmp.run("query-migrate").await.ok(),
        None => None,
    };
    let text = told.as_ref().and_then(|info| info["error-desc"].as_str());
    text.map_or_else(|| "QEMU could not send the memory".into(), |text| format!("QEMU: {text}"))
}

/// Has a QEMU that waits take disk and memory at its sockets; whether it can fetch memory while the guest runs.
pub(super) async fn await_arrival(qmp: &Qmp, files: &Files, has_disk: bool, post_copy: bool) -> Result<bool, QmpError> {
    let post_copy = match post_copy {
        true => match capabilities(qmp, true).await {
            Ok(()) => true,
            // This machine has no userfaultfd for QEMU.
            Err(QmpError::Refused { .. }) => false,
            Err(error) => return Err(error),
        },
        false => false,
    };
    if !post_copy {
        capabilities(qmp, false).await?;
    }
    if has_disk {
        let address = json!({"type": "unix", "data": {"path": files.mirror_socket()}});
        qmp.run_with("nbd-server-start", json!({"addr": address})).await?;
        let export = json!({"type": "nbd", "id": "move0", "node-name": DISK, "name": EXPORT, "writable": true});
        qmp.run_with("block-export-add", export).await?;
    }
    let uri = format!("unix:{}", files.memory_socket().display());
    qmp.run_with("migrate-incoming", json!({"uri": uri})).await?;
    Ok(post_copy)
}

/// Closes what the disk came in by.
pub(super) async fn close_arrival(qmp: &Qmp) {
    // Without a disk there is no server.
    qmp.run_with("block-export-del", json!({"id": "move0", "mode": "hard"})).await.ok();
    qmp.run("nbd-server-stop").await.ok();
}

/// Removes the socket by which the disk came in; that of the memory went when it was connected.
pub(super) fn forget_socket(files: &Files) {
    std::fs::remove_file(files.mirror_socket()).ok();
}

/// Whether a QEMU that waited has all that its guest needs. One that `may_run` it and does not answer waits for a page.
pub(super) async fn is_whole(qmp: &Qmp, may_run: bool) -> bool {
    let status = moving::status(qmp, may_run).await;
    status.is_ok_and(|status| !matches!(status.as_str(), "" | "inmigrate" | "prelaunch"))
}

/// What an event of the target's QEMU means.
pub(super) fn target_news(news: &News) -> Option<TargetInput> {
    let event: &Event = match news {
        News::Ended => return Some(TargetInput::Ended),
        News::Said(event, _) => event,
    };
    match (event.event.as_str(), event.data["status"].as_str()) {
        ("MIGRATION", Some("completed")) => Some(TargetInput::Loaded { is_whole: true }),
        ("MIGRATION", Some("postcopy-active")) => Some(TargetInput::Loaded { is_whole: false }),
        ("MIGRATION", Some("postcopy-recover")) => Some(TargetInput::MemoryFlows),
        ("MIGRATION", Some("postcopy-paused")) => Some(TargetInput::MemoryCut),
        ("MIGRATION", Some("failed")) => Some(TargetInput::Broken("QEMU could not take the memory".into())),
        _ => None,
    }
}

/// Whether a guest at the target waits for memory whose stream broke: only then QEMU takes another one. It needs no
/// main loop for that.
pub(super) async fn is_cut(qmp: &Qmp, files: &Files) -> bool {
    listen_again(qmp, files).await.is_ok()
}

/// Whether a guest at the target still fetches memory. One whose QEMU does not answer waits for a page in its main
/// loop.
pub(super) async fn is_fetching(qmp: &Qmp) -> bool {
    match status(qmp).await {
        Ok(status) => status.starts_with("postcopy"),
        Err(error) => matches!(error, QmpError::Timeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_paused_when_little_is_left_and_looked_at_before() {
        let figures = |remaining| Figures { is_active: true, rate: 1 << 30, remaining, ..Figures::default() };
        let unknown = Changes::default();
        assert!(unknown.are_converging(&figures(20 << 20)) && !unknown.are_converging(&figures(21 << 20)));
        assert!(!unknown.are_converging(&Figures { elapsed: Duration::from_secs(9), ..figures(0) }), "who knows");
        assert!(!unknown.are_converging(&Figures { is_active: false, ..figures(0) }), "QEMU has paused it by itself");
        assert!(!unknown.are_converging(&Figures { rate: 0, ..figures(0) }), "nothing is known yet");
        assert_eq!(next_look(&figures(32 << 20)), LOOK_MIN);
        assert_eq!(next_look(&figures(u64::MAX)), LOOK_MAX);
        let empty = Duration::from_millis(100);
        assert!(next_look(&figures(bytes_in(EMPTY_RATE, empty))) <= empty);
    }

    #[test]
    fn qemu_does_not_get_unseen_to_where_the_guest_is_paused() {
        let rate = 1 << 30;
        let below = bytes_in(rate, PAUSE_BELOW);
        let figures = |ahead: u64| Figures { is_active: true, rate, remaining: below + ahead, ..Figures::default() };
        for ahead in [1 << 20, 16 << 20, 1 << 30, 1 << 40] {
            let figures = figures(ahead);
            let allowed = allowance(&figures);
            assert!(
                allowed <= ahead.max(bytes_in(rate, LOOK_MIN)) && allowed <= bytes_in(rate, 2 * LOOK_MAX),
                "{ahead}: {allowed}"
            );
            assert!(ahead < 2 << 20 || allowed >= bytes_in(rate, next_look(&figures)), "it is not slowed down");
        }
        assert_eq!(allowance(&figures(0)), bytes_in(rate, LOOK_MIN), "it goes on, a look at a time");
        assert_eq!(allowance(&Figures { is_active: true, ..Figures::default() }), ALLOWANCE_MIN);
        assert_eq!(allowance(&Figures::default()), ALL, "the guest stands, or fetches what it needs");
    }

    #[test]
    fn what_becomes_of_memory_is_read_at_the_target() {
        let event = |status: &str| Event { event: "MIGRATION".into(), data: json!({"status": status}) };
        let news = |status| target_news(&News::Said(event(status), virtuoso_overlay::time::Instant(0)));
        assert_eq!(news("completed"), Some(TargetInput::Loaded { is_whole: true }));
        assert_eq!(news("postcopy-active"), Some(TargetInput::Loaded { is_whole: false }));
        assert_eq!(news("postcopy-paused"), Some(TargetInput::MemoryCut));
        assert_eq!(news("postcopy-recover"), Some(TargetInput::MemoryFlows));
        assert_eq!(news("active"), None);
        assert_eq!(target_news(&News::Ended), Some(TargetInput::Ended));
    }

    #[test]
    fn memory_converges_as_long_as_less_changes_each_time() {
        let figures = Figures { is_active: true, rate: 1 << 30, rounds: ROUNDS_MIN, ..Figures::default() };
        let mut changes = Changes::default();
        for (megabytes, converges, diverges) in
            [(900, false, false), (600, false, false), (500, false, true), (300, false, false), (140, true, false)]
        {
            changes.see(megabytes << 20);
            let seen = (changes.are_converging(&figures), changes.are_diverging(&figures));
            assert_eq!(seen, (converges, diverges), "{megabytes}");
        }
        changes.see(150 << 20);
        assert!(!changes.are_diverging(&figures), "little enough");
    }
}
