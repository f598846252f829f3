//! Names for the programs of this host: a resolver on a loopback address.

pub mod stub;
