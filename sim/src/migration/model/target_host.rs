//! What the host does that gets the VM.

use super::{Guest, Lab, Qemu, Side};
use virtuoso_overlay::migrate::{Notice, TargetEffect, TargetInput};

impl Lab {
    /// The next effect of the target's agent.
    pub(super) fn target_works(&mut self) {
        let Some(agent) = &mut self.target_agent else { return };
        let Some(effect) = agent.poll_effect() else {
            if agent.is_done() {
                self.target_agent = None;
            }
            return;
        };
        self.note(|| format!("target does {effect:?}"));
        match effect {
            TargetEffect::Persist(phase) => {
                if std::mem::take(&mut self.target.fails_write) {
                    return self.tell_target(TargetInput::NotPersisted("no space".into()));
                }
                self.target.record = Some(phase);
            }
            TargetEffect::Forget => self.target.record = None,
            TargetEffect::Send(message) => {
                if self.is_connected {
                    self.to_source.push(message);
                }
            }
            TargetEffect::Prepare => {
                self.lives += 1;
                self.target.qemu = Some(Qemu::new(Guest::Incoming, self.lives));
                self.target.has_vm = true;
                self.tell_target(TargetInput::Prepared { post_copy: true });
            }
            TargetEffect::Claim(_) => self.claimed_by = Side::Target,
            TargetEffect::Resume => self.resume(),
            TargetEffect::OpenPorts => {
                self.claimed_by = Side::Target;
                self.tell_target(TargetInput::Opened);
            }
            TargetEffect::Adopt => self.target.is_adopted = true,
            TargetEffect::Drop | TargetEffect::Shelve => {
                self.target.qemu = None;
                self.target.has_vm = false;
                self.target.is_adopted = false;
                self.tell_target(TargetInput::Dropped);
                self.stream_ends_at_source();
            }
            TargetEffect::Tell(Notice::InDoubt) => {
                self.target.in_doubt = true;
            }
            TargetEffect::End(_) => {
                self.target.qemu = None;
                self.is_crashed = true;
            }
            TargetEffect::Tell(Notice::Starving) => self.target.is_starving = true,
            TargetEffect::Tell(Notice::Fed) => self.target.is_starving = false,
            TargetEffect::Tell(_) => {}
        }
    }

    /// QEMU at the target gets no more of the memory that it fetches.
    pub(super) fn memory_is_cut(&mut self) {
        if let Some(qemu) = self.target.qemu.as_mut().filter(|qemu| qemu.post_copy && !qemu.is_cut) {
            qemu.is_cut = true;
            self.tell_target(TargetInput::MemoryCut);
        }
    }

    /// Another stream was made, if the source still has it.
    pub(super) fn memory_flows(&mut self) {
        let is_there = self.source.qemu.as_ref().is_some_and(|qemu| qemu.guest == Guest::PostCopy);
        if let Some(qemu) = self.target.qemu.as_mut().filter(|qemu| qemu.is_cut && is_there) {
            qemu.is_cut = false;
            self.tell_target(TargetInput::MemoryFlows);
        }
    }

    /// What an agent that was started again finds.
    pub(super) fn tell_of_memory(&mut self) {
        let Some(qemu) = self.target.qemu.as_ref().filter(|qemu| qemu.post_copy) else { return };
        let is_cut = qemu.is_cut;
        self.tell_target(TargetInput::Loaded { is_whole: false });
        if is_cut {
            self.tell_target(TargetInput::MemoryCut);
        }
    }

    /// The other copy, if there was a newer one, is gone with its host: this is what the guest is from now on.
    pub(super) fn rely_on(&mut self, side: Side) {
        let machine = self.machine(side);
        if let Some(memory) = machine.qemu.as_ref().map(|qemu| qemu.memory) {
            self.written = memory;
        }
    }

    pub(super) fn resume(&mut self) {
        match &mut self.target.qemu {
            Some(qemu) => {
                qemu.guest = Guest::Runs;
                self.tell_target(TargetInput::Resumed);
            }
            // It died with all that it had: the guest has not run.
            None => self.tell_target(TargetInput::NotResumed("QEMU is gone".into())),
        }
    }
}
