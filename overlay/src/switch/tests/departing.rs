//! Addresses that leave.

use super::*;

#[test]
fn a_frame_on_its_way_does_not_bring_a_departed_address_back() {
    let mut lab = Lab::new(2);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    lab.switches[0].depart(lab.now, NET, GUEST);
    lab.send(0, &frame(TALKER, GUEST));
    assert_eq!(lab.switches[0].fdb(NET)[0].state, AddressState::Departed);
    lab.pass(LEAVING_TIME);
    lab.send(0, &frame(TALKER, GUEST));
    assert_eq!(lab.switches[0].fdb(NET)[0].state, AddressState::Local, "it came back");
}

#[test]
fn an_address_that_nobody_asks_for_is_released() {
    let mut lab = Lab::new(2);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    lab.switches[0].handle_port_gone(lab.now, NET, PortId(3));
    lab.send(1, &frame(GUEST, TALKER));
    lab.pass(DEPARTED_TIME + Duration::from_secs(10));
    assert!(lab.switches.iter().all(|switch| switch.fdb(NET).iter().all(|entry| entry.mac != GUEST)));
    assert_eq!(lab.switches[0].drops().get(DropReason::HoldOverflow), 1);
}

#[test]
fn an_address_that_has_moved_is_not_retired_where_it_was() {
    let mut lab = Lab::new(2);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    lab.switches[0].depart(lab.now, NET, GUEST);
    lab.switches[1].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    lab.switches[0].retire(lab.now, NET, GUEST);
    lab.pass(LEAVING_TIME * 2);
    lab.assert_held_by(1);
}

#[test]
fn a_guest_that_begins_again_keeps_its_address() {
    let mut lab = Lab::new(2);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    lab.switches[0].retire(lab.now, NET, GUEST);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.pass(DEPARTED_TIME);
    lab.assert_held_by(0);
}

#[test]
fn the_address_of_a_guest_that_has_ended_is_free_at_once() {
    let mut lab = Lab::new(2);
    for port_goes_first in [false, true] {
        lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
        lab.settle();
        if port_goes_first {
            lab.switches[0].handle_port_gone(lab.now, NET, PortId(3));
        }
        lab.switches[0].retire(lab.now, NET, GUEST);
        // What it sent last comes out of its TAP after its end, and does not bring it back.
        lab.send(0, &frame(TALKER, GUEST));
        lab.send(1, &frame(GUEST, TALKER));
        lab.pass(LEAVING_TIME + Duration::from_millis(100));
        assert!(lab.switches.iter().all(|switch| switch.fdb(NET).iter().all(|entry| entry.mac != GUEST)));
        assert_eq!(lab.switches[0].poll_timeout(), None);
    }
}
