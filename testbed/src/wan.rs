//! The link emulator: a thread that owns one TAP device in the namespace of each member of a link and relays
//! frames between them, late, damaged in number and order, or not at all. It needs no kernel qdisc.
//! What happens to a frame is decided by `wan/switchboard.rs` in virtual time; this file is only its I/O.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::netns::Namespace;
use crate::sys;
use crate::topology::{Address, Impairment, LinkSpec};
pub(crate) use crate::wan::pipe::Counters;
use crate::wan::switchboard::Switchboard;

mod pipe;
mod switchboard;

pub(crate) struct Emulator {
    members: Vec<String>,
    board: Arc<Mutex<Switchboard>>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Emulator {
    /// Makes the TAPs, named like the link, and begins to relay.
    pub(crate) fn start(
        name: &str,
        spec: &LinkSpec,
        namespace_of: impl Fn(&str) -> Result<Namespace>,
        seed: u64,
    ) -> Result<Self> {
        let mut taps = Vec::new();
        for (member, addresses) in &spec.members {
            let namespace = namespace_of(member)?;
            taps.push(make_tap(&namespace, name, spec.mtu, addresses)?);
        }
        let board = Arc::new(Mutex::new(Switchboard::new(taps.len(), spec.impairment, seed)));
        let stop = Arc::new(sys::event_fd()?);
        let thread = {
            let (board, stop) = (Arc::clone(&board), Arc::clone(&stop));
            let relay = move || {
                // A real path goes on where this machine is busy, and the agents' engines would have it wait for them.
                sys::real_time();
                Relay { taps, board, stop }.run();
            };
            std::thread::Builder::new().name(format!("wan-{name}")).spawn(relay)?
        };
        Ok(Self { members: spec.members.keys().cloned().collect(), board, stop, thread: Some(thread) })
    }

    /// Changes what is wrong, for all directions, for the frames that come from now on.
    pub(crate) fn impair(&self, impairment: Impairment) {
        self.board().set_impairment(impairment);
    }

    /// No frame passes between `group` and the other members until `heal`.
    pub(crate) fn isolate(&self, group: &[&str]) {
        let inside: Vec<bool> = self.members.iter().map(|member| group.contains(&member.as_str())).collect();
        self.board().cut(|from, to| inside[from] != inside[to]);
    }

    pub(crate) fn heal(&self) {
        self.board().cut(|_, _| false);
    }

    /// What went from member to member: `(from, to, counters)`.
    pub(crate) fn counters(&self) -> Vec<(String, String, Counters)> {
        let board = self.board();
        let named = |(from, to, counters): (usize, usize, Counters)| {
            (self.members[from].clone(), self.members[to].clone(), counters)
        };
        board.counters().map(named).collect()
    }

    /// Notes from now on when frames of at least `length_min` bytes go from member to member.
    pub(crate) fn watch(&self, length_min: usize) {
        self.board().watch(length_min);
    }

    /// When watched frames set off from `from` to `to`, in nanoseconds of the monotonic clock.
    pub(crate) fn sightings(&self, from: &str, to: &str) -> Vec<u64> {
        let index = |name: &str| self.members.iter().position(|member| member == name);
        let (Some(from), Some(to)) = (index(from), index(to)) else { return Vec::new() };
        self.board().sightings(from, to).to_vec()
    }

    fn board(&self) -> MutexGuard<'_, Switchboard> {
        lock(&self.board)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // The counter of an eventfd can't overflow by one writer; the thread ends at its next look.
        let _ = sys::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Relay {
    taps: Vec<OwnedFd>,
    board: Arc<Mutex<Switchboard>>,
    stop: Arc<OwnedFd>,
}

impl Relay {
    fn run(self) {
        sys::exact_timers();
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        loop {
            let begin = Instant::now();
            let timeout = self.deliver();
            let mut fds = vec![self.stop.as_fd()];
            fds.extend(self.taps.iter().map(AsFd::as_fd));
            let readable = match sys::wait_readable(&fds, timeout) {
                Ok(readable) => readable,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            if readable[0] {
                return;
            }
            for (from, _) in readable[1..].iter().enumerate().filter(|(_, readable)| **readable) {
                self.take_in(from, &mut buffer);
            }
            let rest = lock(&self.board).moderation().saturating_sub(begin.elapsed());
            if !rest.is_zero() {
                std::thread::sleep(rest);
            }
        }
    }

    fn take_in(&self, from: usize, buffer: &mut [u8]) {
        for _ in 0..BATCH_MAX {
            let Ok(length) = sys::read(&self.taps[from], buffer) else { return };
            lock(&self.board).ingress(sys::monotonic_ns(), from, &buffer[..length]);
        }
    }

    /// Hands over every frame that is due; how long until the next one is.
    fn deliver(&self) -> Option<Duration> {
        let mut board = lock(&self.board);
        let now = sys::monotonic_ns();
        while let Some((to, frame)) = board.pop_due(now) {
            // An interface that is down refuses frames: lost, as on a real wire.
            let _ = sys::write(&self.taps[to], &frame);
        }
        board.next_due().map(|due| Duration::from_nanos(due.saturating_sub(now)))
    }
}

/// Frames read from one TAP before the others get their turn.
const BATCH_MAX: usize = 64;
/// The largest frame a TAP hands over: no segmentation offload is switched on, so its MTU and the headers.
const FRAME_BYTES_MAX: usize = 65_536 + 18;

fn make_tap(namespace: &Namespace, name: &str, mtu: u16, addresses: &[Address]) -> Result<OwnedFd> {
    let tap = namespace
        .enter(|| Ok(sys::open_tap(name)?))
        .with_context(|| format!("Cannot make TAP {name} in {} (needs /dev/net/tun)", namespace.name()))?;
    namespace.ip(&format!("link set {name} mtu {mtu} up"))?;
    for address in addresses {
        namespace.ip(&format!("address add {address} dev {name}"))?;
    }
    Ok(tap)
}

/// A panic of the other side while it held the lock can't leave the board half changed in a way that matters.
fn lock(board: &Mutex<Switchboard>) -> MutexGuard<'_, Switchboard> {
    board.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
