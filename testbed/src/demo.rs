//! `testbed demo`: three hosts become one pool before the user's eyes. Every command is shown and really run, and
//! what follows it is what it printed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::command;
use crate::console;
use crate::host::Start;
use crate::lab::{self, Lab, Settings};

pub(crate) fn run(settings: &Settings) -> Result<()> {
    lab::ensure_agent(&settings.agent)?;
    let settings = Settings { report: settings.report.join("demo"), ..settings.clone() };
    let mut show = Show { lab: Lab::build(&TOPOLOGY.parse()?, &settings)?, agent: settings.agent.clone() };
    show.introduce();
    show.form_the_swarm()?;
    show.look_around()?;
    show.span_a_network()?;
    show.share_an_image()?;
    show.move_a_port()?;
    console::line(format!("\nDone. The agents' logs are in {}.", settings.report.display()));
    Ok(())
}

struct Show {
    lab: Lab,
    agent: std::path::PathBuf,
}

impl Show {
    fn introduce(&self) {
        say("Three hosts, alpha, beta and gamma, stand for three machines. Each is a network namespace of this\n\
             machine; 5 ms of emulated wide area network lie between them. `alpha$ command` below is a command that\n\
             runs on alpha. VIRTUOSO_SOCKET names the socket of that host's agent; on real machines each has its own\n\
             /run/virtuoso/virtuoso.sock, and nothing needs to be set.");
    }

    fn form_the_swarm(&mut self) -> Result<()> {
        say("The first agent has nobody to join: it makes a swarm.");
        self.start_agent("alpha", &Start::alone())?;
        let ticket = self.run_on("alpha", &["swarm", "invite", "--json"])?;
        let ticket: serde_json::Value = serde_json::from_str(&ticket).context("The invitation is no JSON")?;
        let ticket = ticket["ticket"].as_str().context("There is no ticket in the invitation")?.to_owned();
        say("The two others join with a ticket each; a ticket admits one host.");
        self.start_agent("beta", &Start::by(ticket))?;
        let ticket = self.lab.host("alpha")?.ticket()?;
        self.start_agent("gamma", &Start::by(ticket))?;
        self.lab.await_members(&["alpha", "beta", "gamma"], lab::JOIN_TIME_MAX)
    }

    fn look_around(&self) -> Result<()> {
        say("Every host knows every host's capacity, and answers from its own tables.");
        self.run_on("gamma", &["host", "list"])?;
        self.run_on("gamma", &["host", "find", "--vcpus", "1", "--memory", "64MiB"])?;
        self.run_on("beta", &["swarm", "members"])?;
        self.run_on("beta", &["status"]).map(drop)
    }

    fn span_a_network(&mut self) -> Result<()> {
        say(
            "An Ethernet network spans all three. A guest is plugged in on each of two hosts (a veth here, a VM's\nTAP or a network card elsewhere).",
        );
        self.run_on("alpha", &["net", "create", "blue"])?;
        for name in ["beta", "gamma"] {
            lab::await_network(self.lab.host(name)?, "blue")?;
        }
        for (guest, host, address) in [("vm1", "alpha", "10.9.0.1/24"), ("vm2", "beta", "10.9.0.2/24")] {
            self.lab.add_guest(guest, host, &[address], 1500)?;
            let port = self.lab.guest(guest)?.port();
            self.run_on(host, &["net", "attach", "blue", "--interface", &port])?;
        }
        self.lab.await_contact("vm1", "vm2")?;
        self.run_in_guest("vm1", "ping -c 3 -i 0.3 10.9.0.2")?;
        self.run_on("alpha", &["net", "show", "blue"])?;
        self.run_on("beta", &["fdb", "blue"])?;
        self.run_on("alpha", &["links"]).map(drop)
    }

    fn share_an_image(&self) -> Result<()> {
        say("An image that one host imports is known to all.");
        let file = self.lab.host("beta")?.state_dir().with_file_name("debian-12.raw");
        fs::write(&file, vec![0x5a; 8 << 20]).with_context(|| format!("Cannot write {}", file.display()))?;
        self.run_on("beta", &["image", "import", &file.to_string_lossy(), "--name", "debian-12"])?;
        let gamma = self.lab.host("gamma")?;
        crate::wait::until_true("gamma to know the image", lab::CONTACT_TIME_MAX, || {
            let images = gamma.list(&["image", "list"])?;
            Ok((!images.is_empty(), "no image".to_owned()))
        })?;
        self.run_on("gamma", &["image", "list"])?;
        self.run_on("gamma", &["host", "find", "--image", "debian-12"]).map(drop)
    }

    fn move_a_port(&mut self) -> Result<()> {
        say("While vm1 pings vm2, vm2 moves from beta to gamma. The network follows it.");
        let line = "ping -i 0.1 -c 60 10.9.0.2";
        console::line(format!("vm1$ {line} &"));
        let mut ping = self.guest_command("vm1", line)?;
        let mut ping = command::spawn(ping.stdout(Stdio::piped()))?;
        let (port, mac) = (self.lab.guest("vm2")?.port(), self.lab.guest("vm2")?.mac().to_owned());
        self.run_on("beta", &["net", "detach", "blue", "--interface", &port])?;
        console::line(format!("(the cable of vm2, {port}, is pulled on beta and plugged in on gamma)"));
        self.lab.plug("vm2", "gamma")?;
        self.run_on("gamma", &["net", "attach", "blue", "--interface", &port, "--mac", &mac])?;
        let text = ping.stdout.take().context("The output was asked for")?;
        let output = std::io::read_to_string(text).context("Cannot read what ping says")?;
        let status = ping.wait()?;
        console::line("vm1$ wait");
        output.lines().rev().take(4).collect::<Vec<_>>().into_iter().rev().for_each(console::line);
        ensure!(status.success(), "ping ended with {status}");
        self.run_on("alpha", &["fdb", "blue"]).map(drop)
    }

    fn start_agent(&mut self, name: &str, start: &Start) -> Result<()> {
        let command = self.lab.host(name)?.agent_command(start)?;
        console::line(format!("{name}$ {} &", self.shorten(&command)));
        let host = self.lab.host_mut(name)?;
        host.start(start)?;
        host.log_text().lines().for_each(console::line);
        Ok(())
    }

    /// Runs a client verb, shows it with its output, and gives its output.
    fn run_on(&self, host: &str, words: &[&str]) -> Result<String> {
        let host = self.lab.host(host)?;
        let mut command = Command::new(&self.agent);
        command.args(words).env("VIRTUOSO_SOCKET", host.socket());
        console::line(format!("{}$ {}", host.name(), self.shorten(&command)));
        let output = command::run(&mut command)?;
        console::line(format!("{}\n", output.trim_end()));
        Ok(output)
    }

    fn run_in_guest(&self, guest: &str, line: &str) -> Result<()> {
        console::line(format!("{guest}$ {line}"));
        let output = command::run(&mut self.guest_command(guest, line)?)?;
        console::line(format!("{}\n", output.trim_end()));
        Ok(())
    }

    fn guest_command(&self, guest: &str, line: &str) -> Result<Command> {
        let mut words = line.split_whitespace();
        let mut command = self.lab.guest(guest)?.namespace().command(words.next().context("An empty command")?);
        command.args(words);
        Ok(command)
    }

    /// The command with the program's name alone, as it is called once installed.
    fn shorten(&self, command: &Command) -> String {
        let line = command::line(command);
        let program = Path::new(&self.agent).to_string_lossy();
        line.replacen(program.as_ref(), "virtuoso", 1)
    }
}

fn say(text: &str) {
    console::line("");
    text.lines().for_each(|line| console::line(format!("# {line}")));
}

const TOPOLOGY: &str = r#"
    [hosts.alpha]
    [hosts.beta]
    [hosts.gamma]
    [links.wan]
    delay = "5ms"
    [links.wan.members]
    alpha = ["10.77.0.1/24"]
    beta = ["10.77.0.2/24"]
    gamma = ["10.77.0.3/24"]
"#;
