//! What cloud images read at their first boot: cloud-init's NoCloud source, a small disk with the VM's name and the
//! keys that may log in.

use super::error::VmError;
use super::spec::Spec;
use anyhow::Context;
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
    let files = [write("meta-data", meta_data(spec))?, write("user-data", user_data(spec)?)?];
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
    let data = serde_json::json!({
        "hostname": spec.name,
        "disable_root": false,
        "ssh_authorized_keys": spec.ssh_keys,
        "users": ["default", {"name": "root", "ssh_authorized_keys": spec.ssh_keys}],
    });
    Ok(format!("#cloud-config\n{}\n", serde_json::to_string(&data).context("Can't encode user-data")?))
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
}
