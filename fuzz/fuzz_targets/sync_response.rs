#![no_main]
//! Answers of the tables' repair.

virtuoso_fuzz::message_target!(virtuoso_overlay::table::SyncResponse);
