#![no_main]
//! The heads of answers of a stream of a disc.

virtuoso_fuzz::message_target!(virtuoso_overlay::wire::disc::DiscAnswer);
