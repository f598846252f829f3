#![no_main]
//! Questions of the tables' repair.

virtuoso_fuzz::message_target!(virtuoso_overlay::table::SyncRequest);
