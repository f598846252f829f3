//! A comparison of this host's tables with one peer's: the asker's side of the sync messages.

use super::{Node, NodeEffect, RequestId, WANT_MAX};
use crate::ids::HostId;
use crate::limits::{SYNC_REQUEST_BYTES_MAX, SYNC_ROUNDS_MAX, SYNC_SESSIONS_MAX};
use crate::table::{AgedRow, BUCKETS, SyncRequest, SyncResponse, Tag, Version};
use crate::time::Now;
use std::collections::{BTreeMap, VecDeque};

/// Where a comparison is.
pub(super) struct Comparison {
    pub(super) peer: HostId,
    /// Buckets that differ and whose tags were not asked for yet.
    buckets: Vec<u8>,
    /// Names of rows that the peer has newer.
    want: VecDeque<u64>,
    /// Names of rows that this host has newer.
    give: VecDeque<u64>,
    rounds: u32,
}

impl Node {
    /// Begins to compare with `peer`, unless enough comparisons are under way.
    pub(super) fn compare(&mut self, peer: HostId) {
        let under_way = self.comparisons.values().any(|comparison| comparison.peer == peer);
        if under_way || self.comparisons.len() >= SYNC_SESSIONS_MAX {
            return;
        }
        let comparison = Comparison {
            peer,
            buckets: Vec::new(),
            want: VecDeque::new(),
            give: VecDeque::new(),
            rounds: SYNC_ROUNDS_MAX,
        };
        self.ask(comparison, &SyncRequest::Root(self.table.root()));
    }

    pub(super) fn on_response(&mut self, now: Now, mut comparison: Comparison, response: SyncResponse) {
        match response {
            SyncResponse::Same => return,
            SyncResponse::Buckets(theirs) if theirs.len() == BUCKETS => {
                let differing = self.table.buckets().iter().zip(&theirs).enumerate().filter(|(_, (a, b))| a != b);
                comparison.buckets = differing.filter_map(|(index, _)| u8::try_from(index).ok()).collect();
            }
            SyncResponse::Buckets(_) => {
                self.counters.malformed += 1;
                return;
            }
            SyncResponse::Tags(tags) => self.on_tags(&mut comparison, tags),
            SyncResponse::Rows(rows) => {
                if rows.is_empty() {
                    // The peer has none of the rows any more.
                    comparison.want.clear();
                }
                for aged in rows {
                    comparison.want.retain(|name| *name != aged.row.name());
                    self.take(now, aged);
                }
            }
        }
        self.go_on(now, comparison);
    }

    fn on_tags(&self, comparison: &mut Comparison, answered: Vec<(u8, Vec<Tag>)>) {
        for (bucket, tags) in answered {
            comparison.buckets.retain(|asked| *asked != bucket);
            let theirs: BTreeMap<u64, Version> = tags.iter().map(|tag| (tag.name, tag.version)).collect();
            let ours: BTreeMap<u64, Version> = self.table.tags(bucket).collect();
            let newer = |a: &BTreeMap<u64, Version>, b: &BTreeMap<u64, Version>| -> Vec<u64> {
                a.iter()
                    .filter(|(name, version)| b.get(name).is_none_or(|v| v < version))
                    .map(|(name, _)| *name)
                    .collect()
            };
            comparison.want.extend(newer(&theirs, &ours));
            comparison.give.extend(newer(&ours, &theirs));
        }
        // Host rows bring the certificates that vouch for the others; the peer sends rows in the order asked.
        let table = &self.table;
        comparison.give.make_contiguous().sort_by_key(|name| table.by_name(*name).map(|row| row.key));
    }

    /// Asks for what is left to learn, or ends.
    fn go_on(&mut self, now: Now, mut comparison: Comparison) {
        if comparison.rounds == 0 {
            return;
        }
        comparison.rounds -= 1;
        if !comparison.buckets.is_empty() {
            let request = SyncRequest::Tags(comparison.buckets.clone());
            return self.ask(comparison, &request);
        }
        if comparison.want.is_empty() && comparison.give.is_empty() {
            return;
        }
        let want: Vec<u64> = comparison.want.iter().copied().take(WANT_MAX).collect();
        let give = self.next_given(now, &mut comparison);
        if want.is_empty() && give.is_empty() {
            return;
        }
        self.ask(comparison, &SyncRequest::Rows { want, give });
    }

    fn next_given(&self, now: Now, comparison: &mut Comparison) -> Vec<AgedRow> {
        let names: Vec<u64> = comparison.give.iter().copied().take(WANT_MAX).collect();
        let rows = self.aged_rows(now.mono, &names, SYNC_REQUEST_BYTES_MAX / 2 - 64);
        match rows.last() {
            Some(last) => {
                let name = last.row.name();
                let upto = names.iter().position(|n| *n == name).map_or(names.len(), |index| index + 1);
                comparison.give.drain(..upto);
            }
            None => comparison.give.clear(),
        }
        rows
    }

    fn ask(&mut self, comparison: Comparison, request: &SyncRequest) {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        let to = comparison.peer;
        self.comparisons.insert(id, comparison);
        self.effects.push_back(NodeEffect::Request { id, to, bytes: request.encode() });
    }
}
