//! The way from one thread to another: batches of items, with the bytes that belong to them. Writer and reader meet
//! once for each batch, not for each item, and a batch's memory is used again.
//!
//! The reader is woken only if it rests. How much waits is bounded by the writer, which asks [`Writer::is_full`] before
//! it takes more in, and is woken when there is room again. What must not be lost goes in all the same: it is little.

use super::super::command::Wake;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that wait for the reader before the writer takes more in: two turns of a busy port.
const BYTES_FULL: usize = 512 << 10;

/// Bytes that wait at most. What one turn can bring beyond [`BYTES_FULL`] fits, unless it is a flood to many hosts.
const BYTES_MAX: usize = 4 << 20;

/// What an item counts for beside its bytes.
const ITEM_BYTES: usize = 64;

/// Batches whose memory is kept.
const SPARES_MAX: usize = 3;

/// Items in order; each takes its bytes, if it has some, from the beginning of what the earlier ones left.
pub(super) struct Batch<T> {
    pub(super) items: Vec<T>,
    pub(super) bytes: Vec<u8>,
    weight: usize,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self { items: Vec::new(), bytes: Vec::new(), weight: 0 }
    }
}

/// Both ends of a new mailbox. `reader` and `writer` are what wakes their threads.
pub(super) fn mailbox<T>(writer: Arc<Wake>, reader: Arc<Wake>) -> (Writer<T>, Reader<T>) {
    let shared = Arc::new(Shared { state: Mutex::new(State::default()), writer, reader });
    let writer = Writer { shared: Arc::clone(&shared), open: Batch::default(), waiting: 0 };
    (writer, Reader { shared })
}

struct Shared<T> {
    state: Mutex<State<T>>,
    writer: Arc<Wake>,
    reader: Arc<Wake>,
}

struct State<T> {
    batches: VecDeque<Batch<T>>,
    spares: Vec<Batch<T>>,
    /// Of all batches.
    weight: usize,
    reader_rests: bool,
    writer_waits: bool,
    is_closed: bool,
}

impl<T> Default for State<T> {
    fn default() -> Self {
        Self {
            batches: VecDeque::new(),
            spares: Vec::new(),
            weight: 0,
            reader_rests: false,
            writer_waits: false,
            is_closed: false,
        }
    }
}

impl<T> Shared<T> {
    /// The state, whatever happened to another holder of the lock: it is whole between any two calls.
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.state().is_closed = true;
        self.reader.wake();
        self.writer.wake();
    }
}

/// The end that puts in.
pub(super) struct Writer<T> {
    shared: Arc<Shared<T>>,
    /// The batch that is being filled.
    open: Batch<T>,
    /// What waited for the reader when it was looked last.
    waiting: usize,
}

impl<T> Writer<T> {
    /// Adds an item that owns `bytes` somewhere.
    pub(super) fn push(&mut self, item: T, bytes: usize) {
        self.open.items.push(item);
        self.open.weight += ITEM_BYTES + bytes;
    }

    /// Adds an item with a copy of its bytes; false if too much waits, and then it is not added. HOT PATH.
    pub(super) fn push_bytes(&mut self, item: T, bytes: &[u8]) -> bool {
        if self.weight() > BYTES_MAX {
            return false;
        }
        self.open.bytes.extend_from_slice(bytes);
        self.push(item, bytes.len());
        true
    }

    /// Hands the open batch to the reader. HOT PATH.
    pub(super) fn publish(&mut self) {
        if self.open.items.is_empty() {
            return;
        }
        let mut state = self.shared.state();
        let spare = state.spares.pop().unwrap_or_default();
        let batch = std::mem::replace(&mut self.open, spare);
        state.weight += batch.weight;
        state.batches.push_back(batch);
        self.waiting = state.weight;
        let rested = std::mem::take(&mut state.reader_rests);
        drop(state);
        if rested {
            self.shared.reader.wake();
        }
    }

    /// Whether so much waits that the writer should take nothing more in; looked up when the batch was published.
    pub(super) fn is_full(&self) -> bool {
        self.weight() > BYTES_FULL
    }

    /// Looks anew, if it was full. If it still is, the writer is woken when there is room.
    pub(super) fn wait_for_room(&mut self) -> bool {
        if !self.is_full() {
            return false;
        }
        let mut state = self.shared.state();
        self.waiting = state.weight;
        state.writer_waits = state.weight > BYTES_FULL;
        drop(state);
        self.is_full()
    }

    /// Whether the reader is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.shared.state().is_closed
    }

    /// Nothing more will come.
    pub(super) fn close(&mut self) {
        self.publish();
        self.shared.close();
    }

    fn weight(&self) -> usize {
        self.open.weight + self.waiting
    }
}

impl<T> Drop for Writer<T> {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// The end that takes out.
pub(super) struct Reader<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Reader<T> {
    /// Takes the oldest batch. HOT PATH.
    pub(super) fn take(&mut self) -> Option<Batch<T>> {
        let mut state = self.shared.state();
        state.reader_rests = false;
        let batch = state.batches.pop_front()?;
        state.weight -= batch.weight;
        let wakes_writer = state.writer_waits && state.weight <= BYTES_FULL;
        if wakes_writer {
            state.writer_waits = false;
        }
        drop(state);
        if wakes_writer {
            self.shared.writer.wake();
        }
        Some(batch)
    }

    /// Gives the memory of a batch back. What is left of it is dropped.
    pub(super) fn give_back(&mut self, mut batch: Batch<T>) {
        batch.items.clear();
        batch.bytes.clear();
        batch.weight = 0;
        let mut state = self.shared.state();
        if state.spares.len() < SPARES_MAX {
            state.spares.push(batch);
        }
    }

    /// The reader is about to sleep. True if nothing is here: then the next batch wakes it.
    pub(super) fn rest(&mut self) -> bool {
        let mut state = self.shared.state();
        state.reader_rests = state.batches.is_empty() && !state.is_closed;
        state.reader_rests
    }

    /// Whether nothing more will come.
    pub(super) fn is_closed(&self) -> bool {
        self.shared.state().is_closed
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        self.shared.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Writer<u32>, Reader<u32>) {
        mailbox(Arc::new(Wake::new().unwrap()), Arc::new(Wake::new().unwrap()))
    }

    #[test]
    fn items_come_in_order_with_their_bytes() {
        let (mut writer, mut reader) = pair();
        assert!(writer.push_bytes(1, b"one"));
        writer.push(2, 0);
        writer.publish();
        assert!(writer.push_bytes(3, b"three"));
        writer.publish();
        let first = reader.take().unwrap();
        assert_eq!((&first.items[..], &first.bytes[..]), (&[1, 2][..], &b"one"[..]));
        reader.give_back(first);
        let second = reader.take().unwrap();
        assert_eq!((&second.items[..], &second.bytes[..]), (&[3][..], &b"three"[..]));
        assert!(reader.take().is_none());
    }

    #[test]
    fn a_reader_that_rests_is_woken_once() {
        let (mut writer, mut reader) = pair();
        assert!(reader.rest());
        for _ in 0..3 {
            writer.push(1, 0);
            writer.publish();
        }
        assert_eq!(writer.shared.reader.clear(), 1);
        assert!(!reader.rest(), "something is here");
        while reader.take().is_some() {}
        assert!(reader.rest());
    }

    #[test]
    fn a_full_mailbox_refuses_bytes_and_wakes_its_writer_when_there_is_room() {
        let (mut writer, mut reader) = pair();
        let taken = (0..10_000).filter(|_| writer.push_bytes(0, &[0; 1024])).count();
        assert!((BYTES_MAX / 2048..BYTES_MAX / 1024).contains(&taken), "{taken}");
        writer.push(1, 0);
        writer.publish();
        assert!(writer.wait_for_room());
        assert_eq!(writer.shared.writer.clear(), 0);
        let batch = reader.take().unwrap();
        assert_eq!(batch.items.last(), Some(&1), "what must not be lost goes in all the same");
        assert_eq!(writer.shared.writer.clear(), 1);
        assert!(!writer.wait_for_room());
    }

    #[test]
    fn each_end_sees_that_the_other_is_gone() {
        let (writer, reader) = pair();
        drop(reader);
        assert!(writer.is_closed());
        let (mut writer, mut reader) = pair();
        writer.push(7, 0);
        writer.close();
        assert!(reader.is_closed());
        assert_eq!(reader.take().unwrap().items, [7], "what was sent before is still there");
        assert!(!reader.rest());
    }
}
