//! `testbed demo`: three hosts become one pool before the user's eyes, and run virtual machines. Every command is shown
//! and really run, and what follows it is what it printed.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command;
use crate::console;
use crate::host::Start;
use crate::lab::{self, Settings};
use crate::root_image;
use crate::test_guest::TestGuest;
use crate::wait;

mod stage;

use self::stage::{Stage, copy, say};

pub(crate) fn run(settings: &Settings) -> Result<()> {
    lab::ensure_agent(&settings.agent)?;
    let settings = Settings { report: settings.report.join("demo"), ..settings.clone() };
    let mut show = Show { stage: Stage::build(&TOPOLOGY.parse()?, &settings)?, report: settings.report.clone() };
    show.introduce();
    show.form_the_swarm()?;
    show.span_a_network()?;
    match guest(&settings) {
        Ok(guest) => show.run_vms(&guest)?,
        Err(error) => say(&format!("The rest of the story is about VMs, and is left out: {error:#}.")),
    }
    console::line(format!("\nDone. The agents' logs are in {}.", settings.report.display()));
    Ok(())
}

/// What VMs run here; an error says what is missing.
fn guest(settings: &Settings) -> Result<TestGuest> {
    for (program, package) in
        [(TestGuest::QEMU, "qemu-system-x86"), ("qemu-img", "qemu-utils"), ("ssh", "openssh-client")]
    {
        ensure!(command::is_installed(program), "{program} is not installed (apt-get install {package})");
    }
    TestGuest::beside(&settings.agent)
}

struct Show {
    stage: Stage,
    report: PathBuf,
}

impl Show {
    fn introduce(&self) {
        say("Three hosts, alpha, beta and gamma, stand for three machines. Each is a network namespace of this\n\
             machine; between them is an emulated wide area network of 5 ms and 100 Mbit/s. `alpha$ command` below is\n\
             a command on alpha. VIRTUOSO_SOCKET names the socket of that host's agent; on real machines each has its\n\
             own /run/virtuoso/virtuoso.sock, and nothing needs to be set.");
    }

    fn form_the_swarm(&mut self) -> Result<()> {
        say("The first agent has nobody to join: it makes a swarm.");
        self.stage.start_agent("alpha", &Start::alone())?;
        let ticket = self.stage.run("alpha", "virtuoso swarm invite --json")?;
        let ticket: serde_json::Value = serde_json::from_str(&ticket).context("The invitation is no JSON")?;
        let ticket = ticket["ticket"].as_str().context("There is no ticket in the invitation")?.to_owned();
        say("The two others join with a ticket each; a ticket admits one host.");
        self.stage.start_agent("beta", &Start::by(ticket))?;
        let ticket = self.stage.lab.host("alpha")?.ticket()?;
        self.stage.start_agent("gamma", &Start::by(ticket))?;
        self.stage.lab.await_members(&["alpha", "beta", "gamma"], lab::JOIN_TIME_MAX)?;
        say("Every host knows every host's capacity, and answers from its own tables.");
        self.stage.run("gamma", "virtuoso host list")?;
        self.stage.run("gamma", "virtuoso host find --vcpus 1 --memory 64MiB").map(drop)
    }

    fn span_a_network(&self) -> Result<()> {
        say("An Ethernet network spans all three. With a subnet it gives VMs and hosts addresses and names.");
        self.stage.run("alpha", "virtuoso net create blue --subnet 10.8.0.0/24")?;
        lab::await_network(self.stage.lab.host("beta")?, "blue")?;
        lab::await_network(self.stage.lab.host("gamma")?, "blue")?;
        for host in ["alpha", "beta", "gamma"] {
            self.stage.run(host, "virtuoso net attach blue")?;
        }
        wait::until_true("alpha to know beta's address", lab::CONTACT_TIME_MAX, || {
            let found = self.stage.look("alpha", RESOLVE_BETA)?;
            Ok((!found.trim().is_empty(), "no answer".to_owned()))
        })?;
        self.stage.run("alpha", &format!("ping -c 2 -i 0.3 $({RESOLVE_BETA})")).map(drop)
    }

    fn run_vms(&mut self, guest: &TestGuest) -> Result<()> {
        self.import_an_image(guest)?;
        self.make_vms()?;
        self.log_in(guest)?;
        self.look_at_a_vm()?;
        self.insert_a_disc()?;
        self.follow_addresses()?;
        self.need_no_agent()?;
        self.own_the_image()?;
        self.move_a_vm()
    }

    fn import_an_image(&self, guest: &TestGuest) -> Result<()> {
        say("Gamma has a disk image: a small Linux, and random bytes for weight. Once it is imported, all know it.");
        let file = copy(guest.disk(), self.stage.file("guest.img"))?;
        let mut file = OpenOptions::new().append(true).open(&file).context("Cannot open the disk image")?;
        root_image::append_random(&mut file, WEIGHT_MIB, 1)?;
        self.stage.run("gamma", "virtuoso image import guest.img --name guest")?;
        let beta = self.stage.lab.host("beta")?;
        wait::until_true("beta to know the image", lab::CONTACT_TIME_MAX, || {
            let images = beta.list(&["image", "list"])?;
            Ok((!images.is_empty(), "no image".to_owned()))
        })?;
        self.stage.run("beta", "virtuoso image list").map(drop)
    }

    fn make_vms(&self) -> Result<()> {
        say("The user sits at beta. One VM is to run on alpha, another one here; --best lets the swarm choose.");
        let create = |vm: &str, more: &str| {
            let line = format!("virtuoso vm create {vm} --image guest --net blue --memory 160MiB{more}");
            self.stage.run("beta", &line)
        };
        create("vm-8-1", " --host alpha")?;
        create("vm-8-2", "")?;
        self.stage.run("beta", "virtuoso vm list")?;
        say("Both run already. They read from gamma what they need first; the rest of the image follows.");
        self.stage.run("alpha", "virtuoso image list").map(drop)
    }

    fn log_in(&self, guest: &TestGuest) -> Result<()> {
        say("Log in by name, from any host: `virtuoso ssh` waits until the guest answers, up to 15 seconds on an\n\
             idle machine without KVM. The file ssh_config names the guest's key.");
        let key = copy(guest.key(), self.stage.file("id_ed25519"))?;
        let (key, known) = (key.display().to_string(), self.stage.file("known_hosts").display().to_string());
        let config = format!("IdentityFile {key}\nUserKnownHostsFile {known}\nBatchMode yes\nLogLevel ERROR\n");
        fs::write(self.stage.file("ssh_config"), config).context("Cannot write ssh_config")?;
        self.ssh("vm-8-1", "hostname; uptime; ip -4 addr show dev eth0; cat /etc/resolv.conf")?;
        say("In the VMs the names of all VMs and hosts of the network resolve too.");
        // It boots as long as the other one, and ping does not wait.
        self.ssh("vm-8-2", "hostname")?;
        self.ssh("vm-8-1", "ping -c 3 vm-8-2")?;
        self.ssh("vm-8-1", "ping -c 1 beta").map(drop)
    }

    fn look_at_a_vm(&self) -> Result<()> {
        say("What a VM is and uses, what it wrote to its console and what its display shows: from any host.");
        self.stage.run("beta", "virtuoso vm show vm-8-1")?;
        self.stage.run("beta", "virtuoso vm console vm-8-1 --log | grep READY")?;
        let picture = self.report.join("vm-8-1.png");
        self.stage.run("beta", &format!("virtuoso vm display vm-8-1 --screenshot {}", picture.display()))?;
        say("`virtuoso vm console vm-8-1` is a terminal, `virtuoso vm display vm-8-1` opens a VNC viewer.");
        Ok(())
    }

    fn insert_a_disc(&self) -> Result<()> {
        say("A CD-ROM image is a file on the user's machine, beta. It goes into the drive of the VM on alpha.");
        let directory = self.stage.file("disc");
        fs::create_dir(&directory).with_context(|| format!("Cannot make {}", directory.display()))?;
        fs::write(directory.join("hello.txt"), "Hello from beta\n").context("Cannot write hello.txt")?;
        self.stage.run("beta", "genisoimage -quiet -R -o hello.iso disc")?;
        self.stage.run("beta", "virtuoso vm cdrom vm-8-1 insert hello.iso")?;
        self.ssh("vm-8-1", "mkdir -p /mnt; mount -t iso9660 -o ro /dev/sr0 /mnt; cat /mnt/hello.txt; umount /mnt")?;
        self.stage.run("beta", "virtuoso vm cdrom vm-8-1 eject")?;
        self.ssh("vm-8-1", "cat /dev/sr0; true").map(drop)
    }

    fn follow_addresses(&self) -> Result<()> {
        say("Every host knows which address is where; frames go there directly, encrypted.");
        self.stage.run("beta", "virtuoso fdb blue")?;
        self.stage.run("beta", "virtuoso links").map(drop)
    }

    fn need_no_agent(&mut self) -> Result<()> {
        say("VMs outlive their agent: alpha's is killed, and the next one takes the VM over.");
        let pid = self.stage.lab.host("alpha")?.pid()?;
        console::line(format!("alpha$ kill -KILL {pid}"));
        self.stage.lab.host_mut("alpha")?.kill()?;
        self.stage.start_agent("alpha", &Start::alone())?;
        self.stage.lab.await_members(&["alpha", "beta", "gamma"], lab::JOIN_TIME_MAX)?;
        self.ssh("vm-8-1", "uptime").map(drop)
    }

    fn own_the_image(&self) -> Result<()> {
        say("By now both hosts have the whole image: gamma could go.");
        wait::until_true("alpha to have the whole image", COPY_TIME_MAX, || {
            let image = self.stage.lab.host("alpha")?.json(&["image", "show", "guest"])?;
            Ok((image["local"] == true, image.to_string()))
        })?;
        self.stage.run("alpha", "virtuoso image list").map(drop)
    }

    fn move_a_vm(&self) -> Result<()> {
        say(
            "A VM moves to another host while it runs. Its connections stay: a session from beta counts until it is told\n\
             that the VM has arrived.",
        );
        let count = "until [ -e arrived ]; do n=$((n+1)); echo tick $n; sleep 1; done; echo still the same session";
        let session = format!("virtuoso ssh -F ssh_config root@vm-8-1 '{count}' > session.txt &");
        let arrive = "virtuoso ssh -F ssh_config root@vm-8-1 touch arrived";
        let wait =
            format!("sleep 2; virtuoso vm migrate vm-8-1 --to gamma && {arrive} || kill $!; wait; cat session.txt");
        let said = self.stage.run("beta", &format!("{session} {wait}"))?;
        ensure!(said.contains("tick 2") && said.contains("still the same session"), "The session did not last");
        self.stage.run("beta", "virtuoso vm list").map(drop)
    }

    /// Runs words in a VM, from beta.
    fn ssh(&self, vm: &str, words: &str) -> Result<String> {
        self.stage.run("beta", &format!("virtuoso ssh --wait 180 -F ssh_config root@{vm} '{words}'")).or_else(|error| {
            let console = self.stage.look("beta", &format!("virtuoso vm console {vm} --log | tail -n 20"))?;
            Err(error.context(format!("VM {vm} wrote to its console: {console}")))
        })
    }
}

const RESOLVE_BETA: &str = "dig +short @127.0.0.47 beta.virtuoso";
/// So that a VM runs before its image is there.
const WEIGHT_MIB: u64 = 32;
/// Two copies of the image over one uplink take twenty seconds; the rest is for a loaded machine.
const COPY_TIME_MAX: Duration = Duration::from_secs(90);

const TOPOLOGY: &str = r#"
    [hosts.alpha]
    [hosts.beta]
    [hosts.gamma]
    [links.wan]
    delay = "5ms"
    rate = "100Mbit"
    queue = "50ms"
    [links.wan.members]
    alpha = ["10.77.0.1/24"]
    beta = ["10.77.0.2/24"]
    gamma = ["10.77.0.3/24"]
"#;
