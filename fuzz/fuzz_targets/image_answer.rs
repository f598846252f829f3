#![no_main]
//! The heads of answers of a stream of image content.

virtuoso_fuzz::message_target!(virtuoso_overlay::wire::image::ImageAnswer);
