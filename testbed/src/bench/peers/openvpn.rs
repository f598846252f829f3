//! OpenVPN with a TAP between two peers, TLS by pinned certificates, AES-256-GCM.

use std::process::{Child, Command};

use anyhow::{Context, Result};

use super::{Connect, Peer, Site, Sites};
use crate::command;

pub(super) const OPENVPN: Peer = Peer {
    name: "openvpn",
    about: "OpenVPN with TAP over UDP, AES-256-GCM",
    tools: &["openvpn", "openssl"],
    guest_mtu: 1400,
    connect: Connect::Sites(connect),
};

fn connect(sites: &Sites) -> Result<Vec<Child>> {
    let (left, right) = (make_certificate(&sites.left)?, make_certificate(&sites.right)?);
    let daemons = vec![
        start(&sites.left, &sites.right, &right, &["--tls-server", "--dh", "none"])?,
        start(&sites.right, &sites.left, &left, &["--tls-client"])?,
    ];
    sites.left.await_and_bridge("tap0")?;
    sites.right.await_and_bridge("tap0")?;
    Ok(daemons)
}

/// Makes `key.pem` and `cert.pem`; the certificate's SHA-256 fingerprint.
fn make_certificate(site: &Site) -> Result<String> {
    let (key, cert) = (site.dir.join("key.pem"), site.dir.join("cert.pem"));
    let kind = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    let mut make = Command::new("openssl");
    command::run(make.args(kind).args(["-subj", "/CN=bench", "-keyout"]).arg(key).arg("-out").arg(&cert))?;
    let mut show = Command::new("openssl");
    let output = command::run(show.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(cert))?;
    let (_, fingerprint) = output.trim().split_once('=').context("openssl printed no fingerprint")?;
    Ok(fingerprint.to_owned())
}

fn start(site: &Site, other: &Site, fingerprint: &str, role: &[&str]) -> Result<Child> {
    let mut command = site.namespace.command("openvpn");
    command.args(["--dev", "tap0", "--dev-type", "tap", "--proto", "udp", "--local", site.ip, "--remote", other.ip]);
    command.args(["--data-ciphers", "AES-256-GCM", "--peer-fingerprint", fingerprint, "--tun-mtu", "1400"]);
    command.args(["--ping", "10", "--verb", "1", "--cert"]).arg(site.dir.join("cert.pem"));
    site.spawn(command.arg("--key").arg(site.dir.join("key.pem")).args(role))
}
