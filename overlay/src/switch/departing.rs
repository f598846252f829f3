//! How an address leaves this host: to another one, or for good.

use super::segment::{PortId, State};
use super::{Switch, SwitchEffect, SwitchEvent, Upward};
use crate::ids::{HostId, Mac, NetworkId};
use crate::limits::{HOLD_TIME_MAX, LEAVING_TIME};
use crate::time::Instant;
use crate::wire::message::Message;

impl Switch {
    /// `port` has left the bridge of `network`: what was behind it has departed.
    pub fn handle_port_gone(&mut self, now: Instant, network: NetworkId, port: PortId) {
        for mac in self.local_macs(network, |state| state.port() == Some(port)) {
            self.depart(now, network, mac);
        }
    }

    /// `mac` is about to leave this host, or has left it: frames for it wait for the host that will ask.
    pub fn depart(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        let Some(binding) = self.binding(network, mac) else { return };
        match binding.state {
            State::Local { .. } => {
                binding.state = State::departed(now);
                self.set_deadline_in(now, network, mac, HOLD_TIME_MAX);
            }
            State::Probed { asker, .. } => self.grant(now, network, mac, asker),
            State::Wanted { .. } | State::Refused => {
                binding.state = State::Remote;
                self.set_deadline(network, mac, None);
            }
            State::Departed { .. } | State::Remote => {}
        }
    }

    /// The guest behind `mac` has ended and moves nowhere: its address is free as soon as what it had sent is through.
    pub fn retire(&mut self, now: Instant, network: NetworkId, mac: Mac) {
        self.depart(now, network, mac);
        let end = now + LEAVING_TIME;
        let Some(binding) = self.binding(network, mac) else { return };
        if let State::Departed { until, .. } = &mut binding.state {
            *until = end.min(*until);
            self.drop_held(network, mac);
            self.set_deadline(network, mac, Some(end));
        }
    }

    /// Gives an address up that nobody asked for.
    pub(super) fn withdraw(&mut self, network: NetworkId, mac: Mac) {
        let Some(binding) = self.binding(network, mac) else { return };
        let epoch = binding.claim.epoch;
        let holder = self.me;
        let linked: Vec<HostId> = self
            .segments
            .get(&network)
            .map(|segment| segment.participants.iter().copied().filter(|host| self.is_up(*host)).collect())
            .unwrap_or_default();
        for to in linked {
            self.send(to, &Message::Release { network, mac, epoch });
        }
        self.forget(network, mac);
        self.event(SwitchEvent::Released { network, mac, holder });
        self.effects.push_back(SwitchEffect::Upward(Upward::Withdraw { network, mac }));
    }

    pub(super) fn forget(&mut self, network: NetworkId, mac: Mac) {
        self.drop_held(network, mac);
        self.set_deadline(network, mac, None);
        let Some(segment) = self.segments.get_mut(&network) else { return };
        let Some(binding) = segment.bindings.remove(&mac) else { return };
        segment.local_count -= usize::from(binding.state.is_ours());
        for ip in &binding.claim.ips {
            if segment.ips.get(ip) == Some(&mac) {
                segment.ips.remove(ip);
            }
        }
    }
}
