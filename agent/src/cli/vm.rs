//! `virtuoso vm`: virtual machines, on any host.

use super::cdrom::{self, CdromArgs};
use super::display::DisplayArgs;
use super::format::{bytes, list, seconds, yes};
use super::progress::follow;
use super::table::Table;
use super::{Asking, output, terminal, vm_wait};
use crate::config::check_label;
use crate::control::CONSOLE_PROTOCOL;
use crate::control::client::{Call, parse};
use crate::control::model::{BootDevice, Vm, VmClone, VmCreate, VmDetails, VmStop};
use crate::name::Name;
use crate::size::ByteSize;
use crate::vm::{VmLimits, VmLimitsChange};
use anyhow::Context;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Subcommand)]
pub(super) enum VmVerb {
    /// Make a VM and start it
    #[command(after_help = "\
Examples:
  virtuoso vm create web --image debian-12 --net blue --vcpus 2 --memory 1GiB --disk 10GiB --ssh-key ~/.ssh/id.pub
  virtuoso vm create web --image debian-12 --net blue --memory 1GiB --best --wait
  virtuoso vm create new --disk 10GiB --memory 1GiB --cdrom ~/debian-12-netinst.iso
  virtuoso vm create job --kernel /boot/vmlinuz --initrd /srv/job.img --append 'console=ttyS0' --memory 128MiB \\
      --net blue --host beta

With --kernel, --image is what its disk holds. Files of --kernel and --initrd are those of the host that runs the VM.
For a VM on another host everybody must be allowed to read them there.")]
    Create(Box<CreateArgs>),
    /// All VMs of the swarm
    #[command(after_help = "Examples:\n  virtuoso vm list\n  virtuoso vm list --json | jq -r '.[].name'")]
    List,
    /// One VM
    #[command(after_help = "Examples:\n  virtuoso vm show web\n  virtuoso vm show web --json | jq .networks")]
    Show {
        /// The VM
        name: Name,
    },
    /// Start a VM that is stopped
    #[command(after_help = "Examples:\n  virtuoso vm start web")]
    Start {
        /// The VM
        name: Name,
    },
    /// Press a VM's power button, and end it if it does not listen
    #[command(
        after_help = "Examples:\n  virtuoso vm stop web\n  virtuoso vm stop web --timeout 10\n  virtuoso vm stop web --force"
    )]
    Stop {
        /// The VM
        name: Name,
        /// End it at once
        #[arg(long, conflicts_with = "timeout")]
        force: bool,
        /// Seconds that the guest may take before it is ended [default: 60]
        #[arg(long, allow_negative_numbers = true, value_name = "SECONDS")]
        timeout: Option<u32>,
    },
    /// Press a VM's reset button
    #[command(after_help = "Examples:\n  virtuoso vm reset web")]
    Reset {
        /// The VM
        name: Name,
    },
    /// Make a copy of a VM, with an id and addresses of its own
    #[command(after_help = "\
Examples:
  virtuoso vm clone web web-2
  virtuoso vm clone web web-2 --host beta

A VM that runs is copied as it is at one moment: what its guest had not written to its disk yet is missing in the copy,
as after a power failure. Keys and names that the guest keeps on its disk are in the copy too.")]
    Clone {
        /// The VM that is copied
        source: Name,
        /// The copy's name
        name: Name,
        /// The host it runs on [default: that of the original]
        #[arg(long)]
        host: Option<String>,
        /// Make it, but do not start it
        #[arg(long)]
        stopped: bool,
        /// Names this request: the same one again makes nothing twice
        #[arg(long, value_name = "ID")]
        request: Option<String>,
    },
    /// Change what a VM may use, while it runs too
    #[command(
        after_help = "Examples:\n  virtuoso vm set web --cpu-limit 50\n  virtuoso vm set web --io-limit 10MiB --iops-limit 500\n  virtuoso vm set web --cpu-limit 0"
    )]
    Set {
        /// The VM
        name: Name,
        #[command(flatten)]
        limits: Limits,
    },
    /// Remove a VM and its disk
    #[command(after_help = "Examples:\n  virtuoso vm delete web\n  virtuoso vm delete web --force")]
    Delete {
        /// The VM
        name: Name,
        /// Also if it runs
        #[arg(long)]
        force: bool,
    },
    /// Move a VM to another host while it runs; Ctrl-C gives it up
    #[command(after_help = super::migrate::EXAMPLES)]
    Migrate(super::migrate::MigrateArgs),
    /// A VM's serial console; Ctrl-] detaches
    #[command(after_help = "Examples:\n  virtuoso vm console web\n  virtuoso vm console web --log | tail")]
    Console {
        /// The VM
        name: Name,
        /// Only print what it wrote lately
        #[arg(long)]
        log: bool,
    },
    /// What is in a VM's CD-ROM drive
    Cdrom(CdromArgs),
    /// A VM's display, for a VNC viewer on this machine
    #[command(after_help = "\
Examples:
  virtuoso vm display web
  virtuoso vm display web --listen 127.0.0.1:5901 --no-viewer
  virtuoso vm display web --unix ~/web.vnc
  virtuoso vm display web --screenshot web.png

A viewer is started if one is installed and there is a screen. Without one, open the address that is printed.")]
    Display(DisplayArgs),
}

#[derive(Args)]
pub(super) struct Limits {
    /// Percent of a processor that it may use, 100 for each whole one; 0 for no limit
    #[arg(long, allow_negative_numbers = true, value_name = "PERCENT")]
    cpu_limit: Option<u32>,
    /// Bytes a second that its disk may carry, as 10MiB; 0 for no limit
    #[arg(long, value_name = "SIZE")]
    io_limit: Option<ByteSize>,
    /// Operations a second that its disk may carry; 0 for no limit
    #[arg(long, allow_negative_numbers = true, value_name = "COUNT")]
    iops_limit: Option<u64>,
}

impl Limits {
    fn change(&self) -> VmLimitsChange {
        VmLimitsChange {
            cpu_percent: self.cpu_limit,
            io_bytes_per_s: self.io_limit.map(|limit| limit.0),
            iops: self.iops_limit,
        }
    }
}

#[derive(Args)]
pub(super) struct CreateArgs {
    /// Its name
    name: Name,
    /// The image that its disk begins as
    #[arg(long, value_name = "NAME", required_unless_present_any = ["kernel", "disk"])]
    image: Option<Name>,
    /// A kernel to boot, a file on its host
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The kernel's initial file system, a file on its host
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "", hide_default_value = true)]
    append: String,
    /// A file of this machine, or an image of the swarm if there is no such file, for its CD-ROM drive
    #[arg(long, value_name = "FILE_OR_IMAGE")]
    cdrom: Option<String>,
    /// What its firmware tries first; a disk that can't be booted, as an empty one, is passed over
    #[arg(long, value_name = "DEVICE", default_value = "disk", conflicts_with = "kernel")]
    boot: BootDevice,
    /// A network to plug it into; can be repeated
    #[arg(long = "net", value_name = "NETWORK")]
    networks: Vec<Name>,
    /// Whether its guest may use other MAC and IP addresses than its own [default: deny]
    #[arg(long, value_name = "allow|deny", value_parser = ["allow", "deny"])]
    spoofing: Option<String>,
    /// Virtual CPUs
    #[arg(long, allow_negative_numbers = true, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpus: u32,
    /// Memory, as 1GiB
    #[arg(long, value_name = "SIZE")]
    memory: ByteSize,
    /// Its own disk, as 10GiB [default: as large as the image]
    #[arg(long, value_name = "SIZE")]
    disk: Option<ByteSize>,
    /// The host it runs on [default: this one]
    #[arg(long, conflicts_with = "best")]
    host: Option<String>,
    /// Run it on the best host that has room
    #[arg(long)]
    best: bool,
    /// With --best, a label that the host has; can be repeated
    #[arg(long = "host-label", value_name = "KEY[=VALUE]", requires = "best")]
    host_labels: Vec<String>,
    /// A label for it; can be repeated
    #[arg(long = "label", value_name = "KEY[=VALUE]", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// A file of public keys that may log in; can be repeated
    #[arg(long = "ssh-key", value_name = "FILE")]
    ssh_keys: Vec<PathBuf>,
    /// Begin again when it crashed
    #[arg(long)]
    restart: bool,
    #[command(flatten)]
    limits: Limits,
    /// Make it, but do not start it
    #[arg(long)]
    stopped: bool,
    /// Wait until its guest has sent something on a network, or without one has written to its console; exit status 1
    /// and the end of its console if it has not within so many seconds, 120 if no number is given
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "120",
        conflicts_with = "stopped"
    )]
    wait: Option<u64>,
    /// Names this request: the same one again makes nothing twice
    #[arg(long, value_name = "ID")]
    request: Option<String>,
}

impl VmVerb {
    pub(super) async fn run(self, asking: &Asking) -> anyhow::Result<ExitCode> {
        let at = |name: &Name, verb: &str| format!("/v1/vms/{name}{verb}");
        match self {
            Self::Create(args) => create(asking, *args).await,
            Self::List => asking.show(Call::get("/v1/vms"), vms).await,
            Self::Show { name } => asking.show(Call::get(at(&name, "")), show).await,
            Self::Start { name } => asking.tell(Call::post(at(&name, "/start"), &()), state).await,
            Self::Stop { name, force, timeout } => {
                let call = Call::post(at(&name, "/stop"), &VmStop { force, timeout_s: timeout });
                asking.tell(call, state).await
            }
            Self::Reset { name } => asking.tell(Call::post(at(&name, "/reset"), &()), state).await,
            Self::Clone { source, name, host, stopped, request } => {
                let call = Call::post(at(&source, "/clone"), &VmClone { name, request, host, stopped });
                let json = follow(&asking.client, call, "Copying").await?;
                if asking.json {
                    return asking.show_json(&json);
                }
                let vm: Vm = parse(&json)?;
                output::line(&format!("VM {}, a copy of {source}, is {} on host {}", vm.name, vm.state, vm.host_name))?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Set { name, limits } => {
                let call = Call::post(at(&name, "/limits"), &limits.change());
                asking
                    .tell(call, |vm: Vm| format!("VM {}: {}", vm.name, vm.details.map(told).unwrap_or_default()))
                    .await
            }
            Self::Delete { name, force } => {
                let query = if force { "?force=true" } else { "" };
                asking.done(Call::delete(at(&name, query)), &format!("Removed VM {name}")).await
            }
            Self::Migrate(args) => args.run(asking).await,
            Self::Console { name, log: true } => {
                output::write(&asking.client.call(Call::get(at(&name, "/console"))).await?)?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Console { name, log: false } => {
                let call = Call::upgrade(at(&name, "/console"), CONSOLE_PROTOCOL);
                let guest = asking.client.upgraded(call).await?;
                output::hint(&format!("Console of {name}. Ctrl-] detaches.\r"));
                let detached = terminal::join(guest).await.context("The console broke off")?;
                let told = if detached { "Detached.".to_owned() } else { why_ended(asking, &name).await };
                output::hint(&format!("\n{told}"));
                Ok(ExitCode::SUCCESS)
            }
            Self::Cdrom(args) => args.run(asking).await,
            Self::Display(args) => args.run(asking).await,
        }
    }
}

impl CreateArgs {
    fn request(self) -> anyhow::Result<VmCreate> {
        let mut ssh_keys = Vec::new();
        for path in &self.ssh_keys {
            ssh_keys.extend(read_keys(path)?);
        }
        Ok(VmCreate {
            name: self.name,
            request: self.request,
            vcpus: self.vcpus,
            memory_bytes: self.memory.0,
            disk_bytes: self.disk.unwrap_or_default().0,
            image: self.image,
            kernel: self.kernel,
            initrd: self.initrd,
            append: self.append,
            cdrom: self.cdrom.map(|medium| cdrom::wanted(&medium, false)).transpose()?,
            boot: Some(self.boot),
            networks: self.networks,
            spoofing: self.spoofing.as_deref() == Some("allow"),
            labels: self.labels.into_iter().collect(),
            ssh_keys,
            restart: self.restart,
            limits: VmLimits::default().changed(self.limits.change()),
            stopped: self.stopped,
            host: self.host,
            best: self.best,
            host_labels: self.host_labels,
            disk: None,
        })
    }
}

async fn create(asking: &Asking, args: CreateArgs) -> anyhow::Result<ExitCode> {
    let patience = args.wait.map(Duration::from_secs);
    let json = asking.client.call(Call::post("/v1/vms", &args.request()?)).await?;
    let vm: Vm = parse(&json)?;
    if let Some(patience) = patience {
        vm_wait::until_it_speaks(asking, &vm, patience).await?;
    }
    if asking.json {
        return asking.show_json(&json);
    }
    output::line(&format!("VM {} is {} on host {}", vm.name, vm.state, vm.host_name))?;
    Ok(ExitCode::SUCCESS)
}

/// Why a console has come to its end.
async fn why_ended(asking: &Asking, name: &Name) -> String {
    match asking.client.fetch::<Vm>(Call::get(format!("/v1/vms/{name}"))).await {
        Ok(vm) if vm.state == "running" => format!("The connection was lost, and VM {name} runs on: try again."),
        Ok(vm) => format!("VM {name} is {}.", vm.state),
        Err(error) => format!("The connection was lost: {error}"),
    }
}

/// The keys of a file in the form of `authorized_keys`.
fn read_keys(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("Can't read {}", path.display()))?;
    anyhow::ensure!(!text.contains("PRIVATE KEY"), "{} is a private key: name the public one", path.display());
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(Into::into).collect())
}

fn parse_label(text: &str) -> anyhow::Result<(String, String)> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    check_label(key, value)?;
    Ok((key.into(), value.into()))
}

fn state(vm: Vm) -> String {
    format!("VM {} is {}", vm.name, vm.state)
}

fn told(details: VmDetails) -> String {
    limits(&details.limits)
}

fn limits(limits: &VmLimits) -> String {
    let cpu = (limits.cpu_percent > 0).then(|| format!("{} % of a processor", limits.cpu_percent));
    let io = (limits.io_bytes_per_s > 0).then(|| format!("{} of disk a second", bytes(limits.io_bytes_per_s)));
    let iops = (limits.iops > 0).then(|| format!("{} disk operations a second", limits.iops));
    let all: Vec<String> = [cpu, io, iops].into_iter().flatten().collect();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}

fn vms(vms: Vec<Vm>) -> Table {
    let mut table = Table::new(&["NAME", "STATE", "HOST", ">VCPUS", ">MEMORY", "IMAGE", "NETWORKS", "IPS", "ID"]);
    for vm in vms {
        table.row([
            vm.name,
            vm.state,
            vm.host_name,
            vm.vcpus.to_string(),
            bytes(vm.memory_bytes),
            vm.image.unwrap_or_default(),
            list(vm.networks.iter().map(|interface| &interface.network)),
            list(vm.networks.iter().flat_map(|interface| &interface.ips)),
            vm.id.to_string(),
        ]);
    }
    table
}

fn show(vm: Vm) -> Table {
    let mut table = Table::list();
    let mut row = |key: &str, value: String| table.row([key.to_owned(), value]);
    row("name", vm.name);
    row("id", vm.id.to_string());
    row("state", vm.state);
    row("host", vm.host_name);
    row("vcpus", vm.vcpus.to_string());
    row("memory", bytes(vm.memory_bytes));
    row("image", vm.image.unwrap_or_default());
    for interface in vm.networks {
        let text = format!("{} {} {}", interface.network, interface.mac, list(interface.ips));
        row("interface", text.trim_end().into());
    }
    let Some(details) = vm.details else { return table };
    row("disk", bytes(details.disk_bytes));
    row("kernel", details.kernel.unwrap_or_default());
    row("labels", list(details.labels.iter().map(|(key, value)| format!("{key}={value}"))));
    row("restart", yes(details.restart));
    row("pid", details.pid.map(|pid| pid.to_string()).unwrap_or_default());
    row("limits", limits(&details.limits));
    row("cpu used", details.cpu_s.map(seconds).unwrap_or_default());
    row("cpu now", details.cpu_percent.map(|percent| format!("{percent:.0} %")).unwrap_or_default());
    row("memory used", details.memory_used_bytes.map(bytes).unwrap_or_default());
    row("cd-rom", details.cdrom.as_ref().map(cdrom::describe).unwrap_or_default());
    row("disk used", bytes(details.disk_used_bytes));
    let pair = |words: [&str; 2], counts: [Option<u64>; 2]| match counts {
        [Some(one), Some(other)] => format!("{} {}, {} {}", words[0], bytes(one), words[1], bytes(other)),
        _ => String::new(),
    };
    row("disk i/o", pair(["read", "written"], [details.io_read_bytes, details.io_written_bytes]));
    row("network i/o", pair(["received", "sent"], [details.net_rx_bytes, details.net_tx_bytes]));
    row("display", details.vnc_socket);
    row("crash", details.crash.unwrap_or_default());
    row("waits", details.trouble.unwrap_or_default());
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_line_by_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# mine\nssh-ed25519 AAAA me\n\n ssh-rsa BBBB \n").unwrap();
        assert_eq!(read_keys(file.path()).unwrap(), ["ssh-ed25519 AAAA me", "ssh-rsa BBBB"]);
        std::fs::write(file.path(), "-----BEGIN OPENSSH PRIVATE KEY-----").unwrap();
        assert!(read_keys(file.path()).unwrap_err().to_string().contains("public"));
    }
}
