//! What guests do: appear, talk, ask, move, and sometimes be in two places; and the bridges that they are plugged into.

use crate::clock::{MILLISECOND, SECOND};
use crate::frames::{self, Content};
use crate::model::Appearance;
use crate::world::{Event, World};
use virtuoso_overlay::ids::{Mac, NetworkId};

/// Something that guests do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Sends a frame to somebody.
    Talk { guest: usize },
    /// Is plugged in, unless the host has no port any more.
    Appear { guest: usize, host: usize },
    /// A random guest moves.
    Move(Kind),
    /// A random guest appears a second time.
    Double,
    /// Is in one place again.
    Single { guest: usize },
}

/// How a move is seen from the host that the guest leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The agent is told before.
    Planned,
    /// Its port leaves the bridge.
    Foreign,
    /// Nothing is seen.
    Silent,
}

impl World {
    pub(crate) fn begin_workload(&mut self) {
        for network in 0..self.options.networks {
            let id = NetworkId(network as u32 + 1);
            let hosts = self.hosts_in(id);
            for _ in 0..self.options.guests {
                let guest = self.model.add_guest(id);
                let Some(&host) = self.rng.pick(&hosts) else { continue };
                let delay = 2 * SECOND + self.rng.below(3 * SECOND);
                self.schedule(delay, Event::Work(Work::Appear { guest, host }));
                self.schedule(TALK_START, Event::Work(Work::Talk { guest }));
            }
        }
        self.again_after(MOVE_START, self.options.planned_move_mean_s, Work::Move(Kind::Planned));
        self.again_after(MOVE_START, self.options.foreign_move_mean_s, Work::Move(Kind::Foreign));
        self.again_after(MOVE_START, self.options.silent_move_mean_s, Work::Move(Kind::Silent));
        self.again_after(MOVE_START, self.options.double_mean_s, Work::Double);
    }

    fn again_after(&mut self, start: u64, mean_s: u64, work: Work) {
        if mean_s > 0 {
            let delay = start + self.rng.wait(mean_s * SECOND);
            self.schedule(delay, Event::Work(work));
        }
    }

    pub(crate) fn on_work(&mut self, work: Work) {
        match work {
            Work::Talk { guest } => {
                self.talk(guest);
                let delay = self.rng.wait(self.options.talk_mean_ms * MILLISECOND);
                self.schedule(delay, Event::Work(work));
            }
            Work::Appear { guest, host } => self.appear(guest, host),
            Work::Move(kind) if self.unrest => {
                self.move_one(kind);
                let mean_s = match kind {
                    Kind::Planned => self.options.planned_move_mean_s,
                    Kind::Foreign => self.options.foreign_move_mean_s,
                    Kind::Silent => self.options.silent_move_mean_s,
                };
                self.again_after(0, mean_s, work);
            }
            Work::Double if self.unrest => {
                self.double();
                self.again_after(0, self.options.double_mean_s, work);
            }
            Work::Single { guest } => self.make_single(guest),
            Work::Move(_) | Work::Double => {}
        }
    }

    /// The hosts with a port in a network.
    pub fn hosts_in(&self, network: NetworkId) -> Vec<usize> {
        (0..self.hosts.len()).filter(|host| self.hosts[*host].networks.contains(&network)).collect()
    }

    /// Plugs a guest in. It says who it is, as guests and hypervisors do.
    pub fn appear(&mut self, guest: usize, host: usize) {
        if self.model.place_at(guest, host).is_some() {
            return;
        }
        let place = self.model.appear(self.now, guest, host);
        self.note("appear", guest, host, place.id.into());
        if self.rng.below(2) == 0 {
            self.show(guest, place);
        }
        self.announce(guest, host);
        self.settle(host);
    }

    /// The bridge tells the agent what is behind an interface.
    fn show(&mut self, guest: usize, place: Appearance) {
        let now = self.hosts[place.host].now(self.now).mono;
        let guest = &self.model.guests[guest];
        if let Some(agent) = self.hosts[place.host].working() {
            agent.switch.handle_local(now, guest.network, guest.mac, Some(place.port), &[guest.ip.into()]);
        }
    }

    fn announce(&mut self, guest: usize, host: usize) {
        let guest = &self.model.guests[guest];
        let (network, packet) = (guest.network, frames::question(guest.mac, guest.ip, guest.ip));
        self.guest_sends(host, network, packet);
    }

    /// What an agent finds on its bridges when it starts.
    pub(crate) fn scan_bridges(&mut self, host: usize) {
        for network in self.hosts[host].networks.clone() {
            for (guest, place) in self.model.guests_at(host, network) {
                self.show(guest, place);
            }
        }
    }

    /// Whether the bridge knows an address behind one of its interfaces. It does not notice that a guest went silently,
    /// until the agent makes it forget or its entry is too old.
    pub(crate) fn bridge_knows(&self, host: usize, network: NetworkId, mac: Mac) -> bool {
        self.model.guest_of(network, mac).is_some_and(|guest| {
            let ghost = self.model.ghosts.get(&(host, guest)).is_some_and(|until| *until > self.now);
            ghost || self.model.place_at(guest, host).is_some()
        })
    }

    fn talk(&mut self, guest: usize) {
        let network = self.model.guests[guest].network;
        let count = self.model.guests.len();
        let other = self.rng.index(count);
        if other == guest || self.model.guests[other].network != network {
            // Even a guest with nobody to talk to says now and then that it is there.
            for place in self.model.guests[guest].places.clone() {
                self.announce(guest, place.host);
                self.settle(place.host);
            }
            return;
        }
        let asks = self.rng.below(8) == 0;
        self.note("talk", guest, other, asks.into());
        if !asks {
            return self.send_numbered(guest, other);
        }
        for place in self.model.guests[guest].places.clone() {
            let (from, to) = (&self.model.guests[guest], &self.model.guests[other]);
            let packet = frames::question(from.mac, from.ip, to.ip);
            self.guest_sends(place.host, network, packet);
            self.settle(place.host);
        }
    }

    /// A guest sends a numbered frame to another one.
    pub fn send_numbered(&mut self, guest: usize, other: usize) {
        for place in self.model.guests[guest].places.clone() {
            let (from, to) = (&self.model.guests[guest], &self.model.guests[other]);
            let (network, dst, src) = (from.network, to.mac, from.mac);
            let packet = frames::numbered(dst, src, self.model.send(self.now, guest, other));
            self.guest_sends(place.host, network, packet);
            self.settle(place.host);
        }
    }

    /// A guest's packet enters the bridge, which delivers what is for its neighbours.
    fn guest_sends(&mut self, host: usize, network: NetworkId, packet: Vec<u8>) {
        let Some(read) = frames::read(&packet) else { return };
        let neighbour = self.model.guest_of(network, read.dst).and_then(|guest| self.model.place_at(guest, host));
        if neighbour.is_some() || read.dst.is_group() {
            self.receive(host, network, &packet);
        }
        if neighbour.is_none() {
            self.ingress(host, network, packet);
        }
    }

    /// The agent writes a packet to its port of a network.
    pub(crate) fn deliver(&mut self, host: usize, network: NetworkId, packet: &[u8]) {
        self.check_delivery(host, network);
        self.receive(host, network, packet);
    }

    /// The guests of a bridge get a packet.
    fn receive(&mut self, host: usize, network: NetworkId, packet: &[u8]) {
        let Some(read) = frames::read(packet) else { return };
        for (guest, place) in self.model.guests_at(host, network) {
            let (mac, ip) = (self.model.guests[guest].mac, self.model.guests[guest].ip);
            if mac == read.src || (read.dst != mac && !read.dst.is_group()) {
                continue;
            }
            match read.content {
                Content::Numbered(number) => self.check_reception(number, guest, place),
                Content::Question(target) if target == ip => {
                    if let Some(answer) = frames::answer(packet, mac) {
                        self.guest_sends(host, network, answer);
                    }
                }
                Content::Question(_) | Content::Other => {}
            }
        }
    }

    fn move_one(&mut self, kind: Kind) {
        let guest = self.rng.index(self.model.guests.len());
        let hosts = self.hosts_in(self.model.guests[guest].network);
        let [place] = self.model.guests[guest].places[..] else { return };
        if kind == Kind::Planned && self.now.since(self.model.guests[guest].changed) < PLANNED_STAY_MIN {
            return;
        }
        let Some(&host) = self.rng.pick(&hosts).filter(|host| **host != place.host) else { return };
        self.unplug(guest, place, kind);
        let gap = self.rng.below(self.options.move_gap_ms_max * MILLISECOND);
        self.schedule(gap, Event::Work(Work::Appear { guest, host }));
    }

    /// A guest is no longer on a host.
    pub(crate) fn unplug(&mut self, guest: usize, place: Appearance, kind: Kind) {
        self.note(
            match kind {
                Kind::Planned => "depart",
                Kind::Foreign => "unplug",
                Kind::Silent => "vanish",
            },
            guest,
            place.host,
            place.id.into(),
        );
        self.model.disappear(self.now, guest, place.id);
        let now = self.hosts[place.host].now(self.now).mono;
        let (network, mac) = (self.model.guests[guest].network, self.model.guests[guest].mac);
        if let Some(agent) = self.hosts[place.host].working() {
            match kind {
                Kind::Planned => agent.switch.depart(now, network, mac),
                Kind::Foreign => agent.switch.handle_port_gone(now, network, place.port),
                Kind::Silent => {}
            }
        }
        if kind == Kind::Silent {
            let until = self.now + BRIDGE_AGEING;
            self.model.ghosts.insert((place.host, guest), until);
        }
        self.settle(place.host);
    }

    fn double(&mut self) {
        let guest = self.rng.index(self.model.guests.len());
        let hosts = self.hosts_in(self.model.guests[guest].network);
        let Some(&host) = self.rng.pick(&hosts) else { return };
        if self.model.guests[guest].places.len() == 1 {
            self.appear(guest, host);
            let delay = self.rng.wait(20 * SECOND);
            self.schedule(delay, Event::Work(Work::Single { guest }));
        }
    }

    fn make_single(&mut self, guest: usize) {
        let places = self.model.guests[guest].places.clone();
        if places.len() > 1
            && let Some(place) = self.rng.pick(&places).copied()
        {
            self.unplug(guest, place, Kind::Foreign);
        }
    }

    /// The guests of a machine that crashes are started elsewhere.
    pub(crate) fn evacuate(&mut self, host: usize) {
        for guest in 0..self.model.guests.len() {
            let Some(place) = self.model.place_at(guest, host) else { continue };
            self.model.disappear(self.now, guest, place.id);
            let hosts = self.hosts_in(self.model.guests[guest].network);
            if let Some(&new) = self.rng.pick(&hosts) {
                let delay = self.rng.wait(10 * SECOND);
                self.schedule(delay, Event::Work(Work::Appear { guest, host: new }));
            }
        }
    }

    /// Every guest that is nowhere is on its way; who is in two places may stay so, or not.
    pub(crate) fn settle_guests(&mut self) {
        for guest in 0..self.model.guests.len() {
            if self.rng.below(2) == 0 {
                self.make_single(guest);
            }
        }
    }
}

/// Guests talk when links are up and claims are known.
const TALK_START: u64 = 6 * SECOND;
const MOVE_START: u64 = 8 * SECOND;
/// How long a bridge keeps an address that it does not hear of. Linux has 300 s: nothing else happens in the rest.
const BRIDGE_AGEING: u64 = 30 * SECOND;
/// Nobody plans to move a guest again before it has arrived. Other moves come at any time.
const PLANNED_STAY_MIN: u64 = SECOND;
