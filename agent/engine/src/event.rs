//! The way out of the engine's thread. It never waits for the control plane: what that is too slow for is kept for a
//! while, a link's newer state replaces its older one, and what does not fit any more is counted.

use std::collections::VecDeque;
use tokio::sync::mpsc::{Sender, error::TrySendError};
use virtuoso_overlay::ids::{HostId, NetworkId};
use virtuoso_overlay::switch::Upward;

/// Events in the channel to the control plane, and events that wait for room in it.
pub(super) const EVENTS_MAX: usize = 1024;
const BACKLOG_MAX: usize = 4096;

/// Something that the control plane must know or do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EngineEvent {
    /// The link carries frames.
    LinkUp(HostId),
    /// The link no longer carries frames.
    LinkDown {
        /// The peer.
        host: HostId,
        /// Why.
        reason: String,
    },
    /// One side did not accept the other's certificate.
    Refused {
        /// The peer.
        host: HostId,
        /// Whether it was this host that refused.
        by_us: bool,
        /// Why.
        reason: String,
    },
    /// A link is wanted to a host without a known address: find one.
    AddressWanted(HostId),
    /// A TAP failed and is served no longer.
    PortLost {
        /// Its network.
        network: NetworkId,
        /// What the kernel said.
        error: String,
    },
    /// From the switch.
    Switch(Upward),
}

/// Sends events without waiting.
#[derive(Debug)]
pub(super) struct EventSink {
    channel: Sender<EngineEvent>,
    backlog: VecDeque<EngineEvent>,
    lost: u64,
}

impl EventSink {
    pub(super) fn new(channel: Sender<EngineEvent>) -> Self {
        Self { channel, backlog: VecDeque::new(), lost: 0 }
    }

    /// Sends an event, or keeps it until there is room.
    pub(super) fn emit(&mut self, event: EngineEvent) {
        // Whoever asks a service asks again, and must not push out what is told once.
        if matches!(event, EngineEvent::Switch(Upward::Service { .. })) {
            self.lost += u64::from(self.channel.try_send(event).is_err());
            return;
        }
        let event = match self.backlog.is_empty() {
            true => match self.channel.try_send(event) {
                Ok(()) | Err(TrySendError::Closed(_)) => return,
                Err(TrySendError::Full(event)) => event,
            },
            false => event,
        };
        if let Some(host) = link_of(&event) {
            self.backlog.retain(|older| link_of(older) != Some(host));
        }
        if self.backlog.len() >= BACKLOG_MAX {
            self.backlog.pop_front();
            self.lost += 1;
        }
        self.backlog.push_back(event);
    }

    /// Sends what waits, as far as there is room.
    pub(super) fn flush(&mut self) {
        while let Some(event) = self.backlog.pop_front() {
            if let Err(TrySendError::Full(event)) = self.channel.try_send(event) {
                self.backlog.push_front(event);
                return;
            }
        }
    }

    /// Events that did not fit.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }
}

/// The host whose link's state the event tells.
fn link_of(event: &EngineEvent) -> Option<HostId> {
    match event {
        EngineEvent::LinkUp(host) | EngineEvent::LinkDown { host, .. } => Some(*host),
        EngineEvent::Refused { .. }
        | EngineEvent::AddressWanted(_)
        | EngineEvent::PortLost { .. }
        | EngineEvent::Switch(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::channel;

    #[test]
    fn a_slow_receiver_sees_the_latest_link_states_in_order() {
        let (sender, mut receiver) = channel(1);
        let mut sink = EventSink::new(sender);
        let (a, b) = (HostId([1; 32]), HostId([2; 32]));
        sink.emit(EngineEvent::LinkUp(a));
        for _ in 0..10 {
            sink.emit(EngineEvent::LinkDown { host: a, reason: "lost".into() });
            sink.emit(EngineEvent::LinkUp(b));
            sink.emit(EngineEvent::LinkUp(a));
        }
        let mut seen = Vec::new();
        while let Ok(event) = receiver.try_recv() {
            seen.push(event);
            sink.flush();
        }
        assert_eq!(seen, [EngineEvent::LinkUp(a), EngineEvent::LinkUp(b), EngineEvent::LinkUp(a)]);
        assert_eq!(sink.lost(), 0);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let (sender, _receiver) = channel(1);
        let mut sink = EventSink::new(sender);
        for _ in 0..BACKLOG_MAX + 5 {
            sink.emit(EngineEvent::AddressWanted(HostId([1; 32])));
        }
        assert_eq!(sink.lost(), 4);
    }
}
