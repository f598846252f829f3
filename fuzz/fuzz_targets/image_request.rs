#![no_main]
//! The questions of a stream of image content.

virtuoso_fuzz::message_target!(virtuoso_overlay::wire::image::ImageRequest);
