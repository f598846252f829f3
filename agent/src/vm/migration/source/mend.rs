//! Memory that the target still fetches goes on over another stream after its own broke.

use super::super::{Inbox, hypervisor, line};
use super::Task;
use super::line::Bridge;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::time::Instant;

/// How often QEMU is asked whether its stream broke. It says so too, but not to an agent that is being started.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Whether a stream is needed.
#[derive(Debug)]
pub(super) struct Mending {
    /// When QEMU is asked.
    pub(super) look_at: Instant,
    /// The target is being asked for one.
    is_asking: bool,
}

impl Default for Mending {
    fn default() -> Self {
        Self { look_at: Instant::now(), is_asking: false }
    }
}

impl Mending {
    /// Something has changed.
    pub(super) fn look_now(&mut self) {
        self.look_at = Instant::now();
    }
}

impl Task {
    /// Asks the target for another stream if the one that it fetched memory by broke.
    pub(super) async fn mend(&mut self) {
        self.mending.look_at = Instant::now() + LOOK_INTERVAL;
        let Some(live) = self.live().filter(|_| self.line.is_some() && !self.mending.is_asking) else { return };
        if !hypervisor::is_interrupted(&live.qmp).await {
            return;
        }
        // What is left of the old one: the target's end goes with it.
        self.bridges.clear();
        self.mending.is_asking = true;
        let (streams, peer, id) = (self.shared.streams.clone(), self.peer, self.id);
        let inbox = self.sender.clone();
        tokio::spawn(async move {
            let way = line::way_of_memory_again(&streams, peer, id).await;
            inbox.send(Inbox::Way(way)).await.ok();
        });
    }

    /// The target's QEMU waits for it, or can't be reached.
    pub(super) async fn on_way(&mut self, way: anyhow::Result<(OwnedFd, Bridge)>) {
        self.mending.is_asking = false;
        let Some(live) = self.live() else { return };
        let name = self.machine.spec().name;
        let again = async {
            let (way, bridge) = way?;
            self.bridges.push(bridge);
            anyhow::Ok(hypervisor::send_again(&live.qmp, way).await?)
        };
        match again.await {
            Ok(()) => tracing::info!(vm = %name, "The target goes on fetching memory over a new stream"),
            Err(error) => tracing::debug!(vm = %name, "The target can't fetch memory yet: {error:#}"),
        }
    }
}
