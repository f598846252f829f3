//! Whether this host is being drained: it takes no VM then, also after a restart.

use super::Core;
use crate::state::sealed::Kind;
use crate::vm::VmError;
use anyhow::Context;

/// Present while the host is drained.
const DRAINING: Kind = Kind { name: "draining", version: 1 };

impl Core {
    /// Takes over what an earlier run was told.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn restore_draining(&mut self) -> anyhow::Result<()> {
        self.is_draining = self.state.read_json(&DRAINING)?.unwrap_or_default();
        Ok(())
    }

    /// Whether this host takes no VMs.
    pub const fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// Takes VMs no more, or again.
    pub(super) fn set_draining(&mut self, is_draining: bool) -> anyhow::Result<()> {
        self.state.write_json(&DRAINING, &is_draining).context("Can't keep that this host is drained")?;
        self.is_draining = is_draining;
        self.publish_host_row();
        Ok(())
    }

    /// Takes VMs no more until this run of the agent ends.
    pub(super) fn stop_taking(&mut self) {
        self.is_draining = true;
        self.publish_host_row();
    }

    /// Refuses a VM if this host is drained.
    pub(super) fn check_taking(&self) -> Result<(), VmError> {
        let why = "This host is being drained and takes no VMs: `virtuoso host undrain` ends that";
        if self.is_draining { Err(VmError::Invalid(why.into())) } else { Ok(()) }
    }
}
