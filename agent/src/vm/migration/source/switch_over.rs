//! The guest is paused, its frames wait and its addresses are signed over; or it goes on where it was.

use super::super::{
    hypervisor,
    line::{self, Patience},
    valve::ALL,
};
use super::Task;
use crate::core::Seat;
use crate::netdev::Rest;
use std::time::Duration;
use virtuoso_engine::GuestPorts;
use virtuoso_overlay::claims::Claim;
use virtuoso_overlay::migrate::{SWITCH_TIME_MAX, SourceInput};

/// How long a process may take to end whose monitor is closed: the kernel takes its memory away first.
const END_TIME_MAX: Duration = Duration::from_secs(10);

impl Task {
    /// Holds what comes for the guest, and pauses it when it has got what was on its way to it. QEMU must not be
    /// faster, so it gets rid of no more memory meanwhile.
    pub(super) async fn pause(&mut self) {
        let shut = self.valve.shut();
        let Some(live) = self.live() else { return self.hear(SourceInput::Broken("the VM's process is gone".into())) };
        let spec = self.machine.spec();
        let pid = live.process.mark().pid;
        let seats = self.seats().await;
        let taps: Vec<(String, u32)> = seats.iter().map(Seat::tap).collect();
        let open = move || {
            let queue = |(tap, index): &(String, u32)| Ok((Rest::of(pid, tap)?, *index));
            taps.iter().map(queue).collect::<anyhow::Result<Vec<(Rest, u32)>>>()
        };
        let queues = match tokio::task::spawn_blocking(open).await {
            Ok(Ok(queues)) => queues,
            other => {
                tracing::warn!(vm = %spec.name, "Can't see whether a VM takes its frames: {other:?}");
                Vec::new()
            }
        };
        self.times.closed = Some(self.shared.vms.now());
        self.be_patient();
        for seat in &seats {
            if let Err(error) = seat.hold().await {
                tracing::warn!(vm = %spec.name, "Can't hold frames: {error}");
            }
        }
        let mut ports = GuestPorts::default();
        let paused = async {
            hypervisor::drain(&live.qmp, &mut ports, &queues).await?;
            self.times.stopped = Some(self.shared.vms.now());
            hypervisor::pause(&live, shut).await
        };
        if let Err(error) = paused.await {
            self.hear(SourceInput::Broken(error.to_string()));
        }
        // The kernel takes milliseconds to close such a socket.
        tokio::task::spawn_blocking(move || drop(ports));
    }

    /// From now on QEMU has time for another step while the guest is paused.
    pub(super) fn be_patient(&mut self) {
        self.patience = Some(Patience::start(&self.bridges, SWITCH_TIME_MAX));
    }

    pub(super) async fn unpause(&mut self) {
        let Some(live) = self.live() else { return };
        self.plug_in().await;
        match hypervisor::unpause(&live.qmp).await {
            Ok(true) => {
                // Not before: QEMU takes the first frame for a guest that is paused, and loses it if that moves.
                self.let_frames_go().await;
                (self.times.closed, self.times.stopped) = (None, None);
                self.patience = None;
                live.release();
            }
            Ok(false) => self.close_ports().await,
            Err(error) => self.hear(SourceInput::Broken(error.to_string())),
        }
    }

    /// Sends what the console shows now, so that little is left to send when the guest is paused.
    pub(super) fn begin_console(&mut self) {
        let Some(live) = self.live() else { return };
        let part = live.console.part(0, false);
        let sent = part.begin + part.output.len() as u64;
        let parts = line::send_parts(self.shared.streams.clone(), self.peer, self.id);
        // The first one has room.
        parts.try_send(part).ok();
        self.console = Some((parts, sent));
    }

    fn finish_console(&mut self) {
        if let (Some((parts, sent)), Some(live)) = (self.console.take(), self.live()) {
            // What can't be sent is missing at the target, and its watchers are told.
            parts.try_send(live.console.part(sent, true)).ok();
        }
    }

    pub(super) async fn close_ports(&mut self) {
        self.valve.allow(ALL);
        self.times.closed.get_or_insert_with(|| self.shared.vms.now());
        let Some(live) = self.live() else { return };
        live.hold();
        self.networks.clear();
        for seat in self.seats().await {
            match self.shared.vms.parts.sockets.close(&seat, live.process.mark().pid).await {
                Ok(()) => self.networks.push(seat.address()),
                Err(error) => tracing::warn!(vm = %self.machine.spec().name, "Can't unplug an interface: {error}"),
            }
        }
    }

    /// Where the VM is plugged in: known before a moment counts.
    pub(super) async fn seats(&mut self) -> Vec<Seat> {
        if self.seats.is_empty() {
            let spec = self.machine.spec();
            match self.shared.vms.parts.sockets.seats(&spec.nics).await {
                Ok(seats) => self.seats = seats,
                Err(error) => tracing::warn!(vm = %spec.name, "Can't find a VM's interfaces: {error}"),
            }
        }
        self.seats.clone()
    }

    /// Signs the addresses over; a handoff that is lost is asked for again by the target's switch.
    pub(super) async fn hand_over(&mut self) {
        self.patience = None;
        self.finish_console();
        let (networks, to) = (self.networks.clone(), self.peer);
        let sign = self.shared.engine.call(move |switch, now| {
            let signed = networks.iter().filter_map(|(network, mac)| switch.hand_over(now.mono, *network, *mac, to));
            signed.collect::<Vec<Claim>>()
        });
        let claims = sign.await.unwrap_or_default();
        self.hear(SourceInput::HandedOver(claims));
    }

    /// Plugs the interfaces in again: what the guest says passes.
    async fn plug_in(&mut self) {
        for seat in self.seats().await {
            if let Err(error) = self.shared.vms.parts.sockets.plug_again(&seat).await {
                tracing::warn!("Can't plug an interface in again: {error}");
            }
        }
    }

    /// Claims the guest's addresses again, with all frames that wait.
    async fn let_frames_go(&mut self) {
        for seat in self.seats().await {
            if let Err(error) = seat.welcome().await {
                tracing::warn!("Frames wait for an interface in vain: {error}");
            }
            if let Err(error) = self.shared.vms.parts.sockets.claim(&seat.nic).await {
                tracing::warn!("Can't claim an address again: {error}");
            }
        }
    }

    pub(super) async fn take_back(&mut self) {
        self.is_sending = false;
        self.is_settling = false;
        self.bridges.clear();
        if let Some(mut live) = self.live()
            && live.qmp.is_closed()
        {
            // It is ending: nothing of it can be used any more.
            tokio::time::timeout(END_TIME_MAX, live.wait_ended()).await.ok();
        }
        if let Some(mut live) = self.live() {
            self.plug_in().await;
            // Now: it may never have been paused, and what QEMU takes before it goes on is not lost.
            self.let_frames_go().await;
            if let Err(error) = hypervisor::take_back(&live).await {
                tracing::warn!(vm = %self.machine.spec().name, "A VM that stays does not go on: {error}");
                live.end();
                live.wait_ended().await;
            }
        }
        self.shared.vms.end_move(&self.machine).await;
        self.hear(SourceInput::TakenBack);
    }
}
