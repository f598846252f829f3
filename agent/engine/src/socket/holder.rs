//! Says who holds a UDP port that this host wants, as far as `/proc` tells. Only for an error message.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

/// The error of a failed bind, with what to do about it.
pub(super) fn explain(error: &io::Error, wanted: SocketAddr) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let holder = holder(Path::new("/proc"), wanted.port())
                .map_or_else(|| "another process".to_owned(), |process| process.to_string());
            anyhow::anyhow!("UDP {wanted} is taken by {holder}: stop it or choose another port with --listen")
        }
        io::ErrorKind::PermissionDenied => anyhow::anyhow!(
            "UDP {wanted} may not be bound: ports below 1024 need CAP_NET_BIND_SERVICE, choose another one with --listen"
        ),
        io::ErrorKind::AddrNotAvailable => {
            anyhow::anyhow!("UDP {wanted} is no address of this machine: check --listen")
        }
        _ => anyhow::anyhow!("Can't bind UDP {wanted}: {error}"),
    }
}

/// A process that holds a socket.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    id: u32,
    name: String,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", self.name, self.id)
    }
}

/// The process that has UDP `port` bound, if this user may see it.
fn holder(proc: &Path, port: u16) -> Option<Process> {
    let tables = ["net/udp", "net/udp6"].map(|table| fs::read_to_string(proc.join(table)).unwrap_or_default());
    let inodes: Vec<String> = tables
        .iter()
        .flat_map(|table| table.lines())
        .filter_map(|line| inode_of(line, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = fs::read_dir(proc).ok()?.flatten();
    for process in processes {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let holds = files
            .flatten()
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|target| target.to_str().is_some_and(|target| inodes.iter().any(|inode| inode == target)));
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(Process { id, name: name.trim().to_owned() });
        }
    }
    None
}

/// The inode in a line of `/proc/net/udp`, if the line's local port is `port`.
fn inode_of(line: &str, port: u16) -> Option<&str> {
    let mut fields = line.split_whitespace();
    let local = fields.nth(1)?;
    let (_, hex) = local.rsplit_once(':')?;
    (u16::from_str_radix(hex, 16) == Ok(port)).then(|| fields.nth(7)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_lines_are_read() {
        let line =
            "  345: 0100007F:128B 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 31337 2 0 0";
        assert_eq!(inode_of(line, 4747), Some("31337"));
        assert_eq!(inode_of(line, 4748), None);
        assert_eq!(inode_of("  sl  local_address rem_address", 4747), None);
    }
}
