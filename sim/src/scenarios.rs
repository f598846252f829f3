//! Whole runs.

pub mod scale;
pub mod swarm;
