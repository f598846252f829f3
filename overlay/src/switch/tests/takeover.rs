//! A LAN that another host joins to a network.

use super::*;

#[test]
fn the_host_that_takes_a_lan_over_claims_its_stations_and_announces_the_others() {
    const STATION: Mac = Mac([2, 0, 0, 0, 0, 3]);
    let mut lab = Lab::new(3);
    let uplink = PortId(9);
    // Host 0 joins the LAN with its station, host 2 has the guest, host 1 has an uplink on standby.
    lab.switches[1].detach(lab.now, NET);
    lab.switches[0].handle_local(lab.now, NET, STATION, Some(uplink), &[]);
    lab.switches[2].handle_local(lab.now, NET, GUEST, PORT, &[]);
    lab.settle();
    assert_eq!(lab.send(1, &frame(TALKER, STATION)), Some(DropReason::UnknownNetwork), "standby");
    lab.switches[1].handle_local(lab.now, NET, TALKER, PORT, &[]);
    assert!(lab.switches[1].fdb(NET).iter().all(|entry| entry.mac != TALKER), "standby claims nothing");

    let hosts = [lab.switches[0].me];
    lab.switches[0].detach(lab.now, NET);
    lab.delivered.iter_mut().for_each(Vec::clear);
    let elsewhere = lab.switches[1].join_lan(lab.now, NET, &hosts, &[(STATION, uplink), (GUEST, uplink)]);
    assert_eq!(elsewhere, [GUEST], "the bridge would drop what comes from the LAN for it");
    lab.settle();
    lab.assert_held_by(2);
    for (n, switch) in lab.switches.iter().enumerate() {
        let station = switch.fdb(NET).into_iter().find(|entry| entry.mac == STATION).unwrap();
        assert_eq!(station.holder, lab.switches[1].me, "as host {n} sees it");
    }
    let announced = [&[0; VNET_BYTES], &arp::build_announcement(GUEST)[..]].concat();
    assert_eq!(lab.delivered[1], [announced], "the guest, and not the LAN's own station");
    assert_eq!(lab.conflicts(0) + lab.conflicts(1) + lab.conflicts(2), 0);
}
