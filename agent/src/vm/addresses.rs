//! VMs of this host whose IP address turns out to be that of another one get the next.

use super::vms::Vms;
use crate::core::Handle;
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
