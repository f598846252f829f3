//! What a few nodes do together.

use super::*;
use crate::claims::Claim;
use crate::crypto::testing::Toy;
use crate::ids::{Digest, Epoch};
use crate::limits::LEASE_REFRESHES;
use crate::membership::{Certificate, CertificateRequest, Roles};
use crate::table::{HostRow, ImageRow, Resources};
use crate::time::UnixTime;

const AUTHORITY: u8 = 99;

/// Nodes whose gossip and requests arrive at once.
struct Pool {
    nodes: Vec<Node>,
    now: Now,
    /// Changes that each node has told of.
    changes: Vec<Vec<Change>>,
    /// Nobody hears anybody.
    cut: bool,
}

impl Pool {
    fn new(count: u8) -> Self {
        let now = Now { mono: Instant(1_000_000), wall: UnixTime(1_000) };
        let mut pool = Self { nodes: vec![], now, changes: vec![vec![]; count.into()], cut: false };
        for key in 0..count {
            pool.nodes.push(start(key, 1, now));
        }
        pool
    }

    fn connect_all(&mut self) {
        let ids: Vec<HostId> = self.nodes.iter().map(Node::me).collect();
        for node in &mut self.nodes {
            for id in &ids {
                if *id != node.me() {
                    node.handle_peer(*id, true);
                }
            }
        }
        self.settle();
    }

    fn settle(&mut self) {
        for from in (0..self.nodes.len()).cycle().take(self.nodes.len() * 20) {
            while let Some(effect) = self.nodes[from].poll_effect() {
                self.carry_out(from, effect);
            }
        }
    }

    fn carry_out(&mut self, from: usize, effect: NodeEffect) {
        let now = self.now;
        match effect {
            NodeEffect::Changed(change) => self.changes[from].push(change),
            NodeEffect::Gossip(bytes) if !self.cut => {
                for (to, node) in self.nodes.iter_mut().enumerate() {
                    if to != from {
                        assert_ne!(node.handle_gossip(now, &bytes), GossipVerdict::Reject);
                    }
                }
            }
            NodeEffect::Request { id, to, bytes } => {
                let to = self.nodes.iter().position(|node| node.me() == to);
                let answer = to.filter(|_| !self.cut).and_then(|to| self.nodes[to].handle_request(now, &bytes));
                self.nodes[from].handle_response(now, id, answer.as_deref());
            }
            NodeEffect::Gossip(_) => {}
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now.mono + time;
        while self.now.mono < end {
            self.now.mono = self.now.mono + Duration::from_millis(500);
            for node in &mut self.nodes {
                node.handle_timeout(self.now);
            }
            self.settle();
        }
    }

    fn put(&mut self, node: usize, body: Body) {
        let now = self.now;
        self.nodes[node].put(now, body);
        self.settle();
    }

    fn roots(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.table().root()).collect()
    }

    fn assert_equal(&self) {
        let roots = self.roots();
        assert!(roots.iter().all(|root| *root == roots[0]), "{roots:?}");
    }
}

fn start(key: u8, incarnation: u64, now: Now) -> Node {
    let config = NodeConfig {
        swarm: SwarmId([AUTHORITY; 32]),
        signer: Arc::new(Toy(key)),
        verifier: Arc::new(Toy(0)),
        incarnation,
        seed: key.into(),
    };
    let mut node = Node::new(config, now);
    node.put(now, host(key));
    node
}

fn host(key: u8) -> Body {
    let request = CertificateRequest {
        host: Toy(key).host(),
        name: format!("host-{key}"),
        roles: Roles::default(),
        issued: UnixTime(0),
        expires: UnixTime(1_000_000),
        serial: key.into(),
    };
    Body::Host(Box::new(HostRow {
        certificate: Certificate::issue(&Toy(AUTHORITY), request),
        addresses: vec![],
        resources: Resources { vcpus_total: 4, vcpus_free: 4, ..Resources::default() },
        labels: vec![],
        networks: vec![],
        draining: false,
        version: "0".into(),
        refresh_s: 1,
    }))
}

fn image(n: u8) -> Body {
    Body::Image(ImageRow { digest: Digest([n; 32]), name: format!("image-{n}"), size_bytes: 1, complete: true })
}

#[test]
fn peers_that_meet_become_equal() {
    let mut pool = Pool::new(3);
    pool.cut = true;
    pool.settle();
    for n in 0..100 {
        pool.put(usize::from(n % 3), image(n));
    }
    pool.cut = false;
    pool.connect_all();
    pool.assert_equal();
    assert_eq!(pool.nodes[0].table().rows().count(), 103);
    assert_eq!(pool.nodes[2].table().image_providers("image-7").len(), 1);
}

#[test]
fn a_late_joiner_pulls_thousands_of_rows() {
    let mut pool = Pool::new(3);
    pool.cut = true;
    for writer in 0..2 {
        for n in 0..4_000u32 {
            let mut digest = [writer; 32];
            digest[..4].copy_from_slice(&n.to_be_bytes());
            let row = ImageRow { digest: Digest(digest), name: "many".into(), size_bytes: n.into(), complete: true };
            let now = pool.now;
            pool.nodes[usize::from(writer)].put(now, Body::Image(row));
        }
    }
    pool.settle();
    pool.cut = false;
    pool.connect_all();
    pool.pass(Duration::from_secs(30));
    pool.assert_equal();
    let beats = pool.nodes[2].table().rows().filter(|row| row.key == Key::Beat).count();
    assert_eq!(pool.nodes[2].table().rows().count() - beats, 8_003);
}

#[test]
fn what_is_taken_back_stays_gone() {
    let mut pool = Pool::new(2);
    pool.connect_all();
    pool.put(0, image(1));
    let now = pool.now;
    pool.nodes[0].take_back(now, image(1).key());
    pool.settle();
    assert!(pool.nodes[1].table().image_providers("image-1").is_empty());
    assert!(pool.changes[1].contains(&Change::Gone(Toy(0).host(), image(1).key())));
    pool.pass(Duration::from_secs(30));
    pool.assert_equal();
}

#[test]
fn silent_hosts_are_suspected_and_then_removed() {
    let mut pool = Pool::new(3);
    pool.connect_all();
    pool.put(2, image(1));
    pool.nodes.pop();
    let dead = Toy(2).host();
    pool.pass(REFRESH_INTERVAL_MIN * 4);
    assert!(pool.changes[0].contains(&Change::Silent(dead)), "{:?}", pool.changes[0]);
    assert!(!pool.changes[0].contains(&Change::Left(dead)));
    pool.pass(REFRESH_INTERVAL_MIN * 8);
    assert!(pool.changes[0].contains(&Change::Left(dead)));
    assert!(pool.changes[0].contains(&Change::Gone(dead, image(1).key())));
    pool.pass(REFRESH_INTERVAL_MIN * 8);
    pool.assert_equal();
    assert_eq!(pool.nodes[0].table().host_count(), 2);
}

#[test]
fn goodbye_takes_everything_along() {
    let mut pool = Pool::new(2);
    pool.connect_all();
    pool.put(1, image(1));
    let now = pool.now;
    pool.nodes[1].take_back(now, Key::Host);
    pool.settle();
    assert_eq!(pool.nodes[0].table().hosts().count(), 1);
    assert!(pool.nodes[0].table().image_providers("image-1").is_empty());
    assert!(pool.changes[0].contains(&Change::Left(Toy(1).host())));
}

#[test]
fn a_restart_voids_what_was_said_before() {
    let mut pool = Pool::new(2);
    pool.connect_all();
    pool.put(1, image(1));
    pool.nodes[1] = start(1, 2, pool.now);
    pool.connect_all();
    assert!(pool.nodes[0].table().image_providers("image-1").is_empty());
    pool.put(1, image(2));
    assert_eq!(pool.nodes[0].table().image_providers("image-2"), [Toy(1).host()]);
}

#[test]
fn a_host_whose_counter_went_back_outruns_itself() {
    let mut pool = Pool::new(2);
    pool.connect_all();
    pool.put(1, image(1));
    pool.nodes[1] = start(1, 0, pool.now);
    pool.nodes[0].handle_peer(Toy(1).host(), false);
    pool.connect_all();
    pool.put(1, image(2));
    pool.pass(Duration::from_secs(30));
    assert_eq!(pool.nodes[0].table().image_providers("image-2"), [Toy(1).host()]);
    pool.assert_equal();
}

#[test]
fn strangers_and_forgers_write_nothing() {
    let mut pool = Pool::new(2);
    pool.connect_all();
    let now = pool.now;
    let stranger = Row::sign(SwarmId([AUTHORITY; 32]), &Toy(50), image(1).key(), Version::default(), Some(image(1)));
    let bytes = Gossip { rows: vec![stranger] }.encode();
    pool.nodes[0].handle_gossip(now, &bytes);
    assert!(pool.nodes[0].table().image_providers("image-1").is_empty());

    let mut forged = Row::sign(
        SwarmId([AUTHORITY; 32]),
        &Toy(50),
        image(1).key(),
        Version { incarnation: 9, seq: 9 },
        Some(image(1)),
    );
    forged.writer = Toy(1).host();
    let bytes = Gossip { rows: vec![forged] }.encode();
    assert_eq!(pool.nodes[0].handle_gossip(now, &bytes), GossipVerdict::Reject);
    assert_eq!(pool.nodes[0].handle_gossip(now, b"junk"), GossipVerdict::Reject);
    let claim = Body::Claim(Claim::first(NetworkId(1), Mac([2; 6]), Toy(1).host(), Epoch(1)));
    assert!(!claim.is_well_formed(Toy(0).host()));
}

#[test]
fn a_forged_row_in_our_name_changes_nothing() {
    let mut pool = Pool::new(1);
    let now = pool.now;
    let version = Version { incarnation: u64::MAX, seq: u64::MAX };
    let mut forged = Row::sign(SwarmId([AUTHORITY; 32]), &Toy(50), Key::Host, version, None);
    forged.writer = Toy(0).host();
    let bytes = Gossip { rows: vec![forged] }.encode();
    assert_eq!(pool.nodes[0].handle_gossip(now, &bytes), GossipVerdict::Reject);
    assert_eq!(pool.nodes[0].version.incarnation, 1);
}

fn claim(key: u8) -> Body {
    Body::Claim(Claim::first(NetworkId(1), Mac([2; 6]), Toy(key).host(), Epoch(1)))
}

#[test]
fn a_rival_claim_is_told_again_when_the_other_one_is_gone() {
    let mut pool = Pool::new(3);
    pool.connect_all();
    pool.put(0, claim(0));
    pool.put(1, claim(1));
    pool.changes[2].clear();
    let now = pool.now;
    pool.nodes[0].take_back(now, claim(0).key());
    pool.settle();
    let (gone, told) = (Change::Gone(Toy(0).host(), claim(0).key()), Change::Put(Toy(1).host(), claim(1).key()));
    assert_eq!(pool.changes[2], [gone, told]);
}

#[test]
fn contested_claims_are_told_until_one_is_left() {
    let mut pool = Pool::new(3);
    pool.connect_all();
    pool.put(0, claim(0));
    pool.put(1, claim(1));
    pool.changes[2].clear();
    pool.pass(Duration::from_secs(5));
    assert!(pool.changes[2].contains(&Change::Put(Toy(0).host(), claim(0).key())));
    assert!(pool.changes[2].contains(&Change::Put(Toy(1).host(), claim(1).key())));
    let now = pool.now;
    pool.nodes[0].take_back(now, claim(0).key());
    pool.settle();
    pool.pass(Duration::from_secs(3));
    pool.changes[2].clear();
    pool.pass(Duration::from_secs(3));
    assert_eq!(pool.changes[2], []);
}

#[test]
fn what_is_put_and_taken_back_at_once_is_told_to_be_gone() {
    let mut pool = Pool::new(2);
    pool.connect_all();
    let now = pool.now;
    pool.nodes[0].put(now, claim(0));
    pool.nodes[0].take_back(now, claim(0).key());
    // Only the last version arrives.
    while pool.nodes[0].poll_effect().is_some() {}
    pool.nodes[0].compare(Toy(1).host());
    pool.settle();
    assert!(pool.changes[1].contains(&Change::Gone(Toy(0).host(), claim(0).key())));
}

#[test]
fn a_restart_is_told_before_what_the_new_life_says() {
    let mut pool = Pool::new(2);
    pool.connect_all();
    let now = pool.now;
    pool.nodes[1] = start(1, 2, now);
    pool.nodes[1].put(now, claim(1));
    pool.connect_all();
    let restarted = pool.changes[0].iter().position(|change| *change == Change::Restarted(Toy(1).host()));
    let told = pool.changes[0].iter().rposition(|change| *change == Change::Put(Toy(1).host(), claim(1).key()));
    assert!(restarted.is_some() && restarted < told, "{:?}", pool.changes[0]);
}

#[test]
fn refreshes_grow_with_the_swarm() {
    assert_eq!(refresh_interval(3), Duration::from_secs(5));
    assert_eq!(refresh_interval(1_000), Duration::from_secs(50));
    assert_eq!(refresh_interval(10_000), Duration::from_secs(300));
}

#[test]
fn beats_keep_leases_and_are_small() {
    let mut pool = Pool::new(3);
    pool.connect_all();
    let other = pool.nodes[1].me();
    let written = |pool: &Pool, key| pool.nodes[0].table().get(other, key).map(|row| row.version);
    pool.pass(REFRESH_INTERVAL_MIN * (HOST_ROWS_AT_FIRST + 1));
    let (mut rows, mut beats) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..20 * GONE_AFTER_REFRESHES {
        pool.pass(REFRESH_INTERVAL_MIN);
        rows.extend(written(&pool, Key::Host));
        beats.extend(written(&pool, Key::Beat));
    }
    assert!(rows.len() > 1, "now and then the host row comes along");
    assert!(beats.len() > 5 * rows.len(), "{} beats, {} rows", beats.len(), rows.len());
    assert!(!pool.changes[0].iter().any(|change| matches!(change, Change::Silent(_) | Change::Left(_))));
    let bytes = |key| codec::encode(pool.nodes[0].table().get(other, key).unwrap()).len();
    assert!(bytes(Key::Beat) < 128 && bytes(Key::Beat) * 2 < bytes(Key::Host), "{} bytes", bytes(Key::Beat));
}

#[test]
fn a_silent_host_is_there_again_with_its_next_beat() {
    let mut pool = Pool::new(2);
    pool.connect_all();
    let other = pool.nodes[1].me();
    pool.cut = true;
    pool.pass(REFRESH_INTERVAL_MIN * (LEASE_REFRESHES + 2));
    assert!(pool.changes[0].contains(&Change::Silent(other)));
    pool.cut = false;
    pool.changes[0].clear();
    pool.pass(REFRESH_INTERVAL_MIN);
    assert!(pool.changes[0].contains(&Change::Alive(other)), "{:?}", pool.changes[0]);
}
