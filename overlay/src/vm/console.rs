//! What a VM's console is made of, without its socket: what the guest wrote lately, with places in it that stay the
//! same when the VM moves, and what was typed and is not confirmed yet.

use crate::wire::attach::{CONSOLE_PAST_BYTES_MAX, ConsolePart};
use std::collections::VecDeque;

/// What a guest wrote lately: the last [`CONSOLE_PAST_BYTES_MAX`] bytes, and how many there were in all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Past {
    bytes: VecDeque<u8>,
    end: u64,
}

/// A past that comes from another host, part by part.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Arriving(Past);

/// What was typed and whose fate is not known yet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Unconfirmed(VecDeque<u8>);

impl Past {
    /// The guest wrote something.
    pub fn push(&mut self, output: &[u8]) {
        self.bytes.extend(output);
        self.end = self.end.saturating_add(output.len() as u64);
        let surplus = self.bytes.len().saturating_sub(CONSOLE_PAST_BYTES_MAX);
        self.bytes.drain(..surplus);
    }

    /// Bytes that the guest has written in all.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Where what is known begins.
    pub fn begin(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// At most `most` bytes from `position` on, or from the first that is known behind it; where they begin.
    pub fn since(&self, position: u64, most: usize) -> (u64, Vec<u8>) {
        let begin = position.clamp(self.begin(), self.end);
        // At most what is known, which is small.
        let skipped = (begin - self.begin()) as usize;
        (begin, self.bytes.iter().skip(skipped).take(most).copied().collect())
    }
}

impl Arriving {
    /// A part came. One that does not follow those before begins anew: what lies between is lost.
    pub fn push(&mut self, part: &ConsolePart) {
        if part.begin != self.0.end {
            self.0 = Past { bytes: VecDeque::new(), end: part.begin };
        }
        self.0.push(&part.output);
    }

    /// The whole past, once the last part came: this one, and then what the guest wrote `here`.
    pub fn joined(self, here: &Past) -> Past {
        let Self(mut past) = self;
        let (_, output) = here.since(0, CONSOLE_PAST_BYTES_MAX);
        past.end = past.end.saturating_add(here.begin());
        past.push(&output);
        past
    }
}

impl Unconfirmed {
    /// Something was typed.
    pub fn push(&mut self, input: &[u8]) {
        self.0.extend(input);
    }

    /// So many bytes go to the guest; true if there were so many.
    pub fn confirm(&mut self, count: u32) -> bool {
        let count = count as usize;
        let is_possible = count <= self.0.len();
        self.0.drain(..count.min(self.0.len()));
        is_possible
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes them, in their order.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(begin: u64, output: Vec<u8>) -> ConsolePart {
        ConsolePart { past: 1, begin, output, typed: Vec::new(), is_last: false }
    }

    /// The byte that a guest writes at a position, so that a wrong place is seen.
    fn byte_at(position: u64) -> u8 {
        (position % 251) as u8
    }

    fn written(begin: u64, count: u64) -> Vec<u8> {
        (begin..begin + count).map(byte_at).collect()
    }

    proptest! {
        /// Whatever was written, a watcher who goes on where it was sees each byte once and in its place.
        #[test]
        fn watchers_see_every_byte_in_its_place(pieces in prop::collection::vec(0u64..40_000, 0..12), most in 1usize..9_000) {
            let (mut past, mut seen) = (Past::default(), 0);
            for piece in pieces {
                past.push(&written(past.end(), piece));
                prop_assert!(past.end() - past.begin() <= CONSOLE_PAST_BYTES_MAX as u64);
                for _ in 0..3 {
                    let (begin, output) = past.since(seen, most);
                    prop_assert!(begin >= seen && (begin == seen || begin == past.begin()));
                    prop_assert_eq!(&output, &written(begin, output.len() as u64));
                    seen = begin + output.len() as u64;
                }
            }
        }

        /// A past that moves in two parts, while the guest writes at both hosts, is the one that never moved.
        #[test]
        fn a_past_moves_whole(before in 0u64..90_000, meanwhile in 0u64..90_000, after in 0u64..90_000) {
            let mut source = Past::default();
            source.push(&written(0, before));
            let mut arriving = Arriving::default();
            let (begin, output) = source.since(0, CONSOLE_PAST_BYTES_MAX);
            let sent = begin + output.len() as u64;
            arriving.push(&part(begin, output));
            source.push(&written(before, meanwhile));
            let (begin, output) = source.since(sent, CONSOLE_PAST_BYTES_MAX);
            arriving.push(&part(begin, output));
            let mut target = Past::default();
            target.push(&written(before + meanwhile, after));
            let joined = arriving.joined(&target);
            source.push(&written(before + meanwhile, after));
            let place = source.begin().max(joined.begin());
            prop_assert_eq!(joined.end(), source.end());
            prop_assert_eq!(joined.since(place, usize::MAX), source.since(place, usize::MAX));
        }

        /// Each byte goes to one of two hosts, whichever confirmed it.
        #[test]
        fn what_is_typed_goes_once(typed: Vec<Vec<u8>>, confirmed: u32) {
            let mut unconfirmed = Unconfirmed::default();
            for piece in &typed {
                unconfirmed.push(piece);
            }
            let all = typed.concat();
            let is_possible = unconfirmed.confirm(confirmed);
            prop_assert_eq!(is_possible, confirmed as usize <= all.len());
            prop_assert_eq!(unconfirmed.take(), all[(confirmed as usize).min(all.len())..].to_vec());
            prop_assert!(unconfirmed.is_empty());
        }
    }
}
