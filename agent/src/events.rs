//! What happened: typed events with increasing ids, the last of them kept, so that a watcher that lost its connection
//! goes on where it was. Bounded: a watcher that is too slow learns how many events it missed, and never slows the
//! agent.

use crate::control::model::MigrationReport;
use crate::text::Text;
use crate::timestamp;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use utoipa::ToSchema;
use virtuoso_overlay::ids::{Digest, HostId, Mac, VmId};

/// Events kept for those who come back: a few minutes of a busy swarm, about a megabyte.
const RING_EVENTS_MAX: usize = 4096;

/// Events per second for which ids stay in order over a restart: ids start at the second of the start times this.
/// 2^20 keeps them below 2^53 until the year 2242, so that JavaScript reads them exactly.
const IDS_PER_SECOND: u64 = 1 << 20;

/// Something that happened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Higher than all before, also over restarts of the agent.
    pub id: u64,
    /// RFC 3339.
    pub time: String,
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    /// The agent is ready.
    AgentStarted { version: String },
    /// The agent says goodbye.
    AgentStopping,
    /// The configuration was read again.
    ConfigReloaded { applied: Vec<String>, needs_restart: Vec<String> },
    /// Events are missing here: the watcher was too slow or away for too long. Absent count: the agent restarted.
    Missed { count: Option<u64> },
    /// A control connection opened.
    PeerConnected {
        #[schema(value_type = String)]
        host: Text<HostId>,
        address: String,
    },
    /// A control connection closed.
    PeerDisconnected {
        #[schema(value_type = String)]
        host: Text<HostId>,
    },
    /// No bootstrap address answers.
    BootstrapFailed { address: String, error: String },
    /// A host asks to be admitted.
    HostPending {
        #[schema(value_type = String)]
        host: Text<HostId>,
        name: String,
    },
    /// A host was admitted.
    MemberAdmitted {
        #[schema(value_type = String)]
        host: Text<HostId>,
        name: String,
    },
    /// A host's first row came.
    HostAppeared {
        #[schema(value_type = String)]
        host: Text<HostId>,
        name: String,
    },
    /// A host is late with its row.
    HostSuspected {
        #[schema(value_type = String)]
        host: Text<HostId>,
        name: String,
    },
    /// A host said goodbye or was silent for too long.
    HostGone {
        #[schema(value_type = String)]
        host: Text<HostId>,
        name: String,
    },
    /// A network was made.
    NetworkCreated { network: String },
    /// A network was removed.
    NetworkDeleted { network: String },
    /// A port came.
    PortAttached { network: String, interface: String },
    /// A port went.
    PortDetached { network: String, interface: String },
    /// This host gets no address of a network's subnet, because one of its routes leads there.
    HostAddressRefused { network: String, subnet: String, route: String },
    /// This host joins the LAN behind an uplink to the network.
    UplinkActive {
        network: String,
        interface: String,
        #[schema(value_type = String)]
        host: Text<HostId>,
    },
    /// Another host joins the LAN behind an uplink to the network, if it is known who.
    UplinkStandby {
        network: String,
        interface: String,
        #[schema(value_type = Option<String>)]
        host: Option<Text<HostId>>,
    },
    /// Frames can pass to a host.
    LinkUp {
        #[schema(value_type = String)]
        host: Text<HostId>,
    },
    /// Frames can't pass to a host.
    LinkDown {
        #[schema(value_type = String)]
        host: Text<HostId>,
        reason: String,
    },
    /// A link takes another way.
    PathSelected {
        #[schema(value_type = String)]
        host: Text<HostId>,
        path: String,
        reason: String,
    },
    /// An address moved from one host to another.
    ClaimMoved {
        network: String,
        #[schema(value_type = String)]
        mac: Text<Mac>,
        #[schema(value_type = String)]
        from: Text<HostId>,
        #[schema(value_type = String)]
        to: Text<HostId>,
        epoch: u64,
    },
    /// Two hosts claim one address.
    ClaimConflict {
        network: String,
        #[schema(value_type = String)]
        mac: Text<Mac>,
        #[schema(value_type = Vec<String>)]
        hosts: Vec<Text<HostId>>,
    },
    /// This host has a new VM.
    VmCreated {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
    },
    /// A VM of this host runs.
    VmStarted {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
    },
    /// The agent took over a VM that ran before it.
    VmAdopted {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
    },
    /// A VM of this host ended in order.
    VmStopped {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
    },
    /// A VM of this host ended otherwise.
    VmCrashed {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
        reason: String,
    },
    /// A VM of this host has another name: one of its old name was on another host when they met.
    VmRenamed {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        from: String,
        to: String,
        /// Who has the VM that keeps the name.
        #[schema(value_type = String)]
        kept_by: Text<HostId>,
    },
    /// A VM of this host can't use its disk for now and waits.
    VmPaused {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
        reason: String,
    },
    /// A VM of this host that waited goes on.
    VmResumed {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
    },
    /// A VM of this host is on its way to another one, which has come to a phase.
    VmMigrating {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
        #[schema(value_type = String)]
        to: Text<HostId>,
        phase: String,
    },
    /// A VM of this host is at another one.
    VmMigrated {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        report: MigrationReport,
    },
    /// A VM came to this host and runs here.
    VmArrived {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
        #[schema(value_type = String)]
        from: Text<HostId>,
    },
    /// A migration was given up.
    VmStayed {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
        reason: String,
    },
    /// The other host of a migration does not answer, and only an operator can say which copy of the VM may run.
    VmInDoubt {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
        #[schema(value_type = String)]
        host: Text<HostId>,
    },
    /// A VM of this host was removed.
    VmDeleted {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
    },
    /// Something is in the CD-ROM drive of a VM of this host.
    CdromInserted {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
        source: String,
    },
    /// The CD-ROM drive of a VM of this host was emptied.
    CdromEjected {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
        source: String,
    },
    /// The host of what was in a drive went away, and the drive is empty.
    CdromLost {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
        source: String,
        reason: String,
    },
    /// A VM is at another host, and its guest has ended on the way.
    VmEnded {
        #[schema(value_type = String)]
        vm: Text<VmId>,
        name: String,
        #[schema(value_type = String)]
        host: Text<HostId>,
        reason: String,
    },
    /// This host has a new image.
    ImageImported {
        name: String,
        #[schema(value_type = String)]
        digest: Text<Digest>,
    },
    /// A host gave wrong content of an image.
    ProviderLied {
        #[schema(value_type = String)]
        host: Text<HostId>,
        #[schema(value_type = String)]
        image: Text<Digest>,
        /// What was asked for.
        #[schema(value_type = String)]
        content: Text<Digest>,
    },
    /// This host removed an image.
    ImageRemoved { name: String },
    /// Chunks of an image are missing or wrong.
    ImageDamaged { name: String, chunks: u64 },
}

/// The agent's events. Clones share them.
#[derive(Clone, Debug)]
pub struct EventLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    /// The newest id, or `None` once the log is closed.
    newest: watch::Sender<Option<u64>>,
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<Event>,
    next_id: u64,
    /// First id of this run.
    first_id: u64,
}

/// One watcher's place in the log.
#[derive(Debug)]
pub struct EventStream {
    log: EventLog,
    newest: watch::Receiver<Option<u64>>,
    /// The next id to tell.
    next_id: u64,
    /// The watcher's last id is of an earlier run.
    restarted: bool,
}

impl EventLog {
    /// An empty log.
    pub fn new() -> Self {
        let first_id = timestamp::now().as_secs() * IDS_PER_SECOND;
        let ring = Ring { events: VecDeque::new(), next_id: first_id, first_id };
        Self(Arc::new(Shared { ring: Mutex::new(ring), newest: watch::Sender::new(Some(first_id)) }))
    }

    /// Tells all watchers.
    pub fn emit(&self, kind: EventKind) {
        let mut ring = self.ring();
        let event = Event { id: ring.next_id, time: timestamp::rfc3339(timestamp::now()), kind };
        tracing::debug!(target: "virtuoso::events", id = event.id, kind = ?event.kind);
        ring.next_id += 1;
        if ring.events.len() == RING_EVENTS_MAX {
            ring.events.pop_front();
        }
        ring.events.push_back(event);
        let newest = ring.next_id;
        // A closed log stays closed.
        self.0.newest.send_if_modified(|open| open.as_mut().map(|id| *id = newest).is_some());
    }

    /// Ends all streams once they have told what is there.
    pub fn close(&self) {
        self.0.newest.send_replace(None);
    }

    /// Events from now on, or all after the one that a watcher has seen last.
    pub fn subscribe(&self, seen: Option<u64>) -> EventStream {
        let newest = self.0.newest.subscribe();
        let ring = self.ring();
        let restarted = seen.is_some_and(|id| id < ring.first_id.saturating_sub(1));
        let next_id = match seen {
            Some(id) if id < ring.next_id => ring.first_id.max(id.saturating_add(1)),
            _ => ring.next_id,
        };
        EventStream { log: self.clone(), newest, next_id, restarted }
    }

    /// No code that holds the lock can panic half-way.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for EventLog {
    fn default() -> Self {
        Self::new()
    }
}

impl EventStream {
    /// The next event, or `None` once the log is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.take() {
                return Some(event);
            }
            if self.newest.borrow_and_update().is_none() {
                // What was emitted before the end is told before it.
                return self.take();
            }
            if self.take_is_pending() {
                continue;
            }
            self.newest.changed().await.ok()?;
        }
    }

    /// The next event, if it is there.
    fn take(&mut self) -> Option<Event> {
        let ring = self.log.ring();
        if std::mem::take(&mut self.restarted) {
            return Some(missed(self.next_id, None));
        }
        let first_id = ring.events.front()?.id;
        if self.next_id < first_id {
            let count = first_id - self.next_id;
            self.next_id = first_id;
            return Some(missed(first_id - 1, Some(count)));
        }
        let event = ring.events.get(usize::try_from(self.next_id - first_id).ok()?)?.clone();
        self.next_id += 1;
        Some(event)
    }

    fn take_is_pending(&self) -> bool {
        self.next_id < self.log.ring().next_id
    }
}

/// A gap that ends before the event after `id`.
fn missed(id: u64, count: Option<u64>) -> Event {
    Event { id, time: timestamp::rfc3339(timestamp::now()), kind: EventKind::Missed { count } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str) -> EventKind {
        EventKind::NetworkCreated { network: name.into() }
    }

    async fn next_kind(stream: &mut EventStream) -> EventKind {
        stream.next().await.expect("the log is open").kind
    }

    #[tokio::test]
    async fn watchers_hear_what_comes_and_what_they_ask_for() {
        let log = EventLog::new();
        log.emit(network("a"));
        let mut live = log.subscribe(None);
        log.emit(network("b"));
        let b = live.next().await.unwrap();
        assert_eq!(b.kind, network("b"));
        log.emit(network("c"));
        assert_eq!(next_kind(&mut log.subscribe(Some(b.id))).await, network("c"));
        assert_eq!(next_kind(&mut log.subscribe(Some(b.id - 1))).await, network("b"));
    }

    #[tokio::test]
    async fn a_waiting_watcher_wakes_and_ends() {
        let log = EventLog::new();
        let mut stream = log.subscribe(None);
        let watcher = tokio::spawn(async move { (stream.next().await.map(|e| e.kind), stream.next().await) });
        tokio::task::yield_now().await;
        log.emit(network("a"));
        tokio::task::yield_now().await;
        log.close();
        assert_eq!(watcher.await.unwrap(), (Some(network("a")), None));
    }

    #[tokio::test]
    async fn a_slow_watcher_learns_what_it_missed() {
        let log = EventLog::new();
        let mut stream = log.subscribe(None);
        for _ in 0..RING_EVENTS_MAX + 10 {
            log.emit(EventKind::AgentStopping);
        }
        let gap = stream.next().await.unwrap();
        assert_eq!(gap.kind, EventKind::Missed { count: Some(10) });
        assert_eq!(stream.next().await.unwrap().id, gap.id + 1);
        assert_eq!(log.ring().events.len(), RING_EVENTS_MAX);
    }

    #[tokio::test]
    async fn a_watcher_of_an_earlier_run_learns_of_the_restart() {
        let log = EventLog::new();
        log.emit(network("a"));
        let mut stream = log.subscribe(Some(17));
        assert_eq!(next_kind(&mut stream).await, EventKind::Missed { count: None });
        assert_eq!(next_kind(&mut stream).await, network("a"));
    }

    #[test]
    fn json_is_flat() {
        let event = Event { id: 7, time: "t".into(), kind: network("blue") };
        let json = r#"{"id":7,"time":"t","kind":"network_created","network":"blue"}"#;
        assert_eq!(serde_json::to_string(&event).unwrap(), json);
        assert_eq!(serde_json::from_str::<Event>(json).unwrap(), event);
    }
}
