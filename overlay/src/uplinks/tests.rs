//! Elections among a few hosts on LANs that lose beacons, part and heal.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

fn host(n: u8) -> HostId {
    HostId([n; 32])
}

fn effects(election: &mut Election) -> Vec<UplinkEffect> {
    std::iter::from_fn(|| election.poll_effect()).collect()
}

/// Hosts with an uplink each. Beacons take no time.
struct Lan {
    now: Instant,
    hosts: Vec<Option<Election>>,
    /// The part of the LAN that each is on.
    parts: Vec<u8>,
    /// Whether frames pass, as the effects said.
    open: Vec<bool>,
    elected: Vec<Option<HostId>>,
    /// How often each was told to let frames pass.
    opened: Vec<usize>,
    /// When two were open on one part at once.
    doubles: Vec<Instant>,
    lossy: u64,
}

impl Lan {
    fn new(count: usize) -> Self {
        Self {
            now: Instant(1_000_000),
            hosts: (0..count).map(|_| None).collect(),
            parts: vec![0; count],
            open: vec![false; count],
            elected: vec![None; count],
            opened: vec![0; count],
            doubles: Vec::new(),
            lossy: 0,
        }
    }

    fn start(&mut self, n: usize) {
        self.hosts[n] = Some(Election::new(self.now, host(u8::try_from(n).unwrap())));
        self.open[n] = false;
    }

    fn kill(&mut self, n: usize) {
        self.hosts[n] = None;
        self.open[n] = false;
    }

    fn leave(&mut self, n: usize) {
        self.kill(n);
        self.hear(n, Standing::Leaving);
    }

    fn hear(&mut self, from: usize, standing: Standing) {
        for to in 0..self.hosts.len() {
            // One of five is lost.
            self.lossy = if self.lossy == 0 { 0 } else { self.lossy.wrapping_mul(6_364_136_223_846_793_005) + 1 };
            let lost = self.lossy != 0 && (self.lossy >> 33).is_multiple_of(5);
            let (now, same) = (self.now, self.parts[from] == self.parts[to]);
            if let Some(election) = self.hosts[to].as_mut().filter(|_| same && to != from && !lost) {
                election.handle_beacon(now, host(u8::try_from(from).unwrap()), standing);
            }
        }
    }

    fn settle(&mut self) {
        let mut progress = true;
        while progress {
            progress = false;
            for n in 0..self.hosts.len() {
                while let Some(effect) = self.hosts[n].as_mut().and_then(Election::poll_effect) {
                    progress = true;
                    match effect {
                        UplinkEffect::Open => {
                            self.open[n] = true;
                            self.opened[n] += 1;
                        }
                        UplinkEffect::Close => self.open[n] = false,
                        UplinkEffect::Beacon(standing) => self.hear(n, standing),
                        UplinkEffect::Changed { elected, .. } => self.elected[n] = elected,
                    }
                    self.check();
                }
            }
        }
    }

    fn check(&mut self) {
        let mut parts: Vec<u8> = (0..self.hosts.len()).filter(|n| self.open[*n]).map(|n| self.parts[n]).collect();
        let open = parts.len();
        parts.sort_unstable();
        parts.dedup();
        if parts.len() < open {
            self.doubles.push(self.now);
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        while let Some(at) =
            self.hosts.iter().flatten().filter_map(Election::poll_timeout).min().filter(|at| *at <= end)
        {
            self.now = self.now.max(at);
            for n in 0..self.hosts.len() {
                let now = self.now;
                if let Some(election) = self.hosts[n].as_mut().filter(|e| e.poll_timeout().is_some_and(|t| t <= now)) {
                    election.handle_timeout(now);
                }
                self.settle();
            }
        }
        self.now = end;
    }

    fn active(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|n| self.open[*n]).collect()
    }
}

const LONG: Duration = Duration::from_secs(10);

#[test]
fn alone_it_listens_and_then_joins() {
    let mut lan = Lan::new(1);
    lan.start(0);
    lan.pass(UPLINK_LISTEN_TIME - Duration::from_millis(1));
    assert_eq!(lan.active(), [] as [usize; 0]);
    lan.pass(Duration::from_millis(1));
    assert_eq!((lan.active(), lan.elected[0]), (vec![0], Some(host(0))));
}

#[test]
fn the_smallest_of_those_that_start_together_is_elected() {
    let mut lan = Lan::new(3);
    [2, 1, 0].into_iter().for_each(|n| lan.start(n));
    lan.pass(LONG);
    assert_eq!((lan.active(), lan.doubles.len()), (vec![0], 0));
    assert_eq!(lan.elected, [Some(host(0)); 3]);
}

#[test]
fn a_smaller_one_takes_over_without_a_gap_or_a_loop() {
    let mut lan = Lan::new(2);
    lan.start(1);
    lan.pass(LONG);
    lan.start(0);
    lan.pass(UPLINK_LISTEN_TIME - Duration::from_millis(1));
    assert_eq!(lan.active(), [1], "while the other listens");
    lan.pass(Duration::from_millis(1));
    assert_eq!((lan.active(), lan.doubles.len()), (vec![0], 0));
}

#[test]
fn the_next_takes_over_from_one_that_dies_or_leaves() {
    let mut lan = Lan::new(3);
    [0, 1, 2].into_iter().for_each(|n| lan.start(n));
    lan.pass(LONG);
    lan.kill(0);
    lan.pass(UPLINK_SILENT_TIME);
    assert_eq!(lan.active(), [1]);
    lan.leave(1);
    lan.pass(Duration::ZERO);
    assert_eq!((lan.active(), lan.doubles.len()), (vec![2], 0), "at once");
}

#[test]
fn uplinks_to_different_lans_do_not_know_of_each_other() {
    let mut lan = Lan::new(3);
    lan.parts = vec![0, 1, 1];
    [0, 1, 2].into_iter().for_each(|n| lan.start(n));
    lan.pass(LONG);
    assert_eq!((lan.active(), &lan.elected[..]), (vec![0, 1], &[Some(host(0)), Some(host(1)), Some(host(1))][..]));
}

#[test]
fn a_lan_that_heals_has_two_only_until_the_first_beacon() {
    let mut lan = Lan::new(2);
    lan.parts = vec![0, 1];
    [0, 1].into_iter().for_each(|n| lan.start(n));
    lan.pass(LONG);
    assert_eq!(lan.active(), [0, 1]);
    lan.parts = vec![0, 0];
    lan.pass(BEACON_INTERVAL);
    assert_eq!(lan.active(), [0]);
    assert_eq!(lan.opened, [2, 1], "the one that stays shows the LAN again where everybody is");
    lan.pass(LONG);
    assert_eq!(lan.opened, [2, 1]);
}

#[test]
fn without_a_carrier_everything_passes_and_with_one_again_it_listens_first() {
    let mut election = Election::new(Instant(0), host(5));
    election.handle_timeout(Instant(0));
    election.handle_lan(Instant(1), false);
    let alone = UplinkEffect::Changed { open: true, elected: None };
    assert_eq!(effects(&mut election), [UplinkEffect::Beacon(Standing::Listening), UplinkEffect::Open, alone]);
    assert!(election.is_open() && election.poll_timeout().is_none());
    election.handle_beacon(Instant(2), host(1), Standing::Active);
    assert_eq!(effects(&mut election), []);
    election.handle_lan(Instant(3), true);
    let closed = UplinkEffect::Changed { open: false, elected: None };
    assert_eq!(effects(&mut election), [UplinkEffect::Close, UplinkEffect::Beacon(Standing::Listening), closed]);
}

#[test]
fn a_lan_full_of_hosts_is_bounded_and_the_smallest_decide() {
    let mut election = Election::new(Instant(0), host(7));
    for n in 0..=255u8 {
        for m in 0..8 {
            let mut id = [n; 32];
            id[31] = m;
            election.handle_beacon(Instant(1), HostId(id), Standing::Standby);
        }
    }
    assert_eq!((election.heard.len(), election.met().count()), (UPLINK_HOSTS_MAX, UPLINK_HOSTS_MAX));
    election.handle_timeout(Instant(0) + UPLINK_LISTEN_TIME / 2);
    assert!(election.heard.contains_key(&HostId([0; 32])));
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Start(usize),
    Kill(usize),
    Leave(usize),
}

fn fate() -> impl Strategy<Value = (Fate, u16)> {
    let fate =
        (0usize..4).prop_flat_map(|n| prop_oneof![Just(Fate::Start(n)), Just(Fate::Kill(n)), Just(Fate::Leave(n))]);
    (fate, 0u16..6_000)
}

proptest! {
    #[test]
    fn never_two_and_in_the_end_one(fates in prop::collection::vec(fate(), 1..20)) {
        let mut lan = Lan::new(4);
        for (fate, wait) in fates {
            match fate {
                Fate::Start(n) => lan.start(n),
                Fate::Kill(n) => lan.kill(n),
                Fate::Leave(n) => lan.leave(n),
            }
            lan.pass(Duration::from_millis(wait.into()));
        }
        prop_assert_eq!(&lan.doubles, &[]);
        lan.pass(LONG);
        let there: Vec<usize> = (0..4).filter(|n| lan.hosts[*n].is_some()).take(1).collect();
        prop_assert_eq!(lan.active(), there);
        prop_assert_eq!(&lan.doubles, &[]);
    }

    #[test]
    fn lost_beacons_change_nothing_for_long(seed in 1u64.., count in 2usize..5) {
        let mut lan = Lan::new(count);
        lan.lossy = seed;
        (0..count).for_each(|n| lan.start(n));
        lan.pass(Duration::from_secs(60));
        lan.lossy = 0;
        lan.pass(LONG);
        prop_assert_eq!(lan.active(), vec![0]);
    }

    #[test]
    fn any_beacons_are_taken(beacons in prop::collection::vec((any::<u8>(), 0usize..4, 0u32..5_000_000), 0..200)) {
        let mut election = Election::new(Instant(0), host(100));
        let mut now = Instant(0);
        for (from, standing, wait) in beacons {
            now = now + Duration::from_micros(wait.into());
            let standing = [Standing::Listening, Standing::Standby, Standing::Active, Standing::Leaving][standing];
            election.handle_beacon(now, host(from), standing);
            if election.poll_timeout().is_some_and(|at| at <= now) {
                election.handle_timeout(now);
            }
            prop_assert!(election.poll_timeout().is_some_and(|at| at > now));
            prop_assert!(election.heard.len() <= UPLINK_HOSTS_MAX);
            effects(&mut election);
        }
    }
}
