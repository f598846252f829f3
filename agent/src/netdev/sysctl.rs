//! Switches of an interface that netlink has no message for.

use std::io::ErrorKind;

/// Makes the host itself deaf on a network's bridge: guests' router advertisements must not give the host addresses
/// and routes, and the host must not announce itself to the guests unless its owner gives the bridge an address.
pub(super) fn quieten_bridge(name: &str) {
    set_ipv6(name, "accept_ra", "0");
    set_ipv6(name, "autoconf", "0");
    set_ipv6(name, "addr_gen_mode", "1");
}

/// Keeps the host's own IPv6 off an interface that only carries frames of others.
pub(super) fn silence_port(name: &str) {
    set_ipv6(name, "disable_ipv6", "1");
}

fn set_ipv6(name: &str, key: &str, value: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/{key}");
    match std::fs::write(&path, value) {
        Ok(()) => {}
        // A kernel without IPv6, or without this switch, has nothing to switch off.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(
            path,
            value,
            %error,
            "Can't set: guests of this network may configure this host's IPv6. Set it by hand"
        ),
    }
}
