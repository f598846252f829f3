//! Uplinks of two hosts to one LAN, with real agents in network namespaces. A third host has a guest; a station of the
//! LAN reaches it, once, whichever of the two hosts joins the LAN to the network.
//!
//! Needs root, `ip` and `ping`; without them it is skipped, and says so.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test: what it helps itself with is not inside its functions"
)]

use serde_json::Value;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const STATION: &str = "10.77.0.1";
const GUEST: &str = "10.77.0.2";
const NEIGHBOUR: &str = "10.77.0.3";

/// How long anything may take on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Rounds of pings of which one must be answered in full: a busy machine may lose a frame, but never doubles one.
const PING_ROUNDS: usize = 5;

/// Frames that a station of the LAN hears in a second in which nobody speaks but beacons, ARP and IPv6's first words.
/// A loop makes some hundred thousand.
const QUIET_FRAMES_MAX: u64 = 200;

/// Namespaces, all with one prefix, and the agents in them.
struct Lab {
    prefix: String,
    namespaces: Vec<&'static str>,
    agents: Vec<(&'static str, Child)>,
    dir: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in ["a", "b", "c"] {
                println!("--- fdb of {host}\n{:?}", self.ask(host, &["fdb", "blue"]));
                let bridge = self.command(host, &["bridge", "fdb", "show"]).output();
                println!("{}", bridge.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default());
            }
        }
        for (name, agent) in &mut self.agents {
            agent.kill().ok();
            agent.wait().ok();
            if std::thread::panicking() {
                let log = std::fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default();
                println!("--- {name}\n{log}");
            }
        }
        for namespace in &self.namespaces {
            Command::new("ip").args(["netns", "delete", &format!("{}{namespace}", self.prefix)]).status().ok();
        }
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

impl Lab {
    /// `lan` and `net` are switches; hosts a, b and c are on `net`; a, b and the station on `lan`; a guest is at c, its
    /// neighbour at b.
    fn new() -> Self {
        let prefix = format!("vu{}-", std::process::id());
        let mut lab = Self { prefix, namespaces: vec![], agents: vec![], dir: tempfile::tempdir().unwrap() };
        for namespace in ["lan", "net", "a", "b", "c", "station", "guest", "neigh"] {
            lab.ip(&["netns", "add", &format!("{}{namespace}", lab.prefix)]);
            lab.namespaces.push(namespace);
            lab.inside(namespace, &["ip", "link", "set", "lo", "up"]);
        }
        for switch in ["lan", "net"] {
            lab.inside(switch, &["ip", "link", "add", "sw0", "type", "bridge"]);
            lab.inside(switch, &["ip", "link", "set", "sw0", "up", "type", "bridge", "mcast_snooping", "0"]);
        }
        for (n, host) in ["a", "b", "c"].into_iter().enumerate() {
            lab.cable(("net", &format!("to-{host}")), (host, "eth0"));
            lab.address(host, "eth0", &format!("10.66.0.{}", n + 1));
        }
        for (namespace, nic) in [("a", "eth1"), ("b", "eth1"), ("station", "eth0")] {
            lab.cable(("lan", &format!("to-{namespace}")), (namespace, nic));
        }
        for (host, guest, address) in [("c", "guest", GUEST), ("b", "neigh", NEIGHBOUR)] {
            lab.cable((host, "port0"), (guest, "eth0"));
            lab.address(guest, "eth0", address);
        }
        lab.address("station", "eth0", STATION);
        lab
    }

    fn ip(&self, arguments: &[&str]) {
        let output = run(Command::new("ip").args(arguments));
        assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn command(&self, namespace: &str, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}{namespace}", self.prefix)]).args(words);
        command
    }

    fn inside(&self, namespace: &str, words: &[&str]) -> String {
        let output = run(&mut self.command(namespace, words));
        assert!(output.status.success(), "{namespace}: {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A cable between two namespaces; an end in a switch is plugged in.
    fn cable(&self, (near, near_name): (&str, &str), (far, far_name): (&str, &str)) {
        let (near_ns, far_ns) = (format!("{}{near}", self.prefix), format!("{}{far}", self.prefix));
        self.ip(&[
            "link", "add", "name", near_name, "netns", &near_ns, "type", "veth", "peer", "name", far_name, "netns",
            &far_ns,
        ]);
        if ["lan", "net"].contains(&near) {
            self.inside(near, &["ip", "link", "set", near_name, "master", "sw0"]);
        }
        self.inside(near, &["ip", "link", "set", near_name, "up"]);
        self.inside(far, &["ip", "link", "set", far_name, "up"]);
    }

    fn address(&self, namespace: &str, interface: &str, address: &str) {
        self.inside(namespace, &["ip", "address", "add", &format!("{address}/24"), "dev", interface]);
    }

    fn path(&self, name: &str, kind: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.{kind}"))
    }

    fn start(&mut self, host: &'static str, address: &str, bootstrap: Option<&str>) {
        let [state, socket, log] = ["state", "sock", "log"].map(|kind| self.path(host, kind));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = self.command(host, &[env!("CARGO_BIN_EXE_virtuoso"), "agent", "--name", host]);
        command.args(["--listen", &format!("{address}:4747")]).arg("--state-dir").arg(state);
        command.arg("--socket").arg(socket).env("VIRTUOSO_CONFIG", "/dev/null");
        if let Some(ticket) = bootstrap {
            command.args(["--bootstrap", ticket]);
        }
        let agent = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.agents.push((host, agent));
        self.until(&format!("the agent of {host} is a member"), || {
            self.ask(host, &["status"]).is_ok_and(|status| status["state"] == "member")
        });
    }

    fn kill(&mut self, host: &str) {
        let at = self.agents.iter().position(|(name, _)| *name == host).unwrap();
        let (_, mut agent) = self.agents.remove(at);
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    fn ask(&self, host: &str, words: &[&str]) -> Result<Value, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virtuoso"));
        command.args(words).arg("--json").arg("--socket").arg(self.path(host, "sock"));
        let output = run(&mut command);
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
    }

    fn tell(&self, host: &str, words: &[&str]) -> Value {
        self.ask(host, words).unwrap_or_else(|error| panic!("{host}: {words:?}: {error}"))
    }

    fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn uplink_state(&self, host: &str) -> String {
        let network = self.tell(host, &["net", "show", "blue"]);
        let ports = network["ports"].as_array().unwrap();
        let uplink = ports.iter().find(|port| port["kind"] == "uplink").unwrap();
        uplink["state"].as_str().unwrap().to_owned()
    }

    /// Pings once; whether an answer came.
    fn reaches(&self, from: &str, to: &str) -> bool {
        run(&mut self.command(from, &["ping", "-n", "-c", "1", "-W", "1", to])).status.success()
    }

    /// Pings ten times; every ping is answered once.
    fn pings_are_answered_once(&self, from: &str, to: &str) {
        self.until(&format!("{from} reaches {to}"), || self.reaches(from, to));
        let complete = (0..PING_ROUNDS).any(|_| {
            let output = run(&mut self.command(from, &["ping", "-n", "-c", "10", "-i", "0.1", "-W", "1", to]));
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(!text.contains("DUP!") && !text.contains("duplicates"), "{from} to {to}: {text}");
            text.contains("10 received")
        });
        assert!(complete, "{from} to {to}: pings are lost in each of {PING_ROUNDS} rounds");
    }

    /// Frames that the station's NIC has received.
    fn frames_heard(&self) -> u64 {
        let text = self.inside("station", &["ip", "-json", "-statistics", "link", "show", "eth0"]);
        let links: Value = serde_json::from_str(&text).unwrap();
        links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
    }

    fn the_lan_is_quiet(&self) {
        let before = self.frames_heard();
        std::thread::sleep(Duration::from_secs(1));
        let heard = self.frames_heard() - before;
        assert!(heard < QUIET_FRAMES_MAX, "{heard} frames in a second");
    }

    /// Three members of a swarm, a network, its guest; a NIC that a host is reached at is refused.
    fn join(&mut self) {
        self.start("c", "10.66.0.3", None);
        for (host, address) in [("a", "10.66.0.1"), ("b", "10.66.0.2")] {
            let ticket = self.tell("c", &["swarm", "invite"])["ticket"].as_str().unwrap().to_owned();
            self.start(host, address, Some(&ticket));
        }
        self.tell("c", &["net", "create", "blue"]);
        self.tell("c", &["net", "attach", "blue", "--interface", "port0"]);
        for host in ["a", "b"] {
            let known = || self.ask(host, &["net", "show", "blue"]).is_ok();
            self.until("the network is known", known);
        }
        let refused = self.ask("a", &["net", "attach", "blue", "--uplink", "eth0"]).unwrap_err();
        assert!(refused.contains("10.66.0.1/24") && refused.contains("Move them to the bridge"), "{refused}");
    }

    /// Attaches both uplinks. Returns the host that is elected, and the other.
    fn elect(&self) -> [&'static str; 2] {
        self.tell("b", &["net", "attach", "blue", "--interface", "port0"]);
        for host in ["a", "b"] {
            let network = self.tell(host, &["net", "attach", "blue", "--uplink", "eth1"]);
            let silent = network["ports"].as_array().unwrap().iter().any(|port| port["state"] == "silent");
            assert!(silent, "it listens first: {network}");
        }
        // The texts of ids are in the order of the ids.
        let id = |host: &str| self.tell(host, &["status"])["id"].as_str().unwrap().to_owned();
        let [first, second] = if id("a") < id("b") { ["a", "b"] } else { ["b", "a"] };
        self.until("the smaller id is elected", || {
            self.uplink_state(first) == "up" && self.uplink_state(second) == "silent"
        });
        [first, second]
    }

    fn all_reach_each_other_once(&self) {
        self.pings_are_answered_once("station", GUEST);
        self.pings_are_answered_once("station", NEIGHBOUR);
        self.pings_are_answered_once("neigh", GUEST);
        self.pings_are_answered_once("guest", NEIGHBOUR);
        self.the_lan_is_quiet();
    }
}

fn missing() -> Option<String> {
    // SAFETY: geteuid takes nothing and can't fail.
    if unsafe { libc::geteuid() } != 0 {
        return Some("not root".into());
    }
    let runs = |program: &str| Command::new(program).arg("-V").output().is_ok();
    if let Some(program) = ["ip", "ping"].into_iter().find(|program| !runs(program)) {
        return Some(format!("no `{program}`"));
    }
    let name = format!("vu{}-probe", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).output();
    Command::new("ip").args(["netns", "delete", &name]).output().ok();
    match made {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(error.to_string()),
    }
}

#[test]
fn one_of_two_uplinks_joins_the_lan_and_the_other_takes_over() -> io::Result<()> {
    if let Some(reason) = missing() {
        println!("SKIPPED: can't make network namespaces: {reason}");
        return Ok(());
    }
    let mut lab = Lab::new();
    lab.join();
    let [first, second] = lab.elect();
    println!("{first} is elected");
    lab.all_reach_each_other_once();

    let begun = Instant::now();
    lab.kill(first);
    lab.until("the other uplink is active", || lab.uplink_state(second) == "up");
    println!("taken over {:?} after the elected agent was killed", begun.elapsed());
    // Its claims of the LAN's stations hold until its lease runs out.
    lab.until("the station reaches the guest", || lab.reaches("station", GUEST));
    println!("the station reaches the guest {:?} after", begun.elapsed());
    lab.pings_are_answered_once("station", GUEST);

    let address = if first == "a" { "10.66.0.1" } else { "10.66.0.2" };
    lab.start(first, address, None);
    lab.until("one of the two is active again", || {
        lab.uplink_state(first) == "up" && lab.uplink_state(second) == "silent"
    });
    lab.all_reach_each_other_once();

    lab.tell(first, &["net", "detach", "blue", "--interface", "eth1"]);
    lab.until("the other takes over at once", || lab.uplink_state(second) == "up");
    lab.pings_are_answered_once("station", GUEST);
    lab.the_lan_is_quiet();
    Ok(())
}
