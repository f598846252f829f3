//! The control API: HTTP/1.1 and JSON on a Unix socket. It parses, authorises and answers; what the verbs do is behind
//! [`backend::Backend`].

pub mod backend;
pub mod model;
pub mod problem;
