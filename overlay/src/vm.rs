//! What a host decides about VMs: whether it has room for one, which has a name, and what its state allows.

pub mod console;
pub mod lifecycle;
pub mod names;
pub mod reservations;
pub mod rfb;
