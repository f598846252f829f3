//! Addresses and names: leases, resolvers, `virtuoso ssh`, and addresses that two hosts gave twice.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{LAN, Scenario, WAN};
use crate::command;
use crate::host::Host;
use crate::lab::{self, JOIN_TIME_MAX, Lab};
use crate::test_guest::TestGuest;
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "names",
        about: "VMs get addresses by DHCP, are found by name in VMs and on hosts, and `virtuoso ssh` needs no more",
        topology: LAN,
        tools: &["dig", "ssh", TestGuest::QEMU],
        run: names,
    },
    Scenario {
        name: "names-twice",
        about: "of two VMs that got one address on two sides of a partition, one has another after the heal",
        topology: WAN,
        tools: &[],
        run: twice,
    },
];

fn names(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    lab.create_network("blue", &["--subnet", "10.8.0.0/24"])?;
    let guest = TestGuest::beside(lab.host("alpha")?.binary())?;
    let one = create(lab, &guest, "vm-8-1", "beta")?;
    let two = create(lab, &guest, "vm-8-2", "alpha")?;
    ensure!(one != two, "Both have {one}");

    // Gamma has never heard of the network's bridge.
    let begin = std::time::Instant::now();
    let shown = ssh(lab, &guest, "vm-8-1", "ip -4 addr show; cat /etc/resolv.conf")?;
    ensure!(shown.contains(&format!("{one}/24")), "The VM has no lease of {one}: {shown}");
    ensure!(shown.contains("nameserver 10.8.0.1") && shown.contains("search blue.virtuoso"), "No names: {shown}");
    lab.note(format!("ssh by name {:.1?} after the create", begin.elapsed()));
    resolves_in_the_vm(lab, &guest, two)?;
    resolves_on_a_host(lab, one)?;
    is_guarded(lab, &guest, [one, two])?;
    refuses_clearly(lab)
}

/// Makes a VM without a word about addresses; the one that its row tells.
fn create(lab: &Lab, guest: &TestGuest, name: &str, host: &str) -> Result<Ipv4Addr> {
    let append = guest.append_dhcp(name);
    let words = ["vm", "create", name, "--kernel", guest.kernel(), "--initrd", guest.initrd(), "--append", &append];
    let vm =
        lab.host("alpha")?.json(&[&words[..], &["--memory", "128MiB", "--net", "blue", "--host", host]].concat())?;
    address(&vm)
}

fn address(vm: &Value) -> Result<Ipv4Addr> {
    let text = vm["networks"][0]["ips"][0].as_str().with_context(|| format!("No address in {vm}"))?;
    Ok(text.parse()?)
}

fn ssh(lab: &Lab, guest: &TestGuest, vm: &str, words: &str) -> Result<String> {
    let gamma = lab.host("gamma")?;
    let mut command = gamma.namespace().command(gamma.binary());
    command.arg("ssh").arg("--socket").arg(gamma.socket()).args(["--wait", "120"]);
    command::run(command.args(guest.ssh_options()).arg(format!("root@{vm}")).arg(words))
}

fn resolves_in_the_vm(lab: &Lab, guest: &TestGuest, two: Ipv4Addr) -> Result<()> {
    for name in ["vm-8-2", "vm-8-2.virtuoso", "vm-8-2.blue.virtuoso"] {
        let found = ssh(lab, guest, "vm-8-1", &format!("nslookup -type=a {name} 10.8.0.1"))?;
        ensure!(found.contains(&two.to_string()), "{name} is not {two}: {found}");
    }
    let own = host_address(lab, "gamma")?;
    let found = ssh(lab, guest, "vm-8-1", "nslookup -type=a gamma 10.8.0.1")?;
    ensure!(found.contains(&own.to_string()), "gamma is not {own}: {found}");
    ssh(lab, guest, "vm-8-1", &format!("ping -c 2 {two} && ping -c 2 {own} && ping -c 1 10.8.0.1")).map(drop)
}

/// The address of a host itself in the network.
fn host_address(lab: &Lab, host: &str) -> Result<Ipv4Addr> {
    let network = lab.host(host)?.json(&["net", "show", "blue"])?;
    let ip = network["host_address"].as_str().with_context(|| format!("Host {host} has no address: {network}"))?;
    Ok(ip.parse()?)
}

fn resolves_on_a_host(lab: &Lab, one: Ipv4Addr) -> Result<()> {
    let dig = |words: &str| {
        let mut command = lab.host("gamma")?.namespace().command("dig");
        command::run(command.args(["@127.0.0.47", "+tries=2", "+time=2"]).args(words.split_whitespace()))
    };
    for words in ["+short vm-8-1.virtuoso", "+short vm-8-1", "+short +tcp vm-8-1.blue.virtuoso"] {
        let found = dig(words)?;
        ensure!(found.trim() == one.to_string(), "`dig {words}` found {found}");
    }
    let name = dig(&format!("+short -x {one}"))?;
    ensure!(name.trim() == "vm-8-1.blue.virtuoso.", "{one} is named {name}");
    for (words, status) in [("nobody.virtuoso", "NXDOMAIN"), ("example.org", "REFUSED"), ("virtuoso SOA", "NOERROR")] {
        let answer = dig(words)?;
        ensure!(answer.contains(&format!("status: {status}")), "`dig {words}`: {answer}");
    }
    let mut ping = lab.host("gamma")?.namespace().command("ping");
    command::run(ping.args(["-c", "2", "-W", "2"]).arg(one.to_string())).context("A host should reach a VM").map(drop)
}

/// The guest tries another's address, by IP and by Ethernet. What it says is heard by nobody.
fn is_guarded(lab: &Lab, guest: &TestGuest, [one, two]: [Ipv4Addr; 2]) -> Result<()> {
    // Under the address of the host that asks, the guest would answer itself.
    let mut taken = vec![one, two];
    for host in ["alpha", "beta", "gamma"] {
        taken.push(host_address(lab, host)?);
    }
    let mut unused = (2..255).map(|last| Ipv4Addr::new(10, 8, 0, last)).filter(|ip| !taken.contains(ip));
    let stolen = unused.next().context("The subnet is full")?;
    let steal = format!(
        "ip addr add {stolen}/32 dev eth0; ping -c 3 -W 1 -I {stolen} {two} | grep -c 'bytes from'; \
         ip addr del {stolen}/32 dev eth0"
    );
    let heard = ssh(lab, guest, "vm-8-1", &format!("{steal}; true"))?;
    ensure!(heard.trim() == "0", "Heard under a stolen address: {heard}");
    let entries = lab.host("gamma")?.list(&["fdb", "blue"])?;
    ensure!(!format!("{entries:?}").contains(&format!("\"{stolen}\"")), "The stolen address is claimed: {entries:?}");
    let fake = "02:00:00:00:00:99";
    let steal = format!(
        "(mac=$(cat /sys/class/net/eth0/address); ip link set eth0 down; ip link set eth0 address {fake} up; \
         ping -c 3 -W 1 {two}; ip link set eth0 down; ip link set eth0 address $mac up) >/dev/null 2>&1 & sleep 0"
    );
    ssh(lab, guest, "vm-8-1", &steal)?;
    ssh(lab, guest, "vm-8-1", "true").context("The VM should be back under its own address")?;
    let entries = lab.host("beta")?.list(&["fdb", "blue"])?;
    ensure!(!format!("{entries:?}").contains(fake), "The stolen MAC is claimed: {entries:?}");
    Ok(())
}

fn refuses_clearly(lab: &Lab) -> Result<()> {
    let alpha = lab.host("alpha")?;
    let words = |error: String, part: &str| -> Result<()> {
        ensure!(error.contains(part), "Unclear: {error}");
        Ok(())
    };
    // What stands behind the VM's name is the command that ssh runs there.
    let ssh = |vm: &str, code: i32| -> Result<String> {
        let mut command = alpha.namespace().command(alpha.binary());
        let output = command::output(command.arg("ssh").arg("--socket").arg(alpha.socket()).arg(vm))?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code), "ssh {vm} ended with {}: {error}", output.status);
        Ok(error)
    };
    words(ssh("root@vm-8-9", 4)?, "Did you mean")?;
    words(alpha.refused(&["net", "create", "red", "--subnet", "10.8.0.9/24"], 2)?, "did you mean 10.8.0.0/24")?;
    alpha.json(&["vm", "stop", "vm-8-2", "--force"])?;
    words(ssh("root@vm-8-2", 1)?, "vm start vm-8-2")
}

fn twice(lab: &mut Lab) -> Result<()> {
    lab.expect_anywhere("unreachable");
    lab.start_swarm()?;
    // Few addresses, so that two hosts soon choose the same.
    lab.create_network("blue", &["--subnet", "10.8.0.0/29", "--host-address", "off"])?;
    lab.emulator("wan")?.isolate(&["gamma"]);
    let there = make_stopped(lab.host("alpha")?, "there", "a")?;
    let gamma = lab.host("gamma")?;
    let same = (0..100).find_map(|number| {
        let made = make_stopped(gamma, "here", &format!("b{number}"));
        match made {
            Ok(ip) if ip != there => gamma.json(&["vm", "delete", "here"]).err().map(Err),
            Ok(ip) => Some(Ok(ip)),
            Err(error) => Some(Err(error)),
        }
    });
    let same = same.context("No request leads to the same address")??;
    ensure!(same == there, "{same} is not {there}");
    lab.emulator("wan")?.heal();
    lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX * 3)?;
    let views = || ["alpha", "beta", "gamma"].map(|name| addresses(lab.host(name)?));
    wait::until_true("all hosts to agree on two addresses", lab::CONTACT_TIME_MAX * 3, || {
        let views = views().into_iter().collect::<Result<Vec<_>>>()?;
        let agreed = views.iter().all(|view| *view == views[0] && view.len() == 2 && view[0] != view[1]);
        Ok((agreed, format!("{views:?}")))
    })?;
    let kept = addresses(lab.host("beta")?)?.contains(&there);
    ensure!(kept, "Neither VM kept {there}");
    Ok(())
}

/// A VM that is never started, so that it needs neither QEMU nor a kernel.
fn make_stopped(host: &Host, name: &str, request: &str) -> Result<Ipv4Addr> {
    let words = ["vm", "create", name, "--stopped", "--kernel", "/etc/hostname", "--memory", "16MiB", "--net", "blue"];
    address(&host.json(&[&words[..], &["--request", request]].concat())?)
}

fn addresses(host: &Host) -> Result<Vec<Ipv4Addr>> {
    host.list(&["vm", "list"])?.iter().map(address).collect()
}
