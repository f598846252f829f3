//! Carries out what the node wants, and passes on what the tables say.

use super::Core;
use crate::events::EventKind;
use crate::swarm::service::{GossipId, Reply, SyncId, Verdict};
use crate::text::Text;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use std::net::{IpAddr, SocketAddr};
use virtuoso_overlay::ids::{Epoch, HostId, NetworkId};
use virtuoso_overlay::node::{Change, GossipVerdict, NodeEffect, RequestId};
use virtuoso_overlay::table::{Body, HostRow, Key};

impl Core {
    /// Carries out all that the node wants.
    pub(super) fn drain_node(&mut self) {
        while let Some(effect) = self.node.as_mut().and_then(|node| node.poll_effect()) {
            match effect {
                NodeEffect::Gossip(bytes) => {
                    if let Err(error) = self.swarm.publish(bytes) {
                        // Anti-entropy repairs what gossip does not carry.
                        tracing::debug!(%error, "Can't gossip");
                    }
                }
                NodeEffect::Request { id, to, bytes } => self.send_sync(id, to, bytes),
                NodeEffect::Changed(change) => self.on_change(change),
            }
        }
    }

    fn send_sync(&mut self, id: RequestId, to: HostId, bytes: Vec<u8>) {
        match self.swarm.send_sync(to, bytes) {
            Ok(sync) => {
                self.sync_requests.insert(sync, id);
            }
            Err(_) => self.on_sync_answer(id, None),
        }
    }

    fn on_sync_answer(&mut self, id: RequestId, answer: Option<&[u8]>) {
        let now = self.clock.now();
        if let Some(node) = &mut self.node {
            node.handle_response(now, id, answer);
        }
    }

    pub(super) fn on_sync_response(&mut self, sync: SyncId, answer: Option<&[u8]>) {
        if let Some(id) = self.sync_requests.remove(&sync) {
            self.on_sync_answer(id, answer);
        }
    }

    pub(super) fn on_sync_request(&mut self, bytes: &[u8], reply: Reply) {
        let now = self.clock.now();
        let answer = self.node.as_mut().and_then(|node| node.handle_request(now, bytes));
        // Without an answer the reply is dropped, which tells the asker.
        if let Some(answer) = answer {
            self.swarm.respond(reply, answer).ok();
        }
    }

    pub(super) fn on_gossip(&mut self, id: &GossipId, source: HostId, bytes: &[u8]) {
        let now = self.clock.now();
        let known = self.admission.gatekeeper.certificate(source).is_some();
        let verdict = match &mut self.node {
            // The author's certificate may stand in this very message.
            Some(node) => match node.handle_gossip(now, bytes) {
                GossipVerdict::Accept => Verdict::Accept,
                GossipVerdict::Ignore => Verdict::Ignore,
                GossipVerdict::Reject if known => Verdict::Reject,
                GossipVerdict::Reject => Verdict::Ignore,
            },
            None => Verdict::Ignore,
        };
        self.swarm.judge(id, verdict);
    }

    fn on_change(&mut self, change: Change) {
        let me = self.me();
        match change {
            Change::Put(host, _)
            | Change::Gone(host, _)
            | Change::Alive(host)
            | Change::Silent(host)
            | Change::Restarted(host)
            | Change::Left(host)
                if host == me =>
            {
                self.on_own_change(change);
            }
            Change::Put(host, key) => self.on_put(host, key),
            Change::Gone(host, key) => self.on_gone(host, key),
            Change::Alive(host) => {
                self.plane.switch(move |switch, _| switch.handle_alive(host));
                self.events.emit(EventKind::HostAppeared { host: Text(host), name: self.name_of(host) });
            }
            Change::Silent(host) => {
                self.plane.switch(move |switch, now| switch.handle_lapsed(now, host));
                self.events.emit(EventKind::HostSuspected { host: Text(host), name: self.name_of(host) });
            }
            Change::Restarted(host) => self.plane.switch(move |switch, now| switch.handle_gone(now, host)),
            Change::Left(host) => {
                self.plane.switch(move |switch, now| {
                    switch.handle_lapsed(now, host);
                    switch.handle_gone(now, host);
                });
                self.plane.forget(host);
                self.update_participants();
                self.events.emit(EventKind::HostGone { host: Text(host), name: self.name_of(host) });
            }
        }
    }

    /// Tells the engine what limits the links to all known hosts.
    pub(super) fn limit_links(&mut self) {
        for (host, row) in self.node.iter().flat_map(|node| node.table().hosts()) {
            self.plane.limit_link(host, self.config.links.of(host, &row.certificate.name));
        }
    }

    fn on_own_change(&mut self, change: Change) {
        if let Change::Put(_, Key::Host) = change {
            self.update_participants();
        }
    }

    pub(super) fn on_put(&mut self, host: HostId, key: Key) {
        let Some(body) =
            self.node.as_ref().and_then(|node| node.table().get(host, key)).and_then(|row| row.body.clone())
        else {
            return;
        };
        match body {
            Body::Host(row) => {
                if let Err(error) = self.admit(host, &row.certificate) {
                    return tracing::debug!(%host, "Refused a host: {error}");
                }
                self.plane.set_addresses(host, udp_addresses(&row).collect());
                self.plane.limit_link(host, self.config.links.of(host, &row.certificate.name));
                let addresses = row.addresses.iter().filter_map(|text| text.parse().ok()).collect();
                self.swarm.add_member_addresses(host, addresses);
                self.update_participants();
            }
            Body::Claim(claim) if self.networks.is_attached(claim.network) => {
                self.review_own_address(&claim);
                self.plane.switch(move |switch, now| switch.handle_claim(now, claim));
            }
            Body::Certificate(certificate) => self.offer(&certificate),
            Body::Pending(row) => {
                self.events.emit(EventKind::HostPending { host: Text(row.host), name: row.name });
            }
            Body::Vm(row) => {
                self.vm_changes.send_modify(|count| *count += 1);
                self.review_own_addresses(&row);
            }
            Body::Network(row) => self.refresh_network(row.id),
            Body::Claim(_) | Body::Image(_) | Body::Beat(_) => {}
        }
    }

    fn on_gone(&mut self, host: HostId, key: Key) {
        if let Key::Claim(network, mac) = key {
            self.plane.switch(move |switch, now| switch.handle_released(now, network, mac, host, Epoch(u64::MAX)));
        }
    }

    /// Tells the switch which hosts have ports in the networks that are attached here.
    pub(super) fn update_participants(&mut self) {
        let Some(node) = &self.node else { return };
        for network in self.networks.attached().collect::<Vec<NetworkId>>() {
            let hosts = node.table().hosts().filter(|(_, row)| row.networks.contains(&network));
            let hosts: Vec<HostId> = hosts.map(|(host, _)| host).collect();
            if self.networks.participants_changed(network, &hosts) {
                self.plane.switch(move |switch, _| switch.set_participants(network, &hosts));
            }
        }
    }

    /// The name of a host, or the end of its id.
    pub(crate) fn name_of(&self, host: HostId) -> String {
        let own = self.admission.credentials.certificate.as_ref().filter(|_| host == self.me());
        if let Some(certificate) = own {
            return certificate.name.clone();
        }
        let certificate = self.admission.gatekeeper.certificate(host);
        certificate.map_or_else(|| host.to_string(), |certificate| certificate.name)
    }
}

/// Where a member's data plane is: the UDP ports of its QUIC addresses.
pub(super) fn udp_addresses(row: &HostRow) -> impl Iterator<Item = SocketAddr> {
    row.addresses.iter().filter_map(|text| udp_address(&text.parse().ok()?))
}

fn udp_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match (parts.next()?, parts.next()?) {
        (Protocol::Udp(port), Protocol::QuicV1) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}
