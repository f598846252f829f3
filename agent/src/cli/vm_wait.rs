//! `virtuoso vm create --wait`: until the guest of a new VM gives a sign of life. A guest whose kernel has started and
//! found its network card asks for an address or for routers at once; firmware sends nothing.

use super::Asking;
use crate::control::client::Call;
use crate::control::model::Vm;
use anyhow::{bail, ensure};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two looks: counters of a guest's card and its console tell of no change by themselves.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// The end of a console that is shown.
const TAIL_LINES: usize = 10;
const TAIL_LINE_CHARS_MAX: usize = 200;

/// Waits until the guest of `made` speaks; an error with the end of its console if it does not within `patience`.
pub(super) async fn until_it_speaks(asking: &Asking, made: &Vm, patience: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + patience;
    loop {
        let vm: Vm = asking.client.fetch(Call::get(format!("/v1/vms/{}", made.name))).await?;
        let crash = vm.details.as_ref().and_then(|details| details.crash.clone()).unwrap_or_default();
        ensure!(!matches!(&*vm.state, "crashed" | "stopped"), "VM {} is {} already. {crash}", vm.name, vm.state);
        // It can't be read while QEMU starts, or its host is not reachable for a moment.
        let console = asking.client.call(Call::get(format!("/v1/vms/{}/console", vm.name))).await.unwrap_or_default();
        if has_spoken(&vm, &console) {
            return Ok(());
        }
        if Instant::now() >= until {
            bail!("{}", complaint(&vm, patience, &console));
        }
        sleep(LOOK_INTERVAL.min(until.saturating_duration_since(Instant::now()))).await;
    }
}

fn has_spoken(vm: &Vm, console: &[u8]) -> bool {
    if vm.networks.is_empty() {
        return !console.is_empty();
    }
    vm.details.as_ref().and_then(|details| details.net_tx_bytes).is_some_and(|bytes| bytes > 0)
}

fn complaint(vm: &Vm, patience: Duration, console: &[u8]) -> String {
    let silence = if vm.networks.is_empty() { "written nothing to its console" } else { "sent nothing" };
    let tail = tail(console);
    let tail = if tail.is_empty() { " Its console is empty".to_owned() } else { format!(" Its console ends:\n{tail}") };
    let (name, host, seconds) = (&vm.name, &vm.host_name, patience.as_secs());
    format!("VM {name} is {} on host {host}, but its guest has {silence} within {seconds} s.{tail}", vm.state)
}

/// The last lines, without what would change the terminal.
fn tail(console: &[u8]) -> String {
    let text = String::from_utf8_lossy(console);
    let clean = |line: &str| line.chars().filter(|c| !c.is_control()).take(TAIL_LINE_CHARS_MAX).collect::<String>();
    let lines: Vec<String> = text.lines().map(clean).filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn vm(networks: serde_json::Value) -> Vm {
        let host = crate::text::Text(virtuoso_overlay::ids::HostId([1; 32]));
        let value = json!({
            "id": "00".repeat(16), "name": "web", "state": "running", "host": host, "host_name": "alpha", "vcpus": 1,
            "memory_bytes": 1, "image": null, "networks": networks,
        });
        serde_json::from_value(value).unwrap()
    }

    fn sent(mut vm: Vm, bytes: Option<u64>) -> Vm {
        let details = json!({
            "disk_bytes": 0, "kernel": null, "labels": {}, "restart": false, "crash": null, "pid": 1, "cpu_s": null,
            "cpu_percent": null, "memory_used_bytes": null, "disk_used_bytes": 0, "io_read_bytes": null,
            "io_written_bytes": null, "net_rx_bytes": bytes, "net_tx_bytes": bytes, "limits": {}, "cdrom": null,
            "vnc_socket": "",
        });
        vm.details = Some(serde_json::from_value(details).unwrap());
        vm
    }

    #[test]
    fn a_guest_with_a_network_speaks_there() {
        let plugged = || vm(json!([{"network": "blue", "mac": "52:54:00:00:00:01", "ips": ["10.8.0.2"]}]));
        assert!(!has_spoken(&plugged(), b"Booting"), "nobody knows");
        assert!(!has_spoken(&sent(plugged(), None), b"Booting") && !has_spoken(&sent(plugged(), Some(0)), b"Booting"));
        assert!(has_spoken(&sent(plugged(), Some(90)), b""));
    }

    #[test]
    fn a_guest_without_one_writes() {
        let alone = sent(vm(json!([])), None);
        assert!(!has_spoken(&alone, b"") && has_spoken(&alone, b"L"));
        assert!(
            complaint(&alone, Duration::from_secs(5), b"")
                .contains("nothing to its console within 5 s. Its console is")
        );
    }

    #[test]
    fn the_end_of_a_console_is_harmless_text() {
        let long: String = (0..20).map(|line| format!("line {line}\r\n\r\n")).collect();
        assert_eq!(tail(long.as_bytes()).lines().next(), Some("line 10"));
        assert_eq!(tail(b"\x1b[2Jpanic\xff\r\n\x07\n"), "[2Jpanic\u{fffd}");
        assert_eq!(tail("x".repeat(900).as_bytes()).len(), TAIL_LINE_CHARS_MAX);
    }
}
