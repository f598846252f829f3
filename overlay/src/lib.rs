//! The decision core of Virtuoso.
//!
//! `overlay` decides, `agent` does. Everything here is deterministic: time, seeds, keys and peers' bytes are
//! arguments, effects are values that the caller carries out. There are no sockets, files, threads, async,
//! clock or entropy in this crate, and its dependency list keeps it so.
//!
//! Two state machines share the work of one host:
//! - [`node::Node`], the control plane: replicated tables, anti-entropy, liveness.
//! - [`switch::Switch`], the data plane: ports, claims, forwarding, floods, moves.
//!
//! A third, [`uplinks::Election`], sees to it that one host alone joins a LAN to a network.
#![forbid(unsafe_code)]

pub mod breaker;
pub mod bulk_window;
pub mod chunk;
pub mod claims;
pub mod congestion;
pub mod crypto;
pub mod delay_window;
pub mod drop_reason;
mod flood;
pub mod ids;
pub mod limits;
pub mod loss;
pub mod membership;
pub mod migrate;
pub mod moderation;
pub mod names;
pub mod node;
pub mod offload;
pub mod pace;
pub mod packet;
pub mod queue;
mod rng;
mod seeded;
pub mod switch;
pub mod table;
pub mod time;
pub mod uplinks;
pub mod urgency;
pub mod vm;
pub mod wire;
