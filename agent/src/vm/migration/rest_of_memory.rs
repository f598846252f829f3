//! What is left to fetch of a guest's memory while the guest runs already.

use super::super::machine::{Live, Machine, News};
use super::super::qmp::Event;
use super::Shared;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc};
use virtuoso_overlay::migrate::MigrationId;

/// How often is looked whether the source still has it, while nothing comes.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Waits until a guest that was told to go on does so; false if its QEMU ends before. It needs some of the memory for
/// its devices first.
pub(super) async fn await_begin(live: &Live, events: &mut broadcast::Receiver<Event>) -> bool {
    let mut ended = live.clone();
    loop {
        tokio::select! {
            event = next(events) => match event {
                Some(event) if event.event == "RESUME" => return true,
                Some(_) => {}
                None => return false,
            },
            () = ended.wait_ended() => break,
        }
    }
    // All that it has said is there.
    loop {
        match events.try_recv() {
            Ok(event) if event.event == "RESUME" => return true,
            Ok(_) | Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return false,
        }
    }
}

/// Ends a guest whose memory can't come any more, because the source has nothing of it left: it would hang for ever.
/// Until then a stream that broke may be followed by another one. The migration's task hears of an end by `news`.
pub(super) fn follow(shared: &Arc<Shared>, id: MigrationId, machine: Arc<Machine>, news: mpsc::Sender<News>) {
    let Some(live) = machine.live() else { return };
    let mut ended = live.clone();
    let (shared, mut events) = (shared.clone(), live.events.subscribe());
    tokio::spawn(async move {
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        let mut is_broken = false;
        loop {
            tokio::select! {
                event = next(&mut events) => match event.as_ref().and_then(status) {
                    Some("postcopy-paused") => is_broken = true,
                    Some("postcopy-active" | "postcopy-recover") => is_broken = false,
                    Some("completed") => return,
                    _ if event.is_none() => return,
                    _ => {}
                },
                () = ended.wait_ended() => {
                    // The migration may be done.
                    news.send(News::Ended).await.ok();
                    return;
                }
                _ = looks.tick(), if is_broken => {
                    if !shared.sessions().contains_key(&id) {
                        tracing::warn!(
                            vm = %machine.spec().name,
                            "The rest of a VM's memory is lost: its QEMU at the host that it came from has ended. It can \
                             only be started anew"
                        );
                        return live.process.kill();
                    }
                }
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

fn status(event: &Event) -> Option<&str> {
    event.data["status"].as_str().filter(|_| event.event == "MIGRATION")
}
