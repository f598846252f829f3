//! What the swarm tells the core.

use super::{Core, SwarmEvent};
use crate::events::EventKind;
use crate::text::Text;

impl Core {
    pub(super) fn on_swarm_event(&mut self, event: SwarmEvent) {
        match event {
            SwarmEvent::PeerConnected { host, address, .. } => {
                let address = address.to_string();
                self.events.emit(EventKind::PeerConnected { host: Text(host), address: address.clone() });
                self.introduce(host, address);
            }
            SwarmEvent::PeerDisconnected { host } => {
                self.forget_stranger(host);
                if let Some(node) = &mut self.node {
                    node.handle_peer(host, false);
                }
                self.events.emit(EventKind::PeerDisconnected { host: Text(host) });
            }
            SwarmEvent::MemberReady { host } => {
                if let Some(node) = &mut self.node {
                    node.handle_peer(host, true);
                }
            }
            SwarmEvent::Gossip { id, source, bytes } => self.on_gossip(&id, source, &bytes),
            SwarmEvent::AdmitRequest { host, bytes, reply } => self.on_admit_request(host, &bytes, reply),
            SwarmEvent::AdmitResponse { host, bytes, .. } => self.on_admit_answer(host, &bytes),
            SwarmEvent::AdmitFailed { host, error, .. } => {
                tracing::debug!(%host, error, "No answer to our introduction");
            }
            SwarmEvent::SyncRequest { bytes, reply, .. } => self.on_sync_request(&bytes, reply),
            SwarmEvent::SyncResponse { id, bytes, .. } => self.on_sync_response(id, Some(&bytes)),
            SwarmEvent::SyncFailed { host, id, error } => {
                tracing::debug!(%host, error, "No answer to a comparison of tables");
                self.on_sync_response(id, None);
            }
            SwarmEvent::ListenAddress(address) => {
                tracing::info!(%address, "Listening");
                self.publish_host_row();
                if let Some(waiting) = self.first_ticket.take() {
                    self.send_first_ticket(waiting);
                }
            }
            SwarmEvent::ListenAddressGone(address) => {
                tracing::info!(%address, "No longer listening");
                self.publish_host_row();
            }
            SwarmEvent::Discovered { host, addresses } => {
                // Who is no member of this swarm is left alone: two swarms may share a LAN.
                if self.admission.gatekeeper.certificate(host).is_some() {
                    self.swarm.add_member_addresses(host, addresses);
                }
            }
            SwarmEvent::ExternalAddressCandidate(address) => tracing::debug!(%address, "Seen under this address"),
            SwarmEvent::ProvidersFound { image, hosts, last } => self.on_providers(image, &hosts, last),
        }
    }
}
