//! Thousands of hosts of the overlay in virtual time.
//!
//! The [`world::World`] runs the real `Node` and `Switch` of every host. Clocks, networks, guests and faults are
//! simulated, everything is drawn from one seed, and the same seed gives the same run. [`checkers`] compare what the
//! hosts believe with what is true ([`model`]).
//!
//! What is not simulated: libp2p, QUIC and the kernel. The fabric stands for them: connections, links, gossip by an
//! epidemic over the connections, bridges that know their guests.
#![forbid(unsafe_code)]

pub mod checkers;
pub mod clock;
mod control;
pub mod fabric;
mod faults;
pub mod frames;
pub mod glue;
pub mod host;
mod keys;
mod links;
pub mod migration;
pub mod model;
pub mod options;
pub mod report;
pub mod rng;
pub mod scenarios;
mod trace;
mod workload;
pub mod world;
