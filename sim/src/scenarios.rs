//! Whole runs.

pub mod moves;
pub mod scale;
pub mod swarm;
