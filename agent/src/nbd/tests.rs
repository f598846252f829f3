//! The server, asked by the least of clients.

use super::*;
use tokio::net::UnixStream;

/// A disk whose second half can't be read.
struct Half;

impl Disk for Half {
    fn name(&self) -> &str {
        "half"
    }

    fn size_bytes(&self) -> u64 {
        4096
    }

    fn piece_bytes(&self) -> u32 {
        512
    }

    async fn read(&self, offset: u64, length: usize) -> io::Result<Vec<Bytes>> {
        let is_readable = offset + length as u64 <= self.size_bytes() / 2;
        if is_readable { Ok(vec![Bytes::from(vec![7; length])]) } else { Err(io::ErrorKind::TimedOut.into()) }
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_an_error_and_the_client_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("half.sock");
    let server = tokio::spawn(listen(bind(&path).unwrap(), Arc::new(Half)));
    let mut client = Client::connect(&path).await;
    assert_eq!(client.read(0, 2048).await, [7; 2048]);
    assert_eq!(client.request(READ, 2048, 1).await, Failure::InputOutput as u32);
    assert_eq!(client.request(READ, 4096, 1).await, Failure::Invalid as u32);
    assert_eq!(client.request(WRITE, 0, 0).await, Failure::NotPermitted as u32);
    assert_eq!(client.read(2047, 1).await, [7]);
    server.abort();
}

/// The least that a client needs.
pub(crate) struct Client(UnixStream);

impl Client {
    pub(crate) async fn connect(path: &Path) -> Self {
        let mut stream = UnixStream::connect(path).await.unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).await.unwrap();
        let go = [[0, 0, 0, 3].as_slice(), b"IHAVEOPT", &[0, 0, 0, 1], &[0, 0, 0, 0]].concat();
        stream.write_all(&go).await.unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).await.unwrap();
        Self(stream)
    }

    /// The error's number; 0 is none.
    pub(crate) async fn request(&mut self, kind: u16, offset: u64, length: u32) -> u32 {
        let head = [0x2560_9513u32.to_be_bytes().as_slice(), &[0, 0], &kind.to_be_bytes(), &[9; 8]].concat();
        let rest = [offset.to_be_bytes().as_slice(), &length.to_be_bytes()].concat();
        self.0.write_all(&[head, rest].concat()).await.unwrap();
        assert_eq!(self.0.read_u32().await.unwrap(), 0x6744_6698);
        let error = self.0.read_u32().await.unwrap();
        assert_eq!(self.0.read_u64().await.unwrap(), u64::from_be_bytes([9; 8]));
        error
    }

    pub(crate) async fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        assert_eq!(self.request(0, offset, length).await, 0);
        let mut content = vec![0; length as usize];
        self.0.read_exact(&mut content).await.unwrap();
        content
    }
}
