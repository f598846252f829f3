//! The world: an event heap ordered by time and then by the order of scheduling, and the hosts that the events are for.

use crate::checkers::Violation;
use crate::clock::{HostClock, SECOND, Time};
use crate::control::{Connections, GossipMessage};
use crate::fabric::Fabric;
use crate::faults::Fault;
use crate::host::Host;
use crate::links::{LinkEvent, Links};
use crate::model::Model;
use crate::options::Options;
use crate::rng::Rng;
use crate::trace::{Entry, Trace};
use crate::workload::Work;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;
use virtuoso_overlay::ids::{HostId, NetworkId};
use virtuoso_overlay::node::RequestId;

/// All hosts and everything between them.
pub struct World {
    /// What the run is like.
    pub options: Options,
    pub(crate) now: Time,
    pub(crate) rng: Rng,
    /// The machines.
    pub hosts: Vec<Host>,
    ids: BTreeMap<HostId, usize>,
    pub(crate) fabric: Fabric,
    pub(crate) connections: Connections,
    pub(crate) links: Links,
    /// The truth.
    pub model: Model,
    pub(crate) trace: Trace,
    pub(crate) violations: Vec<Violation>,
    /// Faults and moves go on.
    pub(crate) unrest: bool,
    /// The most effects that one input led to.
    pub(crate) effects_max: usize,
    heap: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
}

/// What happens at some time.
pub(crate) enum Event {
    NodeTimer { host: usize, life: u32 },
    SwitchTimer { host: usize, life: u32 },
    Manage { host: usize, life: u32 },
    Connected { hosts: [usize; 2], lives: [u32; 2] },
    Disconnected { host: usize, peer: usize, generation: u64 },
    Gossip { from: usize, to: usize, message: Rc<GossipMessage> },
    Request { from: usize, life: u32, to: usize, id: RequestId, bytes: Vec<u8> },
    Response { to: usize, life: u32, id: RequestId, bytes: Option<Vec<u8>> },
    Link(LinkEvent),
    Fault(Fault),
    Work(Work),
}

struct Scheduled {
    at: Time,
    order: u64,
    event: Event,
}

impl World {
    /// A world whose agents have not started.
    pub fn new(options: Options) -> Self {
        let mut rng = Rng::new(options.seed);
        let fabric = Fabric::new(&options, &mut rng);
        let hosts: Vec<Host> = (0..options.hosts)
            .map(|index| Host::new(index, HostClock::draw(&mut rng, options.drift_ppm_max, options.skew_s_max)))
            .collect();
        let ids = hosts.iter().enumerate().map(|(index, host)| (host.id, index)).collect();
        let mut world = Self {
            now: Time(0),
            rng,
            ids,
            fabric,
            connections: Connections::new(options.hosts),
            links: Links::default(),
            model: Model::default(),
            trace: Trace::new(),
            violations: Vec::new(),
            unrest: true,
            effects_max: 0,
            heap: BinaryHeap::new(),
            scheduled: 0,
            hosts,
            options,
        };
        world.attach_ports();
        world
    }

    /// The present.
    pub const fn now(&self) -> Time {
        self.now
    }

    /// A number that depends on everything that happened, and how much that was.
    pub const fn fingerprint(&self) -> (u64, u64) {
        (self.trace.hash(), self.trace.count())
    }

    /// The index of a host.
    pub fn index_of(&self, host: HostId) -> Option<usize> {
        self.ids.get(&host).copied()
    }

    /// Lets the world run until `end`, or until something is wrong.
    pub fn run_until(&mut self, end: Time) {
        while self.violations.is_empty() && self.heap.peek().is_some_and(|Reverse(next)| next.at <= end) {
            let Some(Reverse(next)) = self.heap.pop() else { break };
            self.now = self.now.max(next.at);
            self.dispatch(next.event);
        }
        self.now = self.now.max(end);
    }

    pub(crate) fn schedule(&mut self, delay: u64, event: Event) {
        self.scheduled += 1;
        self.heap.push(Reverse(Scheduled { at: self.now + delay, order: self.scheduled, event }));
    }

    pub(crate) fn note(&mut self, what: &'static str, a: usize, b: usize, detail: u64) {
        self.trace.add(Entry { at: self.now, what, a: a as u64, b: b as u64, detail });
    }

    /// Starts an agent.
    pub fn start(&mut self, host: usize) {
        let seed = self.rng.next();
        self.hosts[host].start(self.now, seed);
        self.fabric.set_alive(self.now, host, true);
        let life = self.hosts[host].life;
        self.note("start", host, 0, life.into());
        self.schedule(0, Event::Manage { host, life });
        self.scan_bridges(host);
        self.settle(host);
    }

    /// Carries out what an agent wants, until it wants nothing more, and sets its timers.
    pub(crate) fn settle(&mut self, host: usize) {
        let mut effects = 0;
        loop {
            let Some(agent) = self.hosts[host].agent.as_mut() else { return };
            if let Some(effect) = agent.node.poll_effect() {
                self.on_node_effect(host, effect);
            } else if let Some(effect) = agent.switch.poll_effect() {
                self.on_switch_effect(host, effect);
            } else {
                break;
            }
            effects += 1;
        }
        self.effects_max = self.effects_max.max(effects);
        self.set_timers(host);
    }

    fn set_timers(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let Some(agent) = &host.agent else { return };
        let life = host.life;
        let node = host.clock.time_of(agent.node.poll_timeout());
        let switch = agent.switch.poll_timeout().map(|at| host.clock.time_of(at));
        if node < host.node_timer {
            host.node_timer = node;
            let delay = node.since(self.now);
            self.schedule(delay, Event::NodeTimer { host: index, life });
        }
        let host = &mut self.hosts[index];
        if let Some(switch) = switch.filter(|at| *at < host.switch_timer) {
            host.switch_timer = switch;
            let delay = switch.since(self.now);
            self.schedule(delay, Event::SwitchTimer { host: index, life });
        }
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::NodeTimer { host, life } if self.lives(host, life) => self.on_node_timer(host),
            Event::SwitchTimer { host, life } if self.lives(host, life) => self.on_switch_timer(host),
            Event::Manage { host, life } if self.lives(host, life) => self.manage_connections(host),
            Event::NodeTimer { .. } | Event::SwitchTimer { .. } | Event::Manage { .. } => {}
            Event::Connected { hosts, lives } => self.on_connected(hosts, lives),
            Event::Disconnected { host, peer, generation } => self.on_disconnected(host, peer, generation),
            Event::Gossip { from, to, message } => self.on_gossip(from, to, &message),
            Event::Request { from, life, to, id, bytes } => self.on_request(from, life, to, id, &bytes),
            Event::Response { to, life, id, bytes } => self.on_response(to, life, id, bytes.as_deref()),
            Event::Link(event) => self.on_link_event(event),
            Event::Fault(fault) => self.on_fault(fault),
            Event::Work(work) => self.on_work(work),
        }
    }

    /// Whether the agent is in the life that an event was meant for.
    pub(crate) fn lives(&self, host: usize, life: u32) -> bool {
        let host = &self.hosts[host];
        host.life == life && host.agent.as_ref().is_some_and(|agent| !agent.leaving)
    }

    fn on_node_timer(&mut self, index: usize) {
        self.note("node timer", index, 0, 0);
        let now = self.hosts[index].now(self.now);
        let host = &mut self.hosts[index];
        host.node_timer = Time(u64::MAX);
        if let Some(agent) = &mut host.agent {
            agent.node.handle_timeout(now);
        }
        self.settle(index);
    }

    fn on_switch_timer(&mut self, index: usize) {
        self.note("switch timer", index, 0, 0);
        let now = self.hosts[index].now(self.now);
        let host = &mut self.hosts[index];
        host.switch_timer = Time(u64::MAX);
        if let Some(agent) = &mut host.agent {
            agent.switch.handle_timeout(now.mono);
        }
        self.settle(index);
    }

    /// Gives random hosts a port in each network.
    fn attach_ports(&mut self) {
        for network in 0..self.options.networks {
            let id = NetworkId(network as u32 + 1);
            let mut hosts: Vec<usize> = (0..self.options.hosts).collect();
            for slot in 0..self.options.ports.min(hosts.len()) {
                let other = slot + self.rng.index(hosts.len() - slot);
                hosts.swap(slot, other);
                self.hosts[hosts[slot]].networks.insert(id);
            }
        }
    }

    /// Starts all agents within `spread_s` seconds, and what guests and faults there are.
    pub fn begin(&mut self, spread_s: u64) {
        for host in 0..self.options.hosts {
            let delay = self.rng.below(spread_s * SECOND + 1);
            self.schedule(delay, Event::Fault(Fault::Start(host)));
        }
        self.begin_workload();
        self.begin_faults();
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Scheduled {}
