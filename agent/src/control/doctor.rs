//! Checks of the machine that the agent runs on: rights, devices, kernel settings, clock, disk. What only the running
//! agent knows, the backend adds.

use super::model::Check;
use super::socket::group_id;
use crate::config::Config;
use crate::disk;
use crate::size::ByteSize;
use crate::timestamp;
use std::fs::{self, OpenOptions};
use std::path::Path;

/// Bit of CAP_NET_ADMIN: TAPs, bridges, large socket buffers.
const CAP_NET_ADMIN: u32 = 12;
/// Bit of CAP_SYS_NICE: real-time priority of the data plane.
const CAP_SYS_NICE: u32 = 23;
/// Free space below which images and state soon fail.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// 2025-01-01: a clock before this makes every certificate look like one from the future.
const CLOCK_SECONDS_MIN: u64 = 1_735_689_600;

/// All checks of this machine.
pub fn machine_checks(config: &Config) -> Vec<Check> {
    vec![
        capability("cap_net_admin", CAP_NET_ADMIN, "no TAP and no bridge can be made", true),
        capability("cap_sys_nice", CAP_SYS_NICE, "the data plane runs without real-time priority", false),
        tun_device(),
        bridge_filter(),
        clock(),
        disk_space(&config.state_dir),
        socket(config),
    ]
}

fn capability(name: &str, bit: u32, without: &str, needed: bool) -> Check {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    if effective >> bit & 1 == 1 {
        return Check::ok(name, "The agent has it");
    }
    let detail = format!("The agent lacks {}: {without}", name.to_ascii_uppercase());
    let fix = format!(
        "Run the agent as root, or add `AmbientCapabilities={}` to its systemd unit",
        name.to_ascii_uppercase()
    );
    if needed { Check::failed(name, detail, fix) } else { Check::warning(name, detail, fix) }
}

fn tun_device() -> Check {
    let path = "/dev/net/tun";
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::ok("tun_device", format!("{path} can be opened")),
        Err(error) => Check::failed("tun_device", format!("{path}: {error}"), "Load the module with `modprobe tun`"),
    }
}

/// Whether the host's packet filter sees frames that a bridge passes between two ports.
fn bridge_filter() -> Check {
    let name = "bridge_filter";
    match fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables") {
        Ok(text) if text.trim() == "1" => Check::warning(
            name,
            "Bridged frames pass iptables: rules of this host may drop them, and each costs time",
            "sysctl -w net.bridge.bridge-nf-call-iptables=0",
        ),
        _ => Check::ok(name, "Bridged frames do not pass iptables"),
    }
}

fn clock() -> Check {
    let now = timestamp::now();
    let text = timestamp::rfc3339(now);
    let fix = "Set the clock, and keep it set with `systemctl enable --now systemd-timesyncd` or chrony";
    if now.as_secs() < CLOCK_SECONDS_MIN {
        return Check::failed("clock", format!("The clock says {text}: certificates will not be valid"), fix);
    }
    // SAFETY: `timex` holds plain integers, for which zeros are valid; with `modes` zero the call only reads.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to `timex`, which lives through the call.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state == libc::TIME_ERROR || timex.status & libc::STA_UNSYNC != 0 {
        return Check::warning("clock", format!("The clock says {text}, and nothing keeps it set"), fix);
    }
    Check::ok("clock", format!("The clock is kept set: {text}"))
}

fn disk_space(dir: &Path) -> Check {
    match disk::free_bytes(dir) {
        Ok(free) if free < FREE_BYTES_MIN => Check::warning(
            "disk_space",
            format!("{} has {} free", dir.display(), ByteSize(free).rounded()),
            "Remove images with `virtuoso image remove`, or move the state directory to a larger disk",
        ),
        Ok(free) => Check::ok("disk_space", format!("{} has {} free", dir.display(), ByteSize(free).rounded())),
        Err(error) => Check::failed("disk_space", format!("{}: {error:#}", dir.display()), "Check the state directory"),
    }
}

fn socket(config: &Config) -> Check {
    let (path, group) = (config.socket.display(), &config.socket_group);
    match group_id(group) {
        Ok(Some(_)) => Check::ok("socket", format!("{path} serves members of group `{group}`")),
        Ok(None) => Check::warning(
            "socket",
            format!("There is no group `{group}`: {path} serves the agent's own user and root"),
            format!("groupadd --system {group}, usermod -aG {group} USER, and restart the agent"),
        ),
        Err(error) => Check::warning("socket", format!("{error:#}"), "Check /etc/nsswitch.conf"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    #[test]
    fn every_problem_has_a_fix() {
        let mut source = Source { file: Some("/dev/null".into()), ..Source::default() };
        source.flags.name = Some("a".parse().unwrap());
        source.flags.state_dir = Some("/nonexistent".into());
        let checks = machine_checks(&source.load().unwrap());
        assert_eq!(checks.len(), 7);
        for check in checks {
            assert_eq!(check.result == super::super::model::CheckResult::Ok, check.fix.is_none(), "{check:?}");
        }
    }
}
