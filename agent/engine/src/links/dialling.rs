//! Making connections, losing them, and trying again.

use super::super::cid::initial_cid;
use super::super::path::stable_name;
use super::*;
use quinn_proto::ClientConfig;

/// A peer that refused this host's certificate is asked again after this time: an operator has to act first.
const REFUSED_RETRY: Duration = Duration::from_secs(30);

/// A peer that closed a duplicate has a connection of its own that is being made.
const DUPLICATE_RETRY: Duration = Duration::from_secs(2);

impl Links {
    /// Makes a link to `host` unless there is one.
    pub(in super::super) fn connect(&mut self, tick: Tick, host: HostId) {
        if host != self.me {
            self.link_mut(host).want(tick.at);
        }
    }

    /// The addresses at which `host` may be reached.
    pub(in super::super) fn set_addresses(&mut self, tick: Tick, host: HostId, addresses: Vec<SocketAddr>) {
        if host != self.me {
            self.link_mut(host).readdress(tick.at, addresses);
        }
    }

    /// What limits the link to `host` from now on.
    pub(in super::super) fn set_limits(&mut self, tick: Tick, host: HostId, limits: LinkLimits) {
        if host == self.me {
            return;
        }
        self.link_mut(host).limits = Some(limits);
        for slot in self.slots_of(host) {
            self.order(tick, slot, Order::Limit { slot, limits });
        }
    }

    /// What limits a network on every link from now on, beside what limits the link.
    pub(in super::super) fn limit_network(&mut self, tick: Tick, network: NetworkId, limits: LinkLimits) {
        let crews = (0..self.crews.len()).map(Place::Crew);
        for place in std::iter::once(Place::Home).chain(crews) {
            self.order_at(tick, place, Order::LimitNetwork { network, limits });
        }
    }

    /// Ends the link to `host` and forgets its addresses and counters.
    pub(in super::super) fn forget(&mut self, tick: Tick, host: HostId) {
        for slot in self.slots_of(host) {
            self.end(tick, slot, CloseCode::Forgotten, "The link is no longer wanted");
        }
        if let Some(link) = self.links.remove(&host) {
            self.order_at(tick, link.place, Order::Forget(host));
        }
    }

    /// When [`Links::handle_timeouts`] has something to do.
    pub(in super::super) fn deadline(&self) -> Option<Instant> {
        let connections = self.table.iter().filter_map(|(_, standing)| standing.deadline());
        let links = self.links.values().filter_map(|link| link.retry_at);
        connections.chain(links).chain(self.home.deadline()).min()
    }

    /// Does what is due.
    pub(in super::super) fn handle_timeouts(&mut self, tick: Tick) {
        self.home.handle_timeouts(tick);
        let is_due = |standing: &Standing| standing.deadline().is_some_and(|deadline| deadline <= tick.at);
        let due = self.table.iter().filter(|(_, standing)| is_due(standing));
        for (slot, phase) in due.map(|(slot, standing)| (slot, standing.phase)).collect::<Vec<_>>() {
            match phase {
                Phase::Held { .. } => self.welcome(tick, slot),
                _ => {
                    let stage = if phase == Phase::Handshake { "No answer" } else { "No hello" };
                    let reason = format!("{stage} within {} s", SETUP_TIME.as_secs());
                    self.end(tick, slot, CloseCode::Timeout, &reason);
                }
            }
        }
        let due = |link: &Link| link.retry_at.is_some_and(|at| at <= tick.at);
        let due: Vec<HostId> = self.links.iter().filter(|(_, link)| due(link)).map(|(host, _)| *host).collect();
        for host in due {
            self.dial(tick, host);
        }
    }

    /// Closes a connection of ours, with consequences for its link.
    pub(super) fn end(&mut self, tick: Tick, slot: u16, code: CloseCode, reason: &str) {
        let Some(standing) = self.table.get_mut(slot).filter(|s| s.phase != Phase::Closed) else { return };
        standing.phase = Phase::Closed;
        self.order(tick, slot, Order::Close { slot, code, reason: reason.to_owned() });
        let wait = if code == CloseCode::Refused { REFUSED_RETRY } else { Duration::ZERO };
        self.on_ended(tick, slot, wait, reason.to_owned());
    }

    /// QUIC says that a connection is lost.
    pub(super) fn on_lost(&mut self, tick: Tick, slot: u16, reason: &ConnectionError) {
        let Some(standing) = self.table.get_mut(slot).filter(|s| s.phase != Phase::Closed) else { return };
        standing.phase = Phase::Closed;
        let peer = standing.peer;
        let (wait, text) = match reason {
            ConnectionError::ApplicationClosed(close) if CloseCode::Refused.is(close) => {
                let reason = text_of(close);
                if let Some(host) = peer {
                    self.on_refused_by_peer(tick, host, reason.clone());
                }
                (REFUSED_RETRY, format!("Refused by the peer: {reason}"))
            }
            ConnectionError::ApplicationClosed(close) if CloseCode::Duplicate.is(close) => {
                (DUPLICATE_RETRY, text_of(close))
            }
            ConnectionError::ApplicationClosed(close) => (Duration::ZERO, text_of(close)),
            other => (Duration::ZERO, other.to_string()),
        };
        self.on_ended(tick, slot, wait, text);
    }

    /// The slots of connections with `host` that are not closed.
    pub(super) fn slots_of(&self, host: HostId) -> Vec<u16> {
        let is_theirs = |standing: &Standing| standing.peer == Some(host) && standing.phase != Phase::Closed;
        self.table.iter().filter(|(_, standing)| is_theirs(standing)).map(|(slot, _)| slot).collect()
    }

    /// Begins a connection to `host`.
    fn dial(&mut self, tick: Tick, host: HostId) {
        let Some(link) = self.links.get_mut(&host) else { return };
        link.retry_at = None;
        if link.active.is_some() || link.dialling.is_some() {
            return;
        }
        if link.addresses.is_empty() {
            link.error = Some("No address is known".to_owned());
            link.back_off(tick.at, Duration::ZERO, noise());
            self.events.push_back(LinkEvent::AddressWanted(host));
            return;
        }
        let route = Route::dialled(&link.addresses);
        let addresses: Vec<SocketAddr> = route.targets().map(|Path::Direct(address)| address).collect();
        let Some(slot) = self.table.vacant() else {
            link.error = Some("There are too many connections".to_owned());
            link.back_off(tick.at, Duration::ZERO, noise());
            return;
        };
        let name = stable_name(slot, self.table.next_generation());
        self.current.set(slot);
        let transport = self.transport_towards(&addresses);
        match self.begin(tick, host, name, transport) {
            Ok((handle, quic)) => {
                let until = tick.at + SETUP_TIME;
                self.table.insert(slot, Standing::new(handle, name, Role::Dialler, Some(host), until));
                self.adopt(tick, slot, Connection::new(quic, route, self.settings.limits()));
                if let Some(link) = self.links.get_mut(&host) {
                    link.dialling = Some(slot);
                }
                tracing::debug!(%host, "Dialling a data connection");
            }
            Err(error) => {
                tracing::warn!(%host, "Can't dial a data connection: {error:#}");
                if let Some(link) = self.links.get_mut(&host) {
                    link.error = Some(error.to_string());
                    link.back_off(tick.at, REFUSED_RETRY, noise());
                }
            }
        }
    }

    fn begin(
        &mut self,
        tick: Tick,
        host: HostId,
        name: SocketAddr,
        transport: Arc<TransportConfig>,
    ) -> Result<(ConnectionHandle, quinn_proto::Connection)> {
        let mut config = ClientConfig::new(Arc::new(tls::client(&self.keypair, host)?));
        config.transport_config(transport).initial_dst_cid_provider(Arc::new(initial_cid));
        Ok(self.endpoint.connect(tick.at, config, name, tls::SERVER_NAME)?)
    }

    /// A connection is closed: what its link does now.
    fn on_ended(&mut self, tick: Tick, slot: u16, wait: Duration, reason: String) {
        let Some(host) = self.table.get(slot).and_then(|standing| standing.peer) else { return };
        let Some(link) = self.links.get_mut(&host) else { return };
        if link.active == Some(slot) {
            link.fall(tick.at, reason.clone());
            link.back_off(tick.at, wait, noise());
            tracing::info!(%host, reason, "Link down");
            self.events.push_back(LinkEvent::Down(host, reason));
        } else if link.dialling == Some(slot) {
            link.dialling = None;
            tracing::debug!(%host, reason, "Data connection failed");
            link.error = Some(reason);
            link.back_off(tick.at, wait, noise());
        } else {
            return;
        }
        self.release_held(tick, host);
    }

    /// The connection that others were held back for is gone.
    fn release_held(&mut self, tick: Tick, host: HostId) {
        let link = self.links.get(&host);
        if link.is_none_or(|link| link.active.is_some() || link.dialling.is_some()) {
            return;
        }
        let is_held = |slot: &u16| matches!(self.table.get(*slot).map(|s| s.phase), Some(Phase::Held { .. }));
        if let Some(slot) = self.slots_of(host).into_iter().find(is_held) {
            self.welcome(tick, slot);
        }
    }
}

/// The text that a peer closed with, as far as it is one: at most 200 characters of a line.
fn text_of(close: &quinn_proto::ApplicationClose) -> String {
    let text = String::from_utf8_lossy(&close.reason);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

/// A random number, so that hosts that failed together don't come back together.
fn noise() -> u16 {
    let mut bytes = [0; 2];
    fill_random(&mut bytes);
    u16::from_be_bytes(bytes)
}
