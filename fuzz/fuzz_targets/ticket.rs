#![no_main]
//! Tickets, which people paste: any text, and any bytes in the form of one. The checksum and base58 are made right, so
//! that the fuzzer gets past them.

use virtuoso_overlay::membership::Ticket;

const SUM_BYTES: usize = 4;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        check(text);
    }
    let sum = blake3::hash(bytes);
    let word = bs58::encode([bytes, &sum.as_bytes()[..SUM_BYTES]].concat()).into_string();
    check(&format!("virtuoso-ticket:{word}"));
});

fn check(text: &str) {
    if let Ok(ticket) = text.parse::<Ticket>() {
        assert_eq!(ticket.to_string().parse::<Ticket>().as_ref(), Ok(&ticket));
    }
}
