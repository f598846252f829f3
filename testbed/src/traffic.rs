//! Traffic between guests that counts every unit: generators and sinks run as threads of the testbed inside the
//! guests' namespaces, so both ends are seen by one clock and one program.

pub(crate) mod echoes;
pub(crate) mod ethernet;
pub(crate) mod flood;
pub(crate) mod group;
pub(crate) mod iperf;
pub(crate) mod latency;
pub(crate) mod questions;
pub(crate) mod stream;
pub(crate) mod transfer;
