//! Whether there is a QEMU that can run guests of this architecture.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Whether QEMU can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuState {
    /// Whether it can: it was found, and told its version.
    pub usable: bool,
    /// Where it was found.
    pub path: Option<PathBuf>,
    /// Its version.
    pub version: Option<QemuVersion>,
    /// Why, in words for an operator.
    pub why: String,
}

/// A version of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    /// Changes once a year.
    pub major: u16,
    /// Changes three times a year.
    pub minor: u16,
    /// Corrections.
    pub micro: u16,
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// The first that knows the machine which VMs see.
const VERSION_MIN: QemuVersion = QemuVersion { major: 7, minor: 2, micro: 0 };
/// What helps.
const INSTALL: &str = "install packages qemu-system-x86 and qemu-utils (Debian 12, Ubuntu 23.04 or later), or \
                       qemu-system-x86-core and qemu-img (Fedora)";

/// QEMU tells its version within 50 ms; on a machine that thrashes it may take some seconds.
const TIMEOUT: Duration = Duration::from_secs(10);

impl QemuState {
    pub(super) async fn read(arch: &str) -> Self {
        let name = format!("qemu-system-{}", qemu_arch(arch));
        match find(&name, std::env::var_os("PATH").as_deref()) {
            Some(path) => Self::ask(path).await,
            None => Self::unusable(None, format!("There is no {name} in PATH: {INSTALL}")),
        }
    }

    async fn ask(path: PathBuf) -> Self {
        let mut command = Command::new(&path);
        command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let shown = path.display().to_string();
        let output = match tokio::time::timeout(TIMEOUT, command.output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Self::unusable(Some(path), format!("{shown} does not run: {error}")),
            Err(_) => {
                let why = format!("{shown} --version did not end within {} s", TIMEOUT.as_secs());
                return Self::unusable(Some(path), why);
            }
        };
        match parse_version(&String::from_utf8_lossy(&output.stdout)) {
            Some(version) if version < VERSION_MIN => {
                let why = format!("{shown} {version} is too old: VMs need {VERSION_MIN} or later; {INSTALL}");
                Self { usable: false, path: Some(path), version: Some(version), why }
            }
            Some(version) => {
                Self { usable: true, path: Some(path), version: Some(version), why: format!("{shown} {version}") }
            }
            None => Self::unusable(Some(path), format!("{shown} --version tells no version ({})", output.status)),
        }
    }

    fn unusable(path: Option<PathBuf>, why: String) -> Self {
        Self { usable: false, path, version: None, why }
    }
}

/// The first executable file `name` in the directories of `path`.
fn find(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(path?).map(|directory| directory.join(name)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Reads the first line of `qemu-system-* --version`.
fn parse_version(text: &str) -> Option<QemuVersion> {
    let rest = text.lines().next()?.strip_prefix("QEMU emulator version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?.split('.');
    let mut next = || numbers.next()?.parse().ok();
    Some(QemuVersion { major: next()?, minor: next()?, micro: next()? })
}

/// QEMU's name for an architecture of Rust's.
fn qemu_arch(arch: &str) -> &str {
    match arch {
        "x86" => "i386",
        "powerpc64" => "ppc64",
        same => same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let debian = "QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7+deb12u13)\nCopyright (c) 2003-2022\n";
        let version = QemuVersion { major: 7, minor: 2, micro: 17 };
        assert_eq!(parse_version(debian), Some(version));
        assert_eq!(version.to_string(), "7.2.17");
        assert_eq!(parse_version("QEMU emulator version 10.0.2\n").map(|version| version.major), Some(10));
        for wrong in ["", "QEMU emulator version 7", "qemu 7.2.1", "QEMU emulator version x.y.z"] {
            assert_eq!(parse_version(wrong), None, "{wrong}");
        }
    }

    /// Written by a process of its own: a file that any process holds open for writing does not run, and between fork
    /// and exec that may be a child of another test.
    fn script(directory: &Path, text: &str) -> PathBuf {
        let path = directory.join("qemu-system-test");
        let write = r#"printf '#!/bin/sh\n%s\n' "$2" > "$1" && chmod 755 "$1""#;
        let mut command = std::process::Command::new("sh");
        let status = command.args(["-c", write, "sh"]).arg(&path).arg(text).status().unwrap();
        assert!(status.success());
        path
    }

    #[tokio::test]
    async fn a_program_is_found_and_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = script(directory.path(), "echo QEMU emulator version 9.1.0");
        assert_eq!(find("qemu-system-test", Some(directory.path().as_os_str())), Some(path.clone()));
        assert_eq!(find("qemu-system-none", Some(directory.path().as_os_str())), None);
        let state = QemuState::ask(path).await;
        assert_eq!((state.usable, state.version.map(|version| version.major)), (true, Some(9)));
    }

    #[tokio::test]
    async fn a_program_that_fails_is_not_usable() {
        let directory = tempfile::tempdir().unwrap();
        let state = QemuState::ask(script(directory.path(), "exit 3")).await;
        assert!(!state.usable && state.why.contains("exit status: 3"), "{state:?}");
        let state = QemuState::ask(script(directory.path(), "echo QEMU emulator version 6.2.0")).await;
        assert!(!state.usable && state.why.contains("7.2.0 or later; install"), "{state:?}");
        let state = QemuState::ask(directory.path().join("absent")).await;
        assert!(!state.usable && state.why.contains("does not run"), "{state:?}");
    }
}
