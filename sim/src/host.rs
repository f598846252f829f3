//! One simulated host: a machine with a clock and ports, and the agent that runs on it or not.

use crate::clock::{EPOCH_S, HostClock, Time};
use crate::glue::Glue;
use crate::keys::{Key, Keyring, certificate};
use std::collections::BTreeSet;
use std::sync::Arc;
use virtuoso_overlay::congestion::Congestion;
use virtuoso_overlay::ids::{HostId, NetworkId};
use virtuoso_overlay::limits::NETWORK_MTU_DEFAULT;
use virtuoso_overlay::node::{Node, NodeConfig};
use virtuoso_overlay::switch::{NetworkSpec, Switch};
use virtuoso_overlay::table::{Body, HostRow, NetworkRow, Resources};
use virtuoso_overlay::time::{Now, UnixTime};

/// A machine.
pub struct Host {
    index: usize,
    key: Key,
    /// Its id.
    pub id: HostId,
    /// Its clock.
    pub clock: HostClock,
    /// The networks in which it has a port. Configuration: survives the agent.
    pub networks: BTreeSet<NetworkId>,
    /// Counts the agent's lives. Events for an earlier one are void.
    pub life: u32,
    /// The agent, while it runs.
    pub agent: Option<Agent>,
    /// What the agent has sent, in all its lives.
    pub traffic: Traffic,
    /// For when the timers are set.
    pub(crate) node_timer: Time,
    pub(crate) switch_timer: Time,
}

/// The overlay on one host.
pub struct Agent {
    /// Control plane.
    pub node: Node,
    /// Data plane.
    pub switch: Switch,
    /// What joins them.
    pub glue: Glue,
    /// Says goodbye: no input comes any more, output still goes.
    pub leaving: bool,
}

/// Bytes that an agent has sent.
#[derive(Clone, Copy, Default, Debug)]
pub struct Traffic {
    /// As gossip, for each receiver.
    pub gossip_bytes: u64,
    /// As requests and answers.
    pub sync_bytes: u64,
    /// As messages of links.
    pub link_bytes: u64,
}

impl Host {
    /// A machine whose agent does not run yet.
    pub fn new(index: usize, clock: HostClock) -> Self {
        let key = Key::of_host(index);
        Self {
            index,
            key,
            id: key.host_id(),
            clock,
            networks: BTreeSet::new(),
            life: 0,
            agent: None,
            traffic: Traffic::default(),
            node_timer: Time(u64::MAX),
            switch_timer: Time(u64::MAX),
        }
    }

    /// The time as the host sees it.
    pub fn now(&self, at: Time) -> Now {
        self.clock.now(at)
    }

    /// Starts the agent.
    pub fn start(&mut self, at: Time, seed: u64) {
        let now = self.now(at);
        self.life += 1;
        self.node_timer = Time(u64::MAX);
        self.switch_timer = Time(u64::MAX);
        let verifier = Arc::new(Keyring);
        let config = NodeConfig {
            swarm: Key::authority().swarm_id(),
            signer: self.key.signer(),
            verifier: verifier.clone(),
            incarnation: self.life.into(),
            seed,
        };
        let mut node = Node::new(config, now);
        node.put(now, self.host_row());
        let mut switch = Switch::new(self.key.signer(), verifier, seed);
        let glue = Glue::default();
        for id in &self.networks {
            node.put(now, network_row(*id));
            glue.attach(now, &node, &mut switch, NetworkSpec { id: *id, mtu: NETWORK_MTU_DEFAULT });
        }
        self.agent = Some(Agent { node, switch, glue, leaving: false });
    }

    /// The agent, unless it is down or leaving.
    pub fn working(&mut self) -> Option<&mut Agent> {
        self.agent.as_mut().filter(|agent| !agent.leaving)
    }

    /// Changes a row, as a host does whose load or memory has changed.
    pub fn change_load(&mut self, at: Time, load_centi: u32) {
        let now = self.now(at);
        let Body::Host(mut row) = self.host_row() else { return };
        row.resources.load_centi = load_centi;
        if let Some(agent) = self.working() {
            agent.node.put(now, Body::Host(row));
        }
    }

    /// As large as a real one: three addresses, two labels.
    fn host_row(&self) -> Body {
        let addresses =
            ["ip4/192.0.2.1/udp/4747/quic-v1", "ip6/2001:db8::1/udp/4747/quic-v1", "ip4/192.0.2.1/tcp/4747"];
        Body::Host(Box::new(HostRow {
            certificate: certificate(self.index, self.id, EPOCH_S),
            addresses: addresses.iter().map(|address| format!("/{address}")).collect(),
            resources: Resources { vcpus_total: 16, vcpus_free: 9, arch: "x86_64".into(), ..Resources::default() },
            labels: vec![("rack".into(), "r7".into()), ("site".into(), "north".into())],
            networks: self.networks.iter().copied().collect(),
            draining: false,
            version: "0.1.0".into(),
            refresh_s: 1,
        }))
    }
}

fn network_row(id: NetworkId) -> Body {
    let name = format!("net-{}", id.0);
    Body::Network(NetworkRow {
        id,
        name,
        mtu: NETWORK_MTU_DEFAULT,
        created: UnixTime(EPOCH_S),
        plan: None,
        congestion: Congestion::None,
        rate_mbit: 0,
    })
}
