//! VMs that QEMU has paused because their disk could not be read or written. QEMU keeps what it could not do and tries
//! it again when the VM goes on, so the guest sees a disk that was slow for a while, and no error.
//!
//! Not by the monitor's `stop`: that one waits for all reads, and QEMU with it.

use super::machine::{self, Live, Machine};
use super::qmp::Event;
use super::vms::Vms;
use crate::events::EventKind;
use crate::image::Supply;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A disk that fails again so soon after it was tried will not be better at once.
const AT_ONCE: Duration = Duration::from_secs(2);
/// How often a disk is tried again whose host has trouble with it, such as no space. Nothing tells when that is over.
const TRY_INTERVAL: Duration = Duration::from_secs(15);

/// What is known of a VM's pauses.
#[derive(Debug, Default)]
pub(super) struct Stall {
    /// Somebody looks after it.
    followed: bool,
    tried_at: Option<Instant>,
}

/// Looks after a VM that QEMU has paused, until it goes on; `trouble` is what QEMU said.
pub(super) fn follow(vms: &Arc<Vms>, machine: &Arc<Machine>, trouble: Option<&Event>) {
    let Some(live) = machine.live() else { return };
    let is_repeated = {
        let mut stall = machine.stall();
        if std::mem::replace(&mut stall.followed, true) {
            return;
        }
        stall.tried_at.is_some_and(|at| at.elapsed() < AT_ONCE)
    };
    let trouble = trouble.map(|event| Trouble::of(event, is_repeated));
    let (vms, machine) = (vms.clone(), machine.clone());
    tokio::spawn(async move {
        let mut ending = live.clone();
        tokio::select! {
            () = go_on_when_possible(&vms, &machine, &live, trouble) => {}
            () = ending.wait_ended() => machine.stall().followed = false,
        }
    });
}

/// Whether an event of QEMU says that it has paused the VM.
pub(super) fn is_pause(event: &Event) -> bool {
    event.event == "BLOCK_IO_ERROR" && event.data.get("action").and_then(|action| action.as_str()) == Some("stop")
}

/// What QEMU says of a disk.
#[derive(Debug, PartialEq, Eq)]
struct Trouble {
    /// It is not the image below it that is missing.
    is_own: bool,
    words: String,
}

impl Trouble {
    fn of(event: &Event, is_repeated: bool) -> Self {
        let text = |key: &str| event.data.get(key).and_then(|value| value.as_str()).unwrap_or("?");
        let nospace = event.data.get("nospace").and_then(serde_json::Value::as_bool) == Some(true);
        let words = match nospace {
            true => "there is no space for what it writes to its disk".to_owned(),
            false => format!("it can't {} its disk: {}", text("operation"), text("reason")),
        };
        Self { is_own: nospace || is_repeated, words }
    }
}

async fn go_on_when_possible(vms: &Arc<Vms>, machine: &Arc<Machine>, live: &Live, trouble: Option<Trouble>) {
    let spec = machine.spec();
    let (vm, name) = (spec.id, spec.name.to_string());
    let pause = |reason: String| {
        tracing::warn!(vm = %name, "A VM is paused: {reason}");
        machine.set_trouble(Some(machine::Trouble::Disk(reason.clone())));
        vms.tell(EventKind::VmPaused { vm, name: name.clone(), reason });
    };
    let mut was_told = true;
    let mut supply = live.base.as_ref().map(|base| base.supply());
    let lost = supply.as_mut().and_then(|supply| match &*supply.borrow_and_update() {
        Supply::Lost(reason) => Some(reason.clone()),
        Supply::Flowing => None,
    });
    match (supply, lost, trouble) {
        (Some(mut supply), Some(reason), _) => {
            let image = spec.base().map(|base| base.name.to_string()).unwrap_or_default();
            pause(format!("nobody provides image {image} now: {reason}"));
            // It ends with the VM's process, as this does.
            supply.wait_for(|supply| *supply == Supply::Flowing).await.ok();
        }
        (_, None, Some(Trouble { is_own: true, words })) => {
            pause(words);
            tokio::time::sleep(TRY_INTERVAL).await;
        }
        // What was missing has come meanwhile.
        _ => was_told = false,
    }
    {
        let mut stall = machine.stall();
        *stall = Stall { followed: false, tried_at: Some(Instant::now()) };
    }
    machine.set_trouble(None);
    match live.qmp.run("cont").await {
        Ok(_) if was_told => {
            tracing::info!(vm = %name, "A VM goes on");
            vms.tell(EventKind::VmResumed { vm, name });
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(vm = %name, "Can't let a VM go on: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(nospace: bool, action: &str) -> Event {
        let data = json!({"action": action, "nospace": nospace, "operation": "read", "reason": "Input/output error"});
        Event { event: "BLOCK_IO_ERROR".into(), data }
    }

    #[test]
    fn trouble_is_read() {
        assert!(is_pause(&event(false, "stop")) && !is_pause(&event(false, "report")));
        let of = |nospace, is_repeated| Trouble::of(&event(nospace, "stop"), is_repeated);
        assert_eq!(of(false, false).words, "it can't read its disk: Input/output error");
        assert!(!of(false, false).is_own && of(true, false).is_own && of(false, true).is_own);
        assert!(of(true, false).words.contains("no space"));
    }
}
