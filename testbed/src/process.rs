//! What a running process has used so far, from `/proc`.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// CPU time of all threads of `pid`, in seconds.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    Ok(thread_cpu_seconds(pid)?.values().sum())
}

/// CPU time of the threads of `pid` by their names, in seconds.
pub(crate) fn thread_cpu_seconds(pid: u32) -> Result<BTreeMap<String, f64>> {
    let mut seconds = BTreeMap::new();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("No process {pid}"))?;
    for task in tasks {
        let path = task?.path();
        // A thread that ends between the reads has used next to nothing.
        let read = |file: &str| fs::read_to_string(path.join(file)).ok();
        let (Some(name), Some(text)) = (read("comm"), read("schedstat")) else { continue };
        let ns = parse_schedstat(&text).with_context(|| format!("Odd schedstat of process {pid}: {text:?}"))?;
        *seconds.entry(name.trim_end().to_owned()).or_insert(0.0) += ns as f64 / 1e9;
    }
    Ok(seconds)
}

/// CPU time of `pid`, with that of threads that have ended, in seconds; exact to two hundredths.
pub(crate) fn whole_cpu_seconds(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("No process {pid}"))?;
    parse_stat(&text).with_context(|| format!("Odd stat of process {pid}: {text:?}"))
}

/// Names of the threads of `pid`.
pub(crate) fn thread_names(pid: u32) -> Result<Vec<String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("No process {pid}"))?;
    // A thread may end between the two reads.
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    Ok(names.map(|name| name.trim_end().to_owned()).collect())
}

/// Memory of `pid` that is in RAM.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("No process {pid}"))?;
    parse_resident(&text).with_context(|| format!("No VmRSS in the status of process {pid}"))
}

/// CPU time that the whole machine has spent working, in seconds.
pub(crate) fn machine_cpu_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("Cannot read /proc/stat")?;
    parse_machine(&text).context("Odd /proc/stat")
}

fn parse_schedstat(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// The program's name, which may have spaces, stands in brackets; 12th and 13th after it are the times in user and
/// kernel mode, in hundredths of a second.
fn parse_stat(text: &str) -> Option<f64> {
    let mut times = text.rsplit_once(')')?.1.split_whitespace().skip(11).map(str::parse::<u64>);
    Some((times.next()?.ok()? + times.next()?.ok()?) as f64 / 100.0)
}

fn parse_resident(text: &str) -> Option<u64> {
    let kib: u64 =
        text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// The columns are user, nice, system, idle, iowait, irq, softirq, in hundredths of a second.
fn parse_machine(text: &str) -> Option<f64> {
    let columns = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<u64> = columns.map(str::parse).collect::<Result<_, _>>().ok()?;
    let busy = ticks.iter().take(7).sum::<u64>() - ticks.get(3)? - ticks.get(4)?;
    Some(busy as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        assert_eq!(parse_schedstat("123456789 42 7\n"), Some(123_456_789));
        assert_eq!(parse_stat("7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20\n"), Some(2.0));
        assert_eq!(parse_resident("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(parse_machine("cpu  100 0 50 900 30 5 45 0 0 0\ncpu0 1"), Some(2.0));
    }

    #[test]
    fn this_process_has_used_something() {
        let pid = std::process::id();
        assert!(resident_bytes(pid).unwrap() > 100_000);
        assert!(cpu_seconds(pid).unwrap() >= 0.0);
        assert!(machine_cpu_seconds().unwrap() > 0.0);
    }
}
