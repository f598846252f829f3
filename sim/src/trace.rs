//! What happened last, for whoever reads a failed run, and a running hash of everything that happened.

use crate::clock::Time;
use std::collections::VecDeque;
use std::fmt;

/// One thing that happened.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) at: Time,
    pub(crate) what: &'static str,
    /// Usually a host, and the one it has to do with.
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) detail: u64,
}

/// The last entries and the hash of all.
pub(crate) struct Trace {
    tail: VecDeque<Entry>,
    hash: u64,
    count: u64,
    /// Only these are kept; everything is hashed.
    pub(crate) keep: fn(&'static str) -> bool,
}

/// How many entries a report shows.
const TAIL_ENTRIES: usize = 1_000;

impl Trace {
    pub(crate) fn new() -> Self {
        Self { tail: VecDeque::with_capacity(TAIL_ENTRIES), hash: 0xcbf2_9ce4_8422_2325, count: 0, keep: is_telling }
    }

    pub(crate) fn add(&mut self, entry: Entry) {
        self.count += 1;
        for byte in entry.what.bytes() {
            self.mix(byte.into());
        }
        for word in [entry.at.0, entry.a, entry.b, entry.detail] {
            self.mix(word);
        }
        if (self.keep)(entry.what) {
            if self.tail.len() == TAIL_ENTRIES {
                self.tail.pop_front();
            }
            self.tail.push_back(entry);
        }
    }

    pub(crate) const fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn tail(&self) -> Vec<String> {
        self.tail.iter().map(Entry::to_string).collect()
    }

    const fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, what, a, b, detail } = self;
        write!(f, "{:>12.6} s  {what:<14} {a:>4} {b:>4}  {detail:x}", at.0 as f64 / 1e6)
    }
}

/// Gossip, timers and delivered frames would push everything else out of the tail.
fn is_telling(what: &'static str) -> bool {
    !matches!(
        what,
        "gossip" | "node timer" | "switch timer" | "frame" | "request" | "response" | "talk" | "connections"
    )
}

/// A short hash of bytes for [`Entry::detail`].
pub(crate) fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
