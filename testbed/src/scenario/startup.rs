//! What an operator can get wrong before an agent runs: each case must be refused with words that help.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{ONE, Scenario};
use crate::command;
use crate::host::Start;
use crate::lab::Lab;
use crate::sandbox;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "bad-config",
        about: "an unknown key, a bad value and a bad flag are named, with file and line",
        topology: ONE,
        tools: &[],
        run: bad_config,
    },
    Scenario {
        name: "second-agent",
        about: "a second agent on one state directory, socket or port is refused and told who has it",
        topology: ONE,
        tools: &[],
        run: second_agent,
    },
    Scenario {
        name: "damaged-state",
        about: "a truncated state file is named, and kept as it is",
        topology: ONE,
        tools: &[],
        run: damaged_state,
    },
    Scenario {
        name: "client-errors",
        about: "exit codes: 1 refused, 2 usage, 3 no agent, 4 not found",
        topology: ONE,
        tools: &[],
        run: client_errors,
    },
];

fn bad_config(lab: &mut Lab) -> Result<()> {
    let host = lab.host("alpha")?;
    for (config, wanted) in [
        ("mdns = false\nlabls = {}\n", &["agent.toml", "2", "labls", "labels"][..]),
        ("listen = \"10.77.0.1\"\n", &["agent.toml", "listen"]),
        ("[limits]\nmemory = \"8GB of it\"\n", &["agent.toml", "memory"]),
        ("name = \"not a name\"\n", &["agent.toml", "name"]),
    ] {
        let start = Start { config: Some(config.to_owned()), ..Start::default() };
        let words = refused_start(&mut host.agent_command(&start)?, wanted)?;
        ensure!(words.lines().count() <= 12, "Too many words about a bad configuration: {words}");
        let file = host.state_dir().with_file_name("agent.toml");
        let mut check = Command::new(host.binary());
        refused_start(check.args(["config", "check", "--config"]).arg(file), wanted)?;
    }
    refused_start(host.namespace().command(host.binary()).args(["agent", "--listen", "nonsense"]), &["--listen"])?;
    refused_start(host.namespace().command(host.binary()).args(["agent", "--bootstrap", "nonsense"]), &["nonsense"])?;
    Ok(())
}

fn second_agent(lab: &mut Lab) -> Result<()> {
    lab.host_mut("alpha")?.start(&Start::alone())?;
    let host = lab.host("alpha")?;
    let pid = host.pid()?.to_string();
    refused_start(&mut host.agent_command(&Start::alone())?, &["state", &pid])?;
    let other = sandbox::fresh_dir("other")?;
    let socket = host.socket();
    let arguments = |socket: &std::path::Path, listen: &str| {
        let mut command = host.namespace().command(host.binary());
        command.arg("agent").args(["--name", "other", "--state-dir"]).arg(other.join("state"));
        command.arg("--socket").arg(socket).args(["--listen", listen]);
        command
    };
    refused_start(&mut arguments(&socket, "10.77.0.1:4748"), &[&socket.display().to_string()])?;
    refused_start(&mut arguments(&other.join("sock"), "10.77.0.1:4747"), &["10.77.0.1:4747"])?;
    host.json(&["status"]).context("The first agent was harmed").map(drop)
}

fn damaged_state(lab: &mut Lab) -> Result<()> {
    lab.host_mut("alpha")?.start(&Start::alone())?;
    lab.host_mut("alpha")?.terminate()?;
    let host = lab.host("alpha")?;
    let key = host.state_dir().join("identity.key");
    let whole = fs::read(&key).with_context(|| format!("Cannot read {}", key.display()))?;
    let half = &whole[..whole.len() / 2];
    fs::write(&key, half)?;
    refused_start(&mut host.agent_command(&Start::alone())?, &["identity.key"])?;
    ensure!(fs::read(&key)? == half, "The damaged key file was replaced");
    fs::write(&key, whole)?;
    lab.host_mut("alpha")?.start(&Start::alone())
}

fn client_errors(lab: &mut Lab) -> Result<()> {
    lab.host("alpha")?.refused(&["status"], 3)?;
    lab.host_mut("alpha")?.start(&Start::alone())?;
    let host = lab.host("alpha")?;
    host.json(&["net", "create", "blue"])?;
    let twice = host.refused(&["net", "create", "blue"], 1)?;
    ensure!(twice.contains("blue"), "The refusal does not name the network: {twice}");
    host.refused(&["net", "show", "red"], 4)?;
    host.refused(&["image", "show", "nothing"], 4)?;
    host.refused(&["net", "create", "blue", "--mtu", "64"], 2)?;
    host.refused(&["no-such-verb"], 2)?;
    let missing = host.refused(&["net", "attach", "blue", "--interface", "absent0"], 4)?;
    ensure!(missing.contains("absent0"), "The refusal does not name the interface: {missing}");
    Ok(())
}

/// Runs what must end by itself with a failure whose words contain all of `wanted`.
pub(super) fn refused_start(command: &mut Command, wanted: &[&str]) -> Result<String> {
    let line = command::line(command);
    let output = command::output(command.env("NO_COLOR", "1"))?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "`{line}` was not refused: {words}");
    for word in wanted {
        ensure!(words.contains(word), "`{line}` was refused without a word of {word:?}: {words}");
    }
    ensure!(!words.contains("panicked"), "`{line}` panicked: {words}");
    Ok(words)
}
