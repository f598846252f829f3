//! Faults as they strike.

use super::{Fault, Guest, Lab, Side};
use virtuoso_overlay::migrate::{Phase, SourceInput, TargetInput};
use virtuoso_overlay::time::Instant;

impl Lab {
    /// A fault.
    pub fn strike(&mut self, fault: Fault) {
        self.faults += 1;
        self.note(|| format!("FAULT {fault:?}"));
        match fault {
            Fault::Lose => {
                self.to_target.pop();
                self.to_source.pop();
            }
            Fault::Double => {
                self.to_target.extend(self.to_target.first().cloned());
                self.to_source.extend(self.to_source.first().cloned());
            }
            Fault::Break => self.break_streams(),
            Fault::KillAgent(side) => self.kill_agent(side),
            Fault::KillHost(side) => self.kill_host(side),
            Fault::Bury(side) => {
                // The verdict of an operator needs somebody who is left.
                if !self.source.is_buried && !self.target.is_buried {
                    self.kill_host(side);
                    self.machine_mut(side).is_buried = true;
                }
            }
            Fault::KillQemu(side) => self.kill_qemu(side),
            Fault::FailWrite(side) => self.machine_mut(side).fails_write = true,
            Fault::Cancel => self.tell_source(SourceInput::Cancel),
            Fault::Wait => {
                self.now = Instant(self.now.0 + 6_000_000);
                self.time_passes();
            }
        }
        self.look();
    }

    pub(super) fn kill_agent(&mut self, side: Side) {
        self.break_streams();
        match side {
            Side::Source => {
                self.source_agent = None;
                self.is_awaited = false;
            }
            Side::Target => self.target_agent = None,
        }
        self.machine_mut(side).is_up = false;
    }

    pub(super) fn kill_host(&mut self, side: Side) {
        self.kill_agent(side);
        self.kill_qemu(side);
    }

    pub(super) fn kill_qemu(&mut self, side: Side) {
        let owned = match side {
            Side::Source => self.source.has_vm && self.source.record != Some(Phase::Given),
            Side::Target => self.target.is_adopted || self.target.record == Some(Phase::Taken),
        };
        let Some(qemu) = self.machine_mut(side).qemu.take() else { return };
        // Of one that is fetched, some of the memory was nowhere else.
        self.is_crashed |= owned || matches!(qemu.guest, Guest::Runs | Guest::PostCopy);
        self.pipe = None;
        if let Some(source) = &mut self.source.qemu {
            if source.guest == Guest::PostCopy && side == Side::Target {
                // Its memory was in two places.
                self.is_crashed = true;
            }
            source.is_mirroring = false;
        }
        match side {
            Side::Source => {
                self.tell_source(SourceInput::Ended);
                self.stream_ends_at_target();
                self.memory_is_cut();
            }
            Side::Target => {
                self.tell_target(TargetInput::Ended);
                self.stream_ends_at_source();
            }
        }
    }

    pub(super) fn break_streams(&mut self) {
        self.is_connected = false;
        self.to_target.clear();
        self.to_source.clear();
        if std::mem::take(&mut self.source_knows) {
            self.tell_source(SourceInput::PeerLost);
        }
        if std::mem::take(&mut self.target_knows) {
            self.tell_target(TargetInput::PeerLost);
        }
        self.stream_ends_at_source();
        self.stream_ends_at_target();
        self.memory_is_cut();
    }

    /// QEMU at the source notices that its streams are gone: the guest goes on here, unless all has been sent.
    pub(super) fn stream_ends_at_source(&mut self) {
        let Some(qemu) = &mut self.source.qemu else { return };
        let was_mirroring = std::mem::take(&mut qemu.is_mirroring);
        let was_sending = std::mem::take(&mut qemu.is_sending);
        if was_sending && qemu.guest == Guest::Paused && !qemu.is_held {
            qemu.guest = Guest::Runs;
        }
        if was_mirroring || was_sending {
            self.tell_source(SourceInput::Broken("a stream broke".into()));
        }
    }

    pub(super) fn stream_ends_at_target(&mut self) {
        self.pipe = None;
        if self.target.qemu.as_ref().is_some_and(|qemu| qemu.guest == Guest::Incoming) {
            self.target.qemu = None;
            self.tell_target(TargetInput::Broken("a stream broke".into()));
        }
    }
}
