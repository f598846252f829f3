#![no_main]
//! Answers to requests for admission.

virtuoso_fuzz::message_target!(virtuoso_overlay::membership::AdmitAnswer);
