//! What is left to fetch of a guest's memory while the guest runs already.

use super::super::machine::{Live, Machine, News};
use super::super::qmp::Event;
use super::Shared;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc};

/// How long a guest may take to begin, as far as only a host that is gone can hold it up: after that it counts as one
/// that runs, and hangs.
const BEGIN_TIME_MAX: Duration = Duration::from_secs(30);

/// Waits until a guest that was told to go on does so; an error if its QEMU ends before. It needs some of the memory
/// for its devices first.
pub(super) async fn await_begin(mut live: Live, mut events: broadcast::Receiver<Event>) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + BEGIN_TIME_MAX;
    loop {
        tokio::select! {
            event = next(&mut events) => match event {
                Some(event) if event.event == "RESUME" => return Ok(()),
                Some(_) => {}
                None => break,
            },
            () = live.wait_ended() => break,
            () = tokio::time::sleep_until(deadline) => return Ok(()),
        }
    }
    // All that it has said is there.
    loop {
        match events.try_recv() {
            Ok(event) if event.event == "RESUME" => return Ok(()),
            Ok(_) | Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => {
                return Err("the line broke before the guest could run".into());
            }
        }
    }
}

/// Has the task of a migration hear what becomes of the memory, and of the guest, until all of it is there: the VM is
/// this host's own by now, and its process is nobody else's business.
pub(super) fn follow(shared: &Arc<Shared>, machine: &Machine, news: mpsc::Sender<News>) {
    let Some(live) = machine.live() else { return };
    let (shared, mut ended, mut events) = (shared.clone(), live.clone(), live.events.subscribe());
    tokio::spawn(async move {
        loop {
            let told = tokio::select! {
                event = next(&mut events) => match event {
                    Some(event) => News::Said(event, shared.vms.now()),
                    None => News::Ended,
                },
                () = ended.wait_ended() => News::Ended,
            };
            let is_last = match &told {
                News::Said(event, _) if event.event != "MIGRATION" => continue,
                News::Said(event, _) => event.data["status"] == "completed",
                News::Ended => true,
            };
            // The migration may be done.
            if news.send(told).await.is_err() || is_last {
                return;
            }
        }
    });
}

/// The next event; nothing after the last one.
async fn next(events: &mut broadcast::Receiver<Event>) -> Option<Event> {
    loop {
        match events.recv().await {
            Ok(event) => return Some(event),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return None,
        }
    }
}
