//! Hash maps whose order depends on the seed alone, so that the same inputs give the same outputs, while a peer that
//! does not know the seed can't choose keys that collide.

use std::collections::HashMap;
use std::hash::{BuildHasher, DefaultHasher, Hasher};

/// A hash map keyed by the host's seed.
pub(crate) type SeededMap<K, V> = HashMap<K, V, SeededState>;

/// Builds hashers that begin with a seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SeededState(pub(crate) u64);

impl BuildHasher for SeededState {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}
