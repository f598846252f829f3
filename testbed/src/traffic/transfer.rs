//! One TCP connection that carries a known pseudo-random text; the receiver compares every byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;

use crate::guest::Guest;
use crate::interrupt;
use crate::wait;

pub(crate) struct Transfer {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<TransferReport>>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct TransferReport {
    pub(crate) bytes: u64,
    /// The longest time in which no byte arrived.
    pub(crate) stall_max_ms: u64,
}

impl Transfer {
    /// Connects and begins to send, at most `bytes_per_second`.
    pub(crate) fn start(from: &Guest, to: &Guest, bytes_per_second: u64) -> Result<Self> {
        let address = to.socket_address(PORT)?;
        let listener = to
            .namespace()
            .enter(|| TcpListener::bind(address).with_context(|| format!("Cannot listen on {address}")))?;
        let outgoing = from.namespace().enter(|| {
            TcpStream::connect_timeout(&address, IO_TIME_MAX).with_context(|| format!("Cannot connect to {address}"))
        })?;
        let (incoming, _) = listener.accept().context("The connection was lost before it was accepted")?;
        Self::between(outgoing, incoming, bytes_per_second)
    }

    /// Connects to an echo service, which a VM has, and compares what comes back.
    pub(crate) fn through_echo(from: &Guest, address: SocketAddr, bytes_per_second: u64) -> Result<Self> {
        let outgoing = from.namespace().enter(|| {
            TcpStream::connect_timeout(&address, IO_TIME_MAX).with_context(|| format!("Cannot connect to {address}"))
        })?;
        let incoming = outgoing.try_clone().context("Cannot read what comes back")?;
        Self::between(outgoing, incoming, bytes_per_second)
    }

    fn between(outgoing: TcpStream, incoming: TcpStream, bytes_per_second: u64) -> Result<Self> {
        outgoing.set_write_timeout(Some(IO_TIME_MAX))?;
        incoming.set_read_timeout(Some(IO_TIME_MAX))?;
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let (flag, counter) = (Arc::clone(&stop), Arc::clone(&received));
        let sender = std::thread::spawn(move || send(outgoing, &flag, bytes_per_second));
        let receiver = std::thread::spawn(move || receive(incoming, &counter));
        Ok(Self { stop, received, sender, receiver })
    }

    /// Bytes that have arrived.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Waits until `count` more bytes have arrived.
    pub(crate) fn await_bytes(&self, count: u64, limit: Duration) -> Result<()> {
        let wanted = self.received() + count;
        wait::until_true(format!("{count} more bytes of the transfer"), limit, || {
            let received = self.received();
            Ok((received >= wanted, format!("{received} of {wanted}")))
        })
    }

    /// Closes in good order; an error if a byte was lost or changed or the connection broke.
    pub(crate) fn finish(self) -> Result<TransferReport> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow!("The transfer's sender panicked"))??;
        let report = self.receiver.join().map_err(|_| anyhow!("The transfer's receiver panicked"))??;
        ensure!(report.bytes == sent, "The transfer lost bytes: {sent} sent, {} received", report.bytes);
        Ok(report)
    }
}

fn send(mut stream: TcpStream, stop: &AtomicBool, bytes_per_second: u64) -> Result<u64> {
    let mut text = Text::default();
    let mut block = vec![0; BLOCK_BYTES];
    let begin = Instant::now();
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) && interrupt::check().is_ok() {
        text.fill(&mut block);
        stream.write_all(&block).context("The connection broke while sending")?;
        sent += block.len() as u64;
        let due = Duration::from_secs_f64(sent as f64 / bytes_per_second as f64);
        // A signal that cuts the pause short ends the loop.
        let _ = interrupt::pause(due.saturating_sub(begin.elapsed()));
    }
    stream.shutdown(std::net::Shutdown::Write).context("The connection broke while closing")?;
    Ok(sent)
}

fn receive(mut stream: TcpStream, received: &AtomicU64) -> Result<TransferReport> {
    let mut text = Text::default();
    let (mut got, mut wanted) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    let mut report = TransferReport { bytes: 0, stall_max_ms: 0 };
    loop {
        let begin = Instant::now();
        let length = stream.read(&mut got).context("The connection broke while receiving")?;
        let stall_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        report.stall_max_ms = report.stall_max_ms.max(stall_ms);
        if length == 0 {
            return Ok(report);
        }
        text.fill(&mut wanted[..length]);
        let wrong = got[..length].iter().zip(&wanted).position(|(got, wanted)| got != wanted);
        ensure!(wrong.is_none(), "The transfer was corrupted at byte {}", report.bytes + wrong.unwrap_or(0) as u64);
        report.bytes += length as u64;
        received.store(report.bytes, Ordering::Relaxed);
    }
}

/// An endless text without period in any transfer's length.
#[derive(Default)]
struct Text {
    position: u64,
}

impl Text {
    fn fill(&mut self, place: &mut [u8]) {
        for byte in place {
            let word = (self.position / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            *byte = mixed.to_be_bytes()[(self.position % 8) as usize];
            self.position += 1;
        }
    }
}

const PORT: u16 = 7002;
const BLOCK_BYTES: usize = 16 << 10;
/// A connection that stands still this long counts as broken.
const IO_TIME_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_does_not_depend_on_how_it_is_cut() {
        let mut whole = vec![0; 1000];
        Text::default().fill(&mut whole);
        let mut cut = Text::default();
        let parts: Vec<u8> = [1, 7, 500, 492]
            .into_iter()
            .flat_map(|length| {
                let mut part = vec![0; length];
                cut.fill(&mut part);
                part
            })
            .collect();
        assert_eq!(whole, parts);
        assert_ne!(whole[..500], whole[500..]);
    }

    #[test]
    fn a_changed_byte_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut outgoing = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (incoming, _) = listener.accept().unwrap();
        let mut block = vec![0; 1000];
        Text::default().fill(&mut block);
        block[777] ^= 1;
        outgoing.write_all(&block).unwrap();
        drop(outgoing);
        let error = receive(incoming, &AtomicU64::new(0)).unwrap_err();
        assert_eq!(error.to_string(), "The transfer was corrupted at byte 777");
    }
}
