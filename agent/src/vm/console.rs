//! A VM's serial console: what the guest wrote lately, what it writes now for everybody who watches, and the way in.
//!
//! When the VM moves, the console moves along ([`Console::part`], [`Console::take_part`]): nothing that the guest wrote
//! is missing at the new host, and what was typed and the guest had not read goes to it there. To know what that is,
//! what is typed goes into QEMU's socket byte by byte, of which the kernel counts how many are unread.

use crate::entropy;
use socket2::SockRef;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use virtuoso_overlay::vm::console::{Arriving, Past};
use virtuoso_overlay::wire::attach::{CONSOLE_PAST_BYTES_MAX, CONSOLE_TYPED_BYTES_MAX, ConsolePart, Place};

/// Bytes that are read in one go.
const PIECE_BYTES: usize = 4096;
/// Bytes that may be in QEMU's socket: far more than the six that fit with the smallest buffer.
const WRITTEN_MAX: usize = 64;
/// How long watchers wait for the past of a VM that has just come.
const PAST_TIME_MAX: Duration = Duration::from_secs(3);

/// One VM's console. It serves watchers until it is ended.
#[derive(Debug)]
pub struct Console {
    shared: Arc<Shared>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

/// What a watcher gets next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Output, from this place on.
    Output(Place, Vec<u8>),
    /// Nothing for now.
    Nothing,
    /// The VM has ended here, and this was all.
    End,
}

#[derive(Debug)]
struct Shared {
    /// QEMU's serial port.
    stream: UnixStream,
    state: Mutex<State>,
    /// Counts changes of the state.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    past_id: u64,
    past: Past,
    /// The past at the host that the VM comes from, until all of it is here.
    arriving: Option<Arriving>,
    /// What QEMU has not got yet.
    typed: VecDeque<u8>,
    /// What it got last, some of which it may not have read.
    written: VecDeque<u8>,
    gate: Gate,
    has_ended: bool,
}

/// What becomes of what is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// It goes to the guest.
    Open,
    /// It waits.
    Held,
    /// It is not taken: the target has what waits.
    Sealed,
}

impl Console {
    /// Serves the serial port behind `stream`. That of a copy of a VM that is on its way here waits for its past, and
    /// for [`Self::release`].
    pub(super) fn start(stream: UnixStream, is_copy: bool) -> Arc<Self> {
        if let Err(error) = SockRef::from(&stream).set_send_buffer_size(1) {
            tracing::debug!("Bytes that are typed may gather in a socket: {error}");
        }
        let state = State {
            past_id: entropy::u64(),
            past: Past::default(),
            arriving: is_copy.then(Arriving::default),
            typed: VecDeque::new(),
            written: VecDeque::new(),
            gate: if is_copy { Gate::Held } else { Gate::Open },
            has_ended: false,
        };
        let shared = Arc::new(Shared { stream, state: Mutex::new(state), changes: watch::Sender::default() });
        let reader = tokio::spawn(read_guest(shared.clone()));
        tokio::spawn(write_guest(shared.clone()));
        Arc::new(Self { shared, reader: Mutex::new(Some(reader)) })
    }

    /// Lets watchers go. QEMU must have ended, and what became of the VM be known: they ask for it next.
    pub(super) async fn end(&self) {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reader) = reader
            && let Err(error) = reader.await
        {
            tracing::debug!("Reading a console broke off: {error}");
        }
        self.shared.change(|state| state.has_ended = true);
    }

    /// What the guest wrote lately.
    pub async fn history(&self) -> Vec<u8> {
        self.settle().await;
        self.shared.state().past.since(0, CONSOLE_PAST_BYTES_MAX).1
    }

    /// Where a watcher begins who has seen `seen`.
    pub(crate) async fn place(&self, seen: Option<Place>) -> Place {
        self.settle().await;
        let state = self.shared.state();
        let position = seen.filter(|seen| seen.past == state.past_id).map_or(0, |seen| seen.position);
        Place { past: state.past_id, position: position.clamp(state.past.begin(), state.past.end()) }
    }

    /// Resolves when something may have changed since the watcher last looked.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// What a watcher gets who has seen everything before `place`, at most `most` bytes.
    pub(crate) fn show(&self, place: Place, most: usize) -> Shown {
        let state = self.shared.state();
        let (position, output) = state.past.since(place.position, most);
        if output.is_empty() {
            return if state.has_ended { Shown::End } else { Shown::Nothing };
        }
        Shown::Output(Place { position, ..place }, output)
    }

    /// Takes as much of what was typed as there is room for, and counts it in `accepted`.
    pub(crate) fn type_in(&self, input: &[u8], accepted: &AtomicU32) -> usize {
        let mut taken = 0;
        self.shared.change(|state| {
            if state.has_ended || state.gate == Gate::Sealed {
                return;
            }
            taken = input.len().min(CONSOLE_TYPED_BYTES_MAX - state.typed.len().min(CONSOLE_TYPED_BYTES_MAX));
            state.typed.extend(&input[..taken]);
            // Here, and not later: whoever sees the end must see all that was taken before.
            accepted.fetch_add(u32::try_from(taken).unwrap_or(u32::MAX), Ordering::SeqCst);
        });
        taken
    }

    /// What is typed waits from now on: the guest is paused.
    pub(super) fn hold(&self) {
        self.shared.change(|state| state.gate = Gate::Held);
    }

    /// What is typed goes to the guest, also what has waited.
    pub(super) fn release(&self) {
        self.shared.change(|state| state.gate = Gate::Open);
    }

    /// What the guest wrote from `position` on, for another host. The last part has what was typed and the guest has
    /// not read; nothing more is taken then, until [`Self::release`].
    pub(super) fn part(&self, position: u64, is_last: bool) -> ConsolePart {
        let mut part = None;
        self.shared.change(|state| {
            let mut typed = Vec::new();
            if is_last {
                while self.shared.read(state) {}
                state.gate = Gate::Sealed;
                let unread = unread(&self.shared.stream).min(state.written.len());
                typed.extend(state.written.range(state.written.len() - unread..));
                typed.extend(&state.typed);
            }
            let (begin, output) = state.past.since(position, CONSOLE_PAST_BYTES_MAX);
            part = Some(ConsolePart { past: state.past_id, begin, output, typed, is_last });
        });
        part.expect("the closure was called")
    }

    /// Takes a part of the past at another host.
    pub(super) fn take_part(&self, part: &ConsolePart) {
        self.shared.change(|state| {
            let Some(mut arriving) = state.arriving.take() else { return };
            arriving.push(part);
            if !part.is_last {
                state.arriving = Some(arriving);
                return;
            }
            state.past = arriving.joined(&state.past);
            state.past_id = part.past;
            state.typed.extend(&part.typed);
        });
    }

    /// Waits until the past is here, if one is to come, and not for ever.
    async fn settle(&self) {
        let mut changes = self.shared.changes.subscribe();
        let is_settled = |_: &u64| self.shared.state().arriving.is_none();
        if tokio::time::timeout(PAST_TIME_MAX, changes.wait_for(is_settled)).await.is_err() {
            tracing::debug!("The past of a console did not come");
            self.shared.change(|state| state.arriving = None);
        }
    }
}

impl Shared {
    /// A poisoned lock means that a change panicked, which it can't.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Reads what the guest wrote, also what the runtime has not noticed yet; false if there is nothing now or any
    /// more.
    fn read(&self, state: &mut State) -> bool {
        let mut buffer = [0; PIECE_BYTES];
        match (&*SockRef::from(&self.stream)).read(&mut buffer) {
            Ok(length @ 1..) => {
                state.past.push(&buffer[..length]);
                true
            }
            _ => false,
        }
    }
}

async fn read_guest(shared: Arc<Shared>) {
    let mut buffer = [0; PIECE_BYTES];
    while shared.stream.readable().await.is_ok() {
        let mut has_ended = false;
        shared.change(|state| match shared.stream.try_read(&mut buffer) {
            Ok(length @ 1..) => state.past.push(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => has_ended = true,
        });
        if has_ended {
            return;
        }
    }
}

async fn write_guest(shared: Arc<Shared>) {
    let mut changes = shared.changes.subscribe();
    loop {
        let may_write = |_: &u64| {
            let state = shared.state();
            state.has_ended || (state.gate == Gate::Open && !state.typed.is_empty())
        };
        if changes.wait_for(may_write).await.is_err() || shared.stream.writable().await.is_err() {
            return;
        }
        let mut is_lost = false;
        shared.change(|state| is_lost = state.has_ended || state.write(&shared.stream).is_err());
        if is_lost {
            return;
        }
    }
}

impl State {
    /// Gives QEMU as much as it takes, one byte after the other.
    fn write(&mut self, stream: &UnixStream) -> std::io::Result<()> {
        while self.gate == Gate::Open
            && let Some(byte) = self.typed.front().copied()
        {
            match stream.try_write(&[byte]) {
                Ok(1) => {
                    self.typed.pop_front();
                    self.written.push_back(byte);
                    self.written.drain(..self.written.len().saturating_sub(WRITTEN_MAX));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Ok(_) => return Err(ErrorKind::WriteZero.into()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Bytes in the socket that its other end has not read. The kernel counts memory, and each byte has taken the same.
fn unread(stream: &UnixStream) -> usize {
    let of_one = || -> std::io::Result<usize> {
        let (one, _other) = std::os::unix::net::UnixStream::pair()?;
        std::io::Write::write_all(&mut &one, b"x")?;
        outgoing(&one)
    };
    let counted = of_one().and_then(|one| Ok(outgoing(stream)? / one.max(1)));
    counted.unwrap_or_else(|error| {
        tracing::debug!("Can't tell what of the console's input is unread: {error}");
        0
    })
}

/// Bytes of memory that what was written and not read takes.
fn outgoing(stream: &impl AsRawFd) -> std::io::Result<usize> {
    let mut bytes = 0_i32;
    // SAFETY: the request writes one int behind the pointer, which lives until the call returns.
    if unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn shown(console: &Console, text: &[u8]) {
        let mut changes = console.changes();
        let all = |_: &u64| console.shared.state().past.since(0, usize::MAX).1.ends_with(text);
        changes.wait_for(all).await.unwrap();
    }

    #[tokio::test]
    async fn watchers_get_the_past_and_the_present_and_may_type() {
        let (mut qemu, ours) = UnixStream::pair().unwrap();
        let console = Console::start(ours, false);
        qemu.write_all(b"login: ").await.unwrap();
        shown(&console, b"login: ").await;
        let place = console.place(None).await;
        assert_eq!(console.show(place, 100), Shown::Output(place, b"login: ".to_vec()));
        let accepted = AtomicU32::new(0);
        assert_eq!(console.type_in(b"root\n", &accepted), 5);
        let mut typed = [0; 5];
        qemu.read_exact(&mut typed).await.unwrap();
        assert_eq!((&typed, accepted.into_inner()), (b"root\n", 5));
        qemu.write_all(b"# ").await.unwrap();
        drop(qemu);
        console.end().await;
        let place = Place { position: 7, ..place };
        assert_eq!(console.show(place, 100), Shown::Output(place, b"# ".to_vec()));
        assert_eq!(console.show(Place { position: 9, ..place }, 100), Shown::End);
        assert_eq!(console.history().await, b"login: # ");
        assert_eq!(console.type_in(b"x", &AtomicU32::new(0)), 0);
    }

    #[tokio::test]
    async fn a_console_moves_with_what_was_typed_and_not_read() {
        let (mut qemu, ours) = UnixStream::pair().unwrap();
        let (mut other, theirs) = UnixStream::pair().unwrap();
        let (source, target) = (Console::start(ours, false), Console::start(theirs, true));
        qemu.write_all(b"one ").await.unwrap();
        shown(&source, b"one ").await;
        let first = source.part(0, false);
        target.take_part(&first);
        let accepted = AtomicU32::new(0);
        assert_eq!(source.type_in(b"abcdefghij", &accepted), 10);
        // The guest's port has room for three; how many more are in the socket is the kernel's affair.
        let mut read = [0; 3];
        qemu.read_exact(&mut read).await.unwrap();
        source.hold();
        assert_eq!(source.type_in(b"k", &accepted), 1);
        // What is still in the socket is found, whether the console has read it or not.
        qemu.write_all(b"two ").await.unwrap();
        let last = source.part(4, true);
        assert_eq!((&last.output[..], &last.typed[..], last.begin), (&b"two "[..], &b"defghijk"[..], 4));
        assert_eq!(source.type_in(b"l", &accepted), 0);

        other.write_all(b"three").await.unwrap();
        shown(&target, b"three").await;
        target.take_part(&last);
        assert_eq!(target.history().await, b"one two three");
        let seen = Place { past: first.past, position: 6 };
        assert_eq!(target.place(Some(seen)).await, seen);
        target.release();
        let mut rest = [0; 8];
        other.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"defghijk");
    }

    #[tokio::test]
    async fn a_console_that_stays_loses_and_doubles_nothing() {
        let (mut qemu, ours) = UnixStream::pair().unwrap();
        let console = Console::start(ours, false);
        let accepted = AtomicU32::new(0);
        console.type_in(b"abcdefghij", &accepted);
        let mut typed = [0; 12];
        qemu.read_exact(&mut typed[..2]).await.unwrap();
        console.hold();
        console.part(0, true);
        console.release();
        assert_eq!(console.type_in(b"kl", &accepted), 2);
        qemu.read_exact(&mut typed[2..]).await.unwrap();
        assert_eq!(&typed, b"abcdefghijkl");
    }

    #[tokio::test]
    async fn a_past_that_does_not_come_is_not_waited_for_for_ever() {
        let (_qemu, ours) = UnixStream::pair().unwrap();
        let console = Console::start(ours, true);
        let place = console.place(Some(Place { past: 1, position: 9 })).await;
        assert!(place.past != 1 && place.position == 0);
    }
}
