//! `iperf3` between two guests.

use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command;
use crate::guest::Guest;
use crate::netns::Namespace;
use crate::wait;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) bits_per_second: f64,
    pub(crate) bytes: u64,
}

/// Runs a client on `client` with `options` against a server on `server`; what the receiving side got.
pub(crate) fn run(client: &Guest, server: &Guest, options: &str) -> Result<Figures> {
    between(client.namespace(), server.namespace(), server.ipv4()?, options)
}

/// The same between two namespaces, of which `server` has the address `ip`.
pub(crate) fn between(client: &Namespace, server: &Namespace, ip: IpAddr, options: &str) -> Result<Figures> {
    let _server = Server::start(server)?;
    let mut command = client.command("iperf3");
    command.args(["-J", "-c", &ip.to_string()]).args(options.split_whitespace());
    let output = command::run(&mut command)?;
    let report: Value = serde_json::from_str(&output).context("iperf3 gave no JSON")?;
    let received = &report["end"]["sum_received"];
    let figures =
        || Some(Figures { bits_per_second: received["bits_per_second"].as_f64()?, bytes: received["bytes"].as_u64()? });
    figures().with_context(|| format!("iperf3 measured nothing: {}", report["error"]))
}

struct Server(Child);

impl Server {
    fn start(namespace: &Namespace) -> Result<Self> {
        let mut command = namespace.command("iperf3");
        let server = Self(command::spawn(command.arg("-s").stdout(Stdio::null()).stderr(Stdio::null()))?);
        wait::until_true("iperf3 to listen", Duration::from_secs(5), || {
            let mut list = namespace.command("ss");
            let sockets = command::run(list.args(["-Hltn", "sport", "=", ":5201"]))?;
            Ok((!sockets.trim().is_empty(), "no listening socket".to_owned()))
        })?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It serves until it is killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
