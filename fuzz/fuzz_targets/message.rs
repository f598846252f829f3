#![no_main]
//! Messages of a link.

virtuoso_fuzz::message_target!(virtuoso_overlay::wire::message::Message);
