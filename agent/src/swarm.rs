//! The control plane between hosts: libp2p over the shared UDP port and TCP.
//!
//! [`service::SwarmService`] is the whole of it to the rest of the agent: it tells events and takes commands. It
//! moves bytes between hosts and keeps connections; what the bytes mean, and who is a member, others decide.

pub mod address;
pub mod backoff;
pub mod behaviour;
pub mod bootstrap;
pub mod codec;
pub mod connections;
pub mod gate;
pub mod known_peers;
mod limits;
mod listen_addresses;
pub mod members;
mod muxer;
mod oneport;
mod outflow;
pub mod service;
pub mod streams;
pub mod transport;
