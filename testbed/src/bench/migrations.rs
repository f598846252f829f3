//! What it costs those who talk to a VM that it moves to another host while it runs: over a LAN, over a long and narrow
//! path, and with a disk of which little has changed.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::{Options, figure};
use crate::console;
use crate::host::Host;
use crate::interrupt;
use crate::lab::{self, Lab, Settings};
use crate::root_image::RootImage;
use crate::test_guest::TestGuest;
use crate::traffic::latency::percentile;
use crate::travelling_vm::{Journey, TravellingVm};
use crate::wait;

#[derive(Debug, Serialize)]
pub(super) struct Migrations {
    lan: Journeys,
    wan: Journeys,
    image: ImageJourney,
}

/// Moves over one kind of path.
#[derive(Debug, Serialize)]
struct Journeys {
    round_trip_ms: f64,
    total_ms: Spread,
    downtime_ms: Spread,
    blackout_ms: Spread,
    /// Of the blackout, what is not the hypervisor's.
    blackout_without_downtime_ms: Spread,
    echo_gap_max_ms: Spread,
    /// Of the stall, what is not the hypervisor's.
    tcp_stall_without_downtime_ms: Spread,
    frames_lost: u64,
    frames_duplicated: u64,
    echoes_lost: u64,
    echoes_duplicated: u64,
    multicasts_sent: u64,
    multicasts_lost: u64,
    multicasts_duplicated: u64,
    transfers_broken: usize,
    moves: Vec<Journey>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    p99: f64,
}

/// A move of a VM with a large image.
#[derive(Debug, Serialize)]
struct ImageJourney {
    image_bytes: u64,
    /// What the VM's own disk had by then.
    overlay_bytes: u64,
    memory_bytes: u64,
    disk_bytes: u64,
    /// All that the source has sent meanwhile, with the headers of packets.
    sent_bytes: u64,
}

const LAN_BYTES_PER_SECOND: u64 = 1 << 20;
/// A transfer that leaves the larger part of the path to the move.
const WAN_BYTES_PER_SECOND: u64 = 256 << 10;
const WRITTEN_MIB: u64 = 10;
/// Everything but memory that the move of a disk with so much of its own may send.
const IMAGE_EXTRA_BYTES: u64 = 12 << 20;

pub(super) fn measure(settings: &Settings, options: &Options) -> Result<Migrations> {
    let settings = |name: &str| Settings { report: settings.report.join(name), ..settings.clone() };
    let lan = Lab::build(&include_str!("../../topologies/lan3.toml").parse()?, &settings("migrations-lan"))?;
    let lan = Journeys::measure(lan, options.moves, LAN_BYTES_PER_SECOND)?;
    lan.print("LAN", 5.0, 20.0);
    let wan = Lab::build(&include_str!("../../topologies/far3.toml").parse()?, &settings("migrations-wan"))?;
    let wan = Journeys::measure(wan, options.moves.div_ceil(4), WAN_BYTES_PER_SECOND)?;
    let allowed = wan.round_trip_ms + 10.0;
    wan.print("40 ms and 50 Mbit/s", allowed, allowed);
    let image = ImageJourney::measure(&settings("migrations-image"), options.image_mib)?;
    image.print();
    Ok(Migrations { lan, wan, image })
}

impl Journeys {
    fn measure(mut lab: Lab, moves: usize, bytes_per_second: u64) -> Result<Self> {
        lab.start_swarm()?;
        let vm = TravellingVm::start(&mut lab, &["--disk", "64MiB"], "", bytes_per_second)?;
        let round_trip_ms = TravellingVm::round_trip_of_hosts(&lab)?.p50_us / 1e3;
        let mut journeys = Vec::new();
        for to in ["beta", "alpha"].into_iter().cycle().take(moves) {
            let journey = vm.travel(&lab, to)?;
            console::line(&journey);
            journeys.push(journey);
            interrupt::check()?;
        }
        Ok(Self::of(round_trip_ms, journeys))
    }

    fn of(round_trip_ms: f64, moves: Vec<Journey>) -> Self {
        let spread = |value: fn(&Journey) -> Option<f64>| Spread::of(moves.iter().filter_map(value).collect());
        let sum = |count: fn(&Journey) -> u64| moves.iter().map(count).sum();
        Self {
            round_trip_ms,
            total_ms: spread(|one| Some(one.told.total_ms)),
            downtime_ms: spread(|one| Some(one.told.downtime_ms)),
            blackout_ms: spread(|one| Some(one.told.blackout_ms)),
            blackout_without_downtime_ms: spread(|one| Some(one.excess_ms())),
            echo_gap_max_ms: spread(|one| Some(one.echo_gap_max_ms)),
            tcp_stall_without_downtime_ms: spread(|one| Some(one.tcp_stall_max_ms? - one.told.downtime_ms)),
            frames_lost: sum(|one| one.told.frames_lost),
            frames_duplicated: sum(|one| one.told.frames_duplicated),
            echoes_lost: sum(|one| one.echoes_lost),
            echoes_duplicated: sum(|one| one.echoes_duplicated),
            multicasts_sent: sum(|one| one.group_sent),
            multicasts_lost: sum(|one| one.group_lost),
            multicasts_duplicated: sum(|one| one.group_duplicated),
            transfers_broken: moves.iter().filter(|one| one.tcp_fault.is_some()).count(),
            moves,
        }
    }

    fn print(&self, path: &str, excess_median_ms: f64, excess_p99_ms: f64) {
        let Self { moves, round_trip_ms, .. } = self;
        console::line(format!("\nA VM of 128 MiB moves {} times over {path} ({round_trip_ms:.1} ms):", moves.len()));
        let excess = self.blackout_without_downtime_ms;
        let count = |name: &str, value: u64| figure(name, value as f64, "", 0.0);
        let mut rows = vec![
            figure("blackout - downtime, median", excess.median, "ms", excess_median_ms),
            figure("blackout - downtime, p99", excess.p99, "ms", excess_p99_ms),
            count("frames lost", self.frames_lost),
            count("frames duplicated", self.frames_duplicated),
            count("echoes lost", self.echoes_lost),
            count("echoes duplicated", self.echoes_duplicated),
            count("multicasts lost", self.multicasts_lost),
            count("multicasts duplicated", self.multicasts_duplicated),
            count("TCP transfers broken", self.transfers_broken as u64),
            figure("TCP stall - downtime, largest", self.tcp_stall_without_downtime_ms.p99, "ms", 250.0),
        ];
        // How long it takes over a narrow path is a matter of the guest's memory.
        let total_max = if *round_trip_ms < 1.0 { 1_500.0 } else { f64::INFINITY };
        rows.extend([figure("total, median", self.total_ms.median, "ms", total_max)]);
        let plain = [
            ("total, p99", self.total_ms.p99),
            ("downtime, median", self.downtime_ms.median),
            ("downtime, p99", self.downtime_ms.p99),
            ("blackout, median", self.blackout_ms.median),
            ("blackout, p99", self.blackout_ms.p99),
            ("longest gap between echoes, p99", self.echo_gap_max_ms.p99),
        ];
        rows.extend(plain.map(|(name, value)| figure(name, value, "ms", f64::INFINITY)));
        console::table(&rows);
    }
}

impl Spread {
    /// Of no value at all it is nothing.
    fn of(mut values: Vec<f64>) -> Self {
        if values.is_empty() {
            return Self { median: f64::NAN, p99: f64::NAN };
        }
        Self { median: percentile(&mut values, 50), p99: percentile(&mut values, 99) }
    }
}

impl ImageJourney {
    fn measure(settings: &Settings, image_mib: u64) -> Result<Self> {
        let mut lab = Lab::build(&include_str!("../../topologies/lan3.toml").parse()?, settings)?;
        let guest = TestGuest::beside(&settings.agent)?;
        let image = RootImage::make(&guest, "moving-image", image_mib, 1)?;
        let image_bytes = fs::metadata(image.path())?.len();
        lab.start_swarm()?;
        let alpha = lab.host("alpha")?;
        alpha.json(&["image", "import", &image.path().to_string_lossy(), "--name", "root"])?;
        // So that what goes over the wire while the VM moves is the move.
        let beta = lab.host("beta")?;
        wait::until_true("beta to have the image", lab::CONTACT_TIME_MAX, || {
            beta.json(&["image", "pull", "root"]).map(|_| (true, String::new()))
        })?;
        let options = ["--image", "root"];
        let vm = TravellingVm::start(&mut lab, &options, "vm.root=/dev/vda", LAN_BYTES_PER_SECOND)?;
        vm.ssh(&lab, &format!("dd if=/dev/urandom of=/written bs=1M count={WRITTEN_MIB} 2>/dev/null; sync"))?;
        let overlay_bytes = overlay_bytes(lab.host("alpha")?)?;
        let alpha = lab.host("alpha")?.namespace();
        let (_, before) = alpha.interface_bytes("lan")?;
        let told = TravellingVm::migrate(&lab, "beta")?;
        let (_, after) = alpha.interface_bytes("lan")?;
        Ok(Self {
            image_bytes,
            overlay_bytes,
            memory_bytes: told.memory_bytes,
            disk_bytes: told.disk_bytes,
            sent_bytes: after - before,
        })
    }

    fn print(&self) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (image, overlay) = (mib(self.image_bytes), mib(self.overlay_bytes));
        console::line(format!("\nA VM with an image of {image:.0} MiB and an overlay of {overlay:.1} MiB moves:"));
        let extra = self.sent_bytes.saturating_sub(self.memory_bytes);
        console::table(&[
            figure("memory", mib(self.memory_bytes), "MiB", f64::INFINITY),
            figure("disk", mib(self.disk_bytes), "MiB", mib(IMAGE_EXTRA_BYTES)),
            figure("all that the source sent, without memory", mib(extra), "MiB", mib(IMAGE_EXTRA_BYTES)),
        ]);
    }
}

/// What the disks of a host's VMs have on the host's disk.
fn overlay_bytes(host: &Host) -> Result<u64> {
    let mut bytes = 0;
    for vm in fs::read_dir(host.state_dir().join("vms"))? {
        for file in fs::read_dir(vm?.path())? {
            let file = file?;
            if file.path().extension().is_some_and(|extension| extension == "qcow2") {
                bytes += file.metadata()?.blocks() * 512;
            }
        }
    }
    ensure!(bytes > 0, "The VM has no disk of its own");
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_p99_of_few_moves_is_the_worst() {
        let spread = Spread::of((1..=20).map(f64::from).collect());
        assert_eq!((spread.median, spread.p99), (10.0, 20.0));
        assert!(Spread::of(Vec::new()).median.is_nan());
    }
}
