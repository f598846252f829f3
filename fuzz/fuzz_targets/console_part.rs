#![no_main]
//! Parts of a console that moves with its VM.

virtuoso_fuzz::message_target!(virtuoso_overlay::wire::attach::ConsolePart);
