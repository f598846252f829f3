#![no_main]
//! The questions of a stream of a disc.

virtuoso_fuzz::message_target!(virtuoso_overlay::wire::disc::DiscRequest);
