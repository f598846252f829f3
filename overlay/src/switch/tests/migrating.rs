//! An address whose VM moves.

use super::*;

#[test]
fn a_move_keeps_every_frame_in_order_also_those_that_overtake_the_handoff() {
    let mut lab = Lab::new(3);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.switches[2].handle_local(lab.now, NET, TALKER, PORT, &[]);
    lab.settle();
    let holder = lab.switches[0].me;
    let target = lab.switches[1].me;
    lab.switches[1].expect_move(lab.now, NET, GUEST, holder);

    // The guest is paused, its port taken out. What was on its way to it goes before what comes later.
    lab.switches[0].begin_move(lab.now, NET, GUEST);
    assert_eq!(lab.send(2, &frame(GUEST, TALKER)), None);
    assert_eq!(lab.send(0, &frame(TALKER, GUEST)), None, "what it said last passes");
    lab.switches[0].begin_move(lab.now, NET, GUEST);
    let packet = [&[0; VNET_BYTES], &frame(GUEST, TALKER)[..]].concat();
    lab.switches[0].bring_back(lab.now, NET, GUEST, vec![packet.clone()]);
    assert_eq!(lab.switches[0].move_counts(NET, GUEST).buffered, 2);

    // A frame is faster than the message that signs its address over.
    let header = FrameHeader { network: NET, hops: HOP_LIMIT - 1, flags: Flags::VNET.with(Flags::FORWARDED) };
    let (now, switch) = (lab.now, &mut lab.switches[1]);
    assert_eq!(switch.egress(now, holder, header, &packet), Egress::Hold(GUEST, header));
    switch.hold(now, NET, GUEST, header, packet);

    let claim = lab.switches[0].hand_over(lab.now, NET, GUEST, target).expect("it was this host's");
    assert_eq!(lab.switches[0].hand_over(lab.now, NET, GUEST, target), Some(claim.clone()), "asked again");
    lab.settle();
    assert!(lab.delivered[1].is_empty(), "the guest does not run yet");
    lab.switches[1].handle_handoff(lab.now, claim);
    lab.switches[1].handle_learned(lab.now, NET, GUEST, PortId(1));
    lab.settle();
    assert!(lab.delivered[1].is_empty(), "its port was opened, and it does not run yet");
    assert_eq!(lab.send(1, &frame(TALKER, GUEST)), None, "what it says first passes");
    assert_eq!(lab.delivered[2].len(), 2);
    lab.switches[1].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.switches[1].end_expectation(lab.now, NET, GUEST);
    lab.settle();
    lab.pass(RELEASE_INTERVAL);
    assert_eq!(lab.delivered[1].len(), 3);
    lab.assert_held_by(1);
    let (source, arrived) = (lab.switches[0].move_counts(NET, GUEST), lab.switches[1].move_counts(NET, GUEST));
    assert_eq!((source.forwarded, arrived.arrived, source.lost + arrived.lost), (2, 3, 0));
}

#[test]
fn a_move_that_is_given_up_leaves_the_address_where_it_was() {
    let mut lab = Lab::new(2);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.switches[1].handle_local(lab.now, NET, TALKER, PORT, &[]);
    lab.settle();
    let holder = lab.switches[0].me;
    lab.switches[1].expect_move(lab.now, NET, GUEST, holder);
    lab.switches[0].begin_move(lab.now, NET, GUEST);
    assert_eq!(lab.send(1, &frame(GUEST, TALKER)), None);
    lab.switches[0].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.switches[1].end_expectation(lab.now, NET, GUEST);
    lab.settle();
    assert_eq!(lab.delivered[0].len(), 1);
    lab.assert_held_by(0);
}
