//! The rows of all hosts, with a digest that is kept up to date.

use super::row::short_hash;
use super::{Beat, Body, HostRow, Key, Row, Version};
use crate::ids::{HostId, Mac, NetworkId};
use crate::limits::{GONE_AFTER_REFRESHES, HOSTS_MAX, LEASE_REFRESHES, ROWS_PER_HOST_MAX};
use crate::time::Instant;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Buckets of the digest. Two tables that differ in a few rows differ in a few buckets.
pub const BUCKETS: usize = 256;

/// All rows.
pub struct Table {
    writers: BTreeMap<HostId, Writer>,
    /// By [`Row::name`].
    names: BTreeMap<u64, (HostId, Key)>,
    /// Who claims which address.
    claimants: BTreeSet<(NetworkId, Mac, HostId)>,
    buckets: [u64; BUCKETS],
}

/// The rows of one host.
struct Writer {
    /// Boxed: a tree's node has room for eleven entries, and most hosts have few.
    rows: BTreeMap<Key, Box<Row>>,
    /// Rows of older incarnations are void.
    incarnation: u64,
    /// When it wrote its host row or a beat, as far as this host can tell.
    heard: Instant,
    standing: Standing,
}

/// Whether a host is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Its lease runs.
    Alive,
    /// Its lease ran out.
    Silent,
    /// It said goodbye.
    Left,
}

/// What became of a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Applied {
    /// It is in the table now.
    Accepted {
        /// What it replaced, if that said something else.
        changed: bool,
        /// Rows of an older incarnation that are void now.
        voided: Vec<Key>,
    },
    /// The table has this version or a newer one, or the row is too old to matter.
    Stale,
    /// The table is full, or the writer has too many rows.
    Full,
}

impl Default for Table {
    fn default() -> Self {
        Self { writers: BTreeMap::new(), names: BTreeMap::new(), claimants: BTreeSet::new(), buckets: [0; BUCKETS] }
    }
}

impl Table {
    /// Puts a row in that has been checked. `heard` is when its writer wrote it, as far as this host can tell.
    pub fn apply(&mut self, row: Row, heard: Instant, now: Instant) -> Applied {
        if row.key.is_lease() && is_past(&row, heard, now) {
            return Applied::Stale;
        }
        let known = self.writers.len();
        let Some(writer) = self.writers.get_mut(&row.writer) else {
            if known >= HOSTS_MAX {
                return Applied::Full;
            }
            let standing = standing_of(&row);
            let incarnation = row.version.incarnation;
            self.writers.insert(row.writer, Writer { rows: BTreeMap::new(), incarnation, heard, standing });
            return self.insert(row, Vec::new());
        };
        let old = writer.rows.get(&row.key);
        if row.version.incarnation < writer.incarnation || old.is_some_and(|old| old.version >= row.version) {
            return Applied::Stale;
        }
        if old.is_none() && writer.rows.len() >= ROWS_PER_HOST_MAX {
            return Applied::Full;
        }
        if row.key.is_lease() {
            writer.heard = writer.heard.max(heard);
        }
        if row.key == Key::Beat && writer.standing == Standing::Silent {
            writer.standing = Standing::Alive;
        }
        if row.key != Key::Host {
            return self.insert(row, Vec::new());
        }
        writer.standing = standing_of(&row);
        writer.incarnation = row.version.incarnation;
        let (floor, left) = (row.version.incarnation, row.body.is_none());
        let void: Vec<Key> = writer
            .rows
            .iter()
            .filter(|(key, old)| **key != Key::Host && (left || old.version.incarnation < floor))
            .map(|(key, _)| *key)
            .collect();
        for key in &void {
            self.remove(row.writer, *key);
        }
        self.insert(row, void)
    }

    /// Removes all rows of a host and returns their keys.
    pub fn remove_host(&mut self, host: HostId) -> Vec<Key> {
        let keys: Vec<Key> = self.writers.get(&host).map(|w| w.rows.keys().copied().collect()).unwrap_or_default();
        for key in &keys {
            self.remove(host, *key);
        }
        self.writers.remove(&host);
        keys
    }

    /// The row under (writer, key), taken back ones included.
    pub fn get(&self, writer: HostId, key: Key) -> Option<&Row> {
        self.writers.get(&writer)?.rows.get(&key).map(|row| &**row)
    }

    /// The hosts that claim an address, in order.
    pub fn claimants(&self, network: NetworkId, mac: Mac) -> impl Iterator<Item = HostId> {
        let (first, last) = (HostId([0; 32]), HostId([u8::MAX; 32]));
        self.claimants.range((network, mac, first)..=(network, mac, last)).map(|(_, _, host)| *host)
    }

    /// The row of a [`Row::name`].
    pub fn by_name(&self, name: u64) -> Option<&Row> {
        let (writer, key) = self.names.get(&name)?;
        self.get(*writer, *key)
    }

    /// What a host says of itself, unless it left.
    pub fn host(&self, host: HostId) -> Option<&HostRow> {
        match self.get(host, Key::Host)?.body.as_ref()? {
            Body::Host(row) => Some(row),
            _ => None,
        }
    }

    /// The hosts that have not left, in order.
    pub fn hosts(&self) -> impl Iterator<Item = (HostId, &HostRow)> {
        self.writers.keys().filter_map(|host| Some((*host, self.host(*host)?)))
    }

    /// Everything that hosts say, in order of writer and key.
    pub fn bodies(&self) -> impl Iterator<Item = (HostId, &Body)> {
        self.rows().filter_map(|row| Some((row.writer, row.body.as_ref()?)))
    }

    /// What one host says.
    pub fn bodies_of(&self, host: HostId) -> impl Iterator<Item = &Body> {
        self.writers.get(&host).into_iter().flat_map(|writer| writer.rows.values()).filter_map(|row| row.body.as_ref())
    }

    /// All rows, taken back ones included, in order of writer and key.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.writers.values().flat_map(|writer| writer.rows.values()).map(|row| &**row)
    }

    /// Whether a host is there, and how long ago it last wrote.
    pub fn standing(&self, host: HostId, now: Instant) -> Option<(Standing, Duration)> {
        let writer = self.writers.get(&host)?;
        Some((writer.standing, now.since(writer.heard)))
    }

    /// How many hosts have rows.
    pub fn host_count(&self) -> usize {
        self.writers.len()
    }

    /// The hosts whose lease ran out since the last call, and those whose rows are to be removed.
    pub fn sweep(&mut self, now: Instant, me: HostId) -> (Vec<HostId>, Vec<HostId>) {
        let (mut silent, mut gone) = (Vec::new(), Vec::new());
        for (host, writer) in self.writers.iter_mut().filter(|(host, _)| **host != me) {
            let refresh = writer.refresh();
            let age = now.since(writer.heard);
            if age > refresh * GONE_AFTER_REFRESHES {
                gone.push(*host);
            } else if age > refresh * LEASE_REFRESHES && writer.standing == Standing::Alive {
                writer.standing = Standing::Silent;
                silent.push(*host);
            }
        }
        (silent, gone)
    }

    /// The digest: one number for each bucket of row names.
    pub fn buckets(&self) -> &[u64; BUCKETS] {
        &self.buckets
    }

    /// The digest of the digest.
    pub fn root(&self) -> u64 {
        short_hash(&self.buckets.as_slice())
    }

    /// Names and versions of the rows in one bucket.
    pub fn tags(&self, bucket: u8) -> impl Iterator<Item = (u64, Version)> {
        let first = u64::from(bucket) << 56;
        let last = first | (u64::MAX >> 8);
        self.names
            .range(first..=last)
            .filter_map(|(name, (writer, key))| Some((*name, self.get(*writer, *key)?.version)))
    }

    fn insert(&mut self, row: Row, voided: Vec<Key>) -> Applied {
        let name = row.name();
        self.toggle(name, row.version);
        self.names.insert(name, (row.writer, row.key));
        let Some(writer) = self.writers.get_mut(&row.writer) else { return Applied::Full };
        let (host, key, version) = (row.writer, row.key, row.version);
        let body = row.body.clone();
        let old = writer.rows.insert(key, Box::new(row));
        if let Some(old) = &old {
            self.toggle(name, old.version);
        }
        debug_assert!(old.as_ref().is_none_or(|old| old.version < version));
        if let Key::Claim(network, mac) = key {
            match body {
                Some(_) => self.claimants.insert((network, mac, host)),
                None => self.claimants.remove(&(network, mac, host)),
            };
        }
        Applied::Accepted { changed: old.and_then(|old| old.body) != body, voided }
    }

    fn remove(&mut self, host: HostId, key: Key) {
        let Some(row) = self.writers.get_mut(&host).and_then(|writer| writer.rows.remove(&key)) else { return };
        self.toggle(row.name(), row.version);
        self.names.remove(&row.name());
        if let Key::Claim(network, mac) = key {
            self.claimants.remove(&(network, mac, host));
        }
    }

    /// Adds a row to the digest, or takes it out.
    fn toggle(&mut self, name: u64, version: Version) {
        self.buckets[usize::from((name >> 56) as u8)] ^= short_hash(&(name, version));
    }
}

impl Writer {
    /// What its latest sign of life promises.
    fn refresh(&self) -> Duration {
        let signs = [Key::Host, Key::Beat].into_iter().filter_map(|key| self.rows.get(&key));
        refresh_of(signs.max_by_key(|row| row.version).map(|row| &**row))
    }
}

fn standing_of(row: &Row) -> Standing {
    match (row.key, &row.body) {
        (Key::Host, None) => Standing::Left,
        _ => Standing::Alive,
    }
}

/// Whether a sign of life is so old that its host's rows would be removed at once.
fn is_past(row: &Row, heard: Instant, now: Instant) -> bool {
    now.since(heard) > refresh_of(Some(row)) * GONE_AFTER_REFRESHES
}

/// A host that left, or whose row is not here yet, gets the longest time for a small swarm.
fn refresh_of(row: Option<&Row>) -> Duration {
    match row.and_then(|row| row.body.as_ref()) {
        Some(Body::Host(row)) => Duration::from_secs(row.refresh_s.into()),
        Some(Body::Beat(Beat { refresh_s })) => Duration::from_secs((*refresh_s).into()),
        _ => Duration::from_secs(60),
    }
}
