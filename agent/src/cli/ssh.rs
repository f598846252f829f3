//! `virtuoso ssh`: a shell in a VM by its name. Needs no resolver: the agent tells the address, and attaches the VM's
//! network to this host.

use super::{Asking, output};
use crate::config::nearest::nearest;
use crate::control::client::{Call, ClientError};
use crate::control::model::{Attach, Network, Vm};
use crate::name::Name;
use anyhow::{Context, bail, ensure};
use clap::Args;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

/// Options of ssh that a value follows (ssh(1)).
const OPTIONS_WITH_VALUE: &str = "BbcDEeFIiJLlmOopQRSWw";
/// Between two tries to connect. A guest that boots answers by refusing until its server runs.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// How long one try may take: a guest that is not there yet says nothing.
const TRY_TIME: Duration = Duration::from_secs(1);

/// Log in to a VM by its name, with ssh
#[derive(Args)]
#[command(after_help = "\
Examples:
  virtuoso ssh root@vm-8-1
  virtuoso ssh root@vm-8-1 uname -a
  virtuoso ssh -i ~/.ssh/id_lab -L 8080:localhost:80 root@vm-8-1

All but --wait, --socket and --json goes to ssh as it is; those three come first. The VM's host key is kept in
~/.ssh/known_hosts under the VM's id, so that another VM of the same name or address is not mistaken for it.")]
pub(super) struct SshArgs {
    /// Seconds to wait until the VM answers
    #[arg(long, allow_negative_numbers = true, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
    /// Options of ssh, [USER@]VM, and a command
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "[OPTIONS] [USER@]VM [COMMAND]"
    )]
    words: Vec<OsString>,
}

/// The words of a command line of ssh.
#[derive(PartialEq, Eq, Debug)]
struct Words {
    options: Vec<OsString>,
    user: Option<String>,
    vm: Name,
    command: Vec<OsString>,
    port: u16,
}

impl SshArgs {
    pub(super) async fn run(self, asking: &Asking) -> anyhow::Result<ExitCode> {
        let words = Words::read(self.words)?;
        let vm = find(asking, &words.vm).await?;
        ensure!(vm.state == "running", "VM {} is {}: `virtuoso vm start {}` starts it", vm.name, vm.state, vm.name);
        let ip = reach(asking, &vm, words.port, Duration::from_secs(self.wait)).await?;
        let mut ssh = Command::new("ssh");
        ssh.arg("-o").arg(format!("HostKeyAlias={}", vm.id)).args(["-o", "CheckHostIP=no"]);
        // The first key of a VM that was made by its own agent is as good as it gets; a changed one is refused.
        ssh.args(["-o", "StrictHostKeyChecking=accept-new"]).args(&words.options);
        ssh.arg(words.user.map_or_else(|| ip.to_string(), |user| format!("{user}@{ip}"))).args(&words.command);
        let error = ssh.exec();
        match error.kind() {
            std::io::ErrorKind::NotFound => bail!("There is no ssh client: install openssh-client"),
            _ => Err(error).context("Can't run ssh"),
        }
    }
}

impl Words {
    fn read(words: Vec<OsString>) -> anyhow::Result<Self> {
        let (mut options, mut port) = (Vec::new(), 22);
        let mut words = words.into_iter();
        let target = loop {
            let word = words.next().context("Name a VM: virtuoso ssh [USER@]VM")?;
            let text = word.to_str().context("Options of ssh are plain text")?.to_owned();
            let Some(letters) = text.strip_prefix('-').filter(|letters| !letters.is_empty()) else { break text };
            options.push(word);
            // Letters may stand together; the value of the last one may stand behind it or be the next word.
            let Some(at) = letters.find(|letter| OPTIONS_WITH_VALUE.contains(letter)) else { continue };
            let mut value = letters[at + 1..].to_owned();
            if value.is_empty() {
                let next = words.next().with_context(|| format!("ssh's option {text} lacks its value"))?;
                value = next.to_string_lossy().into_owned();
                options.push(next);
            }
            if letters[at..].starts_with('p') {
                port = value.parse().with_context(|| format!("Not a port: `{value}`"))?;
            }
        };
        let (user, vm) = match target.rsplit_once('@') {
            Some((user, vm)) => (Some(user.to_owned()), vm),
            None => (None, &*target),
        };
        let vm = vm.strip_suffix(".virtuoso").unwrap_or(vm).parse()?;
        Ok(Self { options, user, vm, command: words.collect(), port })
    }
}

/// The VM of this name, or those whose names are like it.
async fn find(asking: &Asking, name: &Name) -> anyhow::Result<Vm> {
    let error = match asking.client.fetch::<Vm>(Call::get(format!("/v1/vms/{name}"))).await {
        Ok(vm) => return Ok(vm),
        Err(error) => error,
    };
    if !matches!(&error, ClientError::Refused(problem) if problem.status == 404) {
        return Err(error.into());
    }
    let vms: Vec<Vm> = asking.client.fetch(Call::get("/v1/vms")).await?;
    let names: Vec<&str> = vms.iter().map(|vm| vm.name.as_str()).collect();
    if let Some(near) = nearest(name, &names) {
        output::hint(&format!("Did you mean {near}?"));
    }
    Err(error.into())
}

/// Waits until one of the VM's addresses takes connections.
async fn reach(asking: &Asking, vm: &Vm, port: u16, wait: Duration) -> anyhow::Result<IpAddr> {
    let until = Instant::now() + wait;
    let mut told = false;
    loop {
        let current: Vm = asking.client.fetch(Call::get(format!("/v1/vms/{}", vm.name))).await?;
        let mut problem = no_address(&current);
        for interface in &current.networks {
            let ips: Vec<IpAddr> = interface.ips.iter().copied().filter(is_global).collect();
            if ips.is_empty() {
                continue;
            }
            attach(asking, &interface.network).await?;
            for ip in ips {
                let try_until = until.min(Instant::now() + TRY_TIME);
                match timeout_at(try_until, TcpStream::connect(SocketAddr::new(ip, port))).await {
                    Ok(Ok(_)) => return Ok(ip),
                    Ok(Err(error)) => problem = format!("{ip} port {port}: {error}"),
                    Err(_) => problem = format!("{ip} port {port} does not answer"),
                }
            }
        }
        if Instant::now() >= until {
            bail!(
                "VM {} can't be reached within {} s: {problem}. `virtuoso vm console {}` shows what it does",
                vm.name,
                wait.as_secs(),
                vm.name
            );
        }
        if !told && std::io::stderr().is_terminal() {
            output::hint(&format!("Waiting for VM {} ({problem})", vm.name));
            told = true;
        }
        sleep(RETRY_INTERVAL).await;
    }
}

fn no_address(vm: &Vm) -> String {
    match vm.networks.is_empty() {
        true => "it has no network: make it with --net".to_owned(),
        false => format!(
            "no IP address of it is known yet. Networks with a --subnet give addresses; in others `virtuoso fdb {}` \
             shows those that were seen",
            vm.networks[0].network
        ),
    }
}

/// Makes the network's bridge on this host, unless it is there.
async fn attach(asking: &Asking, network: &str) -> anyhow::Result<()> {
    let shown: Network = asking.client.fetch(Call::get(format!("/v1/networks/{network}"))).await?;
    if shown.bridge.is_none() {
        let call = Call::post(format!("/v1/networks/{network}/attach"), &Attach::default());
        asking.client.call(call).await.with_context(|| format!("Can't attach network {network} on this host"))?;
    }
    if shown.subnet.is_none() && shown.bridge.is_none() {
        output::hint(&format!(
            "Network {network} has no subnet: this host needs an address on its bridge (`virtuoso net show {network}`)"
        ));
    }
    Ok(())
}

fn is_global(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Words {
        Words::read(line.split_whitespace().map(Into::into).collect()).unwrap()
    }

    #[test]
    fn the_vm_is_found_among_options_and_a_command() {
        let words = read("-v -i key -oUser=x -p 2222 root@vm-8-1 ls -l /");
        assert_eq!((words.user.as_deref(), &*words.vm, words.port), (Some("root"), "vm-8-1", 2222));
        assert_eq!(words.options, ["-v", "-i", "key", "-oUser=x", "-p", "2222"]);
        assert_eq!(words.command, ["ls", "-l", "/"]);
        let plain = read("-tt -p22 web.virtuoso");
        assert_eq!((plain.user, &*plain.vm, plain.port, plain.command.len()), (None, "web", 22, 0));
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for (line, part) in
            [("-v", "Name a VM"), ("-i", "lacks its value"), ("-p x web", "Not a port"), ("a_b", "name")]
        {
            let words = line.split_whitespace().map(Into::into).collect();
            assert!(Words::read(words).unwrap_err().to_string().contains(part), "{line}");
        }
    }
}
