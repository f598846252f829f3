#![no_main]
//! What is shown on a stream to a console or display.

virtuoso_fuzz::message_target!(virtuoso_overlay::wire::attach::AttachAnswer);
