//! The machine's entropy, for secrets and seeds.

/// Random bytes.
///
/// # Panics
/// If the kernel has no entropy source, which no supported kernel lacks.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel has an entropy source");
    bytes
}

/// A random number.
pub fn u64() -> u64 {
    u64::from_ne_bytes(bytes())
}
