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
//!   kept back, and from then on each frame as it comes, past the bridge. A parcel with a copy of a frame that came
//!   after the guest is one too many.
//! - A parcel whose frame has not been heard waits for it, and takes its place in the end: its sender may not know yet
//!   that the target has a port in the network. A frame that comes later than that is one too many.
//! - The port joins the floods when neither parcels nor frames are expected whose other half the guest has got: what a
//!   bridge floods can't be kept from one port.
//!
//! The port joins the floods in [`Switch::handle_timeout`] only, after which the caller carries out all effects before
//! it takes another frame.

mod coming;

use super::heard::Heard;
use super::hold::Held;
use super::segment::State;
use super::{Egress, Switch, SwitchEffect};
use crate::drop_reason::DropReason;
use crate::ids::{HostId, Mac, NetworkId};
use crate::limits::{HOP_LIMIT, PARCEL_AFTER_TIME, PARCEL_ORIGINAL_TIME, PARCEL_TAKE_TIME, PARCEL_TIME_MAX};
use crate::names::SERVICE_MAC;
use crate::time::Instant;
use crate::wire::ethernet::EthernetView;
use crate::wire::frame::{FrameHeader, VNET_BYTES};
use crate::wire::parcel::{self, Parcel};
use coming::Coming;
use std::collections::VecDeque;

/// What is done about frames to groups for one address.
pub(super) struct Escort {
    /// When it wants attention; also the key of its timer.
    deadline: Option<Instant>,
    role: Role,
}

enum Role {
    Leaving(Box<Leaving>),
    Coming(Box<Coming>),
}

/// The guest leaves this host.
struct Leaving {
    /// Its port is off the floods, and copies are taken.
    is_copying: bool,
    until: Instant,
    /// Frames that it has got before they came here by themselves, if they ever do: it has come here a moment ago.
    delivered: Option<Heard>,
}

impl Switch {
    /// The guest behind `mac` is about to be paused: its port is taken off the floods, and what it misses follows it.
    pub(super) fn begin_copies(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        let Some(segment) = self.segments.get_mut(&network) else { return };
        let is_copying = |escort: &Escort| matches!(&escort.role, Role::Leaving(leaving) if leaving.is_copying);
        if segment.escorts.get(&mac).is_some_and(is_copying) {
            return;
        }
        let delivered = self.end_escort(now, network, mac);
        let leaving = Leaving { is_copying: true, until: now + PARCEL_TIME_MAX, delivered };
        let deadline = leaving.until;
        let Some(segment) = self.segments.get_mut(&network) else { return };
        segment.escorts.insert(mac, Escort { deadline: None, role: Role::Leaving(Box::new(leaving)) });
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
    pub(super) fn expect_parcels(&mut self, now: Instant, network: NetworkId, mac: Mac, from: HostId) {
        self.end_escort(now, network, mac);
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
        if matches!(self.role(network, mac), Some(Role::Coming(coming)) if coming.is_before()) {
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
                Some(Role::Leaving(leaving)) if leaving.is_copying => {
                    if !leaving.has_got(now, packet) {
                        self.send_copy(now, network, mac, packet);
                    }
                }
                Some(Role::Coming(coming)) => {
                    let packets = coming.hear(now, src, packet);
                    self.hand(network, mac, packets);
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
        let packets = match self.role(network, mac) {
            Some(Role::Coming(coming)) => coming.judge(now, &parcel),
            Some(Role::Leaving(_)) => VecDeque::from([parcel.packet.to_vec()]),
            None => VecDeque::new(),
        };
        self.hand(network, mac, packets);
        self.review_escort(now, network, mac);
    }

    /// Past the bridge to the guest alone.
    fn hand(&mut self, network: NetworkId, mac: Mac, packets: VecDeque<Vec<u8>>) {
        let deliver = |packet| SwitchEffect::DeliverTo { network, mac, packet };
        self.effects.extend(packets.into_iter().map(deliver));
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
                **leaving = Leaving { is_copying: false, until: now + PARCEL_TAKE_TIME, delivered: None };
                self.effects.push_back(SwitchEffect::Flood { network, mac, on: true });
            }
            // A port that is off the floods is not left alone.
            Role::Leaving(leaving) if leaving.until <= now && leaving.is_copying && is_ours => {
                leaving.until = now + PARCEL_TIME_MAX;
            }
            Role::Leaving(leaving) if leaving.until <= now => return self.remove_escort(network, mac),
            Role::Leaving(_) => {}
            Role::Coming(coming) => {
                let mut packets = coming.overdue_strays(now);
                if coming.is_caught_up(now, is_waiting) {
                    packets.append(&mut coming.attend(now));
                }
                let has_ended = coming.has_ended(now);
                self.hand(network, mac, packets);
                if has_ended {
                    self.effects.push_back(SwitchEffect::Flood { network, mac, on: true });
                    return self.remove_escort(network, mac);
                }
            }
        }
        self.review_escort(now, network, mac);
    }

    /// Ends it, and what was kept for the guest goes to it. What it has got before it came.
    fn end_escort(&mut self, now: Instant, network: NetworkId, mac: Mac) -> Option<Heard> {
        self.set_escort_deadline(network, mac, None);
        match self.segments.get_mut(&network)?.escorts.remove(&mac)?.role {
            Role::Coming(coming) => {
                let (packets, delivered) = coming.end(now);
                self.hand(network, mac, packets);
                Some(delivered)
            }
            Role::Leaving(leaving) => leaving.delivered,
        }
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

impl Leaving {
    /// Whether the guest got the frame on its way here, as a copy that was faster.
    fn has_got(&mut self, now: Instant, packet: &[u8]) -> bool {
        let Some(delivered) = &mut self.delivered else { return false };
        delivered.take_first(delivered.fingerprint(packet), now - PARCEL_ORIGINAL_TIME)
    }
}
