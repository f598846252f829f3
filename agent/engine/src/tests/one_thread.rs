//! Everything on one thread.

use super::*;

#[path = "control.rs"]
mod control;
#[path = "links.rs"]
mod links;
#[path = "traffic.rs"]
mod traffic;

fn lab() -> Lab {
    Lab::new(1)
}
