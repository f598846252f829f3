//! An address that moves with its VM: signed over by the source at the switch-over, claimed by the target when the
//! guest runs, and the frames of that time counted.

use super::Switch;
use super::hold::Held;
use super::segment::{Binding, State};
use crate::claims::Claim;
use crate::ids::{Epoch, HostId, Mac, NetworkId};
use crate::limits::HOP_LIMIT;
use crate::time::Instant;
use crate::wire::ethernet::EthernetView;
use crate::wire::frame::{Flags, FrameHeader, VNET_BYTES};
use crate::wire::parcel;

/// Frames for one address on this host, since it was last about to leave or to come. A super-frame counts as the frames
/// that it is on a wire: links deliver what they have of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MoveCounts {
    /// Those that waited.
    pub buffered: u64,
    /// Those that were sent on to another host.
    pub forwarded: u64,
    /// Those that another host sent on to this one.
    pub arrived: u64,
    /// Those that waited and died.
    pub lost: u64,
}

impl Switch {
    /// `mac` is about to leave with its VM: from now on its frames wait here. They are counted anew, unless they wait
    /// already.
    pub fn begin_move(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        let binding = self.binding(network, mac).filter(|binding| !matches!(binding.state, State::Departed { .. }));
        if let Some(binding) = binding {
            binding.counts = MoveCounts::default();
        }
        self.depart(now, network, mac);
        if self.binding(network, mac).is_some_and(|binding| binding.state.is_ours()) {
            self.begin_copies(now, network, mac);
        }
    }

    /// Frames that were still on their way to the guest's port when it was paused, also those to groups: they go before
    /// those that came later. Each is a packet behind a virtio-net header.
    pub fn bring_back(&mut self, now: Instant, network: NetworkId, mac: Mac, packets: Vec<Vec<u8>>) {
        let (budget, prober) = (&mut self.hold_budget, self.prober);
        let Some(binding) = self.segments.get_mut(&network).and_then(|s| s.bindings.get_mut(&mac)) else { return };
        for packet in packets.into_iter().rev() {
            let view = packet.get(VNET_BYTES..).map(EthernetView::new_checked);
            let (flags, packet) = match view {
                Some(Ok(view)) if view.dst().is_group() => {
                    let Some(parcel) = parcel::pack(mac, prober, now.0, &packet) else { continue };
                    (parcel::FLAGS, parcel)
                }
                _ => (Flags::VNET, packet),
            };
            let held = Held { header: FrameHeader { network, hops: HOP_LIMIT, flags }, packet };
            let frames = held.frames();
            match binding.held.push_front(budget, held) {
                true => binding.counts.buffered += frames,
                false => binding.counts.lost += frames,
            }
        }
    }

    /// Signs `mac` over to `to`, where its VM goes, with all frames that wait for it. The claim that says so, also when
    /// it was signed over before; nothing if this host does not hold the address.
    pub fn hand_over(&mut self, now: Instant, network: NetworkId, mac: Mac, to: HostId) -> Option<Claim> {
        if self.binding(network, mac)?.state.is_ours() {
            self.depart(now, network, mac);
            // A host that had asked for it got it by that.
            if self.binding(network, mac)?.state.is_ours() {
                self.grant(now, network, mac, to);
            }
        }
        let claim = &self.binding(network, mac)?.claim;
        (claim.holder == to).then(|| claim.clone())
    }

    /// The VM of `mac` is on its way here from `holder`: frames that come before it wait.
    pub fn expect_move(&mut self, now: Instant, network: NetworkId, mac: Mac, holder: HostId) {
        let Some(segment) = self.segments.get_mut(&network) else { return };
        // Any claim of the holder's is newer than this one.
        let unknown = || Binding::new(now, Claim::first(network, mac, holder, Epoch(0)), State::Remote);
        let binding = segment.bindings.entry(mac).or_insert_with(unknown);
        binding.is_expected = true;
        binding.counts = MoveCounts::default();
        self.expect_parcels(now, network, mac, holder);
    }

    /// The VM of `mac` runs here, or does not come. What waits for it goes to where it is.
    pub fn end_expectation(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        self.expect_no_parcels(network, mac);
        let Some(binding) = self.binding(network, mac) else { return };
        if std::mem::take(&mut binding.is_expected) && binding.state == State::Remote {
            self.release_held(now, network, mac);
        }
    }

    /// Takes a claim that came with a VM. Frames for it wait until [`Switch::handle_local`] says that it runs; what it
    /// sends passes from now on.
    pub fn handle_handoff(&mut self, now: Instant, claim: Claim) {
        if claim.holder == self.me {
            self.on_grant(now, claim);
        }
    }

    /// The frames of the last move of an address, as far as they passed here.
    pub fn move_counts(&self, network: NetworkId, mac: Mac) -> MoveCounts {
        let binding = self.segments.get(&network).and_then(|segment| segment.bindings.get(&mac));
        binding.map(|binding| binding.counts).unwrap_or_default()
    }
}
