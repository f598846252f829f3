//! Results as JSON files: what was found, on which machine, by which agent.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) cpus: usize,
    pub(crate) memory_bytes: u64,
    /// Runnable processes when the run began: other load makes figures worse.
    pub(crate) load: String,
    pub(crate) unix_time_s: u64,
}

impl Machine {
    pub(crate) fn look() -> Self {
        // What cannot be read is left empty: it describes the result, it is not the result.
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: field(&read("/proc/meminfo"), "MemTotal")
                .split_whitespace()
                .next()
                .and_then(|kib| kib.parse::<u64>().ok())
                .map_or(0, |kib| kib * 1024),
            load: read("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" "),
            unix_time_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        }
    }
}

pub(crate) fn write(dir: &Path, name: &str, content: &impl Serialize) -> Result<()> {
    let file = dir.join(name);
    let text = serde_json::to_string_pretty(content).context("The report is no JSON")?;
    fs::create_dir_all(dir).with_context(|| format!("Cannot make {}", dir.display()))?;
    fs::write(&file, text + "\n").with_context(|| format!("Cannot write {}", file.display()))
}

/// The value of the first `key : value` line.
fn field(text: &str, key: &str) -> String {
    let value = |line: &str| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    };
    text.lines().find_map(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_field() {
        assert_eq!(field("processor\t: 0\nmodel name\t: A: fast one\n", "model name"), "A: fast one");
        assert_eq!(field("", "model name"), "");
    }

    #[test]
    fn looks_at_this_machine() {
        let machine = Machine::look();
        assert!(machine.cpus > 0 && machine.memory_bytes > 0 && !machine.kernel.is_empty());
    }
}
