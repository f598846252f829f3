//! Messages on the one reliable stream of a connection: a length of four bytes (big endian), then as many bytes.
//!
//! The dialler opens the stream, both sides write on it. What the messages mean is not known here.

use bytes::{Buf, BytesMut};
use quinn_proto::{Connection, Dir, ReadError, StreamId, WriteError};
use virtuoso_overlay::limits::MESSAGE_BYTES_MAX;

/// Bytes of messages that wait for a peer that does not read. A link whose peer lets this much pile up is closed.
const UNSENT_BYTES_MAX: usize = 1 << 20;

const LENGTH_BYTES: usize = 4;

/// Both directions of the stream.
#[derive(Debug, Default)]
pub(super) struct MessageStream {
    id: Option<StreamId>,
    unsent: BytesMut,
    /// The message that is being received, with its length.
    partial: Vec<u8>,
}

/// Why a stream can't go on. The connection is closed with this text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("Message is too large")]
    TooLarge,
    #[error("Messages are not read")]
    Stalled,
    #[error("Message stream was closed")]
    Closed,
}

impl MessageStream {
    /// Opens the stream, on the side that dialled.
    pub(super) fn open(&mut self, quic: &mut Connection) {
        self.id = quic.streams().open(Dir::Bi);
    }

    /// Queues one message.
    pub(super) fn send(&mut self, message: &[u8]) -> Result<(), StreamError> {
        let length = u32::try_from(message.len()).ok().filter(|length| *length as usize <= MESSAGE_BYTES_MAX);
        let length = length.ok_or(StreamError::TooLarge)?;
        if self.unsent.len() + message.len() > UNSENT_BYTES_MAX {
            return Err(StreamError::Stalled);
        }
        self.unsent.extend_from_slice(&length.to_be_bytes());
        self.unsent.extend_from_slice(message);
        Ok(())
    }

    /// Hands queued bytes to QUIC, as far as it takes them.
    pub(super) fn write(&mut self, quic: &mut Connection) -> Result<(), StreamError> {
        let Some(id) = self.id else { return Ok(()) };
        while !self.unsent.is_empty() {
            match quic.send_stream(id).write(&self.unsent) {
                Ok(bytes) => self.unsent.advance(bytes),
                Err(WriteError::Blocked) => break,
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => return Err(StreamError::Closed),
            }
        }
        Ok(())
    }

    /// Takes the next message, if it is here completely.
    pub(super) fn receive(&mut self, quic: &mut Connection) -> Result<Option<Vec<u8>>, StreamError> {
        if self.id.is_none() {
            self.id = quic.streams().accept(Dir::Bi);
        }
        let Some(id) = self.id else { return Ok(None) };
        loop {
            let missing = self.missing()?;
            if missing == 0 {
                let message = self.partial.split_off(LENGTH_BYTES);
                self.partial.clear();
                return Ok(Some(message));
            }
            let mut stream = quic.recv_stream(id);
            let mut chunks = stream.read(true).map_err(|_| StreamError::Closed)?;
            let read = chunks.next(missing);
            if let Ok(Some(chunk)) = &read {
                self.partial.extend_from_slice(&chunk.bytes);
            }
            // Whether the peer is to be told of new room is seen when the connection transmits next.
            let _ = chunks.finalize();
            match read {
                Ok(Some(_)) => {}
                Err(ReadError::Blocked) => return Ok(None),
                Ok(None) | Err(ReadError::Reset(_)) => return Err(StreamError::Closed),
            }
        }
    }

    /// Bytes until the length, or else the message, is complete.
    fn missing(&self) -> Result<usize, StreamError> {
        let Some(length) = self.partial.first_chunk::<LENGTH_BYTES>() else {
            return Ok(LENGTH_BYTES - self.partial.len());
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MESSAGE_BYTES_MAX {
            return Err(StreamError::TooLarge);
        }
        // A message of no bytes is complete with its length.
        Ok(LENGTH_BYTES + length - self.partial.len())
    }
}
