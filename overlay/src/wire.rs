//! What goes over the wire: checked views of packets, our frame header, messages, and their encoding.

pub mod codec;
pub mod frame;
pub mod message;
