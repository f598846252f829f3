//! What a target must know of a VM to start the same machine.

use super::super::spec::{Boot, CPU, MACHINE, Spec};
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// Version of what the agents of a migration say to each other, and of the machine that they make of a definition.
const PROTOCOL: u32 = 1;

/// A VM as it travels.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Definition {
    protocol: u32,
    arch: String,
    pub(super) spec: Spec,
}

impl Definition {
    pub(super) fn of(spec: &Spec) -> Self {
        Self { protocol: PROTOCOL, arch: std::env::consts::ARCH.into(), spec: spec.clone() }
    }

    pub(super) fn encode(&self) -> anyhow::Result<Vec<u8>> {
        serde_json::to_vec(self).context("Can't encode the definition of a VM")
    }

    /// The definition that another host sent, if a machine can be made of it here.
    pub(super) fn decode(bytes: &[u8]) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            protocol: u32,
            arch: String,
        }
        let head: Head = serde_json::from_slice(bytes).context("Can't understand the definition of the VM")?;
        let Head { protocol, arch } = head;
        ensure!(protocol == PROTOCOL, "The hosts speak versions {protocol} and {PROTOCOL} of the migration protocol");
        let here = std::env::consts::ARCH;
        ensure!(arch == here, "The VM is made for {arch}, this host is {here}");
        let definition: Self = serde_json::from_slice(bytes).context("Can't understand the definition of the VM")?;
        let Spec { machine, cpu, boot, .. } = &definition.spec;
        ensure!(machine == MACHINE, "This host makes machines of type {MACHINE}, and not {machine}");
        ensure!(cpu == CPU, "This host makes processors of model {CPU}, and not {cpu}");
        if let Boot::Kernel { kernel, initrd, .. } = boot {
            for file in [Some(kernel), initrd.as_ref()].into_iter().flatten() {
                ensure!(file.is_file(), "The VM boots {}, which is not on this host", file.display());
            }
        }
        Ok(definition)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::spec::tests::spec;
    use super::*;

    #[test]
    fn what_can_not_be_made_here_is_refused() {
        let mut wrong = Definition::of(&spec());
        wrong.arch = "vax".into();
        assert!(Definition::decode(&wrong.encode().unwrap()).unwrap_err().to_string().contains("vax"));
        let mut wrong = Definition::of(&spec());
        wrong.protocol = 9;
        assert!(Definition::decode(&wrong.encode().unwrap()).unwrap_err().to_string().contains("versions 9"));
        let mut wrong = Definition::of(&spec());
        wrong.spec.cpu = "host".into();
        assert!(Definition::decode(&wrong.encode().unwrap()).unwrap_err().to_string().contains("model"));
        let mut wrong = Definition::of(&spec());
        wrong.spec.machine = "pc-i440fx-9.9".into();
        assert!(Definition::decode(&wrong.encode().unwrap()).unwrap_err().to_string().contains("pc-i440fx-9.9"));
        let missing = Definition::of(&spec()).encode().unwrap();
        assert!(Definition::decode(&missing).unwrap_err().to_string().contains("not on this host"));
    }
}
