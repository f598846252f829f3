//! Requests and responses as bounded byte strings: a length of four bytes, big-endian, then the bytes.
//!
//! What the bytes mean is decided elsewhere; here they only can't be too many.

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response::Codec;
use std::io;

/// The bounds of one protocol.
#[derive(Debug, Clone, Copy)]
pub struct RawCodec {
    /// The longest request.
    pub request_bytes_max: usize,
    /// The longest response.
    pub response_bytes_max: usize,
}

/// Memory for a message grows as its bytes arrive, so that a length alone costs nothing.
const STEP_BYTES: usize = 16 << 10;

async fn read<T: AsyncRead + Unpin + Send>(io: &mut T, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    io.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    check(length, bytes_max)?;
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let have = bytes.len();
        bytes.resize(length.min(have + STEP_BYTES), 0);
        io.read_exact(&mut bytes[have..]).await?;
    }
    Ok(bytes)
}

async fn write<T: AsyncWrite + Unpin + Send>(io: &mut T, bytes: Vec<u8>, bytes_max: usize) -> io::Result<()> {
    check(bytes.len(), bytes_max)?;
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    io.write_all(&length.to_be_bytes()).await?;
    io.write_all(&bytes).await
}

fn check(length: usize, bytes_max: usize) -> io::Result<()> {
    if length <= bytes_max {
        return Ok(());
    }
    let what = format!("A message of {length} bytes is longer than {bytes_max}");
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
}

impl Codec for RawCodec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        read(io, self.request_bytes_max).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        read(io, self.response_bytes_max).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        request: Vec<u8>,
    ) -> io::Result<()> {
        write(io, request, self.request_bytes_max).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        response: Vec<u8>,
    ) -> io::Result<()> {
        write(io, response, self.response_bytes_max).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_round_trip(bytes in proptest::collection::vec(any::<u8>(), 0..40_000)) {
            let mut wire = Vec::new();
            block_on(write(&mut wire, bytes.clone(), 40_000)).unwrap();
            prop_assert_eq!(block_on(read(&mut &wire[..], 40_000)).unwrap(), bytes);
        }

        #[test]
        fn any_bytes_give_a_message_or_an_error(wire in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(bytes) = block_on(read(&mut &wire[..], 64)) {
                prop_assert!(bytes.len() <= 64);
            }
        }
    }

    #[test]
    fn too_long_messages_are_refused_on_both_sides() {
        let mut wire = Vec::new();
        assert!(block_on(write(&mut wire, vec![0; 65], 64)).is_err());
        assert!(wire.is_empty());
        let error = block_on(read(&mut &[0xff; 100][..], 64)).unwrap_err();
        assert_eq!(error.to_string(), "A message of 4294967295 bytes is longer than 64");
    }
}
