//! How to find the swarm: addresses that are tried, again and again, while no member is connected.
//!
//! Only decisions and their record for `status`. Remembered peers come before configured addresses, so that a
//! restart needs no bootstrap host.

use super::address::{named_peer, without_peer};
use super::backoff::{Backoff, Random};
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use std::time::Duration;
use virtuoso_overlay::time::Instant;

/// Places to try. Remembered peers are bounded too; what a user lists by hand is less.
const PLACES_MAX: usize = 512;
/// Dials that run at once.
const DIALS_MAX: usize = 3;
/// How much longer than remembered peers configured addresses wait at the start.
const CONFIGURED_WAIT: Duration = Duration::from_millis(500);

/// One host to try, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its addresses, with its id where that is known.
    pub addresses: Vec<Multiaddr>,
    /// Whether it comes from an earlier run.
    pub remembered: bool,
    /// Whether a connection is being made or stands.
    pub state: State,
    /// Attempts in a row that failed.
    pub failures: u32,
    /// Why the last one did.
    pub last_error: Option<String>,
    /// When the next one comes, if one does.
    pub next_try: Option<Duration>,
}

/// What goes on with a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Waiting,
    /// It is being dialled.
    Dialling,
    /// A connection stands.
    Connected,
}

/// A dial that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Names the place in [`Bootstrap::started`].
    pub place: usize,
    /// The peer, if the address says it.
    pub peer: Option<PeerId>,
    /// Where.
    pub addresses: Vec<Multiaddr>,
}

/// All places.
#[derive(Debug)]
pub struct Bootstrap {
    places: Vec<Place>,
    backoff: Backoff,
    random: Random,
    joined: bool,
}

#[derive(Debug)]
struct Place {
    peer: Option<PeerId>,
    addresses: Vec<Multiaddr>,
    remembered: bool,
    step: Step,
    failures: u32,
    last_error: Option<String>,
    next: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Waiting,
    Dialling(ConnectionId),
    Connected(ConnectionId),
}

impl Bootstrap {
    /// Nothing to try yet.
    pub fn new(backoff: Backoff, seed: u64) -> Self {
        Self { places: Vec::new(), backoff, random: Random::new(seed), joined: false }
    }

    /// Adds addresses. Several of one peer are one place: they are tried together.
    pub fn add(&mut self, addresses: impl IntoIterator<Item = Multiaddr>, remembered: bool, now: Instant) {
        let after_remembered = !remembered && self.places.iter().any(|place| place.remembered);
        let next = if after_remembered { now + CONFIGURED_WAIT } else { now };
        for address in addresses {
            let peer = named_peer(&address);
            let same = |p: &Place| p.peer == peer && (peer.is_some() || p.addresses[0] == address);
            match self.places.iter().position(same) {
                Some(at) => {
                    let place = &mut self.places[at];
                    let address = without_peer(address);
                    place.next = place.next.min(next);
                    if !place.addresses.contains(&address) && place.addresses.len() < super::connections::ADDRESSES_MAX
                    {
                        place.addresses.push(address);
                    }
                }
                None if self.places.len() < PLACES_MAX => self.places.push(Place {
                    peer,
                    addresses: vec![without_peer(address)],
                    remembered,
                    step: Step::Waiting,
                    failures: 0,
                    last_error: None,
                    next,
                }),
                None => {}
            }
        }
    }

    /// Whether a member is connected. If so there is nothing to try; if no longer, all are tried afresh.
    pub fn set_joined(&mut self, joined: bool, now: Instant) {
        if std::mem::replace(&mut self.joined, joined) && !joined {
            for place in &mut self.places {
                (place.failures, place.next) = (0, now + self.backoff.delay(0, &mut self.random));
            }
        }
    }

    /// The dials that are due.
    pub fn due(&self, now: Instant) -> Vec<Due> {
        let running = self.places.iter().filter(|p| matches!(p.step, Step::Dialling(_))).count();
        let due = self.places.iter().enumerate().filter(|(_, p)| p.step == Step::Waiting && p.next <= now);
        let allowed = if self.joined { 0 } else { DIALS_MAX.saturating_sub(running) };
        due.take(allowed).map(|(place, p)| Due { place, peer: p.peer, addresses: p.addresses.clone() }).collect()
    }

    /// The dial of a place runs as this connection.
    pub fn started(&mut self, place: usize, id: ConnectionId) {
        if let Some(place) = self.places.get_mut(place) {
            place.step = Step::Dialling(id);
        }
    }

    /// It stands.
    pub fn opened(&mut self, id: ConnectionId) {
        if let Some(place) = self.place(Step::Dialling(id)) {
            place.step = Step::Connected(id);
            place.last_error = None;
        }
    }

    /// It did not come to stand. The first failure of a series is worth a line in the log, so this tells the number.
    pub fn failed(&mut self, id: ConnectionId, error: String, now: Instant) -> Option<u32> {
        let (backoff, mut random) = (self.backoff, self.random.clone());
        let place = self.place(Step::Dialling(id))?;
        place.failures = place.failures.saturating_add(1);
        place.next = now + backoff.delay(place.failures, &mut random);
        (place.step, place.last_error) = (Step::Waiting, Some(error));
        let failures = place.failures;
        self.random = random;
        Some(failures)
    }

    /// It was closed. While no member is connected, a host that accepts and closes is no better than one that does
    /// not answer.
    pub fn closed(&mut self, id: ConnectionId, now: Instant) {
        let joined = self.joined;
        let Some(place) = self.place(Step::Connected(id)) else { return };
        if joined {
            (place.step, place.next) = (Step::Waiting, now);
        } else {
            place.step = Step::Dialling(id);
            self.failed(id, "The connection was closed".to_owned(), now);
        }
    }

    fn place(&mut self, step: Step) -> Option<&mut Place> {
        self.places.iter_mut().find(|place| place.step == step)
    }

    /// For `status`.
    pub fn status(&self, now: Instant) -> Vec<Status> {
        let status = |place: &Place| Status {
            addresses: place.named_addresses(),
            remembered: place.remembered,
            state: match place.step {
                Step::Waiting => State::Waiting,
                Step::Dialling(_) => State::Dialling,
                Step::Connected(_) => State::Connected,
            },
            failures: place.failures,
            last_error: place.last_error.clone(),
            next_try: (!self.joined && place.step == Step::Waiting).then(|| place.next.since(now)),
        };
        self.places.iter().map(status).collect()
    }
}

impl Place {
    fn named_addresses(&self) -> Vec<Multiaddr> {
        let named = |address: &Multiaddr| match self.peer {
            Some(peer) => address.clone().with_p2p(peer).unwrap_or_else(|unchanged| unchanged),
            None => address.clone(),
        };
        self.addresses.iter().map(named).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::address::peer_of;
    use virtuoso_overlay::ids::HostId;

    const BACKOFF: Backoff = Backoff { min: Duration::from_secs(1), max: Duration::from_secs(60) };

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000)
    }

    fn address(n: u8, form: &str, named: bool) -> Multiaddr {
        let peer = peer_of(&HostId([n; 32]));
        let text = format!("/ip4/10.0.0.{n}/{form}");
        if named { format!("{text}/p2p/{peer}") } else { text }.parse().unwrap()
    }

    fn id(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    #[test]
    fn addresses_of_one_peer_are_one_place() {
        let mut bootstrap = Bootstrap::new(BACKOFF, 1);
        let forms = ["udp/4747/quic-v1", "tcp/4747"];
        bootstrap.add(forms.map(|form| address(1, form, true)), false, at(0));
        bootstrap.add(forms.map(|form| address(2, form, false)), false, at(0));
        let due = bootstrap.due(at(0));
        assert_eq!(due.iter().map(|due| due.addresses.len()).collect::<Vec<_>>(), [2, 1, 1]);
        assert_eq!(bootstrap.status(at(0))[0].addresses, forms.map(|form| address(1, form, true)));
    }

    #[test]
    fn remembered_peers_come_first() {
        let mut bootstrap = Bootstrap::new(BACKOFF, 1);
        bootstrap.add([address(1, "tcp/1", true)], true, at(0));
        bootstrap.add([address(2, "tcp/1", true)], false, at(0));
        assert_eq!(bootstrap.due(at(0)).iter().map(|due| due.place).collect::<Vec<_>>(), [0]);
        assert_eq!(bootstrap.due(at(500)).len(), 2);
    }

    #[test]
    fn a_place_that_is_down_is_tried_ever_more_rarely_and_status_says_so() {
        let mut bootstrap = Bootstrap::new(BACKOFF, 1);
        bootstrap.add([address(1, "tcp/1", true)], false, at(0));
        let (mut tries, mut now) = (Vec::new(), 0);
        while tries.len() < 10 {
            for due in bootstrap.due(at(now)) {
                tries.push(now);
                bootstrap.started(due.place, id(tries.len()));
                assert!(bootstrap.due(at(now)).is_empty(), "dialled twice");
                bootstrap.failed(id(tries.len()), "Connection refused".into(), at(now));
            }
            now += 50;
        }
        let gaps: Vec<_> = tries.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(gaps[0] <= 1_300 && gaps[2] >= 2_900 && gaps[8] >= 45_000 && gaps[8] <= 76_000, "{gaps:?}");
        let status = &bootstrap.status(at(now))[0];
        assert_eq!((status.failures, status.last_error.as_deref()), (10, Some("Connection refused")));
        assert!(status.next_try.is_some_and(|wait| wait > Duration::from_secs(40)), "{status:?}");
    }

    #[test]
    fn nothing_is_tried_while_a_member_is_connected_and_all_when_none_is() {
        let mut bootstrap = Bootstrap::new(BACKOFF, 1);
        bootstrap.add([address(1, "tcp/1", true)], false, at(0));
        bootstrap.started(0, id(1));
        bootstrap.opened(id(1));
        assert_eq!(bootstrap.status(at(1))[0].state, State::Connected);
        bootstrap.set_joined(true, at(1));
        bootstrap.closed(id(1), at(2));
        assert!(bootstrap.due(at(1_000_000)).is_empty());
        assert_eq!(bootstrap.status(at(3))[0].next_try, None);
        bootstrap.set_joined(false, at(2_000_000));
        assert!(bootstrap.due(at(2_000_000)).is_empty());
        assert_eq!(bootstrap.due(at(2_001_300)).len(), 1);
    }
}
