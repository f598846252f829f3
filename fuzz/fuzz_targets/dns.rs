#![no_main]
//! DNS questions, and answers to them.

use std::net::{IpAddr, Ipv4Addr};
use virtuoso_overlay::names::zone::{self, Directory, Named};
use virtuoso_overlay::wire::dns::UDP_BYTES_MAX;

/// Everything is there.
struct All;

impl Directory for All {
    fn addresses(&self, _: &str, _: Option<&str>) -> Option<Vec<IpAddr>> {
        Some((0..=255).map(|n| Ipv4Addr::new(10, 8, 0, n).into()).collect())
    }

    fn is_network(&self, _: &str) -> bool {
        true
    }

    fn name_of(&self, _: Ipv4Addr) -> Named {
        Named::Name("web.blue.virtuoso".into())
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(answer) = zone::answer(bytes, &All, None) {
        assert!(answer.len() <= UDP_BYTES_MAX);
        assert_eq!(answer[..2], bytes[..2]);
        assert!(zone::answer(&answer, &All, None).is_none(), "an answer to an answer");
    }
});
