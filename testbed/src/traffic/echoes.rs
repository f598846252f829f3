//! ICMP echoes at a steady pace: which of them no answer came to, and for how long none came. `ping` polls at such a
//! pace and takes a processor from what is measured.

use std::collections::BTreeSet;
use std::fmt;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

use crate::guest::Guest;
use crate::interrupt;
use crate::sys;

/// Echoes that go on until somebody wants to know what became of them.
pub(crate) struct Echoes {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<EchoReport>>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct EchoReport {
    pub(crate) sent: u64,
    /// No answer came to them.
    pub(crate) lost: Vec<u64>,
    pub(crate) duplicated: u64,
    /// The longest time between two answers.
    pub(crate) gap_max_ms: f64,
}

impl Echoes {
    /// Begins to send one each `interval`, to a host or a group; of a group one member should answer.
    pub(crate) fn start(from: &Guest, to: Ipv4Addr, interval: Duration) -> Result<Self> {
        let socket = from.namespace().enter(|| sys::open_icmp().context("Cannot open an ICMP socket"))?;
        let talk = Talk { socket: UdpSocket::from(socket), to, mark: [to.octets()[2], to.octets()[3]] };
        talk.socket.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let run = move || talk.run(&flag, u64::try_from(interval.as_nanos())?);
        let thread = std::thread::Builder::new().name("echoes".into()).spawn(run)?;
        Ok(Self { stop, thread })
    }

    /// Sends no more, and waits a while for the answers that are still on their way.
    pub(crate) fn finish(self) -> Result<EchoReport> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("The thread of the echoes panicked"))?
    }
}

impl fmt::Display for EchoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, lost, duplicated, gap_max_ms } = self;
        write!(f, "{sent} echoes, {} lost, {duplicated} doubled, longest gap {gap_max_ms:.0} ms", lost.len())
    }
}

/// Echoes of one kind in a namespace.
struct Talk {
    socket: UdpSocket,
    to: Ipv4Addr,
    /// Tells them from others.
    mark: [u8; 2],
}

impl Talk {
    fn run(&self, stop: &AtomicBool, interval_ns: u64) -> Result<EchoReport> {
        sys::exact_timers();
        let mut tally = Tally::default();
        let mut due_ns = sys::monotonic_ns();
        let mut last_sent_ns = due_ns;
        while interrupt::check().is_ok() {
            let now_ns = sys::monotonic_ns();
            if stop.load(Ordering::Relaxed) {
                if tally.is_complete() || now_ns > last_sent_ns + SETTLE_TIME_NS {
                    break;
                }
                due_ns = now_ns + interval_ns;
            } else if now_ns >= due_ns {
                tally.sent += 1;
                // What the kernel can't send now is an echo without an answer.
                let _ = self.socket.send_to(&request(self.mark, tally.sent), SocketAddrV4::new(self.to, 0));
                last_sent_ns = now_ns;
                due_ns = (due_ns + interval_ns).max(now_ns);
            }
            let wait = Duration::from_nanos(due_ns.saturating_sub(sys::monotonic_ns()));
            if sys::wait_readable(&[self.socket.as_fd()], Some(wait)).is_ok_and(|ready| ready[0]) {
                self.receive(&mut tally)?;
            }
        }
        Ok(tally.report())
    }

    fn receive(&self, tally: &mut Tally) -> Result<()> {
        let mut buffer = [0; 1500];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    if let Some(number) = answered(self.mark, &buffer[..length]) {
                        tally.count(number, sys::monotonic_ns());
                    }
                }
                // The kernel tells what it could not send before.
                Err(error) if error.kind() == ErrorKind::HostUnreachable => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("Cannot receive echoes"),
            }
        }
    }
}

/// An echo request with a number of its own, which has more bits than the protocol's.
fn request(mark: [u8; 2], number: u64) -> Vec<u8> {
    let [.., high, low] = number.to_be_bytes();
    let mut packet = vec![8, 0, 0, 0, mark[0], mark[1], high, low];
    packet.extend(number.to_be_bytes());
    let sum = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// The number of the echo that an IPv4 packet answers.
fn answered(mark: [u8; 2], packet: &[u8]) -> Option<u64> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let message = packet.get(header..)?;
    let is_ours = message.first() == Some(&0) && message.get(4..6) == Some(&mark[..]);
    let number = message.get(8..16).filter(|_| is_ours)?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}

#[derive(Default)]
struct Tally {
    sent: u64,
    answered: BTreeSet<u64>,
    duplicated: u64,
    last_ns: Option<u64>,
    gap_max_ns: u64,
}

impl Tally {
    fn count(&mut self, number: u64, now_ns: u64) {
        self.duplicated += u64::from(!self.answered.insert(number));
        let gap_ns = self.last_ns.map_or(0, |last| now_ns.saturating_sub(last));
        self.gap_max_ns = self.gap_max_ns.max(gap_ns);
        self.last_ns = Some(now_ns);
    }

    fn is_complete(&self) -> bool {
        self.answered.len() as u64 == self.sent
    }

    fn report(&self) -> EchoReport {
        EchoReport {
            sent: self.sent,
            lost: (1..=self.sent).filter(|number| !self.answered.contains(number)).collect(),
            duplicated: self.duplicated,
            gap_max_ms: self.gap_max_ns as f64 / 1e6,
        }
    }
}

/// For answers that are on their way when the last echo has been sent.
const SETTLE_TIME_NS: u64 = 2_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: [u8; 2] = [0, 7];

    #[test]
    fn an_answer_tells_its_number() {
        let mut answer = vec![0x45; 20];
        answer.extend(request(MARK, 70_000));
        assert_eq!(answered(MARK, &answer), None, "a request is no answer");
        answer[20] = 0;
        assert_eq!(answered(MARK, &answer), Some(70_000));
        answer[24] ^= 1;
        assert_eq!((answered(MARK, &answer), answered(MARK, &answer[..30]), answered(MARK, &[])), (None, None, None));
    }

    #[test]
    fn a_checksum_makes_the_sum_of_all_words_whole() {
        for number in [1, 0xffff, 0x1_ffff, 0xffff_ffff_ffff] {
            let words = request(MARK, number);
            let sum: u32 = words.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        }
    }

    #[test]
    fn tells_loss_and_duplicates() {
        let mut tally = Tally { sent: 5, ..Tally::default() };
        for (number, ms) in [(1, 10), (2, 15), (2, 16), (5, 100)] {
            tally.count(number, ms * 1_000_000);
        }
        let report = tally.report();
        assert_eq!((report.lost, report.duplicated, report.gap_max_ms), (vec![3, 4], 1, 84.0));
    }
}
