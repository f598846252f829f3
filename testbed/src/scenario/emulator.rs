//! The testbed judges itself: an emulated link between two bridges, no agent. What the emulator counts and what
//! the traffic generators count must agree, else no figure of another scenario is worth anything.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Scenario;
use crate::lab::Lab;
use crate::topology::{BitRate, Fraction, Impairment, Span};
use crate::traffic::ethernet::{BROADCAST, ETHERTYPE_EXPERIMENT, RawNic, frame, parse_mac};
use crate::traffic::latency;
use crate::traffic::stream::{Stream, StreamReport};
use crate::traffic::transfer::Transfer;
use crate::wan::Counters;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "self-test",
    about: "the link emulator and the traffic generators agree with each other (no agent)",
    topology: TOPOLOGY,
    tools: &["ping"],
    run,
}];

const TOPOLOGY: &str = r#"
    [hosts.alpha]
    [hosts.beta]
    [links.wan]
    delay = "10ms"
    [links.wan.members]
    alpha = ["10.77.0.1/24"]
    beta = ["10.77.0.2/24"]
"#;

fn run(lab: &mut Lab) -> Result<()> {
    for (guest, host, address) in [("vm1", "alpha", "10.9.0.1/24"), ("vm2", "beta", "10.9.0.2/24")] {
        lab.add_guest(guest, host, &[address], 1500)?;
        let port = lab.guest(guest)?.port();
        let namespace = lab.host(host)?.namespace();
        namespace.ip("link add name br0 type bridge")?;
        namespace.ip("link set br0 up")?;
        for interface in ["wan", &port] {
            namespace.ip(&format!("link set {interface} master br0"))?;
        }
    }
    lab.await_contact("vm1", "vm2")?;
    delay(lab)?;
    whole_stream(lab)?;
    loss_and_order(lab)?;
    rate(lab)?;
    tagged_frame(lab)?;
    cut(lab)
}

fn delay(lab: &mut Lab) -> Result<()> {
    let times = latency::measure(lab.guest("vm1")?, lab.guest("vm2")?.ipv4()?, 200)?;
    lab.note(format!("round trip over 2 x 10 ms: p50 {:.2} ms, p99 {:.2} ms", times.p50_us / 1e3, times.p99_us / 1e3));
    ensure!((20_000.0..25_000.0).contains(&times.p50_us), "The median round trip is {} us", times.p50_us);
    Ok(())
}

fn whole_stream(lab: &mut Lab) -> Result<()> {
    let report = stream(lab, 10_000)?;
    ensure!(report.lost == 0 && report.duplicated == 0 && report.reordered == 0, "A good line does harm: {report:?}");
    lab.note(format!("10,000 datagrams a second: {report:?}"));
    Ok(())
}

fn loss_and_order(lab: &mut Lab) -> Result<()> {
    let delay = Span(Duration::from_millis(10));
    let bad = Impairment { delay, loss: Fraction(0.1), reorder: Fraction(0.05), ..Impairment::default() };
    lab.emulator("wan")?.impair(bad);
    let before = counters(lab)?;
    let report = stream(lab, 2_000)?;
    let lost = counters(lab)?.lost - before.lost;
    lab.emulator("wan")?.impair(Impairment { delay, ..Impairment::default() });
    // A lost ARP or IPv6 packet of the system may stand among the lost frames.
    ensure!(report.lost <= lost && lost <= report.lost + 5, "The emulator lost {lost}, the stream {report:?}");
    ensure!(report.lost * 20 > report.sent && report.lost * 5 < report.sent, "Not 10 % were lost: {report:?}");
    ensure!(report.reordered > 0, "Nothing was reordered: {report:?}");
    Ok(())
}

fn rate(lab: &mut Lab) -> Result<()> {
    let narrow = Impairment { rate: Some(BitRate(20_000_000)), ..Impairment::default() };
    lab.emulator("wan")?.impair(narrow);
    let transfer = Transfer::start(lab.guest("vm1")?, lab.guest("vm2")?, 1 << 30)?;
    let begin = std::time::Instant::now();
    let length = 4 << 20;
    transfer.await_bytes(length, Duration::from_secs(30))?;
    let bits_per_second = length as f64 * 8.0 / begin.elapsed().as_secs_f64();
    lab.emulator("wan")?.impair(Impairment::default());
    transfer.finish()?;
    lab.note(format!("TCP over 20 Mbit/s: {:.1} Mbit/s", bits_per_second / 1e6));
    ensure!((10e6..21e6).contains(&bits_per_second), "TCP over 20 Mbit/s got {bits_per_second:.0} bit/s");
    Ok(())
}

fn tagged_frame(lab: &Lab) -> Result<()> {
    let (vm1, vm2) = (lab.guest("vm1")?, lab.guest("vm2")?);
    let source = parse_mac(vm1.mac())?;
    let (sender, receiver) = (RawNic::open(vm1)?, RawNic::open(vm2)?);
    sender.send(&frame(BROADCAST, source, Some(42), ETHERTYPE_EXPERIMENT, &[7; 60]))?;
    let payload = receiver.await_frame(source, Some(42), ETHERTYPE_EXPERIMENT)?;
    ensure!(payload == [7; 60], "The tagged frame was changed: {payload:02x?}");
    Ok(())
}

fn cut(lab: &mut Lab) -> Result<()> {
    lab.emulator("wan")?.isolate(&["alpha"]);
    lab.guest("vm1")?.ensure_unreachable(lab.guest("vm2")?.ipv4()?)?;
    ensure!(counters(lab)?.cut > 0, "The cut link counted nothing");
    lab.emulator("wan")?.heal();
    lab.await_contact("vm1", "vm2")
}

fn stream(lab: &Lab, per_second: u64) -> Result<StreamReport> {
    let stream = Stream::start(lab.guest("vm1")?, lab.guest("vm2")?, per_second, 200)?;
    stream.await_arrivals(per_second * 2, Duration::from_secs(30))?;
    stream.finish()
}

fn counters(lab: &Lab) -> Result<Counters> {
    let all = lab.emulator("wan")?.counters();
    let ours = all.into_iter().find(|(from, _, _)| from == "alpha");
    Ok(ours.map(|(_, _, counters)| counters).unwrap_or_default())
}
