//! What cloud images read at their first boot: cloud-init's NoCloud source, a small disk with the VM's name, the keys
//! that may log in, and that its interfaces get their addresses by DHCP.

use super::error::VmError;
use super::spec::{Nic, Spec};
use anyhow::Context;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// Programs that make such a disk, with the arguments that make them alike.
const PROGRAMS: [(&str, &[&str]); 3] = [("genisoimage", &[]), ("mkisofs", &[]), ("xorriso", &["-as", "mkisofs"])];

/// Makes the disk in a VM's directory.
pub(super) async fn make(spec: &Spec, dir: &Path) -> anyhow::Result<PathBuf> {
    let path = dir.join("seed.iso");
    let write = |name: &str, text: String| -> anyhow::Result<PathBuf> {
        let file = dir.join(name);
        fs::write(&file, text).with_context(|| format!("Can't write {}", file.display()))?;
        Ok(file)
    };
    let files = [
        write("meta-data", meta_data(spec))?,
        write("user-data", user_data(spec)?)?,
        write("network-config", network_config(spec)?)?,
    ];
    for (program, arguments) in PROGRAMS {
        let mut command = Command::new(program);
        command.args(arguments).arg("-quiet").args(["-volid", "cidata", "-joliet", "-rock", "-output"]).arg(&path);
        let output = match command.args(&files).kill_on_drop(true).output().await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.with_context(|| format!("Can't run {program}"))?,
        };
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        anyhow::ensure!(output.status.success(), "{program} can't make {}: {complaint}", path.display());
        return Ok(path);
    }
    let missing = "Keys for a cloud image need genisoimage or xorriso on its host: install one of them";
    Err(VmError::Missing(missing.into()).into())
}

fn meta_data(spec: &Spec) -> String {
    format!("instance-id: {}\nlocal-hostname: {}\n", spec.id, spec.name)
}

/// JSON is YAML, and needs no care for what stands in a key.
fn user_data(spec: &Spec) -> anyhow::Result<String> {
    let data = json!({
        "hostname": spec.name,
        "disable_root": false,
        "ssh_authorized_keys": spec.ssh_keys,
        "users": ["default", {"name": "root", "ssh_authorized_keys": spec.ssh_keys}],
    });
    Ok(format!("#cloud-config\n{}\n", serde_json::to_string(&data).context("Can't encode user-data")?))
}

/// Version 2 of cloud-init's own format. Interfaces are told apart by their addresses: what a guest's kernel calls them
/// differs. A boot does not wait for one in a network that may have no DHCP; were all optional, systemd would wait for
/// two minutes for any of them.
fn network_config(spec: &Spec) -> anyhow::Result<String> {
    let interface = |(index, nic): (usize, &Nic)| {
        let mac = nic.mac.to_string();
        let settings = json!({"match": {"macaddress": mac}, "dhcp4": true, "optional": nic.ip.is_none()});
        (format!("nic{index}"), settings)
    };
    let interfaces: serde_json::Map<_, _> = spec.nics.iter().enumerate().map(interface).collect();
    let config = json!({"version": 2, "ethernets": interfaces});
    Ok(format!("{}\n", serde_json::to_string(&config).context("Can't encode a network-config")?))
}

#[cfg(test)]
mod tests {
    use super::super::spec::tests::spec;
    use super::*;

    #[test]
    fn names_and_keys_are_told() {
        let spec = Spec { ssh_keys: vec!["ssh-ed25519 AAAA \"me\"".into()], ..spec() };
        assert!(meta_data(&spec).ends_with("local-hostname: vm-8-1\n"));
        let text = user_data(&spec).unwrap();
        assert!(text.starts_with("#cloud-config\n{") && text.contains(r#"ssh-ed25519 AAAA \"me\""#), "{text}");
    }

    #[test]
    fn interfaces_are_told_by_their_addresses() {
        let text = network_config(&spec()).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        let nic = &config["ethernets"]["nic0"];
        assert_eq!((&config["version"], &nic["dhcp4"]), (&json!(2), &json!(true)));
        assert_eq!(nic["match"]["macaddress"], json!(spec().nics[0].mac.to_string()));
    }

    #[test]
    fn a_boot_waits_only_for_an_address_that_comes() {
        for ip in [None, Some("10.8.0.9".parse().unwrap())] {
            let mut spec = spec();
            spec.nics[0].ip = ip;
            let config: serde_json::Value = serde_json::from_str(&network_config(&spec).unwrap()).unwrap();
            assert_eq!(config["ethernets"]["nic0"]["optional"], json!(ip.is_none()));
        }
    }

    /// Read by a program of another origin than the one that wrote it, with the names that cloud-init looks for.
    #[tokio::test]
    async fn the_disk_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let Ok(path) = make(&spec(), dir.path()).await else { return eprintln!("skipped: nothing here makes disks") };
        let ask = |what: &str| std::process::Command::new("isoinfo").args(["-J", what, "-i"]).arg(&path).output();
        let (Ok(head), Ok(list)) = (ask("-d"), ask("-f")) else {
            return eprintln!("skipped: there is no isoinfo here");
        };
        let text = String::from_utf8_lossy(&[head.stdout, list.stdout].concat()).to_ascii_lowercase();
        for part in ["volume id: cidata", "/meta-data", "/user-data", "/network-config"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
