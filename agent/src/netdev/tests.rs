//! Against the kernel, in a network namespace of each test's own. Without the right to make one they are skipped, and
//! say so.

mod guard;

use super::*;
use crate::netdev::monitor::watch_within;
use rtnetlink::{LinkUnspec, LinkVeth};
use std::fs::File;
use std::future::Future;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use virtuoso_engine::TapOffloads;
use virtuoso_overlay::ids::{HostId, Mac, SwarmId};
use virtuoso_overlay::wire::beacon::{Beacon, Standing};
use virtuoso_overlay::wire::frame::VNET_BYTES;

const BLUE: NetworkId = NetworkId(0xb1);
const RED: NetworkId = NetworkId(0x4ed);
const GUEST: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const OTHER: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);

#[test]
fn names_tell_networks() {
    assert_eq!((bridge_name(BLUE).as_str(), tap_name(BLUE).as_str()), ("vb-000000b1", "vt-000000b1"));
    assert_eq!(network_of_bridge("vb-000000b1"), Some(BLUE));
    assert_eq!(network_of_tap("vt-000000b1"), Some(BLUE));
    for other in ["vb-b1", "vb-000000B1", "vb-+00000b1", "vt-000000b1", "br0", ""] {
        assert_eq!(network_of_bridge(other), None, "{other}");
    }
}

/// Runs `test` on a thread in a network namespace of its own, which goes with the thread.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce(Netdev) -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: unshare takes no pointers, and changes this thread's namespace only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            println!("SKIPPED: can't make a network namespace (CAP_SYS_ADMIN): {}", io::Error::last_os_error());
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let netdev = Netdev::open().unwrap();
            tokio::time::timeout(Duration::from_secs(30), test(netdev)).await.expect("the test ends in time");
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn refusal(error: &anyhow::Error) -> &NetdevError {
    error.downcast_ref().unwrap_or_else(|| panic!("no NetdevError: {error:?}"))
}

/// A TAP of another program in the bridge of `network`, as a VM's would be.
async fn guest_port(netdev: &Netdev, network: NetworkId, name: &str) -> OwnedFd {
    let fd = tap::open(name).unwrap();
    netdev.attach(network, name).await.unwrap();
    fd
}

fn send(tap: &OwnedFd, src: Mac, dst: Mac) {
    let mut bytes = vec![0; VNET_BYTES];
    bytes.extend_from_slice(&[&dst.0[..], &src.0, &[0x08, 0x35], &[0; 46]].concat());
    assert_eq!(File::from(tap.try_clone().unwrap()).write(&bytes).unwrap(), bytes.len());
}

/// The frames that wait in a TAP.
fn received(tap: &OwnedFd) -> Vec<Vec<u8>> {
    let mut file = File::from(tap.try_clone().unwrap());
    let mut frames = Vec::new();
    let mut buffer = vec![0; 70_000];
    loop {
        match file.read(&mut buffer) {
            Ok(n) => frames.push(buffer[VNET_BYTES..n].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return frames,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn next(events: &mut Receiver<Event>) -> Event {
    events.recv().await.expect("the monitor runs")
}

/// The events up to and including `last`.
async fn until(events: &mut Receiver<Event>, last: &Event) -> Vec<Event> {
    let mut seen = Vec::new();
    while seen.last() != Some(last) {
        seen.push(next(events).await);
    }
    seen
}

fn learned(interface: &str, mac: Mac) -> Event {
    Event::FdbLearned { network: BLUE, interface: interface.to_owned(), mac, vlan: None }
}

#[test]
fn a_bridge_is_made_once_and_removed_when_unused() {
    in_namespace(|netdev| async move {
        let made = netdev.ensure_bridge(BLUE, 9000).await.unwrap();
        assert_eq!((made.name.as_str(), made.mtu_bytes), ("vb-000000b1", 9000));
        let again = netdev.ensure_bridge(BLUE, 1400).await.unwrap();
        assert_eq!((again.index, again.mac, again.mtu_bytes), (made.index, made.mac, 1400));
        assert!(made.mac.is_some_and(|mac| mac.0[0] & 3 == 2));

        netdev.handle.link().add(LinkVeth::new("here", "there").build()).execute().await.unwrap();
        netdev.attach(BLUE, "here").await.unwrap();
        let tap = netdev.create_tap(BLUE, TapOffloads::ALL).await.unwrap();
        assert_eq!(netdev.interface(&made.name).await.unwrap().mac, made.mac, "keeps its address");
        let kept = netdev.remove_bridge(BLUE, RemoveBridge::IfUnused).await.unwrap();
        assert_eq!(kept, BridgeRemoval::Kept(vec!["here".to_owned()]));
        netdev.detach(BLUE, "here").await.unwrap();

        let address = "10.9.9.1".parse().unwrap();
        netdev.handle.address().add(made.index, address, 24).execute().await.unwrap();
        let kept = netdev.remove_bridge(BLUE, RemoveBridge::IfUnused).await.unwrap();
        assert_eq!(kept, BridgeRemoval::Kept(vec!["10.9.9.1".to_owned()]));
        assert_eq!(netdev.remove_bridge(BLUE, RemoveBridge::Always).await.unwrap(), BridgeRemoval::Removed);
        assert_eq!(netdev.remove_bridge(BLUE, RemoveBridge::IfUnused).await.unwrap(), BridgeRemoval::Absent);
        drop(tap);
    });
}

#[test]
fn a_bridge_is_plain_and_silent() {
    in_namespace(|netdev| async move {
        netdev.ensure_bridge(BLUE, 1500).await.unwrap();
        let tap = netdev.create_tap(BLUE, TapOffloads::ALL).await.unwrap();
        let bridge = netdev.interface("vb-000000b1").await.unwrap();
        assert_eq!(netdev.addresses(bridge.index).await.unwrap(), [] as [std::net::IpAddr; 0]);
        assert_eq!(netdev.addresses(tap.index).await.unwrap(), [] as [std::net::IpAddr; 0]);
        assert_eq!(bridge.state, InterfaceState::Up);
        assert_eq!(received(&tap.fd), [] as [Vec<u8>; 0], "nothing of the host's own");
    });
}

#[test]
fn a_tap_has_offloads_and_one_holder() {
    in_namespace(|netdev| async move {
        let missing = netdev.create_tap(BLUE, TapOffloads::ALL).await.unwrap_err();
        assert!(matches!(refusal(&missing), NetdevError::NoInterface { .. }), "{missing}");

        netdev.ensure_bridge(BLUE, 9000).await.unwrap();
        let tap = netdev.create_tap(BLUE, TapOffloads::ALL).await.unwrap();
        assert!(tap.offloads.tso4 && tap.offloads.tso6, "every supported kernel has TSO");
        let ports = netdev.ports(BLUE).await.unwrap();
        assert_eq!(ports.len(), 1);
        assert_eq!(
            (ports[0].name.as_str(), ports[0].index, ports[0].mtu_bytes),
            ("vt-000000b1", tap.index, tap::MTU_BYTES)
        );
        assert_eq!(ports[0].state, InterfaceState::Up);

        let second = netdev.create_tap(BLUE, TapOffloads::ALL).await.unwrap_err();
        assert_eq!(refusal(&second), &NetdevError::TapBusy { name: "vt-000000b1".to_owned() });
        drop(tap);
        assert_eq!(netdev.find_interface("vt-000000b1").await.unwrap(), None);

        netdev.handle.link().add(LinkVeth::new("vt-000000b1", "there").build()).execute().await.unwrap();
        let taken = netdev.create_tap(BLUE, TapOffloads::ALL).await.unwrap_err();
        assert!(matches!(refusal(&taken), NetdevError::NameTaken { .. }), "{taken}");
    });
}

#[test]
fn attaching_says_what_is_wrong() {
    in_namespace(|netdev| async move {
        netdev.ensure_bridge(BLUE, 1500).await.unwrap();
        netdev.ensure_bridge(RED, 1500).await.unwrap();
        let missing = netdev.attach(BLUE, "eth7").await.unwrap_err();
        assert!(missing.to_string().starts_with("No interface eth7"), "{missing}");
        assert!(netdev.attach(BLUE, "not a name").await.is_err());

        netdev.handle.link().add(LinkVeth::new("here", "there").build()).execute().await.unwrap();
        netdev.attach(BLUE, "here").await.unwrap();
        netdev.attach(BLUE, "here").await.unwrap();
        let elsewhere = netdev.attach(RED, "here").await.unwrap_err();
        let expected = NetdevError::InOtherBridge { name: "here".to_owned(), controller: bridge_name(BLUE) };
        assert_eq!(refusal(&elsewhere), &expected);
        for unsuitable in ["lo", "vb-000004ed"] {
            let error = netdev.attach(BLUE, unsuitable).await.unwrap_err();
            assert!(matches!(refusal(&error), NetdevError::Unsuitable { .. }), "{error}");
        }

        let not_in = netdev.detach(RED, "here").await.unwrap_err();
        assert!(matches!(refusal(&not_in), NetdevError::NotInBridge { .. }), "{not_in}");
        netdev.detach(BLUE, "here").await.unwrap();
        netdev.attach(RED, "here").await.unwrap();
        netdev.set_mtu("here", 1400).await.unwrap();
        let port = netdev.interface("here").await.unwrap();
        assert_eq!((port.mtu_bytes, port.state), (1400, InterfaceState::NoCarrier), "its peer is off");
    });
}

#[test]
fn frames_cross_the_bridge_and_are_learned() {
    in_namespace(|netdev| async move {
        netdev.ensure_bridge(BLUE, 1500).await.unwrap();
        let tap = netdev.create_tap(BLUE, TapOffloads::ALL).await.unwrap();
        let guest = guest_port(&netdev, BLUE, "guest0").await;
        send(&guest, GUEST, Mac::BROADCAST);
        send(&tap.fd, OTHER, GUEST);
        let frames = received(&tap.fd);
        assert_eq!(frames.len(), 1, "the guest's broadcast, and nothing else");
        assert_eq!(frames[0][6..12], GUEST.0);
        assert_eq!(received(&guest).last().map(|frame| frame[6..12].to_vec()), Some(OTHER.0.to_vec()));

        assert_eq!(netdev.fdb_lookup(BLUE, GUEST).await.unwrap().as_deref(), Some("guest0"));
        assert_eq!(
            netdev.fdb_lookup(BLUE, OTHER).await.unwrap(),
            None,
            "what is on other hosts is the switch's to know"
        );
        assert_eq!(netdev.fdb_lookup(BLUE, Mac([2; 6])).await.unwrap(), None);
        let own = netdev.interface("vb-000000b1").await.unwrap().mac.unwrap();
        assert_eq!(netdev.fdb_lookup(BLUE, own).await.unwrap().as_deref(), Some("vb-000000b1"));
        let mut macs: Vec<_> = netdev.fdb(BLUE).await.unwrap().into_iter().map(|entry| entry.mac).collect();
        macs.sort();
        let mut expected = [own, GUEST];
        expected.sort();
        assert_eq!(macs, expected);

        netdev.fdb_forget(BLUE, GUEST).await.unwrap();
        assert_eq!(netdev.fdb_lookup(BLUE, GUEST).await.unwrap(), None);
        netdev.fdb_forget(BLUE, GUEST).await.unwrap();
    });
}

#[test]
fn the_monitor_follows_ports_and_addresses() {
    in_namespace(|netdev| async move {
        netdev.ensure_bridge(BLUE, 1500).await.unwrap();
        let tap = netdev.create_tap(BLUE, TapOffloads::ALL).await.unwrap();
        let mut events = watch(netdev.clone()).unwrap();
        let first = until(&mut events, &Event::Synced).await;
        assert!(first.contains(&Event::PortAdded { network: BLUE, interface: tap.name.clone() }), "{first:?}");

        let guest = guest_port(&netdev, BLUE, "guest0").await;
        let added = Event::PortAdded { network: BLUE, interface: "guest0".to_owned() };
        assert_eq!(until(&mut events, &added).await, [added]);
        send(&guest, GUEST, Mac::BROADCAST);
        assert_eq!(next(&mut events).await, learned("guest0", GUEST));
        send(&tap.fd, OTHER, Mac::BROADCAST);
        let second = guest_port(&netdev, BLUE, "guest1").await;
        until(&mut events, &Event::PortAdded { network: BLUE, interface: "guest1".to_owned() }).await;
        send(&second, GUEST, Mac::BROADCAST);
        assert_eq!(next(&mut events).await, learned("guest1", GUEST), "it moved to another port");
        send(&guest, GUEST, Mac::BROADCAST);
        assert_eq!(next(&mut events).await, learned("guest0", GUEST), "and came back");

        netdev.detach(BLUE, "guest0").await.unwrap();
        let gone = Event::FdbGone { network: BLUE, interface: "guest0".to_owned(), mac: GUEST, vlan: None };
        let removed = Event::PortRemoved { network: BLUE, interface: "guest0".to_owned() };
        assert_eq!(until(&mut events, &removed).await, [gone, removed]);
        netdev.attach(BLUE, "guest0").await.unwrap();
        drop(guest);
        let removed = Event::PortRemoved { network: BLUE, interface: "guest0".to_owned() };
        until(&mut events, &removed).await;
    });
}

#[test]
fn the_monitor_recovers_what_the_kernel_forgot() {
    in_namespace(|netdev| async move {
        const ADDRESSES: u8 = 200;
        netdev.ensure_bridge(BLUE, 1500).await.unwrap();
        let guest = guest_port(&netdev, BLUE, "guest0").await;
        let mut events = watch_within(netdev.clone(), 1, 1).unwrap();
        until(&mut events, &Event::Synced).await;
        // More than the smallest socket buffer holds, while nobody reads.
        for n in 0..ADDRESSES {
            send(&guest, Mac([2, 0, 0, 0, 1, n]), Mac::BROADCAST);
        }
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < usize::from(ADDRESSES) {
            if let Event::FdbLearned { mac, .. } = next(&mut events).await {
                assert!(seen.insert(mac), "{mac} is told twice");
            }
        }
    });
}

#[test]
fn a_nic_that_the_host_needs_is_no_uplink() {
    in_namespace(|netdev| async move {
        let missing = netdev.check_uplink(BLUE, 1500, "here").await.unwrap_err();
        assert!(matches!(refusal(&missing), NetdevError::NoInterface { .. }), "{missing}");
        netdev.handle.link().add(LinkVeth::new("here", "there").build()).execute().await.unwrap();
        netdev.check_uplink(BLUE, 1500, "here").await.unwrap();
        let small = netdev.check_uplink(BLUE, 9000, "here").await.unwrap_err();
        assert!(matches!(refusal(&small), NetdevError::SmallMtu { mtu_bytes: 1500, .. }), "{small}");

        let index = netdev.interface("here").await.unwrap().index;
        for (address, prefix) in [("fe80::7", 64), ("10.9.9.1", 24)] {
            netdev.handle.address().add(index, address.parse().unwrap(), prefix).execute().await.unwrap();
        }
        let used = netdev.check_uplink(BLUE, 1500, "here").await.unwrap_err();
        assert!(matches!(refusal(&used), NetdevError::HasAddresses { .. }), "{used}");
        assert!(used.to_string().contains("(10.9.9.1/24)") && used.to_string().contains("vb-000000b1"), "{used}");
    });
}

#[test]
fn beacons_are_heard_on_a_port_of_a_bridge_and_nothing_else_is() {
    in_namespace(|netdev| async move {
        netdev.ensure_bridge(BLUE, 1500).await.unwrap();
        netdev.handle.link().add(LinkVeth::new("nic", "lan").build()).execute().await.unwrap();
        netdev.change(LinkUnspec::new_with_name("lan").up().build(), "to switch lan on").await.unwrap();
        netdev.attach(BLUE, "nic").await.unwrap();
        let lan = BeaconSocket::open(&netdev.interface("lan").await.unwrap()).unwrap();
        let nic = BeaconSocket::open(&netdev.interface("nic").await.unwrap()).unwrap();
        let (swarm, host) = (SwarmId([1; 32]), HostId([2; 32]));
        let beacon = Beacon { swarm, network: BLUE, host, standing: Standing::Standby };
        let frame = beacon.encode(OTHER);

        let mut other = frame.clone();
        other[0] = 0xff;
        lan.send(&other).unwrap();
        let tagged = [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat();
        lan.send(&tagged).unwrap();
        lan.send(&frame).unwrap();
        assert_eq!(Beacon::decode(&nic.receive().await.unwrap()), Ok(beacon), "on the port, and the first that comes");
        let answer = Beacon { standing: Standing::Active, ..beacon };
        nic.send(&answer.encode(OTHER)).unwrap();
        assert_eq!(Beacon::decode(&lan.receive().await.unwrap()), Ok(answer), "not one's own");

        netdev.change(LinkUnspec::new_with_name("nic").down().build(), "to switch nic off").await.unwrap();
        assert!(nic.receive().await.is_err());
    });
}

#[test]
fn who_lists_at_the_same_time_waits() {
    in_namespace(|netdev| async move {
        // More than the kernel tells at once.
        for n in 0..40 {
            netdev.ensure_bridge(NetworkId(n), 1500).await.unwrap();
        }
        let lists = futures::future::join_all(
            (0..8).map(|_| async { (netdev.interfaces().await, netdev.fdb(NetworkId(1)).await) }),
        );
        for (interfaces, fdb) in lists.await {
            assert_eq!(interfaces.unwrap().len(), 41, "with lo");
            assert!(fdb.is_ok(), "{fdb:?}");
        }
    });
}

#[test]
fn without_the_right_the_error_names_it() {
    in_namespace(|netdev| async move {
        drop_net_admin();
        for error in [netdev.ensure_bridge(BLUE, 1500).await.unwrap_err(), tap::open("guest0").unwrap_err()] {
            assert!(matches!(refusal(&error), NetdevError::MissingRight { .. }), "{error}");
            assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        }
        let up = LinkUnspec::new_with_name("lo").up().build();
        let error = netdev.change(up, "to switch lo on").await.unwrap_err();
        assert!(matches!(refusal(&error), NetdevError::MissingRight { .. }), "{error}");
    });
}

/// Gives up this thread's capabilities for good.
fn drop_net_admin() {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let none: [u32; 6] = [0; 6];
    // SAFETY: capset reads a header of two words and data of six; both live until it returns.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}
