#![no_main]
//! Rows that are gossiped.

virtuoso_fuzz::message_target!(virtuoso_overlay::table::Gossip);
