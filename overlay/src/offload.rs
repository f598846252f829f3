//! What a TAP's virtio-net header asks for, checked against the frame it stands before, and done in software where a
//! device can't do it. Pure functions over bytes: no descriptor is touched here.

mod coalesce;
mod layout;
mod segment;
mod vnet_hdr;

#[cfg(test)]
mod tests;

pub use coalesce::Coalescer;
pub use segment::{Segmenter, cut_last_segment};
pub use vnet_hdr::{Gso, VnetHdr, wire_frames};
