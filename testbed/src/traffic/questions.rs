//! A name that is asked for again and again, and what a resolver says to it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::guest::Guest;
use crate::interrupt;

/// Questions for one name's address.
pub(crate) struct Questions {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Answers>>,
}

/// What was answered.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) right: u64,
    /// Another address, or that there is none.
    pub(crate) wrong: u64,
    /// Nothing, in time.
    pub(crate) none: u64,
}

impl Questions {
    /// Begins to ask `resolver` for `name`, whose address is `wanted`.
    pub(crate) fn start(from: &Guest, resolver: Ipv4Addr, name: &str, wanted: Ipv4Addr) -> Result<Self> {
        let socket = from.namespace().enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect((resolver, PORT)).with_context(|| format!("Cannot reach {resolver}"))?;
            socket.set_read_timeout(Some(ANSWER_TIME_MAX))?;
            Ok(socket)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, name) = (Arc::clone(&stop), name.to_owned());
        let run = move || run(&socket, &flag, &name, wanted);
        let thread = std::thread::Builder::new().name("questions".into()).spawn(run)?;
        Ok(Self { stop, thread })
    }

    /// Asks no more.
    pub(crate) fn finish(self) -> Result<Answers> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("The thread of the questions panicked"))?
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "of {} names asked {} wrong, {} unanswered",
            self.right + self.wrong + self.none,
            self.wrong,
            self.none
        )
    }
}

fn run(socket: &UdpSocket, stop: &AtomicBool, name: &str, wanted: Ipv4Addr) -> Result<Answers> {
    let mut answers = Answers::default();
    let mut buffer = [0; 512];
    let mut id = 0;
    while !stop.load(Ordering::Relaxed) && interrupt::check().is_ok() {
        id += 1;
        socket.send(&question(id, name)).context("Cannot ask for a name")?;
        match answer_to(socket, id, &mut buffer) {
            Ok(length) if is_answer(&buffer[..length], id, wanted) => answers.right += 1,
            Ok(_) => answers.wrong += 1,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => answers.none += 1,
            Err(error) if error.kind() == ErrorKind::Interrupted => break,
            Err(error) => return Err(error).context("Cannot hear what a name is"),
        }
        // A signal that cuts the pause short ends the loop.
        let _ = interrupt::pause(INTERVAL);
    }
    Ok(answers)
}

/// The answer to question `id`; one to an earlier question came too late.
fn answer_to(socket: &UdpSocket, id: u16, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let length = socket.recv(buffer)?;
        if length < 2 || buffer[..2] == id.to_be_bytes() {
            return Ok(length);
        }
    }
}

/// A query for an address (RFC 1035).
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend(label.bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

/// Whether it answers the question with this number, without an error, by one address: at its end.
fn is_answer(packet: &[u8], id: u16, wanted: Ipv4Addr) -> bool {
    let has_head = packet.len() > 12 && packet[..2] == id.to_be_bytes() && packet[2] & 0x80 != 0;
    has_head && packet[3] & 0x0f == 0 && packet[6..8] == [0, 1] && packet.ends_with(&wanted.octets())
}

const PORT: u16 = 53;
const INTERVAL: Duration = Duration::from_millis(20);
/// As long as resolvers wait before they ask again.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_address_and_no_error() {
        let ip = Ipv4Addr::new(10, 9, 0, 7);
        let mut answer = question(3, "one.virtuoso");
        assert!(answer.windows(5).any(|bytes| bytes == b"\x03one\x08"));
        answer[2] |= 0x80;
        answer[7] = 1;
        answer.extend(ip.octets());
        assert!(is_answer(&answer, 3, ip));
        assert!(!is_answer(&answer, 4, ip) && !is_answer(&answer, 3, Ipv4Addr::LOCALHOST) && !is_answer(&[], 3, ip));
        answer[3] |= 3;
        assert!(!is_answer(&answer, 3, ip), "an error is no answer");
    }
}
