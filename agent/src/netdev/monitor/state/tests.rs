use super::*;
use crate::netdev::InterfaceState;

const NETWORK: NetworkId = NetworkId(0xb1);
const BRIDGE: u32 = 10;
const TAP: u32 = 11;
const VETH: u32 = 12;
const GUEST: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);

fn interface(index: u32, name: &str, controller: Option<u32>) -> Interface {
    Interface {
        name: name.to_owned(),
        index,
        mac: None,
        mtu_bytes: 1500,
        state: InterfaceState::Up,
        controller,
        is_bridge: false,
        is_ethernet: true,
        is_loopback: false,
    }
}

fn entry(port: u32) -> RawEntry {
    RawEntry { bridge: BRIDGE, mac: GUEST, vlan: None, port }
}

fn interfaces() -> Vec<Interface> {
    vec![
        interface(1, "lo", None),
        interface(VETH, "veth0", Some(BRIDGE)),
        interface(BRIDGE, "vb-000000b1", None),
        interface(TAP, "vt-000000b1", Some(BRIDGE)),
        interface(20, "docker0", None),
        interface(21, "veth1", Some(20)),
    ]
}

fn added(name: &str) -> Event {
    Event::PortAdded { network: NETWORK, interface: name.to_owned() }
}

fn removed(name: &str) -> Event {
    Event::PortRemoved { network: NETWORK, interface: name.to_owned() }
}

fn learned(name: &str) -> Event {
    Event::FdbLearned { network: NETWORK, interface: name.to_owned(), mac: GUEST, vlan: None }
}

fn gone(name: &str) -> Event {
    Event::FdbGone { network: NETWORK, interface: name.to_owned(), mac: GUEST, vlan: None }
}

fn synced() -> State {
    let mut state = State::default();
    let events = state.replace(interfaces(), vec![entry(VETH), RawEntry { bridge: 20, port: 21, ..entry(21) }]);
    assert_eq!(events, [added("veth0"), added("vt-000000b1"), learned("veth0")]);
    state
}

#[test]
fn nothing_is_told_twice() {
    let mut state = synced();
    assert_eq!(state.replace(interfaces(), vec![entry(VETH)]), []);
    let mut events = Vec::new();
    state.entry_is(entry(VETH), &mut events);
    state.interface_is(&interface(VETH, "veth0", Some(BRIDGE)), &mut events);
    assert_eq!(events, []);
}

#[test]
fn an_address_moves_and_ages() {
    let mut state = synced();
    let mut events = Vec::new();
    state.entry_is(entry(TAP), &mut events);
    state.entry_gone(entry(TAP), &mut events);
    state.entry_gone(entry(TAP), &mut events);
    assert_eq!(events, [learned("vt-000000b1"), gone("vt-000000b1")]);
}

#[test]
fn a_port_takes_its_addresses_with_it() {
    let mut state = synced();
    let mut events = Vec::new();
    state.interface_is(&interface(VETH, "veth0", None), &mut events);
    assert_eq!(events, [gone("veth0"), removed("veth0")]);

    let mut state = synced();
    let mut events = Vec::new();
    state.interface_gone(VETH, &mut events);
    assert_eq!(events, [gone("veth0"), removed("veth0")]);
}

#[test]
fn a_bridge_takes_everything_with_it() {
    let mut state = synced();
    let mut events = Vec::new();
    state.interface_gone(BRIDGE, &mut events);
    assert_eq!(events, [removed("vt-000000b1"), gone("veth0"), removed("veth0")]);
    assert!(state.entries.is_empty());
}

#[test]
fn what_was_missed_is_told_after_a_dump() {
    let mut state = synced();
    let mut now = interfaces();
    now.retain(|interface| interface.index != VETH);
    now.push(interface(30, "eth9", Some(BRIDGE)));
    let events = state.replace(now, vec![entry(30)]);
    assert_eq!(events, [gone("veth0"), removed("veth0"), added("eth9"), learned("eth9")]);
}

#[test]
fn an_address_behind_an_unknown_port_asks_for_a_dump() {
    let mut state = synced();
    let mut events = Vec::new();
    state.entry_is(entry(99), &mut events);
    assert!(state.is_confused() && events.is_empty());
    state.replace(interfaces(), vec![entry(VETH)]);
    assert!(!state.is_confused());
}
