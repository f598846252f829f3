//! The members that were met, remembered over restarts as JSON. Reading and writing the file is the caller's.

use super::address::is_dialable;
use super::connections::ADDRESSES_MAX;
use anyhow::Context;
use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use virtuoso_overlay::ids::HostId;
use virtuoso_overlay::time::UnixTime;

/// Any of so many reaches the swarm again, unless all of it has moved.
pub const PEERS_MAX: usize = 256;
const VERSION: u32 = 1;

/// Members and where they were reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownPeers {
    peers: BTreeMap<HostId, Peer>,
    changed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Peer {
    addresses: Vec<Multiaddr>,
    last_success: UnixTime,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileForm {
    version: u32,
    peers: Vec<PeerForm>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerForm {
    id: String,
    addresses: Vec<String>,
    last_success: u64,
}

impl KnownPeers {
    /// Reads the file's content. An error says what is wrong with it; the caller knows the file's name.
    pub fn parse(content: &[u8]) -> anyhow::Result<Self> {
        let file: FileForm = serde_json::from_slice(content).context("Not a list of known peers")?;
        anyhow::ensure!(
            file.version == VERSION,
            "Unknown version {} of the list of known peers: this agent reads version {VERSION}",
            file.version
        );
        let mut known = Self::default();
        for peer in file.peers.into_iter().take(PEERS_MAX) {
            let id: HostId = peer.id.parse().with_context(|| format!("Bad peer id {:?}", peer.id))?;
            let mut addresses = Vec::new();
            for text in peer.addresses.iter().take(ADDRESSES_MAX) {
                addresses.push(text.parse().with_context(|| format!("Bad address {text:?} of peer {id}"))?);
            }
            known.peers.insert(id, Peer { addresses, last_success: UnixTime(peer.last_success) });
        }
        Ok(known)
    }

    /// Whether nobody was ever met.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// The file's content if it differs from what was last rendered.
    pub fn render_if_changed(&mut self) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let form = |(id, peer): (&HostId, &Peer)| PeerForm {
            id: id.to_string(),
            addresses: peer.addresses.iter().map(Multiaddr::to_string).collect(),
            last_success: peer.last_success.0,
        };
        let file = FileForm { version: VERSION, peers: self.peers.iter().map(form).collect() };
        Some(serde_json::to_vec_pretty(&file).expect("strings and numbers always serialise"))
    }

    /// A member is connected: these addresses are good, best first. The one met longest ago gives way.
    pub fn met(&mut self, host: HostId, addresses: impl IntoIterator<Item = Multiaddr>, now: UnixTime) {
        let addresses: Vec<_> = addresses.into_iter().filter(is_dialable).take(ADDRESSES_MAX).collect();
        if addresses.is_empty() {
            return;
        }
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&host) {
            let oldest = self.peers.iter().min_by_key(|(_, peer)| peer.last_success).map(|(host, _)| *host);
            oldest.and_then(|host| self.peers.remove(&host));
        }
        self.peers.insert(host, Peer { addresses, last_success: now });
        self.changed = true;
    }

    /// A host is no member any more.
    pub fn forget(&mut self, host: &HostId) {
        self.changed |= self.peers.remove(host).is_some();
    }

    /// Where to begin, most recent first.
    pub fn latest(&self) -> impl Iterator<Item = (HostId, &[Multiaddr])> {
        let mut peers: Vec<_> = self.peers.iter().collect();
        peers.sort_by_key(|(_, peer)| std::cmp::Reverse(peer.last_success));
        peers.into_iter().map(|(host, peer)| (*host, peer.addresses.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> Multiaddr {
        format!("/ip4/10.0.{}.{}/udp/4747/quic-v1", n / 256, n % 256).parse().unwrap()
    }

    fn host(n: usize) -> HostId {
        let mut id = [1; 32];
        id[..8].copy_from_slice(&n.to_be_bytes());
        HostId(id)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut known = KnownPeers::default();
        assert_eq!(known.render_if_changed(), None);
        known.met(host(1), [address(1), "/ip4/0.0.0.0/tcp/0".parse().unwrap()], UnixTime(5));
        known.met(host(2), [address(2)], UnixTime(6));
        let content = known.render_if_changed().unwrap();
        assert_eq!(known.render_if_changed(), None);
        let read = KnownPeers::parse(&content).unwrap();
        assert_eq!(read, known);
        assert_eq!(read.latest().map(|(host, _)| host).collect::<Vec<_>>(), [host(2), host(1)]);
    }

    #[test]
    fn only_the_latest_are_kept() {
        let mut known = KnownPeers::default();
        for n in 0..PEERS_MAX + 10 {
            known.met(host(n), [address(n)], UnixTime(n as u64));
        }
        assert_eq!(known.latest().count(), PEERS_MAX);
        assert_eq!(known.latest().last().unwrap().0, host(10));
        known.forget(&host(10));
        assert_eq!(known.latest().count(), PEERS_MAX - 1);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_says_what() {
        for (content, says) in [
            ("", "Not a list of known peers"),
            ("{\"version\":1,\"peers\":[", "Not a list of known peers"),
            ("{\"version\":9,\"peers\":[]}", "version 9"),
            ("{\"version\":1,\"peers\":[{\"id\":\"x\",\"addresses\":[],\"last_success\":1}]}", "Bad peer id \"x\""),
        ] {
            let error = format!("{:#}", KnownPeers::parse(content.as_bytes()).unwrap_err());
            assert!(error.contains(says), "{content}: {error}");
        }
    }
}
