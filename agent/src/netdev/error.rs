//! What can be wrong with a request about network devices, in the words of whoever asked.

use rtnetlink::Error;
use std::fmt;

/// Refusals that callers tell apart. Everything else is an error with its context only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetdevError {
    /// There is no such interface where the agent looks.
    #[error(
        "No interface {name} in the agent's network namespace. `ip link` shows those that are; one of another \
         namespace is moved here by `ip link set {name} netns {pid}` there"
    )]
    NoInterface {
        /// What was asked for.
        name: String,
        /// The agent's process, which names its namespace.
        pid: u32,
    },
    /// The interface is a port already.
    #[error("Interface {name} is in {controller} already. Take it out first: `ip link set {name} nomaster`")]
    InOtherBridge {
        /// What was asked for.
        name: String,
        /// The bridge, bond or team it is in.
        controller: String,
    },
    /// The interface is not in the bridge that it should be taken out of.
    #[error("Interface {name} is not in bridge {bridge}")]
    NotInBridge {
        /// What was asked for.
        name: String,
        /// The bridge.
        bridge: String,
    },
    /// The interface can't be a bridge's port.
    #[error("Interface {name} can't be put into a bridge: {reason}")]
    Unsuitable {
        /// What was asked for.
        name: String,
        /// Why it can't.
        reason: String,
    },
    /// The host is reached at the interface.
    #[error(
        "Interface {name} has addresses of this host ({addresses}), which a port of a bridge can't have: the host would \
         be cut off. Move them to the bridge first: `ip address add ADDRESS dev {bridge}` and `ip address delete \
         ADDRESS dev {name}` for each, then the routes; or use a NIC without addresses"
    )]
    HasAddresses {
        /// What was asked for.
        name: String,
        /// The bridge that can have them.
        bridge: String,
        /// The addresses with their prefixes.
        addresses: String,
    },
    /// Packets of the network don't fit through the interface.
    #[error(
        "Interface {name} has an MTU of {mtu_bytes} bytes, the network one of {network_mtu_bytes}: large packets would \
         be lost. Raise it: `ip link set {name} mtu {network_mtu_bytes}`, or make a network with a smaller one"
    )]
    SmallMtu {
        /// What was asked for.
        name: String,
        /// Its MTU.
        mtu_bytes: u32,
        /// The network's.
        network_mtu_bytes: u32,
    },
    /// The kernel refused a raw socket for lack of a right.
    #[error(
        "Missing right CAP_NET_RAW {action}. Run the agent as root, or grant it: \
         `AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW` in its systemd unit"
    )]
    MissingRawRight {
        /// What needed it.
        action: String,
    },
    /// A name that the agent uses belongs to something else.
    #[error("Interface {name} exists and is no {expected}. Rename or delete it: `ip link delete {name}`")]
    NameTaken {
        /// The name.
        name: String,
        /// What the agent would make of that name.
        expected: &'static str,
    },
    /// Another process holds the TAP.
    #[error("TAP {name} is held by another process. Is another agent running in this network namespace?")]
    TapBusy {
        /// The TAP.
        name: String,
    },
    /// The kernel refused for lack of a right.
    #[error(
        "Missing right CAP_NET_ADMIN {action}. Run the agent as root, or grant it: \
         `AmbientCapabilities=CAP_NET_ADMIN` in its systemd unit, or `setcap cap_net_admin+ep` on its binary"
    )]
    MissingRight {
        /// What needed it.
        action: String,
    },
    /// The device that makes TAPs is closed to the agent's user.
    #[error("Can't open /dev/net/tun: Permission denied. Run the agent as root, or `chmod 0666 /dev/net/tun`")]
    TunDevice,
    /// The kernel lacks a module.
    #[error("The kernel has no support for {what}. Load it: `modprobe {module}`")]
    NoKernelSupport {
        /// What is missing.
        what: &'static str,
        /// The module that has it.
        module: &'static str,
    },
}

impl NetdevError {
    /// There is no interface `name`.
    pub(super) fn no_interface(name: &str) -> Self {
        Self::NoInterface { name: name.to_owned(), pid: std::process::id() }
    }
}

/// Says what the kernel refused to do.
pub(super) fn explain(error: Error, action: impl fmt::Display) -> anyhow::Error {
    match errno(&error) {
        Some(libc::EPERM | libc::EACCES) => NetdevError::MissingRight { action: action.to_string() }.into(),
        Some(code) => {
            anyhow::Error::new(std::io::Error::from_raw_os_error(code)).context(format!("The kernel refused {action}"))
        }
        None => anyhow::Error::new(error).context(format!("No answer from the kernel to {action}")),
    }
}

/// The kernel's error number, if it answered with one.
pub(super) fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::NetlinkError(message) => Some(message.raw_code().abs()),
        _ => None,
    }
}
