#![no_main]
//! DHCP requests, and answers to them. Kind and cookie are made right, so that the fuzzer gets to the options.

use virtuoso_overlay::names::AddressPlan;
use virtuoso_overlay::names::lease::{self, Lease};
use virtuoso_overlay::wire::dhcp::DhcpView;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(240), 0);
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    let Ok(request) = DhcpView::new_checked(&bytes) else { return };
    let plan = AddressPlan { subnet: "10.8.0.0/24".parse().expect("a subnet"), dhcp: true, host_addresses: true };
    let lease = Lease { ip: [10, 8, 0, 7].into(), plan, mtu: 1500, name: None, domain: "blue.virtuoso".into() };
    if let Some(answer) = lease::answer(&request, &lease) {
        assert!((300..1200).contains(&answer.bytes.len()) && answer.bytes[0] == 2);
        assert_eq!(answer.bytes[28..44], bytes[28..44]);
    }
});
