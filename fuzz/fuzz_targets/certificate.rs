#![no_main]
//! Membership certificates.

virtuoso_fuzz::message_target!(virtuoso_overlay::membership::Certificate);
