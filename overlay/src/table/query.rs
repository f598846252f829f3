//! Which hosts have room, best first, and why the others have not.

use super::{Body, HostRow, Standing, Table};
use crate::ids::{Digest, HostId};
use crate::time::Instant;

/// What somebody looks for in a host. Zero and empty mean: does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostQuery {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk.
    pub disk_bytes: u64,
    /// Labels that the host must have, with this value or with any.
    pub labels: Vec<(String, Option<String>)>,
    /// An image, by name or digest, that somebody must have; hosts that have it themselves come first.
    pub image: Option<String>,
}

/// One host of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The host.
    pub host: HostId,
    /// From 0 to 1000: how much is left on it when the VM runs there; 1000 more if it has the image.
    pub score: u32,
    /// What it lacks; nothing if it fits.
    pub lacks: Vec<Shortage>,
}

/// One thing that a host lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// Not heard of for longer than its lease.
    #[error("silent for {0} s")]
    Silent(u64),
    /// Its owner empties it.
    #[error("draining")]
    Draining,
    /// Virtual CPUs.
    #[error("{free} vCPUs free, {wanted} wanted")]
    Vcpus {
        /// What it has.
        free: u32,
        /// What is wanted.
        wanted: u32,
    },
    /// Memory.
    #[error("{free} bytes of memory free, {wanted} wanted")]
    Memory {
        /// What it has.
        free: u64,
        /// What is wanted.
        wanted: u64,
    },
    /// Disk.
    #[error("{free} bytes of disk free, {wanted} wanted")]
    Disk {
        /// What it has.
        free: u64,
        /// What is wanted.
        wanted: u64,
    },
    /// A label.
    #[error("label {key} is {}, {} wanted", has.as_deref().unwrap_or("not set"), wanted.as_deref().unwrap_or("any value"))]
    Label {
        /// Which.
        key: String,
        /// What it has.
        has: Option<String>,
        /// What is wanted; nothing for any value.
        wanted: Option<String>,
    },
    /// Nobody in the swarm has the image.
    #[error("no host has image {0}")]
    Image(String),
}

impl HostQuery {
    /// All hosts, those that fit first and best first.
    pub fn run(&self, table: &Table, now: Instant) -> Vec<Match> {
        let providers = self.image.as_ref().map(|image| table.image_providers(image));
        let mut matches: Vec<Match> = table
            .hosts()
            .map(|(host, row)| {
                let mut lacks = self.shortages(table, host, row, now);
                let has_image = providers.as_ref().is_some_and(|providers| providers.contains(&host));
                if let (Some(image), Some([])) = (&self.image, providers.as_deref()) {
                    lacks.push(Shortage::Image(image.clone()));
                }
                Match { host, score: self.score(row) + if has_image { 1000 } else { 0 }, lacks }
            })
            .collect();
        matches.sort_by_key(|found| (!found.lacks.is_empty(), u32::MAX - found.score, found.host));
        matches
    }

    fn shortages(&self, table: &Table, host: HostId, row: &HostRow, now: Instant) -> Vec<Shortage> {
        let has = &row.resources;
        let mut lacks = Vec::new();
        if let Some((Standing::Silent, age)) = table.standing(host, now) {
            lacks.push(Shortage::Silent(age.as_secs()));
        }
        if row.draining {
            lacks.push(Shortage::Draining);
        }
        if has.vcpus_free < self.vcpus {
            lacks.push(Shortage::Vcpus { free: has.vcpus_free, wanted: self.vcpus });
        }
        if has.memory_free_bytes < self.memory_bytes {
            lacks.push(Shortage::Memory { free: has.memory_free_bytes, wanted: self.memory_bytes });
        }
        if has.disk_free_bytes < self.disk_bytes {
            lacks.push(Shortage::Disk { free: has.disk_free_bytes, wanted: self.disk_bytes });
        }
        for (key, wanted) in &self.labels {
            let value = row.labels.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone());
            if value.is_none() || (wanted.is_some() && value != *wanted) {
                lacks.push(Shortage::Label { key: key.clone(), has: value, wanted: wanted.clone() });
            }
        }
        lacks
    }

    /// The scarcest thing decides: VMs go where the most is left of what would run out first.
    fn score(&self, row: &HostRow) -> u32 {
        let has = &row.resources;
        let left = |free: u64, wanted: u64, total: u64| {
            let share = u128::from(free.saturating_sub(wanted)) * 1000 / u128::from(total.max(1));
            u32::try_from(share.min(1000)).unwrap_or(1000)
        };
        left(has.vcpus_free.into(), self.vcpus.into(), has.vcpus_total.into())
            .min(left(has.memory_free_bytes, self.memory_bytes, has.memory_total_bytes))
            .min(left(has.disk_free_bytes, self.disk_bytes, has.disk_total_bytes))
    }
}

impl Table {
    /// The hosts that have all of an image of this name or digest.
    pub fn image_providers(&self, image: &str) -> Vec<HostId> {
        let digest: Option<Digest> = image.parse().ok();
        self.bodies()
            .filter(|(_, body)| match body {
                Body::Image(row) => row.complete && (row.name == image || Some(row.digest) == digest),
                _ => false,
            })
            .map(|(host, _)| host)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::Toy;
    use crate::ids::SwarmId;
    use crate::membership::{Certificate, CertificateRequest, Roles};
    use crate::table::{ImageRow, Resources, Row, Version};
    use crate::time::UnixTime;

    fn table(hosts: &[(u8, u32, &str)]) -> Table {
        let mut table = Table::default();
        for (key, vcpus_free, gpu) in hosts {
            let request = CertificateRequest {
                host: Toy(*key).host(),
                name: format!("host-{key}"),
                roles: Roles::default(),
                issued: UnixTime(0),
                expires: UnixTime(1),
                serial: 0,
            };
            let resources = Resources { vcpus_total: 8, vcpus_free: *vcpus_free, ..Resources::default() };
            let row = HostRow {
                certificate: Certificate::issue(&Toy(99), request),
                addresses: vec![],
                resources: Resources {
                    memory_total_bytes: 8,
                    memory_free_bytes: 8,
                    disk_total_bytes: 8,
                    disk_free_bytes: 8,
                    ..resources
                },
                labels: vec![("gpu".into(), (*gpu).into())],
                networks: vec![],
                draining: false,
                version: String::new(),
                refresh_s: 5,
            };
            put(&mut table, *key, Body::Host(Box::new(row)));
        }
        table
    }

    fn put(table: &mut Table, key: u8, body: Body) {
        let seq = table.rows().count() as u64;
        let row = Row::sign(SwarmId([0; 32]), &Toy(key), body.key(), Version { incarnation: 1, seq }, Some(body));
        table.apply(row, Instant(0), Instant(0));
    }

    fn order(query: &HostQuery, table: &Table) -> Vec<(u8, usize)> {
        query.run(table, Instant(0)).iter().map(|found| (found.host.0[0], found.lacks.len())).collect()
    }

    #[test]
    fn the_emptiest_host_that_fits_comes_first() {
        let table = table(&[(1, 2, "0"), (2, 8, "1"), (3, 6, "1")]);
        let query = HostQuery { vcpus: 4, ..HostQuery::default() };
        assert_eq!(order(&query, &table), [(2, 0), (3, 0), (1, 1)]);
        let query = HostQuery { labels: vec![("gpu".into(), Some("0".into()))], ..HostQuery::default() };
        assert_eq!(order(&query, &table)[0], (1, 0));
        let query = HostQuery { labels: vec![("gpu".into(), None), ("ssd".into(), None)], ..HostQuery::default() };
        assert!(order(&query, &table).iter().all(|(_, lacks)| *lacks == 1));
    }

    #[test]
    fn hosts_that_have_the_image_come_first() {
        let mut table = table(&[(1, 2, ""), (2, 8, "")]);
        let query = HostQuery { image: Some("debian-12".into()), ..HostQuery::default() };
        assert!(query.run(&table, Instant(0)).iter().all(|found| found.lacks == [Shortage::Image("debian-12".into())]));
        put(
            &mut table,
            1,
            Body::Image(ImageRow { digest: Digest([1; 32]), name: "debian-12".into(), size_bytes: 1, complete: true }),
        );
        assert_eq!(order(&query, &table), [(1, 0), (2, 0)]);
    }

    #[test]
    fn silent_hosts_are_left_out_with_the_reason() {
        let mut table = table(&[(1, 2, "")]);
        let later = Instant(20_000_000);
        table.sweep(later, Toy(9).host());
        let found = HostQuery::default().run(&table, later);
        assert_eq!(found[0].lacks, [Shortage::Silent(20)]);
    }
}
