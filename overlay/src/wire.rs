//! What goes over the wire: checked views of packets, our frame header, messages, and their encoding.

pub mod frame;
