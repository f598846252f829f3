//! x

pub mod facts;
pub mod netdev;
