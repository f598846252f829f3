//! VMs of this host whose name turns out to be that of another one get a new one: both were made while their hosts
//! could not hear each other.

use super::vms::Vms;
use crate::core::vm_names::Names;
use std::sync::Weak;

/// Looks at the names with every change of a VM's row, until the agent stops.
pub(super) async fn follow(vms: Weak<Vms>, names: Names) {
    // Without a core the agent is stopping.
    let Ok(mut changes) = names.core.call(|core| core.vm_changes()).await else { return };
    loop {
        changes.borrow_and_update();
        let Ok(lost) = names.lost().await else { return };
        let Some(vms) = vms.upgrade() else { return };
        for lost in lost {
            if let Err(error) = vms.rename(lost).await {
                tracing::warn!("Can't give a VM another name: {error:#}");
            }
        }
        drop(vms);
        if changes.changed().await.is_err() {
            return;
        }
    }
}
