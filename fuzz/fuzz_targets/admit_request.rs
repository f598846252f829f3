#![no_main]
//! Requests for admission.

virtuoso_fuzz::message_target!(virtuoso_overlay::membership::AdmitRequest);
