//! x

pub mod netdev;
