//! Messages and content on a stream of images, read with care: lengths that lie cost no memory.

use std::io::{self, ErrorKind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use virtuoso_overlay::wire::image::IMAGE_MESSAGE_BYTES_MAX;

/// Memory for content grows as its bytes arrive.
const STEP_BYTES: u64 = 256 << 10;

/// Reads a message; `None` if the stream ends before it.
pub(crate) async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u8().await {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        length => usize::from(length?),
    };
    if length > IMAGE_MESSAGE_BYTES_MAX {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("A message of {length} bytes is too long")));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Writes a message.
pub(crate) async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    debug_assert!(message.len() <= IMAGE_MESSAGE_BYTES_MAX);
    let length = u8::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_u8(length).await?;
    stream.write_all(message).await
}

/// Reads so many bytes.
pub(super) async fn read_content(stream: &mut (impl AsyncRead + Unpin), length: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    while (content.len() as u64) < length {
        let step = STEP_BYTES.min(length - content.len() as u64);
        if (&mut *stream).take(step).read_to_end(&mut content).await? as u64 != step {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_give_a_message_or_an_error(wire: Vec<u8>) {
            if let Ok(Some(message)) = block_on(read_message(&mut &wire[..])) {
                prop_assert!(message.len() <= IMAGE_MESSAGE_BYTES_MAX);
            }
        }
    }

    #[test]
    fn lengths_that_lie_are_errors() {
        let error = block_on(read_content(&mut &b"abc"[..], 1 << 60)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert_eq!(block_on(read_content(&mut &b"abc"[..], 2)).unwrap(), b"ab");
    }
}
