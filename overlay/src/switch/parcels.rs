//! Frames to groups for a guest that moves: each comes to it exactly once, and those of one sender in their order.
//!
//! Every host with a port in the network gets such frames by itself, at times of its own; a guest gets them from the
//! bridge of the host that it is on. So the two hosts of a move settle between them who delivers which:
//!
//! - The **source** takes the guest's port off the bridge's floods at one instant, before the guest is paused, and from
//!   then on packs a copy of each frame that the port would have got into a [`parcel`]. Parcels wait with the other
//!   frames for the guest, follow it in order, and are sent on for a while once it has gone.
//! - The **target** remembers what it hears. The guest's port there is off the floods too. Once the guest runs, a frame
//!   that came before is delivered if a parcel comes with its copy (else the guest has got it at the source), and later
//!   frames are kept back until these parcels have come: those of one sender come in order. Then the port gets what was
//!   kept back, and joins the floods. A parcel with a copy of a frame that came after the guest is one too many.
//! - A parcel whose frame has not been heard waits for it, and takes its place in the end: its sender may not know yet
//!   that the target has a port in the network.
//!
//! The port joins the floods in [`Switch::handle_timeout`] only, after which the caller carries out all effects before
//! it takes another frame.

use super::heard::{Fingerprint, Heard};
use super::hold::Held;
use super::segment::State;
use super::{Egress, Switch, SwitchEffect};
use crate::drop_reason::DropReason;
use crate::ids::{HostId, Mac, NetworkId};
use crate::limits::{
    CATCH_UP_FRAMES_MAX, CATCH_UP_TIME, CATCH_UP_TIME_MAX, HOLD_BYTES_MAX, HOP_LIMIT, PARCEL_AFTER_TIME,
    PARCEL_STRAY_TIME, PARCEL_STRAYS_MAX, PARCEL_TAKE_TIME, PARCEL_TIME_MAX,
};
use crate::names::SERVICE_MAC;
use crate::seeded::{SeededMap, SeededState};
use crate::time::Instant;
use crate::wire::ethernet::EthernetView;
use crate::wire::frame::{FrameHeader, VNET_BYTES};
use crate::wire::parcel::{self, Parcel};
use std::collections::VecDeque;

/// What is done about frames to groups for one address.
pub(super) struct Escort {
    /// When it wants attention; also the key of its timer.
    deadline: Option<Instant>,
    role: Role,
}

enum Role {
    Leaving(Leaving),
    Coming(Box<Coming>),
}

/// The guest leaves this host.
struct Leaving {
    /// Its port is off the floods, and copies are taken.
    is_copying: bool,
    until: Instant,
}

/// The guest comes to this host.
struct Coming {
    from: HostId,
    heard: Heard,
    stage: Stage,
    /// Of whom frames came before the guest whose copies may still come, and when the last one did.
    awaited: SeededMap<Mac, Instant>,
    kept_back: VecDeque<Vec<u8>>,
    kept_bytes: usize,
    strays: VecDeque<Stray>,
}

#[derive(Clone, Copy)]
enum Stage {
    /// The guest does not run yet.
    Before,
    /// It runs since then; frames are kept back for it.
    CatchingUp(Instant),
    /// Its port is on the floods. It runs since the first instant; parcels are taken until the second.
    Open(Instant, Instant),
}

/// A parcel whose frame has not been heard.
struct Stray {
    until: Instant,
    frame: Fingerprint,
    packet: Vec<u8>,
}

impl Switch {
    /// The guest behind `mac` is about to be paused: its port is taken off the floods, and what it misses follows it.
    pub(super) fn begin_copies(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        let Some(segment) = self.segments.get_mut(&network) else { return };
        let is_copying = |escort: &Escort| matches!(&escort.role, Role::Leaving(leaving) if leaving.is_copying);
        if segment.escorts.get(&mac).is_some_and(is_copying) {
            return;
        }
        self.end_escort(network, mac);
        let leaving = Leaving { is_copying: true, until: now + PARCEL_TIME_MAX };
        let deadline = leaving.until;
        let Some(segment) = self.segments.get_mut(&network) else { return };
        segment.escorts.insert(mac, Escort { deadline: None, role: Role::Leaving(leaving) });
        self.set_escort_deadline(network, mac, Some(deadline));
        self.effects.push_back(SwitchEffect::Flood { network, mac, on: false });
    }

    /// The guest behind `mac` runs where it went: frames that senders did not send there are still sent on for a while.
    pub fn end_copies(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        if let Some(Role::Leaving(leaving)) = self.role(network, mac) {
            leaving.until = now + PARCEL_AFTER_TIME;
            let deadline = leaving.until;
            self.set_escort_deadline(network, mac, Some(deadline));
        }
    }

    /// The guest behind `mac` is on its way here from `from`.
    pub(super) fn expect_parcels(&mut self, network: NetworkId, mac: Mac, from: HostId) {
        self.end_escort(network, mac);
        let coming = Coming::new(from, self.seed);
        let Some(segment) = self.segments.get_mut(&network) else { return };
        segment.escorts.insert(mac, Escort { deadline: None, role: Role::Coming(Box::new(coming)) });
    }

    /// The guest behind `mac` runs on this host: its port may hear what is for groups. To be called before frames that
    /// wait for it are let go, by [`Switch::handle_local`].
    pub fn handle_running(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        match self.role(network, mac) {
            // Its port joins the floods when what waits has gone.
            Some(Role::Leaving(_)) => {}
            Some(Role::Coming(coming)) => {
                coming.begin(now);
                self.review_escort(now, network, mac);
            }
            None => self.effects.push_back(SwitchEffect::Flood { network, mac, on: true }),
        }
    }

    /// The guest behind `mac` does not come.
    pub(super) fn expect_no_parcels(&mut self, network: NetworkId, mac: Mac) {
        if matches!(self.role(network, mac), Some(Role::Coming(coming)) if matches!(coming.stage, Stage::Before)) {
            self.remove_escort(network, mac);
        }
    }

    /// A frame to a group came, from a port of this host or by a link. HOT PATH while nothing moves.
    pub(super) fn hear_group(&mut self, now: Instant, network: NetworkId, packet: &[u8]) {
        let Some(segment) = self.segments.get(&network).filter(|segment| !segment.escorts.is_empty()) else { return };
        let Some(Ok(view)) = packet.get(VNET_BYTES..).map(EthernetView::new_checked) else { return };
        let src = view.src();
        let others: Vec<Mac> = segment.escorts.keys().copied().filter(|mac| *mac != src).collect();
        for mac in others {
            match self.role(network, mac) {
                Some(Role::Leaving(leaving)) if leaving.is_copying => self.send_copy(now, network, mac, packet),
                Some(Role::Coming(coming)) => {
                    coming.hear(now, src, packet);
                    self.review_escort(now, network, mac);
                }
                Some(Role::Leaving(_)) | None => {}
            }
        }
    }

    fn send_copy(&mut self, now: Instant, network: NetworkId, mac: Mac, packet: &[u8]) {
        let prober = self.prober;
        let header = FrameHeader { network, hops: HOP_LIMIT, flags: parcel::FLAGS };
        let Some(binding) = self.binding(network, mac) else { return };
        let Some(mut parcel) = parcel::pack(mac, prober, now.0, packet) else {
            binding.counts.lost += 1;
            return self.drops.count(DropReason::TooBig);
        };
        if binding.is_waited_for() {
            self.keep(network, mac, Held { header, packet: parcel });
        } else if binding.state == State::Remote {
            let to = binding.claim.holder;
            parcel::set_time(&mut parcel, 0);
            self.effects.push_back(SwitchEffect::Transmit { to, header, packet: parcel });
        } else {
            // The guest has stayed.
            self.effects.push_back(SwitchEffect::DeliverTo { network, mac, packet: packet.to_vec() });
        }
    }

    /// Decides what becomes of a parcel that the link to `from` brought.
    pub(super) fn take_parcel(&mut self, now: Instant, from: HostId, header: FrameHeader, bytes: &[u8]) -> Egress {
        let network = header.network;
        let Some(Ok(view)) = bytes.get(VNET_BYTES..).map(EthernetView::new_checked) else {
            return Egress::Drop(DropReason::Malformed);
        };
        let mac = view.dst();
        let Ok(parcel) = parcel::open(bytes) else { return Egress::Drop(DropReason::Malformed) };
        if parcel.src == SERVICE_MAC {
            return Egress::Drop(DropReason::Spoofed);
        }
        match self.role(network, mac) {
            Some(Role::Coming(coming)) if coming.from == from => {}
            // The guest stays: what was sent after it comes back.
            Some(Role::Leaving(_)) => {}
            Some(Role::Coming(_)) | None => return Egress::Drop(DropReason::Duplicate),
        }
        let Some(binding) = self.binding(network, mac) else { return Egress::Drop(DropReason::UnknownDestination) };
        if binding.is_awaited() || binding.is_waited_for() {
            return Egress::Hold(mac, header);
        }
        match binding.state {
            State::Local { .. } | State::Probed { .. } => {
                binding.counts.arrived += u64::from(parcel.counts);
                let then = Instant(now.0.saturating_sub(parcel.time));
                self.unpack(now, network, mac, Parcel { time: then.0, ..parcel });
                Egress::Taken
            }
            _ => Egress::Drop(DropReason::Duplicate),
        }
    }

    /// Delivers what a parcel holds, if the guest lacks it. Its time is by the clock of this host.
    pub(super) fn unpack(&mut self, now: Instant, network: NetworkId, mac: Mac, parcel: Parcel<'_>) {
        let is_lacking = match self.role(network, mac) {
            Some(Role::Coming(coming)) => coming.judge(now, &parcel),
            Some(Role::Leaving(_)) => true,
            None => false,
        };
        if is_lacking {
            self.effects.push_back(SwitchEffect::DeliverTo { network, mac, packet: parcel.packet.to_vec() });
        }
        self.review_escort(now, network, mac);
    }

    /// Sets the timer by what the escort waits for now. To be called when nothing waits any more, too.
    pub(super) fn review_escort(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        let is_waiting = self.binding(network, mac).is_some_and(|binding| binding.is_waited_for());
        let is_here = self.binding(network, mac).is_some_and(|binding| matches!(binding.state, State::Local { .. }));
        let deadline = match self.role(network, mac) {
            Some(Role::Coming(coming)) => coming.deadline(now, is_waiting),
            Some(Role::Leaving(leaving)) if leaving.is_copying && is_here && !is_waiting => Some(now),
            Some(Role::Leaving(leaving)) => Some(leaving.until),
            None => return,
        };
        self.set_escort_deadline(network, mac, deadline);
    }

    /// Does what is due.
    pub(super) fn on_escort_deadline(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        let binding = self.binding(network, mac);
        let is_waiting = binding.as_ref().is_some_and(|binding| binding.is_waited_for());
        let is_ours = binding.as_ref().is_some_and(|binding| binding.state.is_ours());
        let is_here = binding.is_some_and(|binding| matches!(binding.state, State::Local { .. }));
        let Some(role) = self.role(network, mac) else { return };
        match role {
            Role::Leaving(leaving) if leaving.is_copying && is_here && !is_waiting => {
                *leaving = Leaving { is_copying: false, until: now + PARCEL_TAKE_TIME };
                self.effects.push_back(SwitchEffect::Flood { network, mac, on: true });
            }
            // A port that is off the floods is not left alone.
            Role::Leaving(leaving) if leaving.until <= now && leaving.is_copying && is_ours => {
                leaving.until = now + PARCEL_TIME_MAX;
            }
            Role::Leaving(leaving) if leaving.until <= now => return self.remove_escort(network, mac),
            Role::Leaving(_) => {}
            Role::Coming(coming) => {
                let (mut packets, opens) = (coming.overdue_strays(now), coming.is_caught_up(now, is_waiting));
                if opens {
                    packets.extend(coming.open(now));
                }
                let has_ended = matches!(coming.stage, Stage::Open(_, until) if until <= now);
                let deliver = |packet| SwitchEffect::DeliverTo { network, mac, packet };
                self.effects.extend(packets.into_iter().map(deliver));
                if opens {
                    self.effects.push_back(SwitchEffect::Flood { network, mac, on: true });
                }
                if has_ended {
                    return self.end_escort(network, mac);
                }
            }
        }
        self.review_escort(now, network, mac);
    }

    /// Ends it, and what was kept for the guest goes to it.
    fn end_escort(&mut self, network: NetworkId, mac: Mac) {
        if let Some(Role::Coming(coming)) = self.role(network, mac) {
            let packets = coming.all();
            let deliver = |packet| SwitchEffect::DeliverTo { network, mac, packet };
            self.effects.extend(packets.into_iter().map(deliver));
        }
        self.remove_escort(network, mac);
    }

    fn remove_escort(&mut self, network: NetworkId, mac: Mac) {
        self.set_escort_deadline(network, mac, None);
        if let Some(segment) = self.segments.get_mut(&network) {
            segment.escorts.remove(&mac);
        }
    }

    fn set_escort_deadline(&mut self, network: NetworkId, mac: Mac, at: Option<Instant>) {
        let Some(escort) = self.segments.get_mut(&network).and_then(|s| s.escorts.get_mut(&mac)) else { return };
        if let Some(old) = std::mem::replace(&mut escort.deadline, at) {
            self.escort_timers.remove(&(old, network, mac));
        }
        if let Some(at) = at {
            self.escort_timers.insert((at, network, mac));
        }
    }

    fn role(&mut self, network: NetworkId, mac: Mac) -> Option<&mut Role> {
        Some(&mut self.segments.get_mut(&network)?.escorts.get_mut(&mac)?.role)
    }
}

impl Coming {
    fn new(from: HostId, seed: SeededState) -> Self {
        Self {
            from,
            heard: Heard::new(seed),
            stage: Stage::Before,
            awaited: SeededMap::with_hasher(seed),
            kept_back: VecDeque::new(),
            kept_bytes: 0,
            strays: VecDeque::new(),
        }
    }

    /// The guest runs.
    fn begin(&mut self, now: Instant) {
        if matches!(self.stage, Stage::Before) {
            self.stage = Stage::CatchingUp(now);
            self.awaited = self.heard.newest_since(now - CATCH_UP_TIME);
        }
    }

    /// A frame came by itself.
    fn hear(&mut self, now: Instant, src: Mac, packet: &[u8]) {
        let frame = self.heard.fingerprint(packet);
        let stray = self.strays.iter().position(|stray| stray.frame == frame);
        match stray {
            Some(place) => drop(self.strays.remove(place)),
            None => self.heard.note(now, frame, src),
        }
        if matches!(self.stage, Stage::CatchingUp(_)) {
            self.kept_bytes += packet.len();
            self.kept_back.push_back(packet.to_vec());
        }
    }

    /// Whether the guest lacks what a parcel holds.
    fn judge(&mut self, now: Instant, parcel: &Parcel<'_>) -> bool {
        let since = match self.stage {
            // Nobody has said that the guest runs: what follows it is all that it gets.
            Stage::Before => return true,
            Stage::CatchingUp(since) | Stage::Open(since, _) => since,
        };
        let frame = self.heard.fingerprint(parcel.packet);
        let Some(at) = self.heard.take(frame, Instant(parcel.time)) else {
            self.strays.push_back(Stray { until: now + PARCEL_STRAY_TIME, frame, packet: parcel.packet.to_vec() });
            return false;
        };
        // Of one sender all copies before this one have come.
        if self.awaited.get(&parcel.src).is_some_and(|last| *last <= at) {
            self.awaited.remove(&parcel.src);
        }
        at < since
    }

    fn is_caught_up(&mut self, now: Instant, is_waiting: bool) -> bool {
        let Stage::CatchingUp(since) = self.stage else { return false };
        self.awaited.retain(|_, at| now.since(*at) < CATCH_UP_TIME);
        let is_full = self.kept_back.len() >= CATCH_UP_FRAMES_MAX || self.kept_bytes >= HOLD_BYTES_MAX;
        let is_late = now.since(since) >= CATCH_UP_TIME_MAX;
        is_full || is_late || (self.awaited.is_empty() && !is_waiting)
    }

    /// The port joins the floods; what it gets before.
    fn open(&mut self, now: Instant) -> VecDeque<Vec<u8>> {
        if let Stage::CatchingUp(since) = self.stage {
            self.stage = Stage::Open(since, now + PARCEL_TAKE_TIME);
        }
        std::mem::take(&mut self.kept_back)
    }

    fn deadline(&mut self, now: Instant, is_waiting: bool) -> Option<Instant> {
        let is_caught_up = self.is_caught_up(now, is_waiting);
        let stage = match self.stage {
            Stage::Before => return None,
            Stage::CatchingUp(_) if is_caught_up => now,
            Stage::CatchingUp(since) => {
                let last = self.awaited.values().max().map(|at| *at + CATCH_UP_TIME).filter(|_| !is_waiting);
                last.unwrap_or(since + CATCH_UP_TIME_MAX)
            }
            Stage::Open(_, until) => until,
        };
        let stray = self.strays.front().map(|stray| stray.until);
        let stray = if self.strays.len() > PARCEL_STRAYS_MAX { Some(now) } else { stray };
        Some(stray.map_or(stage, |stray| stray.min(stage)))
    }

    /// What parcels hold whose frames have not come.
    fn overdue_strays(&mut self, now: Instant) -> VecDeque<Vec<u8>> {
        let mut packets = VecDeque::new();
        while self.strays.len() > PARCEL_STRAYS_MAX || self.strays.front().is_some_and(|stray| stray.until <= now) {
            packets.extend(self.strays.pop_front().map(|stray| stray.packet));
        }
        packets
    }

    fn all(&mut self) -> VecDeque<Vec<u8>> {
        let mut packets: VecDeque<Vec<u8>> = self.strays.drain(..).map(|stray| stray.packet).collect();
        packets.append(&mut self.kept_back);
        packets
    }
}
