//! A shard on a thread of its own, as the engine's thread sees it.
//!
//! ```text
//!  engine's thread                              crew's thread
//!   frames, packets of connections, orders ->  Shard: queues, QUIC, UDP sends, timers
//!   ports, switch, endpoint                <-  packets that arrived, reports
//! ```
//! Neither waits for the other. If one is behind, the other takes nothing more in: the engine's thread leaves frames
//! and packets in the kernel's queues, the crew leaves them in the mailbox. The engine's thread always takes what a
//! crew has, so they can't wait for each other.

use super::mailbox::{Batch, Reader, Writer, mailbox};
use super::{Order, Report, Shard};
use crate::clock::{Clock, Tick};
use crate::command::Wake;
use crate::path::Path;
use crate::poller::Poller;
use crate::priority::Priority;
use crate::worker::HOUSEKEEPING;
use anyhow::{Context, Result};
use quinn_proto::ConnectionEvent;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use virtuoso_overlay::drop_reason::DropReason;
use virtuoso_overlay::ids::HostId;
use virtuoso_overlay::wire::frame::FrameHeader;

/// What goes to a crew.
enum Task {
    /// Send the frame that takes so many bytes of the batch.
    Frame {
        host: HostId,
        header: FrameHeader,
        bytes: usize,
    },
    Order(Order),
}

/// What comes from a crew.
pub(in super::super) enum News<'a> {
    /// A packet arrived on the connection in this slot.
    Packet(u16, &'a [u8]),
    Report(Report),
}

enum Note {
    Packet { slot: u16, bytes: usize },
    Report(Report),
}

/// The engine's end of a crew. When it is dropped, the crew sends what it has and ends.
pub(in super::super) struct Crew {
    tasks: Writer<Task>,
    notes: Reader<Note>,
    thread: Option<JoinHandle<()>>,
}

impl Crew {
    /// Starts a thread named after `number` that drives `shard`. `wake` wakes the engine's thread.
    ///
    /// # Errors
    /// If the thread or its descriptor can't be made.
    pub(in super::super) fn start(number: usize, shard: Shard, clock: Clock, wake: &Arc<Wake>) -> Result<Self> {
        let own = Arc::new(Wake::new().context("Can't create a wake-up descriptor for the data plane")?);
        let (tasks, todo) = mailbox(Arc::clone(wake), Arc::clone(&own));
        let (done, notes) = mailbox(Arc::clone(&own), Arc::clone(wake));
        let hand = Hand {
            clock,
            wake: own,
            shard,
            tasks: todo,
            notes: done,
            housekeeping_at: clock.tick().at,
            poller: Poller::default(),
        };
        let thread = std::thread::Builder::new()
            .name(format!("engine-{number}"))
            .spawn(move || hand.run())
            .context("Can't start a thread of the data plane")?;
        Ok(Self { tasks, notes, thread: Some(thread) })
    }

    /// Has a packet sent to `host`; false if too much waits for the crew. HOT PATH.
    pub(in super::super) fn send(&mut self, host: HostId, header: &FrameHeader, packet: &[u8]) -> bool {
        self.tasks.push_bytes(Task::Frame { host, header: *header, bytes: packet.len() }, packet)
    }

    /// Has a packet given to a connection. HOT PATH.
    pub(in super::super) fn feed(&mut self, slot: u16, via: Path, event: ConnectionEvent, bytes: usize) {
        self.tasks.push(Task::Order(Order::Feed { slot, via: Some(via), event }), bytes);
    }

    /// Has an order carried out.
    pub(in super::super) fn order(&mut self, order: Order) {
        let bytes = if let Order::Message { message, .. } = &order { message.len() } else { 0 };
        self.tasks.push(Task::Order(order), bytes);
    }

    /// Lets the crew see what it was given since the last time.
    pub(in super::super) fn publish(&mut self) {
        self.tasks.publish();
    }

    /// Whether the crew has so much to do that it should not get more in this turn.
    pub(in super::super) fn is_full(&self) -> bool {
        self.tasks.is_full()
    }

    /// As [`Crew::is_full`], as it is now. If it is, the engine's thread is woken when that changes.
    pub(in super::super) fn wait_for_room(&mut self) -> bool {
        self.tasks.wait_for_room()
    }

    /// Hands what the crew has told to `take`.
    pub(in super::super) fn collect(&mut self, mut take: impl FnMut(News<'_>)) {
        while let Some(mut batch) = self.notes.take() {
            let mut rest = &batch.bytes[..];
            for note in batch.items.drain(..) {
                match note {
                    Note::Packet { slot, bytes } => {
                        let (packet, others) = rest.split_at(bytes);
                        rest = others;
                        take(News::Packet(slot, packet));
                    }
                    Note::Report(report) => take(News::Report(report)),
                }
            }
            self.notes.give_back(batch);
        }
    }

    /// The engine's thread is about to sleep. True if the crew has told nothing new: then it wakes the thread.
    pub(in super::super) fn rest(&mut self) -> bool {
        self.notes.rest()
    }

    /// Whether the thread has ended, which it does by itself only when it panics.
    pub(in super::super) fn is_gone(&self) -> bool {
        self.tasks.is_closed()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.tasks.close();
        if let Some(thread) = self.thread.take() {
            // The panic of a crew was logged, and ends the engine.
            let _ = thread.join();
        }
    }
}

/// What the crew's thread owns.
struct Hand {
    clock: Clock,
    wake: Arc<Wake>,
    shard: Shard,
    tasks: Reader<Task>,
    notes: Writer<Note>,
    housekeeping_at: Instant,
    poller: Poller,
}

impl Hand {
    /// Runs until the engine's thread lets go of its end.
    fn run(mut self) {
        let mut priority = Priority::new(self.clock.tick());
        let mut has_more = false;
        loop {
            let is_last = self.tasks.is_closed();
            if !is_last && self.notes.wait_for_room() {
                self.wait(HOUSEKEEPING);
                continue;
            }
            if !is_last && !has_more && self.tasks.rest() {
                self.wait(self.timeout());
            }
            let tick = self.clock.tick();
            let has_tasks = self.take_tasks(tick);
            self.shard.handle_timeouts(tick);
            self.receive(tick);
            self.housekeep(tick);
            has_more = self.shard.transmit(tick);
            self.notes.publish();
            // When everything is on its way: no packet waits for it.
            priority.review(tick, has_tasks);
            if is_last {
                return;
            }
        }
    }

    /// Sleeps until there is something to do. The engine's thread receives; here the socket matters if it is full.
    fn wait(&mut self, timeout: Duration) {
        self.poller.begin();
        self.poller.watch(&*self.wake, libc::POLLIN);
        if self.shard.is_blocked() {
            self.poller.watch(self.shard.socket(), libc::POLLOUT);
        }
        self.poller.wait(timeout);
        self.wake.clear();
    }

    fn timeout(&self) -> Duration {
        let at = self.shard.deadline().map_or(self.housekeeping_at, |at| at.min(self.housekeeping_at));
        at.saturating_duration_since(self.clock.tick().at)
    }

    /// Carries out one batch at least, and what came meanwhile. False if there was none.
    fn take_tasks(&mut self, tick: Tick) -> bool {
        let mut has_tasks = false;
        while let Some(mut batch) = self.tasks.take() {
            self.carry_out(tick, &mut batch);
            self.tasks.give_back(batch);
            has_tasks = true;
        }
        has_tasks
    }

    fn carry_out(&mut self, tick: Tick, batch: &mut Batch<Task>) {
        let mut rest = &batch.bytes[..];
        for task in batch.items.drain(..) {
            match task {
                Task::Frame { host, header, bytes } => {
                    let (packet, others) = rest.split_at(bytes);
                    rest = others;
                    self.shard.send_copy(tick, host, &header, packet);
                }
                Task::Order(order) => self.shard.carry_out(tick, order),
            }
        }
    }

    /// Lets the connections work on what came, and tells the engine's thread at once.
    fn receive(&mut self, tick: Tick) {
        let Self { shard, notes, .. } = self;
        shard.look_after();
        shard.unpack(tick, |slot, _, traffic, packet| {
            if !notes.push_bytes(Note::Packet { slot, bytes: packet.len() }, packet) {
                traffic.drops.count(DropReason::QueueFull);
            }
        });
        while let Some(report) = shard.poll_report() {
            let bytes = if let Report::Message { message, .. } = &report { message.len() } else { 0 };
            notes.push(Note::Report(report), bytes);
        }
        notes.publish();
    }

    fn housekeep(&mut self, tick: Tick) {
        if self.housekeeping_at <= tick.at {
            self.housekeeping_at = tick.at + HOUSEKEEPING;
            self.shard.expire(tick);
        }
    }
}
