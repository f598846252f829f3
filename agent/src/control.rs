//! The control API: HTTP/1.1 and JSON on a Unix socket. It parses, authorises and answers; what the verbs do is behind
//! [`backend::Backend`].

pub mod backend;
mod caller;
pub mod client;
pub mod doctor;
pub(crate) mod extract;
pub mod forward;
mod handlers;
pub mod model;
pub mod problem;
mod router;
pub mod socket;
mod stream;
mod upgrade;

pub(crate) use handlers::display::DISPLAY_PROTOCOL;
pub(crate) use handlers::vm::CONSOLE_PROTOCOL;
pub use router::{Api, openapi, serve};

#[cfg(test)]
pub(crate) mod tests;
