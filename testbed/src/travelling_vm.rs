//! A VM that moves between hosts while others talk to it, and what each move costs them. Used by the scenarios that
//! judge it and the benchmark that reports it.

use std::fmt;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::command;
use crate::guest::NIC;
use crate::lab::{CONTACT_TIME_MAX, Lab};
use crate::test_guest::TestGuest;
use crate::traffic::echoes::{EchoReport, Echoes};
use crate::traffic::latency::{self, RoundTrips};
use crate::traffic::transfer::Transfer;
use crate::wait;

pub(crate) mod company;
pub(crate) mod moving;
pub(crate) mod witness;

/// The VM `one` in network `blue`, and the guest `user` on gamma, who talks to it.
pub(crate) struct TravellingVm {
    guest: TestGuest,
    pub(crate) ip: Ipv4Addr,
    /// Of the transfer, each way.
    bytes_per_second: u64,
}

/// What one move has cost.
#[derive(Debug, Serialize)]
pub(crate) struct Journey {
    pub(crate) to: String,
    #[serde(flatten)]
    pub(crate) told: Told,
    pub(crate) echoes_sent: u64,
    pub(crate) echoes_lost: u64,
    pub(crate) echoes_duplicated: u64,
    pub(crate) echo_gap_max_ms: f64,
    /// Of the multicast stream.
    pub(crate) group_sent: u64,
    pub(crate) group_lost: u64,
    pub(crate) group_duplicated: u64,
    /// As the receiver of a transfer saw it; nothing if the transfer broke.
    pub(crate) tcp_stall_max_ms: Option<f64>,
    pub(crate) tcp_fault: Option<String>,
}

/// What `vm migrate --json` tells.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Told {
    pub(crate) total_ms: f64,
    pub(crate) downtime_ms: f64,
    pub(crate) blackout_ms: f64,
    pub(crate) frames_forwarded: u64,
    pub(crate) frames_buffered: u64,
    pub(crate) frames_lost: u64,
    pub(crate) frames_duplicated: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) disk_bytes: u64,
}

impl TravellingVm {
    pub(crate) const TOOLS: &[&str] = &["ping", "ssh", "qemu-img", TestGuest::QEMU];

    /// Makes the network, starts the VM on alpha with 128 MiB, places the user, and waits until they talk. `options` go
    /// to `vm create`, `append` to its kernel.
    pub(crate) fn start(lab: &mut Lab, options: &[&str], append: &str, bytes_per_second: u64) -> Result<Self> {
        lab.create_network("blue", &["--subnet", "10.9.0.0/24", "--host-address", "off"])?;
        let guest = TestGuest::beside(lab.host("alpha")?.binary())?;
        let append = format!("{} {append}", guest.append_dhcp("one"));
        let words = ["vm", "create", "one", "--kernel", guest.kernel(), "--initrd", guest.initrd()];
        let more = ["--append", &append, "--memory", "128MiB", "--net", "blue"];
        let made = lab.host("alpha")?.json(&[&words[..], &more, options].concat())?;
        let ip = made["networks"][0]["ips"][0].as_str().with_context(|| format!("No address in {made}"))?.parse()?;
        lab.add_guest("user", "gamma", &[&format!("{}/24", beside(ip))], 1500)?;
        lab.attach("user", "blue")?;
        lab.guest("user")?.await_reach(ip.into(), BOOT_TIME_MAX)?;
        let vm = Self { guest, ip, bytes_per_second };
        lab.guest("user")?.namespace().ip(&format!("route replace {ALL_HOSTS}/32 dev {NIC}"))?;
        vm.ssh(lab, "echo 0 >/proc/sys/net/ipv4/icmp_echo_ignore_broadcasts")?;
        Ok(vm)
    }

    /// Between the hosts that it moves to and fro.
    pub(crate) fn round_trip_of_hosts(lab: &Lab) -> Result<RoundTrips> {
        let (alpha, beta) = (lab.host("alpha")?.namespace(), lab.host("beta")?.address().ip());
        latency::beside(alpha, beta, Duration::from_millis(500), || Ok(())).map(|(times, ())| times)
    }

    /// Runs `words` in the VM as soon as its ssh server answers.
    pub(crate) fn ssh(&self, lab: &Lab, words: &str) -> Result<String> {
        wait::until(format!("ssh to {}", self.ip), BOOT_TIME_MAX, || {
            command::run(&mut self.ssh_command(lab, words)?).map(wait::Seen::Done)
        })
    }

    fn ssh_command(&self, lab: &Lab, words: &str) -> Result<Command> {
        let mut command = lab.guest("user")?.namespace().command("/usr/bin/ssh");
        command.args(self.guest.ssh_options()).arg(format!("root@{}", self.ip)).arg(words);
        Ok(command)
    }

    /// Moves it to a host, under an echo each 5 ms, a multicast stream that the VM answers, and a transfer whose bytes
    /// are compared.
    pub(crate) fn travel(&self, lab: &Lab, to: &str) -> Result<Journey> {
        let user = lab.guest("user")?;
        let transfer = Transfer::through_echo(user, (self.ip, ECHO_PORT).into(), self.bytes_per_second)?;
        transfer.await_bytes(self.bytes_per_second / 2, TRANSFER_TIME_MAX)?;
        let echoes = Echoes::start(user, self.ip, ECHO_INTERVAL)?;
        let group = Echoes::start(user, ALL_HOSTS, GROUP_INTERVAL)?;
        let told = Self::migrate(lab, to)?;
        // A transfer that broke is a result.
        let moved = transfer.await_bytes(self.bytes_per_second, TRANSFER_TIME_MAX).and_then(|()| transfer.finish());
        let (echoes, group) = (echoes.finish()?, group.finish()?);
        Ok(Journey::new(to, told, &echoes, &group, moved.map(|moved| moved.stall_max_ms)))
    }

    /// Moves it to a host; gamma asks for it.
    pub(crate) fn migrate(lab: &Lab, to: &str) -> Result<Told> {
        let report = lab.host("gamma")?.json(&["vm", "migrate", "one", "--to", to])?;
        wait::until_true(format!("the VM to run on {to}"), CONTACT_TIME_MAX, || {
            let vm = lab.host("gamma")?.json(&["vm", "show", "one"])?;
            Ok((vm["host_name"] == to && vm["state"] == "running", vm.to_string()))
        })?;
        Told::read(&report)
    }
}

impl Journey {
    fn new(to: &str, told: Told, echoes: &EchoReport, group: &EchoReport, stall: Result<u64>) -> Self {
        Self {
            to: to.to_owned(),
            told,
            echoes_sent: echoes.sent,
            echoes_lost: echoes.lost.len() as u64,
            echoes_duplicated: echoes.duplicated,
            echo_gap_max_ms: echoes.gap_max_ms,
            group_sent: group.sent,
            group_lost: group.lost.len() as u64,
            group_duplicated: group.duplicated,
            tcp_stall_max_ms: stall.as_ref().ok().map(|ms| *ms as f64),
            tcp_fault: stall.err().map(|error| format!("{error:#}")),
        }
    }

    /// What the network added to the hypervisor's pause.
    pub(crate) fn excess_ms(&self) -> f64 {
        self.told.blackout_ms - self.told.downtime_ms
    }

    /// An error if a frame was lost or came twice, or the transfer broke.
    pub(crate) fn ensure_whole(&self) -> Result<()> {
        let told = &self.told;
        ensure!(self.tcp_fault.is_none(), "The transfer broke: {self}");
        ensure!(told.frames_lost == 0 && told.frames_duplicated == 0, "The report tells of lost frames: {self}");
        ensure!(self.echoes_lost == 0 && self.echoes_duplicated == 0, "Echoes were lost or doubled: {self}");
        ensure!(self.group_lost == 0 && self.group_duplicated == 0, "Multicasts were lost or doubled: {self}");
        Ok(())
    }
}

impl fmt::Display for Journey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "to {}: {}; echoes {} lost of {}, {} doubled, gap {:.0} ms; multicasts {} lost of {}, {} doubled; ",
            self.to,
            self.told,
            self.echoes_lost,
            self.echoes_sent,
            self.echoes_duplicated,
            self.echo_gap_max_ms,
            self.group_lost,
            self.group_sent,
            self.group_duplicated,
        )?;
        match (&self.tcp_stall_max_ms, &self.tcp_fault) {
            (Some(stall), _) => write!(f, "TCP stalled {stall:.0} ms"),
            (None, fault) => write!(f, "TCP broke: {}", fault.as_deref().unwrap_or_default()),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} ms, downtime {:.1}, blackout {:.1}; frames {} forwarded, {} buffered, {} lost, {} doubled; {:.1} MB \
             memory, {:.1} MB disk",
            self.total_ms,
            self.downtime_ms,
            self.blackout_ms,
            self.frames_forwarded,
            self.frames_buffered,
            self.frames_lost,
            self.frames_duplicated,
            self.memory_bytes as f64 / 1e6,
            self.disk_bytes as f64 / 1e6,
        )
    }
}

impl Told {
    fn read(report: &Value) -> Result<Self> {
        let time = |key: &str| report[key].as_f64().with_context(|| format!("No {key} in {report}"));
        let count = |key: &str| {
            let value = key.split('.').fold(report, |value, key| &value[key]);
            value.as_u64().with_context(|| format!("No {key} in {report}"))
        };
        Ok(Self {
            total_ms: time("total_ms")?,
            downtime_ms: time("downtime_ms")?,
            blackout_ms: time("blackout_ms")?,
            frames_forwarded: count("frames_forwarded")?,
            frames_buffered: count("frames_buffered")?,
            frames_lost: count("frames_lost")?,
            frames_duplicated: count("frames_duplicated")?,
            memory_bytes: count("bytes.memory")?,
            disk_bytes: count("bytes.disk")?,
        })
    }
}

/// An address that the only VM does not have; no host has one.
fn beside(ip: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, last] = ip.octets();
    Ipv4Addr::new(a, b, c, if last == 254 { 2 } else { last + 1 })
}

/// A guest boots in six seconds without KVM; the rest is for a loaded machine.
pub(crate) const BOOT_TIME_MAX: Duration = Duration::from_secs(90);
const TRANSFER_TIME_MAX: Duration = Duration::from_secs(30);
const ECHO_INTERVAL: Duration = Duration::from_millis(5);
const ECHO_PORT: u16 = 7;
/// What every host is a member of: the guest has no program that would join another group. A sender of echoes to it is
/// a stream whose every datagram the guest confirms.
const ALL_HOSTS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
const GROUP_INTERVAL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_anybody_saw_is_one() {
        let report = serde_json::json!({
            "total_ms": 900.5, "downtime_ms": 20, "blackout_ms": 23.5, "frames_forwarded": 4, "frames_buffered": 4,
            "frames_lost": 0, "frames_duplicated": 0, "bytes": {"memory": 1_000_000, "disk": 65_536},
        });
        let told = Told::read(&report).unwrap();
        let echoes = |lost: &[u64]| EchoReport { sent: 10, lost: lost.to_vec(), duplicated: 0, gap_max_ms: 25.0 };
        let whole = Journey::new("beta", told.clone(), &echoes(&[]), &echoes(&[]), Ok(30));
        whole.ensure_whole().unwrap();
        assert_eq!(whole.excess_ms(), 3.5);
        let broken = Journey::new("beta", told.clone(), &echoes(&[]), &echoes(&[]), Err(anyhow::anyhow!("reset")));
        let lossy = Journey::new("beta", told.clone(), &echoes(&[3]), &echoes(&[]), Ok(30));
        let deaf = Journey::new("beta", told, &echoes(&[]), &echoes(&[3]), Ok(30));
        assert!([broken, lossy, deaf].iter().all(|journey| journey.ensure_whole().is_err()));
        assert!(Told::read(&serde_json::json!({"total_ms": 1})).is_err());
    }
}
