//! How this host comes to claim an address, gives it away, and believes the claims of others.

use super::segment::{Binding, PortId, State};
use super::{Switch, SwitchEffect, SwitchEvent, Upward, answer};
use crate::claims::{Claim, Ground, Verdict};
use crate::ids::{Epoch, HostId, Mac, NetworkId};
use crate::limits::{
    ASK_INTERVAL, CLAIM_IPS_MAX, CLAIMS_PER_NETWORK_MAX, CONFLICT_INTERVAL, HOLD_TIME_MAX, LEAVING_TIME,
    LOCAL_CLAIMS_MAX, LOCAL_IDLE_TIME, MESSAGE_CLAIMS_MAX, PROBE_TIME, REFUSED_TIME,
};
use crate::time::Instant;
use crate::wire::announce::Announcement;
use crate::wire::codec::CodecError;
use crate::wire::ethernet::EthernetView;
use crate::wire::message::Message;
use std::net::IpAddr;

/// How often a holder whose lease runs is asked before the asker waits for the lease instead.
const ASK_TRIES: u8 = 20;

impl Switch {
    /// The bridge or the operator says that `mac` is behind `port`.
    pub fn handle_local(&mut self, now: Instant, network: NetworkId, mac: Mac, port: Option<PortId>, ips: &[IpAddr]) {
        if mac.is_group() || mac == Mac::ZERO {
            return;
        }
        if self.see(now, network, mac, port) {
            self.add_addresses(network, mac, ips, None);
        }
    }

    /// The bridge has learned that `mac` is behind `port`. Of a guest that is expected here that says nothing: its port
    /// has its address before it runs.
    pub fn handle_learned(&mut self, now: Instant, network: NetworkId, mac: Mac, port: PortId) {
        if self.binding(network, mac).is_none_or(|binding| !binding.is_awaited()) {
            self.handle_local(now, network, mac, Some(port), &[]);
        }
    }

    /// Answers [`Upward::FindPort`]: whether the bridge knows the address behind one of its interfaces.
    pub fn handle_port_found(&mut self, now: Instant, network: NetworkId, mac: Mac, found: bool) {
        if !found && matches!(self.state(network, mac), Some(State::Probed { .. })) {
            self.depart(now, network, mac);
        }
    }

    /// A message of the link to `from`.
    ///
    /// # Errors
    /// If the bytes are not a message; the switch is as it was.
    pub fn handle_message(&mut self, now: Instant, from: HostId, bytes: &[u8]) -> Result<(), CodecError> {
        match Message::decode(bytes)? {
            Message::Claims(claims) => {
                for claim in claims.into_iter().take(MESSAGE_CLAIMS_MAX) {
                    // Of a third host only what the former holder signed is believed.
                    let signed = matches!(claim.ground, Ground::Handoff { .. });
                    if claim.holder == from || claim.holder == self.me || signed {
                        // Whoever we take for the holder knows best that it is not.
                        let vouched = self.holder(claim.network, claim.mac) == Some(from);
                        self.judge(now, claim, vouched);
                    }
                }
            }
            Message::Ask { network, mac, epoch } => self.on_ask(now, from, network, mac, epoch),
            Message::Grant(claim) if claim.holder == self.me => self.on_grant(now, claim),
            Message::Grant(_) => {}
            Message::Refuse(claim) if claim.holder == from => self.on_refuse(now, claim),
            Message::Refuse(_) => {}
            Message::Release { network, mac, epoch } => self.handle_released(now, network, mac, from, epoch),
        }
        Ok(())
    }

    /// A claim from a table row of its holder, or from its link.
    pub fn handle_claim(&mut self, now: Instant, claim: Claim) {
        self.judge(now, claim, false);
    }

    fn judge(&mut self, now: Instant, claim: Claim, vouched: bool) {
        let (network, mac) = (claim.network, claim.mac);
        let Some(segment) = self.segments.get(&network) else { return };
        if claim.holder == self.me {
            return self.on_own_claim(now, &claim);
        }
        let known = segment.bindings.get(&mac);
        if known.is_none() && segment.bindings.len() >= CLAIMS_PER_NETWORK_MAX {
            return;
        }
        let lapsed = vouched || known.is_some_and(|binding| self.is_lapsed(binding.claim.holder));
        match claim.judge(known.map(|binding| &binding.claim), lapsed, &*self.verifier) {
            Verdict::Accept => self.believe(now, claim),
            Verdict::Conflict => self.on_conflict(now, claim),
            Verdict::Stale => self.on_stale(&claim),
            Verdict::Forged => {}
        }
    }

    /// The holder took its claim of this address back.
    pub fn handle_released(&mut self, now: Instant, network: NetworkId, mac: Mac, holder: HostId, epoch: Epoch) {
        let Some(binding) = self.binding(network, mac) else { return };
        if binding.disputed.as_ref().is_some_and(|claim| claim.holder == holder && claim.epoch <= epoch) {
            binding.disputed = None;
        }
        if binding.claim.holder != holder || binding.claim.epoch > epoch {
            return;
        }
        match binding.state {
            State::Remote => {
                self.forget(network, mac);
                self.event(SwitchEvent::Released { network, mac, holder });
            }
            // Our port shows it, and nobody else has it now.
            State::Wanted { .. } | State::Refused => {
                self.event(SwitchEvent::Released { network, mac, holder });
                self.take_over(now, network, mac);
            }
            State::Local { .. } | State::Probed { .. } | State::Departed { .. } => {}
        }
    }

    /// Learns from a frame of a local port; false if its source is a duplicate of another host's address.
    // HOT PATH
    pub(super) fn learn(&mut self, now: Instant, network: NetworkId, src: Mac, view: &EthernetView<'_>) -> bool {
        let fresh = match self.binding(network, src).map(|binding| &mut binding.state) {
            Some(State::Local { seen, .. }) => {
                *seen = now;
                true
            }
            Some(State::Refused) => return false,
            _ => self.see(now, network, src, None),
        };
        if fresh && let Some(Announcement { ip, router }) = answer::announced(view) {
            self.add_addresses(network, src, &[ip], router);
        }
        true
    }

    /// A port of this host shows `mac`. Returns whether it is this host's.
    fn see(&mut self, now: Instant, network: NetworkId, mac: Mac, port: Option<PortId>) -> bool {
        let me = self.me;
        let Some(segment) = self.segments.get_mut(&network).filter(|segment| segment.attached) else { return false };
        let Some(binding) = segment.bindings.get_mut(&mac) else {
            return self.claim_first(now, Claim::first(network, mac, me, Epoch(1)), port);
        };
        match &mut binding.state {
            State::Local { port: known, seen } => {
                *seen = now;
                *known = port.or(*known);
                true
            }
            State::Probed { asker, port: known, .. } => {
                let (asker, port) = (*asker, port.or(*known));
                self.refuse(now, network, mac, asker, port);
                true
            }
            // A frame that was on its way when the port was taken out does not bring the address back.
            State::Departed { since, .. } if port.is_none() && now.since(*since) < LEAVING_TIME => true,
            State::Departed { .. } => {
                self.hold_locally(now, network, mac, port);
                true
            }
            State::Wanted { port: known, seen, .. } => {
                *seen = now;
                *known = port.or(*known);
                false
            }
            State::Remote => {
                self.want(now, network, mac, port);
                false
            }
            State::Refused => false,
        }
    }

    fn claim_first(&mut self, now: Instant, claim: Claim, port: Option<PortId>) -> bool {
        let (network, mac) = (claim.network, claim.mac);
        let Some(segment) = self.segments.get_mut(&network) else { return false };
        if segment.local_count >= LOCAL_CLAIMS_MAX || segment.bindings.len() >= CLAIMS_PER_NETWORK_MAX {
            return false;
        }
        segment.bindings.insert(mac, Binding::new(now, claim, State::Local { port, seen: now }));
        segment.local_count += 1;
        self.claimed(now, network, mac);
        true
    }

    /// The address is in `State::Local` with a new claim of ours: the world hears of it.
    fn claimed(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        let Some(claim) = self.binding(network, mac).map(|binding| binding.claim.clone()) else { return };
        // A probe that is under way keeps its deadline.
        if matches!(self.state(network, mac), Some(State::Local { .. })) {
            self.set_deadline_in(now, network, mac, LOCAL_IDLE_TIME);
        }
        self.event(SwitchEvent::Claimed { network, mac, holder: claim.holder, epoch: claim.epoch });
        self.announce(&claim);
        self.effects.push_back(SwitchEffect::Upward(Upward::Publish(claim)));
    }

    pub(super) fn add_addresses(&mut self, network: NetworkId, mac: Mac, ips: &[IpAddr], router: Option<bool>) {
        let Some(segment) = self.segments.get_mut(&network) else { return };
        let Some(binding) = segment.bindings.get_mut(&mac).filter(|b| b.state.is_ours()) else { return };
        let claim = &mut binding.claim;
        let known = (claim.ips.len(), claim.router);
        claim.router = router.or(claim.router);
        for ip in ips {
            if claim.ips.len() < CLAIM_IPS_MAX && !claim.ips.contains(ip) {
                claim.ips.push(*ip);
                segment.ips.insert(*ip, mac);
            }
        }
        if (claim.ips.len(), claim.router) != known {
            self.revise(network, mac);
        }
    }

    /// A port shows an address that another host holds: ask it, or take it over if its lease ran out.
    fn want(&mut self, now: Instant, network: NetworkId, mac: Mac, port: Option<PortId>) {
        let Some(binding) = self.binding(network, mac) else { return };
        binding.state = State::Wanted { port, seen: now, tries: 0 };
        if self.is_lapsed_binding(network, mac) {
            self.take_over(now, network, mac);
        } else {
            self.ask(now, network, mac);
        }
    }

    fn ask(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        let Some(binding) = self.binding(network, mac) else { return };
        let State::Wanted { tries, .. } = &mut binding.state else { return };
        *tries = tries.saturating_add(1);
        let delay = if *tries > ASK_TRIES { LOCAL_IDLE_TIME } else { ASK_INTERVAL };
        let (holder, epoch) = (binding.claim.holder, binding.claim.epoch);
        self.send(holder, &Message::Ask { network, mac, epoch });
        self.set_deadline_in(now, network, mac, delay);
    }

    /// A link that came up may carry what was asked in vain.
    pub(super) fn ask_again(&mut self, now: Instant, host: HostId) {
        for (network, mac) in self.wanted_of(host) {
            self.ask(now, network, mac);
        }
    }

    /// The lease of `host` ran out: what our ports show of its addresses is ours.
    pub(super) fn take_over_wanted(&mut self, now: Instant, host: HostId) {
        for (network, mac) in self.wanted_of(host) {
            self.take_over(now, network, mac);
        }
    }

    fn wanted_of(&self, host: HostId) -> Vec<(NetworkId, Mac)> {
        let mut wanted: Vec<(NetworkId, Mac)> = self
            .segments
            .iter()
            .flat_map(|(network, segment)| segment.bindings.iter().map(move |(mac, binding)| (*network, *mac, binding)))
            .filter(|(_, _, b)| b.claim.holder == host && matches!(b.state, State::Wanted { .. } | State::Refused))
            .map(|(network, mac, _)| (network, mac))
            .collect();
        wanted.sort_unstable();
        wanted
    }

    fn take_over(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        let me = self.me;
        let Some(segment) = self.segments.get_mut(&network) else { return };
        let Some(binding) = segment.bindings.get_mut(&mac) else { return };
        let port = binding.state.port();
        let from = binding.claim.holder;
        binding.claim.epoch.0 += 1;
        binding.claim.revision = 0;
        binding.claim.holder = me;
        binding.claim.ground = Ground::Lapsed { from };
        binding.state = State::Local { port, seen: now };
        segment.local_count += 1;
        self.claimed(now, network, mac);
    }

    /// Another host's port shows an address that it believes to be here.
    fn on_ask(&mut self, now: Instant, asker: HostId, network: NetworkId, mac: Mac, epoch: Epoch) {
        let me = self.me;
        let Some(segment) = self.segments.get_mut(&network) else { return };
        let Some(binding) = segment.bindings.get_mut(&mac) else {
            // Claimed by an agent that has been restarted since: nothing here has it.
            let held = Claim::first(network, mac, me, epoch);
            segment.bindings.insert(mac, Binding::new(now, held, State::departed(now)));
            segment.local_count += 1;
            return self.grant(now, network, mac, asker);
        };
        match binding.state {
            State::Local { port, seen } => {
                binding.state = State::Probed { port, asker, since: now, seen };
                self.probe(now, network, mac);
            }
            State::Departed { .. } => self.grant(now, network, mac, asker),
            State::Probed { .. } => {}
            State::Remote if binding.claim.epoch < epoch => {
                // We held it in an epoch that we do not remember.
                let held = Claim::first(network, mac, me, epoch);
                self.adopt(now, held, State::departed(now));
                self.grant(now, network, mac, asker);
            }
            State::Remote | State::Wanted { .. } | State::Refused => {
                let claim = binding.claim.clone();
                self.send(asker, &Message::Claims(vec![claim]));
            }
        }
    }

    /// Looks for the address on the bridge: the bridge's own table, and an ARP or ND question to it.
    fn probe(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        let prober = self.prober;
        let Some(binding) = self.binding(network, mac) else { return };
        let questions = answer::probes(mac, &binding.claim.ips, prober);
        self.effects.extend(questions.into_iter().map(|packet| SwitchEffect::Deliver { network, packet }));
        self.effects.push_back(SwitchEffect::Upward(Upward::FindPort { network, mac }));
        self.set_deadline_in(now, network, mac, PROBE_TIME);
    }

    fn refuse(&mut self, now: Instant, network: NetworkId, mac: Mac, asker: HostId, port: Option<PortId>) {
        let Some(binding) = self.binding(network, mac) else { return };
        binding.state = State::Local { port, seen: now };
        let claim = binding.claim.clone();
        self.set_deadline_in(now, network, mac, LOCAL_IDLE_TIME);
        self.tell_conflict(now, network, mac, (claim.holder, asker));
        self.send(asker, &Message::Refuse(claim));
    }

    /// Signs the address over to `to`, with all frames that wait for it.
    pub(super) fn grant(&mut self, now: Instant, network: NetworkId, mac: Mac, to: HostId) {
        let signer = self.signer.clone();
        let Some(binding) = self.binding(network, mac) else { return };
        let claim = binding.claim.hand_off(to, &*signer);
        self.send(to, &Message::Grant(claim.clone()));
        self.believe(now, claim.clone());
        self.announce(&claim);
    }

    pub(super) fn on_grant(&mut self, now: Instant, claim: Claim) {
        let (network, mac) = (claim.network, claim.mac);
        let Some(segment) = self.segments.get(&network) else { return };
        let known = segment.bindings.get(&mac);
        let lapsed = known.is_some_and(|binding| self.is_lapsed(binding.claim.holder));
        if claim.judge(known.map(|binding| &binding.claim), lapsed, &*self.verifier) != Verdict::Accept {
            return;
        }
        let (from, state) = (known.map(|binding| binding.claim.holder), known.map(|binding| binding.state));
        if let Some(from) = from {
            self.event(SwitchEvent::Moved { network, mac, from, to: claim.holder, epoch: claim.epoch });
        }
        if let Some(State::Wanted { port, .. }) = state {
            self.adopt(now, claim, State::Local { port, seen: now });
            self.claimed(now, network, mac);
            self.release_held(now, network, mac);
        } else {
            // The port that asked is gone again: we answer for the address until somebody else asks, and tell so.
            self.adopt(now, claim.clone(), State::departed(now));
            self.announce(&claim);
            self.effects.push_back(SwitchEffect::Upward(Upward::Publish(claim)));
            self.set_deadline_in(now, network, mac, HOLD_TIME_MAX);
        }
    }

    fn on_refuse(&mut self, now: Instant, claim: Claim) {
        let (network, mac, me) = (claim.network, claim.mac, self.me);
        let Some(State::Wanted { .. }) = self.state(network, mac) else { return };
        self.handle_claim(now, claim.clone());
        if let Some(binding) = self.binding(network, mac).filter(|b| b.claim.holder == claim.holder) {
            binding.state = State::Refused;
            self.set_deadline_in(now, network, mac, REFUSED_TIME);
            self.tell_conflict(now, network, mac, (claim.holder, me));
        }
    }

    /// Somebody else's claim holds. What we thought of the address gives way.
    fn believe(&mut self, now: Instant, claim: Claim) {
        let (network, mac, holder) = (claim.network, claim.mac, claim.holder);
        let before = self.segments.get(&network).and_then(|s| s.bindings.get(&mac)).map(|b| (b.state, b.claim.holder));
        let state = match before {
            // Our port shows it still: the new holder is the one to ask.
            Some((State::Local { port, seen } | State::Wanted { port, seen, .. }, _)) if holder != self.me => {
                State::Wanted { port, seen, tries: 0 }
            }
            Some((State::Refused, same)) if same == holder => State::Refused,
            _ => State::Remote,
        };
        let epoch = claim.epoch;
        self.adopt(now, claim, state);
        match before {
            Some((_, from)) if from != holder => {
                self.event(SwitchEvent::Moved { network, mac, from, to: holder, epoch });
            }
            None => self.event(SwitchEvent::Claimed { network, mac, holder, epoch }),
            Some(_) => {}
        }
        let was_ours = matches!(before, Some((state, _)) if state.is_ours());
        if was_ours {
            self.effects.push_back(SwitchEffect::Upward(Upward::Withdraw { network, mac }));
        }
        if was_ours && state != State::Remote {
            // A claim beat ours while our port shows the address: two ports have it.
            self.tell_conflict(now, network, mac, (holder, self.me));
        }
        match state {
            State::Wanted { .. } => self.ask(now, network, mac),
            State::Refused => {}
            _ => {
                self.set_deadline(network, mac, None);
                if !self.binding(network, mac).is_some_and(|binding| binding.is_awaited()) {
                    self.release_held(now, network, mac);
                }
            }
        }
    }

    /// Replaces the claim of an address.
    fn adopt(&mut self, now: Instant, claim: Claim, state: State) {
        let Some(segment) = self.segments.get_mut(&claim.network) else { return };
        let mac = claim.mac;
        for ip in &claim.ips {
            segment.ips.insert(*ip, mac);
        }
        let was_ours = segment.bindings.get(&mac).is_some_and(|binding| binding.state.is_ours());
        segment.local_count = segment.local_count + usize::from(state.is_ours()) - usize::from(was_ours);
        match segment.bindings.get_mut(&mac) {
            Some(binding) => {
                binding.claim = claim;
                binding.state = state;
                binding.since = now;
                binding.disputed = None;
                binding.redirected = None;
            }
            None => {
                segment.bindings.insert(mac, Binding::new(now, claim, state));
            }
        }
    }

    /// A claim without a ground that holds here. If it was taken from us while we were cut off, we have the last word.
    fn on_conflict(&mut self, now: Instant, claim: Claim) {
        let (network, mac) = (claim.network, claim.mac);
        let Some(binding) = self.binding(network, mac) else { return };
        let holder = binding.claim.holder;
        match binding.state {
            State::Local { .. } | State::Probed { .. } if claim.epoch > binding.claim.epoch => {
                binding.claim.epoch = Epoch(claim.epoch.0 + 1);
                binding.claim.revision = 0;
                binding.claim.ground = Ground::Kept { over: claim.holder };
                self.tell_conflict(now, network, mac, (holder, claim.holder));
                self.claimed(now, network, mac);
            }
            State::Departed { .. } if claim.epoch > binding.claim.epoch => {
                self.believe(now, claim.clone());
                self.vouch(claim);
            }
            State::Local { .. } | State::Probed { .. } | State::Departed { .. } => {
                let ours = binding.claim.clone();
                self.tell_conflict(now, network, mac, (holder, claim.holder));
                self.send(claim.holder, &Message::Claims(vec![ours]));
            }
            State::Remote | State::Wanted { .. } | State::Refused => {
                if binding.disputed.replace(claim.clone()) != Some(claim.clone()) {
                    self.tell_conflict(now, network, mac, (holder, claim.holder));
                }
            }
        }
    }

    /// Tells the operator that two hosts have an address: once, as long as they are at it.
    fn tell_conflict(&mut self, now: Instant, network: NetworkId, mac: Mac, (holder, other): (HostId, HostId)) {
        let Some(binding) = self.binding(network, mac) else { return };
        let pair = (holder.min(other), holder.max(other));
        let known = binding.conflict.replace((pair, now));
        if known.is_none_or(|(told, at)| told != pair || now.since(at) >= CONFLICT_INTERVAL) {
            self.event(SwitchEvent::Conflict { network, mac, holder, other });
        }
    }

    /// The lease of `host` ran out: claims that were not believed because of it may hold now.
    pub(super) fn settle_disputes(&mut self, now: Instant, host: HostId) {
        let mut disputes: Vec<Claim> = self
            .segments
            .values_mut()
            .flat_map(|segment| segment.bindings.values_mut())
            .filter(|binding| binding.claim.holder == host)
            .filter_map(|binding| binding.disputed.take())
            .collect();
        disputes.sort_unstable_by_key(|claim| (claim.network, claim.mac));
        for claim in disputes {
            self.handle_claim(now, claim);
        }
    }

    /// As the former holder, signs a claim that was made as lapsed, so that whoever still knows us to live believes it.
    fn vouch(&mut self, claim: Claim) {
        let before = Claim { epoch: Epoch(claim.epoch.0 - 1), ..claim.clone() };
        let signed = Claim { revision: claim.revision, ..before.hand_off(claim.holder, &*self.signer) };
        self.announce(&signed);
    }

    /// A holder that has been restarted begins at the first epoch: it must hear how far it was. So must one that
    /// claims what it thinks nobody holds.
    fn on_stale(&mut self, claim: &Claim) {
        let me = self.me;
        let Some(known) = self.binding(claim.network, claim.mac).map(|binding| &binding.claim) else { return };
        let signed = matches!(known.ground, Ground::Handoff { .. });
        let telling = known.holder == claim.holder || known.holder == me || signed;
        if telling && claim.epoch < known.epoch {
            let known = known.clone();
            self.send(claim.holder, &Message::Claims(vec![known]));
        }
    }

    /// A claim in our name: a handoff, or what others remember of us from before a restart.
    fn on_own_claim(&mut self, now: Instant, claim: &Claim) {
        let (network, mac) = (claim.network, claim.mac);
        match self.binding(network, mac) {
            Some(Binding { state: State::Wanted { .. }, .. }) => self.on_grant(now, claim.clone()),
            Some(binding) if binding.state.is_ours() && claim.epoch > binding.claim.epoch => {
                binding.claim.epoch = claim.epoch;
                binding.claim.revision = claim.revision.saturating_add(1);
                binding.claim.ground = claim.ground;
                if matches!(binding.state, State::Local { .. } | State::Probed { .. }) {
                    self.claimed(now, network, mac);
                }
            }
            Some(_) | None => {}
        }
    }

    /// The address came back before another host asked for it.
    fn hold_locally(&mut self, now: Instant, network: NetworkId, mac: Mac, port: Option<PortId>) {
        let Some(binding) = self.binding(network, mac) else { return };
        binding.state = State::Local { port, seen: now };
        self.set_deadline_in(now, network, mac, LOCAL_IDLE_TIME);
        self.release_held(now, network, mac);
    }

    pub(super) fn on_deadline(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        let Some(binding) = self.binding(network, mac) else { return };
        match binding.state {
            State::Local { port, seen } => {
                let idle = now.since(seen);
                if port.is_none() && idle >= LOCAL_IDLE_TIME {
                    self.withdraw(network, mac);
                } else {
                    let again = if port.is_some() { LOCAL_IDLE_TIME } else { LOCAL_IDLE_TIME - idle };
                    self.set_deadline_in(now, network, mac, again);
                }
            }
            // Nothing was heard of it. With no IP to ask for, silence proves nothing: the bridge's word counts.
            State::Probed { asker, port, .. } if binding.claim.ips.is_empty() => {
                self.refuse(now, network, mac, asker, port);
            }
            State::Probed { asker, .. } => self.grant(now, network, mac, asker),
            State::Departed { until, .. } => {
                self.drop_held(network, mac);
                if now >= until {
                    self.withdraw(network, mac);
                } else {
                    self.set_deadline(network, mac, Some((now + HOLD_TIME_MAX).min(until)));
                }
            }
            State::Wanted { seen, .. } if now.since(seen) >= LOCAL_IDLE_TIME => binding.state = State::Remote,
            State::Wanted { .. } => self.ask(now, network, mac),
            State::Refused => binding.state = State::Remote,
            State::Remote => {}
        }
    }

    pub(super) fn binding(&mut self, network: NetworkId, mac: Mac) -> Option<&mut Binding> {
        self.segments.get_mut(&network)?.bindings.get_mut(&mac)
    }

    fn state(&self, network: NetworkId, mac: Mac) -> Option<State> {
        Some(self.segments.get(&network)?.bindings.get(&mac)?.state)
    }

    fn is_lapsed_binding(&self, network: NetworkId, mac: Mac) -> bool {
        let binding = self.segments.get(&network).and_then(|segment| segment.bindings.get(&mac));
        binding.is_some_and(|binding| self.is_lapsed(binding.claim.holder))
    }
}
