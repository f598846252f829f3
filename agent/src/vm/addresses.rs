//! VMs of this host whose IP address turns out to be that of another one get the next.

use super::vms::Vms;
use crate::core::{Handle, Readdress};
use std::sync::Weak;

/// Looks at the addresses with every change of a VM's row, until the agent stops.
pub(super) async fn follow(vms: Weak<Vms>, core: Handle) {
    // Without a core the agent is stopping.
    let Ok(mut changes) = core.call(|core| core.vm_changes()).await else { return };
    loop {
        changes.borrow_and_update();
        let Ok(lost) = core.call(|core| core.lost_addresses()).await else { return };
        let Some(vms) = vms.upgrade() else { return };
        for readdress in lost {
            if let Err(error) = vms.readdress(readdress).await {
                tracing::warn!("Can't give a VM another address: {error:#}");
            }
        }
        drop(vms);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

impl Vms {
    /// Gives an interface another IP address, which its guest hears of when it asks again.
    async fn readdress(&self, readdress: Readdress) -> anyhow::Result<()> {
        let found = self.all().into_iter().find(|machine| machine.spec().id.0 == readdress.vm);
        let Some(machine) = found else { return Ok(()) };
        let _turn = machine.turn.lock().await;
        machine.keep(|record| {
            if let Some(nic) = record.spec.nics.get_mut(readdress.nic) {
                nic.ip = readdress.ip;
            }
        })?;
        let spec = machine.spec();
        if let Some(nic) = spec.nics.get(readdress.nic) {
            tracing::info!(vm = %spec.name, network = %nic.network, ip = ?nic.ip, "A VM has another address now");
            if machine.live().is_some() {
                self.parts.sockets.readdress(nic).await?;
            }
        }
        self.publish().await;
        Ok(())
    }
}
