//! What the host does that has the VM: its agent, and QEMU as the agent wants it.

use super::{Guest, Lab, Pipe, Side, Violation};
use virtuoso_overlay::migrate::{Notice, Outcome, SourceEffect, SourceInput, TargetInput};

impl Lab {
    /// The next effect of the source's agent.
    pub(super) fn source_works(&mut self) {
        let Some(agent) = &mut self.source_agent else { return };
        let Some(effect) = agent.poll_effect() else {
            if agent.is_done() {
                self.source_agent = None;
            }
            return;
        };
        self.note(|| format!("source does {effect:?}"));
        match effect {
            SourceEffect::Persist(phase) => {
                if std::mem::take(&mut self.source.fails_write) {
                    return self.tell_source(SourceInput::NotPersisted("no space".into()));
                }
                self.source.record = Some(phase);
            }
            SourceEffect::Forget => self.source.record = None,
            SourceEffect::Send(message) => {
                if self.is_connected {
                    self.to_target.push(message);
                }
            }
            SourceEffect::Mirror => self.mirror(),
            SourceEffect::SendMemory { post_copy } => self.send_memory(post_copy),
            SourceEffect::Pause => self.pause(),
            SourceEffect::Unpause => {
                if let Some(qemu) = self.source.qemu.as_mut().filter(|qemu| qemu.guest == Guest::Stopped) {
                    qemu.guest = Guest::Runs;
                    qemu.is_held = false;
                }
            }
            SourceEffect::BeginPostCopy => {
                if let Some(qemu) = &mut self.source.qemu {
                    qemu.post_copy = true;
                }
            }
            SourceEffect::FinishMirror => self.finish_mirror(),
            SourceEffect::Continue => self.send_rest(),
            SourceEffect::HandOver => self.tell_source(SourceInput::HandedOver(Vec::new())),
            SourceEffect::TakeBack => self.take_back(),
            SourceEffect::Erase => {
                self.source.qemu = None;
                self.source.has_vm = false;
            }
            SourceEffect::Tell(Notice::InDoubt | Notice::Severed) => {
                self.source.in_doubt = true;
            }
            SourceEffect::Done(Outcome::Moved(_)) if self.is_awaited && !self.was_whole => {
                self.fail(Violation::FalseReport);
            }
            SourceEffect::ClosePorts | SourceEffect::Tell(_) | SourceEffect::Done(_) => {}
        }
    }

    pub(super) fn mirror(&mut self) {
        let is_possible = self.is_connected && self.target.qemu.is_some();
        match &mut self.source.qemu {
            Some(qemu) if is_possible => {
                qemu.is_mirroring = true;
                self.tell_source(SourceInput::DiskReady);
            }
            _ => self.tell_source(SourceInput::Broken("no mirror".into())),
        }
    }

    pub(super) fn send_memory(&mut self, post_copy: bool) {
        let to = self.target.qemu.as_ref().map(|qemu| qemu.life);
        match (&mut self.source.qemu, to) {
            (Some(qemu), Some(_)) if self.is_connected => {
                qemu.is_sending = true;
                qemu.post_copy = false;
                if post_copy && self.wants_post_copy {
                    self.tell_source(SourceInput::Diverging);
                }
            }
            _ => self.tell_source(SourceInput::Broken("no stream".into())),
        }
    }

    fn pause(&mut self) {
        match &mut self.source.qemu {
            Some(qemu) if qemu.guest == Guest::Runs => {
                qemu.guest = Guest::Stopped;
                qemu.is_held = true;
                self.tell_source(SourceInput::Stopped);
            }
            Some(_) => {}
            None => self.tell_source(SourceInput::Broken("QEMU is gone".into())),
        }
    }

    /// Memory converges: the agent pauses the guest, or QEMU is faster.
    pub(super) fn sending_goes_on(&mut self, pick: u64) {
        let Some(qemu) = &mut self.source.qemu else { return };
        if qemu.is_sending && qemu.guest == Guest::Runs {
            if pick.is_multiple_of(2) {
                return self.tell_source(SourceInput::Converging);
            }
            qemu.guest = Guest::Paused;
            self.tell_source(SourceInput::Stopped);
            self.tell_source(SourceInput::Paused);
        } else if qemu.is_sending && qemu.guest == Guest::Stopped {
            qemu.guest = Guest::Paused;
            self.tell_source(SourceInput::Paused);
        } else if qemu.guest == Guest::PostCopy && self.target.fetches() && self.is_connected {
            qemu.guest = Guest::Sent;
            if let Some(qemu) = &mut self.target.qemu {
                qemu.post_copy = false;
            }
            self.was_whole = true;
            self.tell_source(SourceInput::Sent);
            self.tell_target(TargetInput::Loaded { is_whole: true });
        }
    }

    pub(super) fn finish_mirror(&mut self) {
        let is_whole = self.source.qemu.as_mut().is_some_and(|qemu| std::mem::take(&mut qemu.is_mirroring));
        if is_whole {
            self.target.disk = self.source.disk;
            self.tell_source(SourceInput::DiskWhole);
        } else {
            self.tell_source(SourceInput::Broken("the mirror broke".into()));
        }
    }

    pub(super) fn send_rest(&mut self) {
        let to_life = self.target.qemu.as_ref().map(|qemu| qemu.life);
        let Some(qemu) = self.source.qemu.as_mut().filter(|qemu| qemu.is_sending && qemu.guest == Guest::Paused) else {
            return;
        };
        qemu.is_sending = false;
        let Some(to_life) = to_life else {
            qemu.guest = if qemu.is_held { Guest::Stopped } else { Guest::Runs };
            return self.tell_source(SourceInput::Broken("the stream broke".into()));
        };
        let post_copy = qemu.post_copy;
        qemu.guest = if post_copy { Guest::PostCopy } else { Guest::Sent };
        self.pipe = Some(Pipe { memory: qemu.memory, post_copy, to_life });
        self.tell_source(if post_copy { SourceInput::PostCopyBegun } else { SourceInput::Sent });
    }

    pub(super) fn memory_arrives(&mut self) {
        let Some(pipe) = self.pipe.take() else { return };
        let Some(qemu) = self.target.qemu.as_mut().filter(|qemu| qemu.life == pipe.to_life) else { return };
        qemu.memory = pipe.memory;
        qemu.post_copy = pipe.post_copy;
        qemu.guest = Guest::Paused;
        self.was_whole |= !pipe.post_copy;
        self.tell_target(TargetInput::Loaded { is_whole: !pipe.post_copy });
    }

    pub(super) fn take_back(&mut self) {
        self.claimed_by = Side::Source;
        if let Some(qemu) = &mut self.source.qemu {
            qemu.is_sending = false;
            qemu.is_mirroring = false;
            qemu.is_held = false;
            if qemu.guest == Guest::PostCopy {
                // What the target did not take can't be run here either.
                self.source.qemu = None;
                self.is_crashed = true;
            } else {
                qemu.guest = Guest::Runs;
            }
            self.stream_ends_at_target();
        } else {
            self.is_crashed = true;
        }
        self.tell_source(SourceInput::TakenBack);
    }
}
