//! VMs: from the question which host takes one to its reservation there, and the list of a thousand. Measured at the
//! API's socket, without the start of a client.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use super::figure;
use crate::api;
use crate::console;
use crate::host::{Host, Start};
use crate::lab::{JOIN_TIME_MAX, Lab, Settings};
use crate::sandbox;
use crate::traffic::latency::percentile;
use crate::wait;

#[derive(Debug, Serialize)]
pub(super) struct Vms {
    /// `host find`, then `vm create --stopped` on the best host but the asker, each time until the answer.
    reservation_ms: Vec<f64>,
    median_reservation_ms: f64,
    /// VMs in the list, on four hosts: one keeps at most 256.
    vms: usize,
    list_ms: Vec<f64>,
    median_list_ms: f64,
    /// Of its JSON.
    list_bytes: usize,
}

/// Who asks.
const ASKER: &str = "alpha";
const THREE: [&str; 3] = [ASKER, "beta", "gamma"];
/// Comes in for the list.
const FOURTH: &str = "delta";
const VMS_PER_HOST: usize = 250;
/// For each round that is wanted: one question takes milliseconds.
const QUESTIONS: usize = 10;
const MEMORY_BYTES: u64 = 16 << 20;
const FIND: &str = "/v1/hosts/find?vcpus=1&memory=16MiB";

pub(super) fn measure(settings: &Settings, rounds: usize) -> Result<Vms> {
    let settings = Settings { report: settings.report.join("vms"), ..settings.clone() };
    let mut lab = Lab::build(&include_str!("../../topologies/lan4.toml").parse()?, &settings)?;
    lab.host_mut(ASKER)?.start(&Start::alone())?;
    THREE[1..].iter().try_for_each(|name| lab.join_by_ticket(name))?;
    lab.await_members(&THREE, JOIN_TIME_MAX)?;
    // It is never booted.
    let kernel = sandbox::fresh_dir("kernel")?.join("vmlinuz");
    fs::write(&kernel, "a kernel")?;
    let reservation_ms = (0..rounds * QUESTIONS).map(|_| reserve(&lab, &kernel)).collect::<Result<Vec<_>>>()?;

    lab.join_by_ticket(FOURTH)?;
    lab.await_members(&lab.host_names(), JOIN_TIME_MAX)?;
    for name in lab.host_names() {
        fill(lab.host_mut(&name)?, &kernel)?;
    }
    let wanted = VMS_PER_HOST * lab.host_names().len();
    let asker = lab.host(ASKER)?.socket();
    wait::until_true(format!("{wanted} VMs in the list"), JOIN_TIME_MAX, || {
        let vms = api::get(&asker, "/v1/vms")?.as_array().map_or(0, Vec::len);
        Ok((vms == wanted, format!("{vms}")))
    })?;
    let mut list_bytes = 0;
    let list_ms = (0..rounds * QUESTIONS).map(|_| {
        let begin = Instant::now();
        list_bytes = api::get_bytes(&asker, "/v1/vms")?.len();
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    });
    let list_ms = list_ms.collect::<Result<Vec<_>>>()?;
    let median = |values: &[f64]| percentile(&mut values.to_vec(), 50);
    let (median_reservation_ms, median_list_ms) = (median(&reservation_ms), median(&list_ms));
    let vms = Vms { reservation_ms, median_reservation_ms, vms: wanted, list_ms, median_list_ms, list_bytes };
    vms.print();
    Ok(vms)
}

impl Vms {
    fn print(&self) {
        console::line("\nVMs of a swarm, at the API's socket:");
        let worst = |values: &[f64]| percentile(&mut values.to_vec(), 100);
        console::table(&[
            figure("question to reservation, three hosts", self.median_reservation_ms, "ms", 50.0),
            figure("its slowest", worst(&self.reservation_ms), "ms", f64::INFINITY),
            figure(&format!("list of {}", self.vms), self.median_list_ms, "ms", 20.0),
            figure("its slowest", worst(&self.list_ms), "ms", f64::INFINITY),
        ]);
    }
}

/// Milliseconds from the question which hosts have room to the answer of one of them that it keeps it.
fn reserve(lab: &Lab, kernel: &Path) -> Result<f64> {
    let asker = lab.host(ASKER)?.socket();
    // What the last round gave back has to be told.
    wait::until_true("another host with room", JOIN_TIME_MAX, || {
        let found = api::get(&asker, &format!("{FIND}&explain=true"))?;
        Ok((best(&found).is_some(), found.to_string()))
    })?;
    let begin = Instant::now();
    let found = api::get(&asker, FIND)?;
    let host = best(&found).context("No other host has room")?;
    let made = api::post(&asker, "/v1/vms", &request("reserved", host, kernel))?;
    let elapsed = begin.elapsed();
    ensure!(made["host_name"] == host && made["state"] == "stopped", "Not what was asked for: {made}");
    lab.host(ASKER)?.json(&["vm", "delete", "reserved"])?;
    Ok(elapsed.as_secs_f64() * 1e3)
}

/// The best host but the asker.
fn best(found: &Value) -> Option<&str> {
    let ranked = found.as_array().into_iter().flatten().filter(|found| !found["rank"].is_null());
    ranked.filter_map(|found| found["name"].as_str()).find(|name| *name != ASKER)
}

fn request(name: &str, host: &str, kernel: &Path) -> Value {
    json!({ "name": name, "host": host, "memory_bytes": MEMORY_BYTES, "kernel": kernel, "stopped": true })
}

/// Gives a host its VMs. It would refuse most of them, because it has no processors for so many: one is made, and the
/// agent finds copies of its record when it starts again.
fn fill(host: &mut Host, kernel: &Path) -> Result<()> {
    let name = host.name().to_owned();
    let first = format!("{name}-0");
    api::post(&host.socket(), "/v1/vms", &request(&first, &name, kernel))?;
    host.terminate()?;
    let vms = host.state_dir().join("vms");
    let directory = fs::read_dir(&vms)?.next().context("The VM has no directory")??.path();
    let text = fs::read_to_string(directory.join(RECORD))?;
    let (header, content) = text.split_once('\n').context("A record has a header")?;
    let mut record: Value = serde_json::from_str(content)?;
    for number in 1..VMS_PER_HOST {
        let id = blake3::hash(format!("{name} {number}").as_bytes()).to_hex()[..32].to_owned();
        record["spec"]["id"] = json!(id);
        record["spec"]["name"] = json!(format!("{name}-{number}"));
        let content = record.to_string();
        let mut words: Vec<String> = header.split(' ').map(str::to_owned).collect();
        ensure!(words.len() == 5, "A header has five words: {header}");
        words[3] = content.len().to_string();
        words[4] = blake3::hash(content.as_bytes()).to_hex().to_string();
        fs::create_dir(vms.join(&id))?;
        fs::write(vms.join(&id).join(RECORD), format!("{}\n{content}", words.join(" ")))?;
    }
    host.start(&Start::alone())
}

/// What a host keeps of a VM: a header line with length and digest, and JSON.
const RECORD: &str = "vm.json";
