//! FQ-CoDel as RFC 8290 tells it, over one plain list of packets that is searched for everything.

use super::super::*;
use super::HEADER;
use crate::wire::frame::VNET_BYTES;

const OVERHEAD: usize = 192;

#[derive(Clone, Copy, Default)]
struct Flow {
    deficit: i64,
    first_above: Option<u64>,
    dropping: bool,
    drop_next: u64,
    count: u32,
    last_count: u32,
}

pub(super) struct Model {
    seed: u64,
    room: usize,
    waiting: Vec<(usize, u64, Vec<u8>)>,
    flows: Vec<Flow>,
    new: Vec<usize>,
    old: Vec<usize>,
}

impl Model {
    pub(super) fn new(seed: u64, room: usize) -> Self {
        let flows = vec![Flow::default(); FLOW_QUEUES];
        Self { seed, room, waiting: Vec::new(), flows, new: Vec::new(), old: Vec::new() }
    }

    pub(super) fn push(&mut self, now: u64, packet: Vec<u8>) -> Vec<Vec<u8>> {
        let flow = flow_hash(self.seed, HEADER.network, &packet[VNET_BYTES..]) as usize % FLOW_QUEUES;
        self.waiting.push((flow, now, packet));
        if !self.new.contains(&flow) && !self.old.contains(&flow) {
            self.flows[flow].deficit = QUANTUM_BYTES as i64;
            self.new.push(flow);
        }
        let mut dropped = Vec::new();
        while self.bytes(None) > self.room {
            let listed: Vec<usize> = self.new.iter().chain(&self.old).copied().collect();
            let most = listed.iter().map(|flow| self.bytes(Some(*flow))).max().unwrap();
            let longest = *listed.iter().rfind(|flow| self.bytes(Some(**flow)) == most).unwrap();
            for _ in 0..64 {
                dropped.extend(self.first(longest).map(|(_, packet)| packet));
                if self.bytes(Some(longest)) <= most / 2 {
                    break;
                }
            }
        }
        dropped
    }

    pub(super) fn pop(&mut self, now: u64) -> (Option<Vec<u8>>, Vec<Vec<u8>>) {
        let mut dropped = Vec::new();
        loop {
            let from_new = !self.new.is_empty();
            let list = if from_new { &mut self.new } else { &mut self.old };
            let Some(&flow) = list.first() else { return (None, dropped) };
            if self.flows[flow].deficit <= 0 {
                self.flows[flow].deficit += QUANTUM_BYTES as i64;
                list.remove(0);
                self.old.push(flow);
                continue;
            }
            if let Some(packet) = self.codel(now, flow, &mut dropped) {
                self.flows[flow].deficit -= (packet.len() + OVERHEAD) as i64;
                return (Some(packet), dropped);
            }
            let list = if from_new { &mut self.new } else { &mut self.old };
            list.remove(0);
            if from_new && !self.old.is_empty() {
                self.old.push(flow);
            }
        }
    }

    fn codel(&mut self, now: u64, index: usize, dropped: &mut Vec<Vec<u8>>) -> Option<Vec<u8>> {
        let Delay { target, interval } = Delay::SITE;
        let (target, interval) = (target.as_micros() as u64, interval.as_micros() as u64);
        let pause = |count: u32| (interval as f64 / f64::from(count).sqrt()) as u64;
        loop {
            let Some((since, mut packet)) = self.first(index) else {
                self.flows[index].first_above = None;
                self.flows[index].dropping = false;
                return None;
            };
            let is_last = self.bytes(Some(index)) == 0;
            let flow = &mut self.flows[index];
            let mut ok = false;
            if now - since < target || is_last {
                flow.first_above = None;
            } else if let Some(at) = flow.first_above {
                ok = now >= at;
            } else {
                flow.first_above = Some(now + interval);
            }
            let signal = if flow.dropping && !ok {
                flow.dropping = false;
                false
            } else if flow.dropping && now >= flow.drop_next {
                flow.count += 1;
                flow.drop_next += pause(flow.count);
                true
            } else if !flow.dropping && ok {
                flow.dropping = true;
                let delta = flow.count - flow.last_count;
                let again = delta > 1 && now.saturating_sub(flow.drop_next) < 16 * interval;
                flow.count = if again { delta } else { 1 };
                flow.last_count = flow.count;
                flow.drop_next = now + pause(flow.count);
                true
            } else {
                false
            };
            if !signal || mark_ce(&mut packet[VNET_BYTES..]) {
                return Some(packet);
            }
            dropped.push(packet);
        }
    }

    fn first(&mut self, flow: usize) -> Option<(u64, Vec<u8>)> {
        let place = self.waiting.iter().position(|(of, _, _)| *of == flow)?;
        let (_, since, packet) = self.waiting.remove(place);
        Some((since, packet))
    }

    fn bytes(&self, flow: Option<usize>) -> usize {
        let counted = self.waiting.iter().filter(|(of, _, _)| flow.is_none_or(|flow| flow == *of));
        counted.map(|(_, _, packet)| packet.len() + OVERHEAD).sum()
    }
}
