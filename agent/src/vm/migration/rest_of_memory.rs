//! What is left to fetch of a guest's memory while the guest runs already.

use super::super::machine::Machine;
use super::super::qmp::Event;
use super::Shared;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use virtuoso_overlay::migrate::MigrationId;

/// How often is looked whether the source still has it, while nothing comes.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Ends a guest whose memory can't come any more, because the source has nothing of it left: it would hang for ever.
/// Until then a stream that broke may be followed by another one.
pub(super) fn follow(shared: &Arc<Shared>, id: MigrationId, machine: Arc<Machine>) {
    let Some(live) = machine.live() else { return };
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
