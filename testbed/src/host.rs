//! A host of the lab: a network namespace and, while it runs, the agent in it. The agent is the real binary and
//! is asked only through its own client verbs with `--json`, as any script would.

use std::fs::{self, File, OpenOptions};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::command;
use crate::netns::Namespace;
use crate::notify::NotifySocket;
use crate::sandbox;
use crate::sys;
use crate::wait::{self, Seen};

pub(crate) struct Host {
    name: String,
    namespace: Namespace,
    /// Where the agent listens, and others find it.
    address: SocketAddr,
    binary: PathBuf,
    state_dir: PathBuf,
    log: PathBuf,
    /// The text of the configuration file that it is started with by default.
    config: String,
    agent: Option<Child>,
}

/// What an agent is started with beyond its name, directories and address.
#[derive(Debug, Clone, Default)]
pub(crate) struct Start {
    pub(crate) bootstrap: Vec<String>,
    /// The text of its configuration file; without one, the host's usual one.
    pub(crate) config: Option<String>,
}

/// How a client verb ended.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Start {
    pub(crate) fn alone() -> Self {
        Self::default()
    }

    pub(crate) fn by(bootstrap: impl Into<String>) -> Self {
        Self { bootstrap: vec![bootstrap.into()], config: None }
    }
}

impl Host {
    pub(crate) fn create(name: &str, address: IpAddr, binary: &Path, report_dir: &Path) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            namespace: Namespace::create(name)?,
            address: SocketAddr::new(address, PORT),
            binary: binary.to_owned(),
            state_dir: sandbox::fresh_dir(name)?.join("state"),
            log: report_dir.join(format!("{name}.log")),
            config: CONFIG_DEFAULT.to_owned(),
            agent: None,
        })
    }

    /// Adds to the configuration file of agents that are started from now on.
    pub(crate) fn configure(&mut self, text: &str) {
        self.config.push_str(text);
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    pub(crate) fn socket(&self) -> PathBuf {
        Path::new(sandbox::WORK_DIR).join(format!("{}.sock", self.name))
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        let agent = self.agent.as_ref().with_context(|| format!("No agent runs on {}", self.name))?;
        Ok(agent.id())
    }

    /// Starts the agent and waits until it says that it is ready.
    pub(crate) fn start(&mut self, start: &Start) -> Result<()> {
        let notify = self.launch(start)?;
        self.await_ready(&notify)
    }

    /// Starts the agent and goes on at once.
    pub(crate) fn launch(&mut self, start: &Start) -> Result<NotifySocket> {
        ensure!(self.agent.is_none(), "{} runs an agent already", self.name);
        let notify = NotifySocket::bind(&Path::new(sandbox::WORK_DIR).join(format!("{}.notify", self.name)))?;
        let mut command = self.agent_command(start)?;
        command.env("NOTIFY_SOCKET", notify.path());
        command.stdout(self.append("out")?).stderr(self.append("log")?);
        self.agent = Some(command::spawn(&mut command)?);
        Ok(notify)
    }

    pub(crate) fn await_ready(&mut self, notify: &NotifySocket) -> Result<()> {
        let what = format!("The agent of {} did not become ready, see {}", self.name, self.log.display());
        notify.wait_ready(START_TIME_MAX, || self.check_alive()).context(what)
    }

    /// The agent's command line, to be run by who needs it to fail.
    pub(crate) fn agent_command(&self, start: &Start) -> Result<Command> {
        let mut command = self.namespace.command(&self.binary);
        clean_environment(&mut command);
        command.arg("agent").args(["--name", &self.name]).arg("--state-dir").arg(&self.state_dir);
        command.arg("--socket").arg(self.socket()).args(["--listen", &self.address.to_string()]);
        for bootstrap in &start.bootstrap {
            command.args(["--bootstrap", bootstrap]);
        }
        let file = self.state_dir.with_file_name("agent.toml");
        let config = start.config.as_ref().unwrap_or(&self.config);
        fs::write(&file, config).with_context(|| format!("Cannot write {}", file.display()))?;
        command.arg("--config").arg(file);
        Ok(command)
    }

    /// SIGTERM, and its exit status.
    pub(crate) fn terminate(&mut self) -> Result<ExitStatus> {
        sys::kill(self.pid()?, libc::SIGTERM)?;
        self.await_exit()
    }

    /// SIGKILL: the agent says goodbye to nobody.
    pub(crate) fn kill(&mut self) -> Result<()> {
        sys::kill(self.pid()?, libc::SIGKILL)?;
        self.await_exit().map(drop)
    }

    /// Waits until the agent ends by itself.
    pub(crate) fn await_exit(&mut self) -> Result<ExitStatus> {
        let name = self.name.clone();
        let agent = self.agent.as_mut().with_context(|| format!("No agent runs on {name}"))?;
        let status = wait::until(format!("the agent of {name} to end"), STOP_TIME_MAX, || {
            Ok(agent.try_wait()?.map_or_else(|| Seen::NotYet("it runs".to_owned()), Seen::Done))
        })?;
        self.agent = None;
        Ok(status)
    }

    /// An error if the agent should run and does not.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        let Some(agent) = &mut self.agent else { return Ok(()) };
        match agent.try_wait()? {
            Some(status) => {
                let log = self.log_text();
                let last = log.lines().last().unwrap_or("none");
                bail!("The agent of {} ended with {status}; its last words: {last}", self.name)
            }
            None => Ok(()),
        }
    }

    /// A client verb, whatever comes of it.
    pub(crate) fn verb(&self, words: &[&str]) -> Result<Answer> {
        let mut command = Command::new(&self.binary);
        clean_environment(&mut command);
        let output = command::output(command.args(words).arg("--socket").arg(self.socket()))?;
        Ok(Answer {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// A client verb that must succeed; what it says as JSON (`null` if it says nothing).
    pub(crate) fn json(&self, words: &[&str]) -> Result<Value> {
        let what = || format!("`virtuoso {}` on {}", words.join(" "), self.name);
        let answer = self.verb(&[words, &["--json"]].concat()).with_context(what)?;
        ensure!(answer.code == 0, "{} ended with {}: {}", what(), answer.code, answer.stderr.trim());
        if answer.stdout.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&answer.stdout).with_context(|| format!("{} gave no JSON: {}", what(), answer.stdout))
    }

    /// The objects of a listing verb.
    pub(crate) fn list(&self, words: &[&str]) -> Result<Vec<Value>> {
        let value = self.json(words)?;
        items(&value).with_context(|| format!("`virtuoso {}` on {} gave no list: {value}", words.join(" "), self.name))
    }

    /// A client verb that must fail with `code`; its message.
    pub(crate) fn refused(&self, words: &[&str], code: i32) -> Result<String> {
        let answer = self.verb(words)?;
        let line = words.join(" ");
        ensure!(answer.code == code, "`virtuoso {line}` on {}: expected exit code {code}, got {answer:?}", self.name);
        ensure!(!answer.stderr.trim().is_empty(), "`virtuoso {line}` on {} failed without a word", self.name);
        Ok(answer.stderr)
    }

    pub(crate) fn id(&self) -> Result<String> {
        let status = self.json(&["status"])?;
        Ok(status["id"].as_str().with_context(|| format!("No id in the status of {}", self.name))?.to_owned())
    }

    /// A one-time invitation made by this host.
    pub(crate) fn ticket(&self) -> Result<String> {
        let invitation = self.json(&["swarm", "invite"])?;
        Ok(invitation["ticket"].as_str().with_context(|| format!("No ticket in {invitation}"))?.to_owned())
    }

    /// Where others reach this host by QUIC, without an invitation.
    pub(crate) fn multiaddr(&self) -> Result<String> {
        let kind = if self.address.is_ipv4() { "ip4" } else { "ip6" };
        Ok(format!("/{kind}/{}/udp/{PORT}/quic-v1/p2p/{}", self.address.ip(), self.id()?))
    }

    pub(crate) fn log_path(&self) -> &Path {
        &self.log
    }

    pub(crate) fn log_text(&self) -> String {
        // No log yet is an empty log.
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Follows the agent's events, into a file.
    pub(crate) fn monitor(&self) -> Result<Monitor> {
        let path = self.log.with_extension("events");
        let file = File::create(&path).with_context(|| format!("Cannot make {}", path.display()))?;
        let mut command = Command::new(&self.binary);
        clean_environment(&mut command);
        command.args(["monitor", "--json", "--socket"]).arg(self.socket());
        let client = command::spawn(command.stdout(file).stderr(Stdio::null()))?;
        Ok(Monitor { client, path })
    }

    /// The control groups of VMs that are still there.
    fn vm_groups(&self) -> Vec<PathBuf> {
        let vms = fs::read_dir(self.state_dir.join("vms")).into_iter().flatten().flatten();
        let ids = vms.map(|entry| entry.file_name()).collect::<Vec<_>>();
        let roots = ["", "cpu", "memory"].map(|root| Path::new("/sys/fs/cgroup").join(root).join("virtuoso"));
        let groups = roots.iter().flat_map(|root| ids.iter().map(move |id| root.join(id)));
        groups.filter(|group| group.is_dir()).collect()
    }

    /// The processes of VMs, as the agent has written them down.
    fn vm_pids(&self) -> Vec<u32> {
        let Ok(vms) = fs::read_dir(self.state_dir.join("vms")) else { return Vec::new() };
        let record = |vm: fs::DirEntry| fs::read_to_string(vm.path().join("vm.json")).ok();
        vms.flatten().filter_map(record).filter_map(|text| vm_pid(&text)).collect()
    }

    fn append(&self, extension: &str) -> Result<File> {
        let path = self.log.with_extension(extension);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.with_context(|| format!("Cannot write {}", path.display()))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            // It may have ended by itself.
            let _ = agent.kill();
            let _ = agent.wait();
        }
        // VMs outlive their agent, and must not outlive the lab.
        for pid in self.vm_pids() {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        let groups = self.vm_groups();
        // The kernel takes a moment to end a process; what stays then is empty and harms nobody.
        let _ = wait::until_true("the control groups to be empty", GROUP_TIME_MAX, || {
            let left = groups.iter().filter(|group| fs::remove_dir(group).is_err() && group.exists()).count();
            Ok((left == 0, format!("{left} left")))
        });
        for group in &groups {
            // The one above is for all VMs of the machine; others may have some.
            let _ = group.parent().map(fs::remove_dir);
        }
    }
}

/// How long ending a VM's process may take.
const GROUP_TIME_MAX: Duration = Duration::from_secs(2);

/// A running `virtuoso monitor`.
pub(crate) struct Monitor {
    client: Child,
    path: PathBuf,
}

impl Monitor {
    /// The events seen so far.
    pub(crate) fn events(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.path)?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// The objects of a listing: an array, or the one array in an object.
pub(crate) fn items(value: &Value) -> Option<Vec<Value>> {
    if let Some(array) = value.as_array() {
        return Some(array.clone());
    }
    let mut arrays = value.as_object()?.values().filter_map(Value::as_array);
    let first = arrays.next()?;
    arrays.next().is_none().then(|| first.clone())
}

/// The process in a VM's record, whose first line is a header.
fn vm_pid(record: &str) -> Option<u32> {
    let (_, json) = record.split_once('\n')?;
    let value: Value = serde_json::from_str(json).ok()?;
    u32::try_from(value["process"]["pid"].as_u64()?).ok()
}

/// Found by nobody but those who were given an address: else a scenario about joining proves nothing.
/// Only multicast discovery is switched off.
const CONFIG_DEFAULT: &str = "mdns = false\n";
/// The port of agents; the design's default.
pub(crate) const PORT: u16 = 4747;
/// A debug build on a loaded machine needs a while to make its keys.
const START_TIME_MAX: Duration = Duration::from_secs(20);
const STOP_TIME_MAX: Duration = Duration::from_secs(20);

/// What the user's shell sets must not change a lab.
fn clean_environment(command: &mut Command) {
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.as_encoded_bytes().starts_with(b"VIRTUOSO_")) {
        command.env_remove(key);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_the_process_of_a_vm() {
        assert_eq!(vm_pid("virtuoso-state vm.json 1 9 ab\n{\"process\": {\"pid\": 7, \"start\": 1}}"), Some(7));
        assert_eq!(vm_pid("virtuoso-state vm.json 1 9 ab\n{\"process\": null}"), None);
    }

    #[test]
    fn finds_the_list_in_both_forms() {
        assert_eq!(items(&json!([1, 2])).unwrap().len(), 2);
        assert_eq!(items(&json!({"items": [1], "total": 1})).unwrap().len(), 1);
        assert!(items(&json!({"a": [], "b": []})).is_none());
        assert!(items(&json!("text")).is_none());
    }
}
