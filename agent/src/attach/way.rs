//! The way to a VM's host, now and after the VM has moved or its host's agent was started again.

use super::{ATTACH, Duplex, Session, answer_of, console, display, host, request};
use crate::control::problem::{ApiError, ErrorCode};
use crate::core::{Handle, vm_error};
use crate::name::Name;
use crate::swarm::streams::Streams;
use crate::vm::{VmError, Vms};
use futures::FutureExt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use virtuoso_overlay::ids::{HostId, VmId};
use virtuoso_overlay::vm::lifecycle::Denied;
use virtuoso_overlay::wire::attach::{AttachRequest, Place};

/// Bytes between two ends in one process.
const DUPLEX_BYTES: usize = 128 << 10;
/// How long a VM's host may be away: as long as a migration bears it.
const AWAY_TIME_MAX: Duration = Duration::from_secs(45);
/// Between two attempts, unless the tables say something new.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Hosts that may send whoever looks on to the next one.
const HOPS_MAX: usize = 8;
/// Streams that may break before the first answer.
const BREAKS_MAX: usize = 2;

/// What consoles and displays are found by.
#[derive(Clone)]
pub struct Attachments {
    /// This host.
    pub me: HostId,
    /// The tables.
    pub core: Handle,
    /// The ways to other hosts.
    pub streams: Streams,
    /// This host's VMs.
    pub vms: Arc<Vms>,
}

/// The way to one VM.
pub(super) struct Way {
    all: Attachments,
    pub(super) vm: VmId,
    /// Where it was last.
    host: HostId,
    changes: watch::Receiver<u64>,
}

/// A stream to the VM's host, and where its output begins.
pub(super) struct Attached {
    pub(super) stream: Box<dyn Duplex>,
    pub(super) place: Place,
}

/// Why there is none.
enum Failure {
    /// It may be there later.
    Unreachable(String),
    /// There was a stream, and it broke before the answer: another one may do better.
    Broken(String),
    /// The VM does not run there; where it went.
    Gone(Option<HostId>),
}

impl Attachments {
    /// A VM's console.
    ///
    /// # Errors
    /// If the VM is unknown, does not run, or its host is not reachable.
    pub async fn console(&self, name: Name) -> Result<Session, ApiError> {
        let mut way = self.way(&name).await?;
        let wanted = AttachRequest::Console { vm: way.vm, seen: None };
        let attached = way.first(&wanted, &name, "show the console of").await?;
        Ok(Box::new(move |watcher| console::run(way, attached, watcher).boxed()))
    }

    /// A VM's display.
    ///
    /// # Errors
    /// As for [`Self::console`].
    pub async fn display(&self, name: Name) -> Result<Session, ApiError> {
        let mut way = self.way(&name).await?;
        let wanted = AttachRequest::Display { vm: way.vm };
        let attached = way.first(&wanted, &name, "show the display of").await?;
        Ok(Box::new(move |viewer| display::run(way, attached, viewer).boxed()))
    }

    async fn way(&self, name: &Name) -> Result<Way, ApiError> {
        let wanted = name.clone();
        let (found, changes) = self.core.call(move |core| (core.vm_place(&wanted), core.vm_changes())).await?;
        let (host, vm) = found?.ok_or_else(|| vm_error(VmError::NotFound(name.clone()).into()))?;
        Ok(Way { all: self.clone(), vm, host, changes })
    }
}

impl Way {
    async fn first(&mut self, wanted: &AttachRequest, name: &Name, verb: &'static str) -> Result<Attached, ApiError> {
        let (mut hops, mut breaks) = (0, 0);
        loop {
            match self.reach(wanted).await {
                Ok(attached) => return Ok(attached),
                Err(Failure::Gone(Some(next))) if hops < HOPS_MAX => (self.host, hops) = (next, hops + 1),
                Err(Failure::Broken(_)) if breaks < BREAKS_MAX => breaks += 1,
                Err(Failure::Gone(_)) => {
                    return Err(VmError::Denied { name: name.clone(), verb, why: Denied::NotRunning }.into());
                }
                Err(Failure::Broken(why) | Failure::Unreachable(why)) => {
                    return Err(self.unreachable(name, &why).await);
                }
            }
        }
    }

    async fn unreachable(&self, name: &Name, why: &str) -> ApiError {
        let host = self.host;
        let host = self.all.core.call(move |core| core.name_of(host)).await.unwrap_or_else(|_| host.to_string());
        ApiError::new(ErrorCode::Unavailable, format!("Can't reach VM {name} on host {host}: {why}"))
    }

    /// Finds the VM again, after its stream has ended; nothing if it does not run any more, or for too long nobody
    /// knows where.
    pub(super) async fn again(&mut self, wanted: &AttachRequest) -> Option<Attached> {
        let deadline = Instant::now() + AWAY_TIME_MAX;
        let mut hops = 0;
        loop {
            self.changes.mark_unchanged();
            let next = match timeout_at(deadline, self.reach(wanted)).await.ok()? {
                Ok(attached) => return Some(attached),
                Err(Failure::Gone(Some(next))) => Some(next),
                Err(Failure::Gone(None)) => {
                    let known = self.known_host().await?;
                    if known == self.host {
                        return None;
                    }
                    Some(known)
                }
                Err(Failure::Unreachable(why) | Failure::Broken(why)) => {
                    tracing::debug!(host = %self.host, "A VM's host can't be reached: {why}");
                    self.known_host().await.filter(|known| *known != self.host)
                }
            };
            if let Some(next) = next
                && hops < HOPS_MAX
            {
                hops += 1;
                self.host = next;
                continue;
            }
            hops = 0;
            let pause = tokio::time::sleep(RETRY_INTERVAL);
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => return None,
                () = pause => {}
                Ok(()) = self.changes.changed() => {}
            }
        }
    }

    /// Where the tables say that it is.
    async fn known_host(&self) -> Option<HostId> {
        let vm = self.vm;
        self.all.core.call(move |core| core.host_of_vm(vm)).await.ok()?
    }

    async fn reach(&self, wanted: &AttachRequest) -> Result<Attached, Failure> {
        let mut stream = self.stream().await.map_err(Failure::Unreachable)?;
        let asked = async {
            request(&mut stream, wanted).await?;
            answer_of(&mut stream).await
        };
        match asked.await {
            Ok(Ok(place)) => Ok(Attached { stream, place }),
            Ok(Err(went_to)) => Err(Failure::Gone(went_to)),
            Err(error) if error.is::<io::Error>() => Err(Failure::Broken(format!("{error:#}"))),
            Err(error) => Err(Failure::Unreachable(format!("{error:#}"))),
        }
    }

    async fn stream(&self) -> Result<Box<dyn Duplex>, String> {
        if self.host != self.all.me {
            let opened = self.all.streams.open(self.host, ATTACH).await;
            return Ok(Box::new(opened.map_err(|error| error.to_string())?));
        }
        let (near, far) = tokio::io::duplex(DUPLEX_BYTES);
        let vms = self.all.vms.clone();
        tokio::spawn(async move {
            if let Err(error) = host::answer_one(&vms, far).await {
                tracing::debug!("A console or display of this host ended: {error:#}");
            }
        });
        Ok(Box::new(near))
    }
}
