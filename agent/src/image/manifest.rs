//! What an image is made of: its size and the digest of each chunk, in order.
//!
//! An image's digest is the BLAKE3 digest of its manifest, not of its content: whoever knows the digest can check the
//! manifest, and with it each chunk alone, from whatever host it comes and in whatever order. A digest of the content
//! itself would prove nothing before the last byte is here.
//!
//! The bytes: a magic word, the size (8 bytes, little endian), then 32 bytes for each chunk. All zeros instead of a
//! digest stand for a chunk of zeros, which is stored nowhere.

use anyhow::{Context, ensure};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use virtuoso_overlay::ids::Digest;

/// Bytes of each chunk but the last, which may be shorter.
///
/// Small chunks start a VM sooner when its image is still elsewhere (a guest waits for whole chunks: 21 ms each at
/// 100 Mbit/s), find more zeros and share more between images. Large ones mean fewer files, digests and requests: a
/// 20 GiB image has at most 81,920 chunks and a manifest of 2.5 MiB.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Bytes of an image: its manifest then takes 128 MiB.
pub const IMAGE_BYTES_MAX: u64 = 1 << 40;

/// First bytes of each manifest; ends with the version of the format.
const MAGIC: &[u8; 16] = b"virtuoso-image 1";
const HEADER_BYTES: usize = MAGIC.len() + 8;
const DIGEST_BYTES: usize = 32;

/// Stands for the digest of a chunk of zeros.
pub const ZEROS: Digest = Digest([0; DIGEST_BYTES]);

/// Size and chunks of one image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    size_bytes: u64,
    chunks: Vec<Digest>,
}

/// Why bytes are no manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Another file, or another version.
    #[error("Not a list of chunks of this version")]
    Magic,
    /// No image has that size.
    #[error("An image of {0} bytes is empty or too large")]
    Size(u64),
    /// Too few or too many digests for the size.
    #[error("The list has {0} bytes, {1} are right for its image")]
    Length(usize, usize),
    /// Not the bytes that the digest names.
    #[error("The list of chunks does not match the image's digest")]
    Digest,
}

impl Manifest {
    /// The manifest of `size_bytes` bytes in `chunks`.
    pub fn new(size_bytes: u64, chunks: Vec<Digest>) -> Result<Self, ManifestError> {
        if !(1..=IMAGE_BYTES_MAX).contains(&size_bytes) {
            return Err(ManifestError::Size(size_bytes));
        }
        let right = chunk_count(size_bytes);
        if chunks.len() != right {
            return Err(ManifestError::Length(encoded_bytes(chunks.len()), encoded_bytes(right)));
        }
        Ok(Self { size_bytes, chunks })
    }

    /// Parses the manifest of the image `digest`.
    pub fn decode(bytes: &[u8], digest: Digest) -> Result<Self, ManifestError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(ManifestError::Magic)?;
        let (size, digests) = rest.split_first_chunk::<8>().ok_or(ManifestError::Magic)?;
        let size_bytes = u64::from_le_bytes(*size);
        if !(1..=IMAGE_BYTES_MAX).contains(&size_bytes) {
            return Err(ManifestError::Size(size_bytes));
        }
        let right = encoded_bytes(chunk_count(size_bytes));
        if bytes.len() != right {
            return Err(ManifestError::Length(bytes.len(), right));
        }
        if blake3::hash(bytes).as_bytes() != &digest.0 {
            return Err(ManifestError::Digest);
        }
        let (digests, _) = digests.as_chunks::<DIGEST_BYTES>();
        Self::new(size_bytes, digests.iter().copied().map(Digest).collect())
    }

    /// The bytes that the image's digest covers.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(encoded_bytes(self.chunks.len()));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.size_bytes.to_le_bytes());
        for chunk in &self.chunks {
            bytes.extend_from_slice(&chunk.0);
        }
        bytes
    }

    /// Reads the manifest of the image `digest` from a file.
    pub fn read(path: &Path, digest: Digest) -> anyhow::Result<Self> {
        let bytes_max = encoded_bytes(chunk_count(IMAGE_BYTES_MAX)) as u64;
        let file = File::open(path).with_context(|| format!("Can't open {}", path.display()))?;
        let length = file.metadata().with_context(|| format!("Can't read {}", path.display()))?.len();
        ensure!(length <= bytes_max, "{} is larger than any list of chunks", path.display());
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        file.take(bytes_max).read_to_end(&mut bytes).with_context(|| format!("Can't read {}", path.display()))?;
        Self::decode(&bytes, digest).with_context(|| format!("{} can't be used", path.display()))
    }

    /// The image's digest.
    pub fn digest(&self) -> Digest {
        Digest(*blake3::hash(&self.encode()).as_bytes())
    }

    /// Bytes of the image.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes of its chunks that are not zeros.
    pub fn stored_bytes(&self) -> u64 {
        self.stored().map(|(_, _, length)| length as u64).sum()
    }

    /// Digest and length of the chunk in which the byte at `offset` stands, which is within the image.
    pub(super) fn chunk_at(&self, offset: u64) -> (Digest, usize) {
        let index = offset / CHUNK_BYTES as u64;
        let digest = self.chunks[usize::try_from(index).expect("a terabyte has four million chunks")];
        (digest, chunk_bytes(self.size_bytes, index * CHUNK_BYTES as u64))
    }

    /// Digest, offset and length of each chunk that is not zeros.
    pub fn stored(&self) -> impl Iterator<Item = (Digest, u64, usize)> + '_ {
        let placed = self.chunks.iter().zip((0_u64..).step_by(CHUNK_BYTES));
        placed
            .filter(|(digest, _)| **digest != ZEROS)
            .map(|(digest, offset)| (*digest, offset, chunk_bytes(self.size_bytes, offset)))
    }
}

/// Bytes of the chunk at `offset` of an image.
pub(super) fn chunk_bytes(size_bytes: u64, offset: u64) -> usize {
    usize::try_from(size_bytes.saturating_sub(offset)).unwrap_or(usize::MAX).min(CHUNK_BYTES)
}

/// Chunks of an image of that size, which is at most [`IMAGE_BYTES_MAX`].
fn chunk_count(size_bytes: u64) -> usize {
    debug_assert!(size_bytes <= IMAGE_BYTES_MAX);
    usize::try_from(size_bytes.div_ceil(CHUNK_BYTES as u64)).expect("a terabyte has four million chunks")
}

/// Bytes of the manifest of an image of that size, which is at most [`IMAGE_BYTES_MAX`].
pub(super) fn encoded_bytes_of(size_bytes: u64) -> u64 {
    encoded_bytes(chunk_count(size_bytes)) as u64
}

fn encoded_bytes(chunks: usize) -> usize {
    HEADER_BYTES + DIGEST_BYTES * chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_does_not_fit() {
        let one = vec![Digest([1; 32])];
        assert_eq!(Manifest::new(0, vec![]), Err(ManifestError::Size(0)));
        assert_eq!(Manifest::new(IMAGE_BYTES_MAX + 1, one.clone()), Err(ManifestError::Size(IMAGE_BYTES_MAX + 1)));
        assert!(Manifest::new(CHUNK_BYTES as u64, one.clone()).is_ok());
        assert!(Manifest::new(CHUNK_BYTES as u64 + 1, one.clone()).is_err());
        let manifest = Manifest::new(7, one).unwrap();
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes, ZEROS), Err(ManifestError::Digest));
        assert_eq!(Manifest::decode(&bytes[..bytes.len() - 1], ZEROS), Err(ManifestError::Length(55, 56)));
        assert_eq!(Manifest::decode(b"", ZEROS), Err(ManifestError::Magic));
    }

    #[test]
    fn tells_where_chunks_stand() {
        let manifest =
            Manifest::new(2 * CHUNK_BYTES as u64 + 5, vec![Digest([1; 32]), ZEROS, Digest([2; 32])]).unwrap();
        let stored: Vec<_> = manifest.stored().collect();
        assert_eq!(stored, [(Digest([1; 32]), 0, CHUNK_BYTES), (Digest([2; 32]), 2 * CHUNK_BYTES as u64, 5)]);
        assert_eq!(manifest.stored_bytes(), CHUNK_BYTES as u64 + 5);
    }

    proptest! {
        #[test]
        fn bytes_round_trip(chunks in proptest::collection::vec(any::<[u8; 32]>(), 1..20), last in 1..=CHUNK_BYTES) {
            let size = ((chunks.len() - 1) * CHUNK_BYTES + last) as u64;
            let manifest = Manifest::new(size, chunks.into_iter().map(Digest).collect()).unwrap();
            prop_assert_eq!(Manifest::decode(&manifest.encode(), manifest.digest()), Ok(manifest));
        }

        #[test]
        fn any_bytes_are_handled(tail: Vec<u8>) {
            let digest = Digest(*blake3::hash(&tail).as_bytes());
            let _ = Manifest::decode(&tail, digest);
            let _ = Manifest::decode(&[MAGIC.as_slice(), &tail].concat(), digest);
        }
    }
}
