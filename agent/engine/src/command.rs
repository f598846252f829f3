//! The way into the engine's thread: a bounded channel and a descriptor that wakes it.

use super::LinkLimits;
use super::port::PortConfig;
use super::stats::EngineInfo;
use anyhow::{Context, Result, anyhow};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use virtuoso_overlay::ids::{HostId, Mac, NetworkId};
use virtuoso_overlay::switch::Switch;
use virtuoso_overlay::time::Now;

/// Commands that wait for the engine. Its turns take a millisecond at most; a sender above this waits.
pub(super) const COMMANDS_MAX: usize = 256;

/// What runs on the engine's thread with the switch.
pub(super) type Call = Box<dyn FnOnce(&mut Switch, Now) + Send>;

/// One thing to do for the engine.
pub(super) enum Command {
    AddPort(PortConfig, oneshot::Sender<io::Result<()>>),
    RemovePort(NetworkId),
    SetAddresses(HostId, Vec<SocketAddr>),
    LimitLink(HostId, LinkLimits),
    LimitNetwork(NetworkId, LinkLimits),
    Connect(HostId),
    Forget(HostId),
    SetCertificate(Vec<u8>),
    Call(Call),
    /// Run something, between what the network's port brought before and what it brings later.
    Cut(NetworkId, Call, oneshot::Sender<()>),
    /// Where a guest's port is: an interface by its index.
    SetGuest(NetworkId, Mac, Option<u32>),
    Info(oneshot::Sender<EngineInfo>),
    Stop(oneshot::Sender<()>),
}

/// Speaks to the engine. Clones speak to the same one.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    wake: Arc<Wake>,
}

impl EngineHandle {
    pub(super) fn new(commands: mpsc::Sender<Command>, wake: Arc<Wake>) -> Self {
        Self { commands, wake }
    }

    /// Serves a network's TAP from now on, in place of an earlier one of the same network.
    ///
    /// # Errors
    /// If the TAP can't be made non-blocking, or the engine has stopped.
    pub async fn add_port(&self, port: PortConfig) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.send(Command::AddPort(port, done)).await?;
        answer.await.map_err(|_| stopped())?.context("Can't serve the network's TAP")
    }

    /// Closes the TAP of a network.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub async fn remove_port(&self, network: NetworkId) -> Result<()> {
        self.send(Command::RemovePort(network)).await
    }

    /// Sets where a host may be reached, best first.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub async fn set_addresses(&self, host: HostId, addresses: Vec<SocketAddr>) -> Result<()> {
        self.send(Command::SetAddresses(host, addresses)).await
    }

    /// Sets what limits the link to a host, from now on.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub async fn limit_link(&self, host: HostId, limits: LinkLimits) -> Result<()> {
        self.send(Command::LimitLink(host, limits)).await
    }

    /// What limits the frames of `network` on each link from now on, beside what limits the link. Removing the
    /// network's port ends it.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub async fn limit_network(&self, network: NetworkId, limits: LinkLimits) -> Result<()> {
        self.send(Command::LimitNetwork(network, limits)).await
    }

    /// Makes a link before there is traffic for it.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub async fn connect(&self, host: HostId) -> Result<()> {
        self.send(Command::Connect(host)).await
    }

    /// Ends the link to a host and forgets its addresses.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub async fn forget(&self, host: HostId) -> Result<()> {
        self.send(Command::Forget(host)).await
    }

    /// Sets the certificate that this host shows to peers. Links that are up stay.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub async fn set_certificate(&self, certificate: Vec<u8>) -> Result<()> {
        self.send(Command::SetCertificate(certificate)).await
    }

    /// Runs `call` on the switch, between two frames, and returns what it returns. It must be short.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub async fn call<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Switch, Now) -> R + Send + 'static,
    ) -> Result<R> {
        let (done, answer) = oneshot::channel();
        let call = move |switch: &mut Switch, now: Now| {
            // A caller that no longer waits has no use for the answer.
            let _ = done.send(call(switch, now));
        };
        self.send(Command::Call(Box::new(call))).await?;
        answer.await.map_err(|_| stopped())
    }

    /// Runs `call` on the switch, between two frames, and does not wait for it. It must be short.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub async fn cast(&self, call: impl FnOnce(&mut Switch, Now) + Send + 'static) -> Result<()> {
        self.send(Command::Call(Box::new(call))).await
    }

    /// Runs `call` on the switch, when all that the network's port has is through, and carries out what it leads to
    /// before another frame is taken. It must be short.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub async fn cut(&self, network: NetworkId, call: impl FnOnce(&mut Switch, Now) + Send + 'static) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Cut(network, Box::new(call), done)).await?;
        answer.await.map_err(|_| stopped())
    }

    /// Tells where the port of a guest is that moves: an interface by the kernel's index, or nowhere any more.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub async fn set_guest(&self, network: NetworkId, mac: Mac, index: Option<u32>) -> Result<()> {
        self.send(Command::SetGuest(network, mac, index)).await
    }

    /// Takes a snapshot of links, ports and counters.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub async fn info(&self) -> Result<EngineInfo> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Info(done)).await?;
        answer.await.map_err(|_| stopped())
    }

    /// Says goodbye to all peers and ends the thread.
    ///
    /// # Errors
    /// If the engine had stopped before.
    pub async fn stop(&self) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Stop(done)).await?;
        answer.await.map_err(|_| stopped())
    }

    async fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).await.map_err(|_| stopped())?;
        self.wake.wake();
        Ok(())
    }
}

fn stopped() -> anyhow::Error {
    anyhow!("The data plane has stopped: see the log for the reason")
}

/// Wakes a thread that polls a descriptor.
#[derive(Debug)]
pub(super) struct Wake {
    event: File,
}

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else has it.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { event: event.into() })
    }

    pub(super) fn wake(&self) {
        // It fails only when the counter is full, and then the thread is woken already.
        let _ = (&self.event).write(&1u64.to_ne_bytes());
    }

    /// Makes the descriptor wait again. Returns how often it was woken since.
    pub(super) fn clear(&self) -> u64 {
        let mut count = [0; 8];
        // It fails only when nobody woke.
        (&self.event).read(&mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
