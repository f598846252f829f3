//! Watches a VM's process from its start or adoption to its end, and says what became of it.

use super::cgroup::Cgroup;
use super::machine::{Live, Machine, News};
use super::process::{Exit, last_words};
use super::qmp::Event;
use super::stall;
use super::vms::Vms;
use crate::events::EventKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::{mpsc, watch};
use virtuoso_overlay::table::VmState;

/// How a VM's process ended, as far as QEMU's own words tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Shutdown {
    /// QEMU said nothing.
    #[default]
    Silent,
    /// The guest or its operator switched it off.
    Orderly,
    /// The guest's kernel gave up.
    Panic,
}

/// Follows a process until it has ended and all of it is cleaned up.
pub(super) async fn supervise(
    vms: Arc<Vms>,
    machine: Arc<Machine>,
    live: Live,
    mut events: mpsc::Receiver<Event>,
    ended: watch::Sender<bool>,
) {
    let mut shutdown = Shutdown::default();
    let exit = loop {
        tokio::select! {
            Some(event) = events.recv() => on_event(&vms, &machine, &event, &mut shutdown).await,
            exit = live.process.ended() => break exit,
        }
    };
    // The monitor ends with the process; its last words may still be on their way.
    while let Some(event) = events.recv().await {
        on_event(&vms, &machine, &event, &mut shutdown).await;
    }
    let wanted = live.ending.load(Ordering::SeqCst);
    let doom = live.doom.get().cloned();
    let crash = doom.or_else(|| crash(exit, shutdown, wanted, || last_words(&machine.files.log())));
    clean_up(&machine);
    if machine.is_moving() {
        // Whoever moves it knows whether it was the VM that ended, or a copy of it.
        machine.set_live(None);
        machine.tell_mover(News::Ended);
        live.console.end().await;
        ended.send_replace(true);
        return;
    }
    on_end(&vms, &machine, crash.clone()).await;
    live.console.end().await;
    ended.send_replace(true);
    if crash.is_some() && machine.begins_again(vms.now()) {
        tracing::info!(vm = %machine.spec().name, "A VM that crashed begins again");
        vms.start_in_background(machine);
    }
}

async fn on_event(vms: &Arc<Vms>, machine: &Arc<Machine>, event: &Event, shutdown: &mut Shutdown) {
    tracing::debug!(vm = %machine.spec().name, "QEMU says {} {}", event.event, event.data);
    if let Some(live) = machine.live() {
        // Nobody may be listening.
        live.events.send(event.clone()).ok();
    }
    machine.tell_mover(News::Said(event.clone(), vms.now()));
    match event.event.as_str() {
        "STOP" | "RESUME" if machine.is_moving() => {}
        "STOP" => vms.set_state(machine, VmState::Paused).await,
        "RESUME" => vms.set_state(machine, VmState::Running).await,
        _ if stall::is_pause(event) => stall::follow(vms, machine, Some(event)),
        "SHUTDOWN" => *shutdown = shutdown_of(event),
        _ => {}
    }
}

fn shutdown_of(event: &Event) -> Shutdown {
    match event.data.get("reason").and_then(|reason| reason.as_str()) {
        Some("guest-panic") => Shutdown::Panic,
        _ => Shutdown::Orderly,
    }
}

/// Why an end is a crash, if it is one.
fn crash(exit: Exit, shutdown: Shutdown, wanted: bool, words: impl FnOnce() -> String) -> Option<String> {
    let what = match (wanted, shutdown, exit) {
        (true, ..) | (false, Shutdown::Orderly, _) | (false, Shutdown::Silent, Exit::Code(0)) => return None,
        (false, Shutdown::Panic, _) => "The guest's kernel gave up".to_owned(),
        (false, Shutdown::Silent, Exit::Code(code)) => format!("QEMU ended with status {code}"),
        (false, Shutdown::Silent, Exit::Signal(signal)) => format!("QEMU was ended by signal {signal}"),
        (false, Shutdown::Silent, Exit::Unknown) => "QEMU ended without a word".to_owned(),
    };
    let words = words();
    Some(if words.is_empty() { what } else { format!("{what}: {words}") })
}

/// Removes what a process leaves.
pub(super) fn clean_up(machine: &Machine) {
    let spec = machine.spec();
    Cgroup::of(&spec).remove();
    for socket in [machine.files.qmp_socket(), machine.files.serial_socket(), machine.files.vnc_socket()] {
        // QEMU removes those that it made.
        std::fs::remove_file(socket).ok();
    }
}

pub(super) async fn on_end(vms: &Arc<Vms>, machine: &Arc<Machine>, crash: Option<String>) {
    let spec = machine.spec();
    machine.set_live(None);
    machine.set_trouble(None);
    vms.close_drive(spec.id.0);
    let kept = machine.keep(|record| {
        record.process = None;
        record.crash.clone_from(&crash);
    });
    if let Err(error) = kept {
        tracing::warn!(vm = %spec.name, "Can't keep what became of a VM: {error:#}");
    }
    let (id, name) = (spec.id, spec.name.to_string());
    match crash {
        Some(reason) => {
            tracing::warn!(vm = %spec.name, "A VM crashed: {reason}");
            vms.tell(EventKind::VmCrashed { vm: id, name, reason });
            vms.set_state(machine, VmState::Crashed).await;
        }
        None => {
            tracing::info!(vm = %spec.name, "A VM stopped");
            vms.tell(EventKind::VmStopped { vm: id, name });
            vms.set_state(machine, VmState::Stopped).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ends_that_nobody_wanted_are_crashes() {
        let why = |exit, shutdown, wanted| crash(exit, shutdown, wanted, || "no memory".into());
        assert_eq!(why(Exit::Code(0), Shutdown::Silent, false), None);
        assert_eq!(why(Exit::Unknown, Shutdown::Orderly, false), None);
        assert_eq!(why(Exit::Signal(9), Shutdown::Silent, true), None);
        let killed = why(Exit::Signal(9), Shutdown::Silent, false).unwrap();
        assert_eq!(killed, "QEMU was ended by signal 9: no memory");
        assert!(why(Exit::Code(1), Shutdown::Silent, false).unwrap().contains("status 1"));
        assert!(why(Exit::Code(0), Shutdown::Panic, false).is_some());
        assert!(crash(Exit::Unknown, Shutdown::Silent, false, String::new).unwrap().ends_with("word"));
    }

    #[test]
    fn reasons_are_read() {
        let event = |reason: &str| Event { event: "SHUTDOWN".into(), data: json!({"guest": true, "reason": reason}) };
        assert_eq!(shutdown_of(&event("guest-panic")), Shutdown::Panic);
        assert_eq!(shutdown_of(&event("guest-shutdown")), Shutdown::Orderly);
    }
}
