//! The one task that owns the control plane: the tables, the swarm, membership, and what this host says of itself.
//!
//! It selects over the swarm's events, the engine's, the network devices', timers, and calls of the control API. Each
//! is handled at once and to its end; what must wait runs elsewhere and comes back as a call.

mod addresses;
mod admission;
mod backend;
mod cdrom_verbs;
mod directory;
mod drain;
mod facts_row;
mod host_addresses;
mod image_source;
mod images;
mod migrations;
mod networks;
mod plane;
pub mod ports;
mod station;
mod swarm_events;
mod switch_events;
mod tables;
mod uplinks;
mod views;
pub mod vm_clone;
pub mod vm_names;
mod vm_verbs;

use crate::clock::Clock;
use crate::config::Config;
use crate::control::problem::{ApiError, ErrorCode};
use crate::events::{EventKind, EventLog};
use crate::identity::SigningKey;
use crate::image::ImageStore;
use crate::netdev::{self, Netdev};
use crate::state::StateDir;
use crate::swarm::service::{self, SwarmService, SyncId};
use admission::Admission;
use facts_row::OwnRow;
use networks::Networks;
use plane::Plane;
use ports::Guests;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior};
use uplinks::Uplink;
use virtuoso_engine::{EngineEvent, EngineHandle};
use virtuoso_overlay::ids::{HostId, NetworkId};
use virtuoso_overlay::membership::Ticket;
use virtuoso_overlay::node::{Node, RequestId};
use virtuoso_overlay::vm::names::Promises;

pub use addresses::Readdress;
pub use admission::Credentials;
pub(crate) use admission::{CERTIFICATE, load_issued, sign_certificate};
pub use backend::Agent;
pub use image_source::ImageSource;
pub(crate) use networks::NETWORKS;
pub use networks::SavedNetworks;
pub use ports::Seat;
pub(crate) use vm_verbs::vm_error;

/// Calls that wait for the core. The API's clients are few; each waits for its answer.
const CALLS_MAX: usize = 256;

/// Work for the core.
type Call = Box<dyn FnOnce(&mut Core) + Send>;

impl From<Stopping> for ApiError {
    fn from(stopping: Stopping) -> Self {
        Self::new(ErrorCode::Unavailable, stopping.to_string())
    }
}

/// Everything that the core is made of.
pub struct Parts {
    /// The configuration.
    pub config: Config,
    /// The state directory.
    pub state: Arc<StateDir>,
    /// This host's key.
    pub key: Arc<SigningKey>,
    /// What makes this host a member, or what it joins with.
    pub credentials: Credentials,
    /// The number of this run.
    pub incarnation: u64,
    /// Who may connect, shared with the engine.
    pub gatekeeper: Arc<crate::gatekeeper::Gatekeeper>,
    /// libp2p.
    pub swarm: SwarmService,
    /// The data plane.
    pub engine: EngineHandle,
    /// Its events.
    pub engine_events: mpsc::Receiver<EngineEvent>,
    /// The kernel's network devices.
    pub netdev: Netdev,
    /// What the operator may watch.
    pub events: EventLog,
    /// The image store.
    pub images: Arc<ImageStore>,
    /// The clocks.
    pub clock: Clock,
}

/// The control plane of this host.
pub struct Core {
    config: Config,
    state: Arc<StateDir>,
    key: Arc<SigningKey>,
    clock: Clock,
    events: EventLog,
    swarm: SwarmService,
    plane: Plane,
    netdev: Netdev,
    images: Arc<ImageStore>,
    handle: Handle,
    admission: Admission,
    /// Nothing while this host is no member.
    node: Option<Node>,
    incarnation: u64,
    own_row: OwnRow,
    networks: Networks,
    guests: Guests,
    uplinks: BTreeMap<NetworkId, Uplink>,
    sync_requests: BTreeMap<SyncId, RequestId>,
    searches: image_source::Searches,
    /// It takes no VMs.
    is_draining: bool,
    /// Counts changes of VMs' rows.
    vm_changes: watch::Sender<u64>,
    /// Names of VMs whose rows have not come yet.
    name_promises: Promises,
    /// Who waits for the ticket of a swarm that has just begun.
    first_ticket: Option<oneshot::Sender<anyhow::Result<Ticket>>>,
}

/// Lets others run work on the core.
#[derive(Clone)]
pub struct Handle(mpsc::Sender<Call>);

/// The core is gone: the agent stops.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("The agent is stopping")]
pub struct Stopping;

impl Handle {
    /// Runs `work` on the core and waits for its result.
    ///
    /// # Errors
    /// If the agent stops.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, Stopping> {
        let (answer, result) = oneshot::channel();
        let call: Call = Box::new(move |core| {
            // Whoever asked may have gone away meanwhile.
            answer.send(work(core)).ok();
        });
        self.0.send(call).await.map_err(|_| Stopping)?;
        result.await.map_err(|_| Stopping)
    }
}

impl Core {
    /// A core, and the receiver of calls to pass to [`Core::run`].
    pub fn new(parts: Parts) -> (Self, Runner) {
        let (sender, calls) = mpsc::channel(CALLS_MAX);
        let Parts {
            config,
            state,
            key,
            credentials,
            incarnation,
            gatekeeper,
            swarm,
            engine,
            engine_events,
            netdev,
            events,
            images,
            clock,
        } = parts;
        let core = Self {
            admission: Admission::new(credentials, gatekeeper),
            own_row: OwnRow::default(),
            networks: Networks::default(),
            guests: Guests::default(),
            uplinks: BTreeMap::new(),
            node: None,
            sync_requests: BTreeMap::new(),
            searches: image_source::Searches::default(),
            is_draining: false,
            vm_changes: watch::Sender::default(),
            name_promises: Promises::default(),
            first_ticket: None,
            handle: Handle(sender),
            config,
            state,
            key,
            clock,
            events,
            swarm,
            plane: Plane::new(engine),
            netdev,
            images,
            incarnation,
        };
        (core, Runner { calls, engine_events })
    }

    /// Hears of changes of VMs' rows.
    pub(crate) fn vm_changes(&self) -> watch::Receiver<u64> {
        self.vm_changes.subscribe()
    }

    /// Lets others run work on this core.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Takes what can be changed while the agent runs.
    pub fn reconfigure(&mut self, config: Config) {
        self.config = config;
        self.limit_images();
        self.limit_links();
        self.publish_host_row();
    }

    /// Sends the ticket that the first host of a swarm shows, as soon as it knows where it listens.
    pub fn send_first_ticket(&mut self, to: oneshot::Sender<anyhow::Result<Ticket>>) {
        if self.swarm.addresses().is_empty() {
            self.first_ticket = Some(to);
        } else {
            to.send(self.make_ticket(admission::TICKET_TIME, None)).ok();
        }
    }

    fn me(&self) -> HostId {
        self.key.host_id()
    }

    /// Runs until `stop` says so, then says goodbye to the swarm.
    pub async fn run(mut self, runner: Runner, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        let Runner { mut calls, mut engine_events } = runner;
        let mut devices = netdev::watch(self.netdev.clone())?;
        let mut tick = every_second();
        loop {
            self.drain_node();
            self.plane.flush().await?;
            let node_timer = tokio::time::sleep_until(self.node_deadline().into());
            tokio::select! {
                event = self.swarm.next_event() => self.on_swarm_event(event),
                Some(event) = engine_events.recv() => self.on_engine_event(event),
                Some(call) = calls.recv() => call(&mut self),
                Some(event) = devices.recv() => self.on_device_event(event),
                () = node_timer => self.on_node_timer(),
                _ = tick.tick() => self.on_tick(),
                _ = stop.changed() => break,
            }
        }
        // Tasks that wait for the core end.
        drop(calls);
        self.say_goodbye().await;
        Ok(())
    }

    fn node_deadline(&self) -> std::time::Instant {
        let idle = std::time::Duration::from_secs(3600);
        match &self.node {
            Some(node) => self.clock.deadline(node.poll_timeout()),
            None => std::time::Instant::now() + idle,
        }
    }

    fn on_node_timer(&mut self) {
        let now = self.clock.now();
        if let Some(node) = &mut self.node {
            node.handle_timeout(now);
        }
    }

    fn on_tick(&mut self) {
        self.refresh_facts();
        self.retry_admission();
        self.expire_members();
    }

    async fn say_goodbye(mut self) {
        tracing::info!("Saying goodbye to the swarm");
        self.events.emit(EventKind::AgentStopping);
        let now = self.clock.now();
        if let Some(node) = &mut self.node {
            node.take_back(now, virtuoso_overlay::table::Key::Host);
        }
        self.drain_node();
        if let Err(error) = self.plane.engine().stop().await {
            tracing::debug!("{error:#}");
        }
        for (_, uplink) in std::mem::take(&mut self.uplinks) {
            uplink.halt().await.say();
        }
        let attached = self.networks.attached().map(|network| (network, self.networks.plan(network))).collect();
        networks::leave_devices(&self.netdev, attached).await;
        self.swarm.shutdown().await;
        self.events.close();
    }
}

/// What [`Core::run`] receives from.
pub struct Runner {
    calls: mpsc::Receiver<Call>,
    engine_events: mpsc::Receiver<EngineEvent>,
}

fn every_second() -> Interval {
    let mut tick = tokio::time::interval(std::time::Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// A peer of the swarm service, which the rest of the agent knows as a host.
type SwarmEvent = service::Event;
