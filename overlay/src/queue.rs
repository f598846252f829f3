//! What waits between the ports and a link: flow queues with fair turns and a bound on waiting, and no clock.

mod branches;
mod codel;
mod ecn;
mod flow;
mod fq_codel;

#[cfg(test)]
mod tests;

pub use branches::{BRANCH_BYTES_MAX, Branches};
pub use codel::Delay;
pub use ecn::mark_ce;
pub use flow::flow_hash;
pub use fq_codel::{FLOW_QUEUES, FqCodel, QUANTUM_BYTES, Queued};
