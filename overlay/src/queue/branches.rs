//! The queues of one link when some networks have a limit of their own on it. What they send waits in a branch, which
//! lets as much out as the network may send; all else is together in the trunk. Trunk and open branches take turns by
//! bytes. A branch that is closed delays nobody else.

use super::fq_codel::{FqCodel, Queued};
use crate::ids::NetworkId;
use crate::pace::Pace;
use crate::packet::Packet;
use crate::time::Instant;

/// Bytes that wait in a branch at most: what is limited needs less room than a link does.
pub const BRANCH_BYTES_MAX: usize = 512 << 10;

/// The queues of one link.
#[derive(Debug)]
pub struct Branches<P> {
    seed: u64,
    trunk: FqCodel<P>,
    /// Bytes that the trunk has sent, as turns count them.
    trunk_turn: u64,
    branches: Vec<Branch<P>>,
    /// The turn of the packet that left last.
    turn: u64,
    /// Packets that branches marked and cut which are gone.
    past: (u64, u64),
}

/// What waits of one network.
#[derive(Debug)]
struct Branch<P> {
    network: NetworkId,
    flows: FqCodel<P>,
    pace: Pace,
    turn: u64,
    /// Its network has no limit any more: it goes when it is empty.
    is_leaving: bool,
}

impl<P: Packet> Branches<P> {
    /// A trunk that holds `bytes_max` bytes. `seed` is the host's secret.
    pub fn new(seed: u64, bytes_max: usize) -> Self {
        let trunk = FqCodel::new(seed, bytes_max);
        Self { seed, trunk, trunk_turn: 0, branches: Vec::new(), turn: 0, past: (0, 0) }
    }

    /// What is not limited.
    pub fn trunk(&mut self) -> &mut FqCodel<P> {
        &mut self.trunk
    }

    /// Limits a network to `bits_per_s`; zero means that nothing holds it up at present.
    pub fn limit(&mut self, network: NetworkId, bits_per_s: u64) {
        match self.branches.iter_mut().find(|branch| branch.network == network) {
            Some(branch) => {
                branch.pace.set(bits_per_s);
                branch.is_leaving = false;
            }
            None => self.branches.push(Branch {
                network,
                flows: FqCodel::new(self.seed, BRANCH_BYTES_MAX),
                pace: Pace::new(bits_per_s),
                turn: 0,
                is_leaving: false,
            }),
        }
    }

    /// Ends the limit of a network. What waits goes out in order, and then what comes from now on.
    pub fn release(&mut self, network: NetworkId) {
        if let Some(branch) = self.branches.iter_mut().find(|branch| branch.network == network) {
            branch.pace.set(0);
            branch.is_leaving = true;
        }
        self.prune();
    }

    /// Whether a packet of `network` would be the next one: nothing waits, and the network has no limit. HOT PATH
    pub fn passes(&self, network: NetworkId) -> bool {
        self.trunk.is_empty() && self.branch(network).is_none()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.trunk.is_empty() && self.branches.iter().all(|branch| branch.flows.is_empty())
    }

    /// Whether something may leave now.
    pub fn is_ready(&self, now: Instant) -> bool {
        !self.trunk.is_empty() || self.branches.iter().any(|branch| branch.is_ready(now))
    }

    /// When the first branch opens that holds something back.
    pub fn opens_at(&self, now: Instant) -> Option<Instant> {
        let held = self.branches.iter().filter(|branch| !branch.flows.is_empty());
        held.filter_map(|branch| branch.pace.opens_at(now)).min()
    }

    /// Bytes and packets that wait before a new packet of `network`.
    pub fn backlog(&self, network: NetworkId) -> (usize, usize) {
        let flows = self.branch(network).map_or(&self.trunk, |branch| &branch.flows);
        (flows.bytes(), flows.len())
    }

    /// Packets that wait.
    pub fn len(&self) -> usize {
        self.all().map(FqCodel::len).sum()
    }

    /// Packets that were marked instead of dropped, since the beginning.
    pub fn marked(&self) -> u64 {
        self.past.0 + self.all().map(FqCodel::marked).sum::<u64>()
    }

    /// Super-frames that lost their last segment instead of being dropped, since the beginning.
    pub fn cut(&self) -> u64 {
        self.past.1 + self.all().map(FqCodel::cut).sum::<u64>()
    }

    /// Adds a packet; see [`FqCodel::push`]. HOT PATH
    pub fn push(&mut self, now: Instant, queued: Queued<P>, dropped: &mut impl FnMut(Queued<P>)) {
        let Queued { header, packet, .. } = queued;
        let branch = self.branches.iter_mut().find(|branch| branch.network == header.network);
        let flows = branch.map_or(&mut self.trunk, |branch| &mut branch.flows);
        flows.push(now, header, packet, dropped);
    }

    /// Takes the packet whose turn it is; see [`FqCodel::pop`]. HOT PATH
    pub fn pop(&mut self, now: Instant, dropped: &mut impl FnMut(Queued<P>)) -> Option<Queued<P>> {
        if self.branches.is_empty() {
            return self.trunk.pop(now, dropped);
        }
        loop {
            let turn = self.turn;
            let ready = self.branches.iter_mut().filter(|branch| branch.is_ready(now));
            let first = ready.min_by_key(|branch| branch.turn.max(turn));
            let trunk_turn = self.trunk_turn.max(turn);
            let (flows, place, pace) = match first {
                Some(branch) if self.trunk.is_empty() || branch.turn.max(turn) < trunk_turn => {
                    (&mut branch.flows, &mut branch.turn, Some(&mut branch.pace))
                }
                _ if self.trunk.is_empty() => return None,
                _ => (&mut self.trunk, &mut self.trunk_turn, None),
            };
            // CoDel may have taken all that waited there; then the next one has its turn.
            if let Some(queued) = flows.pop(now, dropped) {
                let bytes = queued.packet.as_ref().len();
                self.turn = turn.max(*place);
                *place = self.turn + bytes as u64;
                if let Some(pace) = pace {
                    pace.spend(now, bytes);
                }
                return Some(queued);
            }
        }
    }

    /// Hands everything that was queued before `time` to `dropped`.
    pub fn expire(&mut self, time: Instant, dropped: &mut impl FnMut(Queued<P>)) {
        self.trunk.expire(time, dropped);
        for branch in &mut self.branches {
            branch.flows.expire(time, dropped);
        }
        self.prune();
    }

    fn branch(&self, network: NetworkId) -> Option<&Branch<P>> {
        self.branches.iter().find(|branch| branch.network == network)
    }

    fn all(&self) -> impl Iterator<Item = &FqCodel<P>> {
        std::iter::once(&self.trunk).chain(self.branches.iter().map(|branch| &branch.flows))
    }

    /// Removes branches without a limit that are empty.
    fn prune(&mut self) {
        let Self { branches, past, .. } = self;
        branches.retain(|branch| {
            let stays = !branch.is_leaving || !branch.flows.is_empty();
            if !stays {
                *past = (past.0 + branch.flows.marked(), past.1 + branch.flows.cut());
            }
            stays
        });
    }
}

impl<P: Packet> Branch<P> {
    fn is_ready(&self, now: Instant) -> bool {
        !self.flows.is_empty() && self.pace.is_open(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{Flags, FrameHeader};
    use proptest::prelude::*;
    use std::time::Duration;

    const BYTES: usize = 1000;

    fn push(queues: &mut Branches<Vec<u8>>, now: Instant, network: u32, packets: usize) {
        let header = FrameHeader { network: NetworkId(network), hops: 1, flags: Flags::VNET };
        for number in 0..packets {
            let mut packet = vec![0; BYTES];
            packet[100] = number as u8;
            queues.push(now, Queued { header, packet, since: now }, &mut |_| panic!("nothing is dropped"));
        }
    }

    /// Takes `packets`, or all that may leave; how many they were of each of the networks 1, 2 and 3.
    fn pop(queues: &mut Branches<Vec<u8>>, now: Instant, packets: usize) -> [usize; 3] {
        let mut counts = [0; 3];
        for _ in 0..packets {
            let Some(queued) = queues.pop(now, &mut |_| {}) else { break };
            counts[queued.header.network.0 as usize - 1] += 1;
        }
        counts
    }

    #[test]
    fn a_limit_holds_up_its_network_and_no_other() {
        let mut queues = Branches::new(1, 1 << 20);
        // 1000 packets in a second.
        queues.limit(NetworkId(2), 8_000_000);
        let mut now = Instant(1_000_000);
        let mut counts = [0; 3];
        for _ in 0..100 {
            now = now + Duration::from_millis(1);
            push(&mut queues, now, 1, 5);
            let missing = 3 - queues.backlog(NetworkId(2)).1.min(3);
            push(&mut queues, now, 2, missing);
            for (sum, more) in counts.iter_mut().zip(pop(&mut queues, now, usize::MAX)) {
                *sum += more;
            }
        }
        assert_eq!(counts[0], 500);
        assert!((98..=104).contains(&counts[1]), "{counts:?}");
        assert!(!queues.is_ready(now) && !queues.is_empty());
        let opens = queues.opens_at(now).unwrap();
        assert!(opens > now && queues.is_ready(opens));
    }

    #[test]
    fn trunk_and_branches_take_turns() {
        let mut queues = Branches::new(1, 1 << 20);
        queues.limit(NetworkId(2), 0);
        queues.limit(NetworkId(3), 0);
        for network in 1..=3 {
            push(&mut queues, Instant(0), network, 100);
        }
        assert_eq!(pop(&mut queues, Instant(0), 90), [30; 3]);
        pop(&mut queues, Instant(0), usize::MAX);
        // Who was silent gets its turn from now on, not what it has missed.
        push(&mut queues, Instant(0), 1, 100);
        pop(&mut queues, Instant(0), 50);
        push(&mut queues, Instant(0), 2, 100);
        let [first, second, _] = pop(&mut queues, Instant(0), 40);
        assert!(first.abs_diff(second) <= 2, "{first} {second}");
    }

    #[test]
    fn a_network_that_is_released_goes_back_to_the_others_in_order() {
        let mut queues = Branches::new(1, 1 << 20);
        let network = NetworkId(2);
        queues.limit(network, 1);
        push(&mut queues, Instant(0), 2, 3);
        assert!(!queues.passes(network) && queues.passes(NetworkId(1)));
        assert_eq!(pop(&mut queues, Instant(0), 9), [0, 1, 0], "one overdraws it");
        queues.release(network);
        push(&mut queues, Instant(0), 2, 1);
        assert!(!queues.passes(network), "what waits goes first");
        assert_eq!(pop(&mut queues, Instant(0), 9), [0, 3, 0]);
        queues.expire(Instant(0), &mut |_| {});
        assert!(queues.is_empty() && queues.passes(network));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u32),
        Pop,
        Wait(u64),
        Limit(u32, u64),
        Release(u32),
        Expire,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (1..4u32).prop_map(Step::Push),
            4 => Just(Step::Pop),
            2 => (0..20_000u64).prop_map(Step::Wait),
            1 => (2..4u32, prop_oneof![Just(0), 1..1_000_000_000u64]).prop_map(|(network, rate)| Step::Limit(network, rate)),
            1 => (2..4u32).prop_map(Step::Release),
            1 => Just(Step::Expire),
        ]
    }

    proptest! {
        /// Whatever is limited and released meanwhile: nothing is lost without being told or comes twice, what is ready
        /// can be taken, and a network that was limited from the start keeps the order of its packets.
        #[test]
        fn packets_are_accounted_for_and_in_order(steps in prop::collection::vec(step(), 1..300)) {
            let mut queues = Branches::new(1, 20 * BYTES);
            queues.limit(NetworkId(3), 1_000_000);
            let (mut now, mut number, mut gone, mut last) = (Instant(0), 0u32, 0, 0);
            for step in steps {
                match step {
                    Step::Push(network) => {
                        number += 1;
                        let header = FrameHeader { network: NetworkId(network), hops: 1, flags: Flags::VNET };
                        let mut packet = vec![0; BYTES];
                        packet[100..104].copy_from_slice(&number.to_be_bytes());
                        queues.push(now, Queued { header, packet, since: now }, &mut |_| gone += 1);
                    }
                    Step::Pop => {
                        let was_ready = queues.is_ready(now);
                        let mut dropped = 0;
                        let popped = queues.pop(now, &mut |_| dropped += 1);
                        prop_assert_eq!(popped.is_some() || dropped > 0, was_ready);
                        gone += dropped + usize::from(popped.is_some());
                        if let Some(queued) = popped.filter(|queued| queued.header.network == NetworkId(3)) {
                            let taken = u32::from_be_bytes(queued.packet[100..104].try_into().unwrap());
                            prop_assert!(taken > last);
                            last = taken;
                        }
                    }
                    Step::Wait(micros) => now = now + Duration::from_micros(micros),
                    Step::Limit(network, rate) => queues.limit(NetworkId(network), rate),
                    Step::Release(3) => queues.limit(NetworkId(3), 0),
                    Step::Release(network) => queues.release(NetworkId(network)),
                    Step::Expire => queues.expire(now - Duration::from_millis(100), &mut |_| gone += 1),
                }
                prop_assert_eq!(queues.len() + gone, number as usize);
                prop_assert_eq!(queues.is_empty(), gone == number as usize);
                prop_assert!(queues.opens_at(now).is_none_or(|at| at > now));
            }
        }
    }
}
