//! What is true: where every guest is, and what became of every frame. No host can see it.

use crate::clock::Time;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use virtuoso_overlay::ids::{Mac, NetworkId};
use virtuoso_overlay::switch::PortId;

/// The truth.
#[derive(Default)]
pub struct Model {
    /// All guests.
    pub guests: Vec<Guest>,
    by_mac: BTreeMap<(NetworkId, Mac), usize>,
    /// All numbered frames.
    pub frames: Vec<FrameRecord>,
    /// Hosts whose bridges still believe to have a guest, and until when.
    pub ghosts: BTreeMap<(usize, usize), Time>,
    appearances: u32,
}

/// A guest: an address of a network that is at one host, or none while it moves, or two if something is wrong.
pub struct Guest {
    /// Its network.
    pub network: NetworkId,
    /// Its address.
    pub mac: Mac,
    /// Its IP address.
    pub ip: Ipv4Addr,
    /// Where it is.
    pub places: Vec<Appearance>,
    /// When it last came or went.
    pub changed: Time,
}

/// A guest on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appearance {
    /// Names it among all that ever were.
    pub id: u32,
    /// Where.
    pub host: usize,
    /// Behind which interface of the bridge.
    pub port: PortId,
}

/// What became of a numbered frame.
#[derive(Clone, Debug)]
pub struct FrameRecord {
    /// The guest that sent it.
    pub from: usize,
    /// The guest it is for.
    pub to: usize,
    /// Whether the sender was in one place: of a second one nothing is promised.
    pub single: bool,
    /// When it was sent.
    pub sent: Time,
    /// Whether its sender's host did not know where to.
    pub flooded: bool,
    /// How often one host has sent it to another as unicast.
    pub hops: u8,
    /// Who has received it, and when first.
    pub received: Vec<u32>,
    /// See `received`.
    pub first: Option<Time>,
    /// Why a host dropped it.
    pub dropped: Option<&'static str>,
}

impl Model {
    /// A new guest that is nowhere yet.
    pub fn add_guest(&mut self, network: NetworkId) -> usize {
        let index = self.guests.len();
        let [.., high, low] = (index as u32 + 1).to_be_bytes();
        let mac = Mac([0x52, 0x54, 0, network.0 as u8, high, low]);
        let ip = Ipv4Addr::new(10, network.0 as u8, high, low);
        self.by_mac.insert((network, mac), index);
        self.guests.push(Guest { network, mac, ip, places: Vec::new(), changed: Time(0) });
        index
    }

    /// The guest with an address.
    pub fn guest_of(&self, network: NetworkId, mac: Mac) -> Option<usize> {
        self.by_mac.get(&(network, mac)).copied()
    }

    /// A guest appears on a host.
    pub fn appear(&mut self, now: Time, guest: usize, host: usize) -> Appearance {
        self.appearances += 1;
        let place = Appearance { id: self.appearances, host, port: PortId(self.appearances) };
        self.ghosts.remove(&(host, guest));
        self.guests[guest].places.push(place);
        self.guests[guest].changed = now;
        place
    }

    /// A guest disappears from a host.
    pub fn disappear(&mut self, now: Time, guest: usize, id: u32) {
        self.guests[guest].places.retain(|place| place.id != id);
        self.guests[guest].changed = now;
    }

    /// The guests of a network on a host.
    pub fn guests_at(&self, host: usize, network: NetworkId) -> Vec<(usize, Appearance)> {
        let of_network = self.guests.iter().enumerate().filter(|(_, guest)| guest.network == network);
        of_network.flat_map(|(n, guest)| guest.places.iter().filter(|p| p.host == host).map(move |p| (n, *p))).collect()
    }

    /// Where a guest is on one host.
    pub fn place_at(&self, guest: usize, host: usize) -> Option<Appearance> {
        self.guests[guest].places.iter().find(|place| place.host == host).copied()
    }

    /// Numbers a new frame.
    pub fn send(&mut self, now: Time, from: usize, to: usize) -> u64 {
        let single = self.guests[from].places.len() == 1;
        self.frames.push(FrameRecord {
            single,
            from,
            to,
            sent: now,
            flooded: false,
            hops: 0,
            received: Vec::new(),
            first: None,
            dropped: None,
        });
        self.frames.len() as u64 - 1
    }

    /// The record of a frame.
    pub fn frame(&mut self, number: u64) -> Option<&mut FrameRecord> {
        self.frames.get_mut(usize::try_from(number).ok()?)
    }
}
