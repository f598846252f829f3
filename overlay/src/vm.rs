//! What a host decides about VMs: whether it has room for one, and what its state allows.

pub mod lifecycle;
pub mod reservations;
