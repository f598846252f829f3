//! Where frames died in a lab: what agents, kernels and emulated links have counted. A scenario that failed tells it.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::host::{self, Host};
use crate::netns::Namespace;
use crate::wan::{Counters, Emulator};

/// One line for each link and network of a running agent that lost frames, and one for what it lost elsewhere.
pub(crate) fn of_agent(host: &Host) -> Result<Vec<String>> {
    let status = host.json(&["status"])?;
    let elsewhere = std::iter::once((String::new(), status["drops"].clone()));
    let links = host.list(&["links"])?;
    let links = links.iter().map(|link| (format!(", link to {}", word(&link["name"])), link["drops"].clone()));
    let networks = host.list(&["net", "list"])?;
    let networks =
        networks.iter().map(|net| (format!(", network {}", word(&net["name"])), net["traffic"]["drops"].clone()));
    let counted = elsewhere.chain(links).chain(networks);
    let lossy = counted.filter(|(_, drops)| drops.as_object().is_some_and(|drops| !drops.is_empty()));
    Ok(lossy.map(|(place, drops)| format!("{}{place}: {drops}", host.name())).collect())
}

/// One line for each interface and socket that dropped packets.
pub(crate) fn of_kernel(namespace: &Namespace) -> Result<Vec<String>> {
    let mut losses = of_interfaces(namespace)?;
    for protocol in ["raw", "udp"] {
        let table = namespace.enter(|| Ok(fs::read_to_string(format!("/proc/thread-self/net/{protocol}"))?))?;
        losses.extend(socket_losses(&table).map(|text| format!("{}, {protocol} socket {text}", namespace.name())));
    }
    Ok(losses)
}

fn of_interfaces(namespace: &Namespace) -> Result<Vec<String>> {
    let text = namespace.ip("-s -j link")?;
    let interfaces: Value = serde_json::from_str(&text).with_context(|| format!("Not what `ip` prints: {text}"))?;
    let interfaces = host::items(&interfaces).unwrap_or_default();
    Ok(interfaces.iter().filter_map(interface_losses).map(|text| format!("{}, {text}", namespace.name())).collect())
}

fn interface_losses(interface: &Value) -> Option<String> {
    let dropped = |way: &str| interface["stats64"][way]["dropped"].as_u64().unwrap_or_default();
    let (received, sent) = (dropped("rx"), dropped("tx"));
    (received + sent > 0)
        .then(|| format!("{}: dropped {received} received, {sent} to send", word(&interface["ifname"])))
}

/// Sockets of a table in `/proc/net` that lost what came, by their local address: its last column counts that.
fn socket_losses(table: &str) -> impl Iterator<Item = String> {
    table.lines().skip(1).filter_map(|line| {
        let local = line.split_whitespace().nth(1)?;
        let dropped = line.split_whitespace().last().filter(|dropped| *dropped != "0")?;
        Some(format!("{local}: dropped {dropped} received"))
    })
}

/// One line for each direction of an emulated link that lost frames.
pub(crate) fn of_link(name: &str, emulator: &Emulator) -> Vec<String> {
    let lossy = emulator.counters().into_iter().filter(|(.., counters)| *counters != carried_only(counters));
    lossy.map(|(from, to, counters)| format!("{name} from {from} to {to}: {counters:?}")).collect()
}

fn carried_only(counters: &Counters) -> Counters {
    Counters { frames: counters.frames, bytes: counters.bytes, ..Counters::default() }
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_lost_something() {
        let table = "  sl  local_address rem_address  st tx_queue rx_queue ref pointer drops\n\
             1: 00000000:0001 00000000:0000 07 00000000:00000000 2 00000000c2 0\n\
             2: 0100007F:0001 00000000:0000 07 00000000:00000000 2 00000000c2 17\n";
        assert_eq!(socket_losses(table).collect::<Vec<_>>(), ["0100007F:0001: dropped 17 received"]);
    }

    #[test]
    fn interfaces_that_lost_something() {
        let interface = |sent: u64| {
            serde_json::json!({
                "ifname": "eth0", "stats64": {"rx": {"dropped": 0}, "tx": {"dropped": sent}},
            })
        };
        assert_eq!(interface_losses(&interface(0)), None);
        assert_eq!(interface_losses(&interface(3)).unwrap(), "eth0: dropped 0 received, 3 to send");
    }

    #[test]
    fn a_link_that_only_carries_is_not_lossy() {
        let counters = Counters { frames: 7, bytes: 700, ..Counters::default() };
        assert_eq!(carried_only(&counters), counters);
        assert_ne!(carried_only(&Counters { overflowed: 1, ..counters }), Counters { overflowed: 1, ..counters });
    }
}
