//! The agent: every side effect of Virtuoso. `overlay` decides, this crate does.

pub mod attach;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod core;
pub mod daemon;
pub mod disc;
pub mod disk;
pub mod entropy;
pub mod events;
pub mod facts;
pub mod gatekeeper;
pub mod identity;
pub mod image;
pub mod logging;
pub mod name;
pub mod names;
mod nbd;
pub mod netdev;
mod shortage;
pub mod size;
pub mod state;
pub mod swarm;
pub mod text;
pub mod timestamp;
pub mod vm;
