//! A VM moves to another host while it runs, and the network follows it.

use anyhow::{Result, ensure};

use super::{LAN, Scenario};
use crate::lab::Lab;
use crate::travelling_vm::TravellingVm;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "migrate",
    about: "a VM moves there and back under ping, TCP and ssh: no frame is lost, no connection breaks, its disk is whole",
    topology: LAN,
    tools: TravellingVm::TOOLS,
    run: there_and_back,
}];

/// Its disk, as far as it is compared.
const READ: &str = "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=64k count=64 2>/dev/null | md5sum";

fn there_and_back(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    let vm = TravellingVm::start(lab, &["--disk", "64MiB"], "", 1 << 20)?;
    let written = vm.ssh(lab, &format!("dd if=/dev/urandom of=/dev/vda bs=64k count=64 2>/dev/null; sync; {READ}"))?;
    for to in ["beta", "alpha", "beta"] {
        let journey = vm.travel(lab, to)?;
        lab.note(journey.to_string());
        journey.ensure_whole()?;
        ensure!(vm.ssh(lab, READ)? == written, "The disk has changed on its way to {to}");
    }
    Ok(())
}
