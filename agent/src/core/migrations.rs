//! What the control API asks for about VMs that move.

use super::Core;
use super::backend::Agent;
use crate::control::backend::Backend;
use crate::control::extract::host_query;
use crate::control::model::{
    DrainReport, MigrationProgress, MigrationReport, PostCopyPolicy, StayedVm, VmMigrate, VmResolve, WhichCopy,
};
use crate::control::problem::{ApiError, ErrorCode};
use crate::name::Name;
use crate::vm::MigrateOptions;
use futures::StreamExt;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::watch;
use virtuoso_overlay::ids::{Digest, HostId, VmId};
use virtuoso_overlay::migrate::{PostCopy, Verdict};

/// VMs that leave a drained host at the same time: more would only slow each other down on one link.
const DRAINS_AT_ONCE: usize = 2;
/// How long a move that is given up, or can't be any more, may take to end: longer than a guest may be paused.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(8);

/// Resolves when it is true; never if nobody can make it so.
async fn told_to(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Agent {
    /// Moves a VM of this host.
    pub(super) async fn move_vm(
        &self,
        name: Name,
        request: VmMigrate,
        progress: watch::Sender<MigrationProgress>,
    ) -> Result<MigrationReport, ApiError> {
        let post_copy = match request.post_copy {
            PostCopyPolicy::Auto => PostCopy::Auto,
            PostCopyPolicy::Never => PostCopy::Never,
            PostCopyPolicy::Now => PostCopy::Now,
        };
        let bandwidth = request.bandwidth.map(|size| size.0);
        if bandwidth == Some(0) {
            return Err(ApiError::invalid("A bandwidth of zero moves nothing"));
        }
        let to = match (request.to, request.best) {
            (Some(host), false) => self.target_named(&name, host).await?,
            (None, true) => self.best_target(&name).await?,
            (Some(_), true) => return Err(ApiError::invalid("`to` and `best` exclude each other")),
            (None, false) => return Err(ApiError::invalid("Where to? Name a host in `to`, or set `best`")),
        };
        self.check_image(&name).await?;
        let options = MigrateOptions { to, post_copy, bandwidth };
        let mut report = self.migrations.migrate(name, options, progress).await?;
        report.host_name = self.core.call(move |core| core.name_of(to)).await?;
        Ok(report)
    }

    /// Refuses a VM whose image nobody offers: its target would wait for it.
    async fn check_image(&self, name: &Name) -> Result<(), ApiError> {
        let spec = self.vms.info(name).await.map_err(super::vm_error)?.spec;
        let Some(base) = spec.base() else { return Ok(()) };
        if self.holders_of(base.digest.0).await?.is_empty() {
            let detail = format!("No host offers image {} of VM {name}, so it can't run elsewhere", base.name);
            return Err(ApiError::not_found(detail));
        }
        Ok(())
    }

    async fn holders_of(&self, image: Digest) -> Result<Vec<HostId>, ApiError> {
        let image = image.to_string();
        let find = move |core: &mut Core| core.node.as_ref().map(|node| node.table().image_providers(&image));
        Ok(self.core.call(find).await?.unwrap_or_default())
    }

    async fn target_named(&self, name: &Name, host: String) -> Result<HostId, ApiError> {
        let (me, to) = self.core.call(move |core| core.host_named(&host).map(|to| (core.me(), to))).await??;
        if me == to {
            return Err(ApiError::conflict(format!("VM {name} is on that host already")));
        }
        Ok(to)
    }

    /// The best of the other hosts that have room; those that have its image come first.
    pub(super) async fn best_target(&self, name: &Name) -> Result<HostId, ApiError> {
        let spec = self.vms.info(name).await.map_err(super::vm_error)?.spec;
        let query = vec![
            ("vcpus".to_owned(), spec.vcpus.to_string()),
            ("memory".to_owned(), spec.memory_bytes.to_string()),
            ("disk".to_owned(), spec.disk_bytes.to_string()),
            ("explain".to_owned(), "true".to_owned()),
        ];
        let me = self.core.call(|core| core.me()).await?;
        let holders = match spec.image() {
            Some(image) => self.holders_of(image).await?,
            None => Vec::new(),
        };
        let found = self.find_hosts(host_query(query)?).await?;
        let others = || found.iter().filter(|found| found.host.id.0 != me);
        let fit: Vec<HostId> = others().filter(|found| found.rank.is_some()).map(|found| found.host.id.0).collect();
        if let Some(best) = preferred(&fit, &holders) {
            return Ok(best);
        }
        let reasons: Vec<String> =
            others().map(|found| format!("{}: {}", found.host.name, found.left_out.join("; "))).collect();
        let detail = format!("No other host has room for VM {name}. {}", reasons.join(". "));
        Err(ApiError::new(ErrorCode::NoSpace, detail.trim().to_owned()))
    }

    /// Takes no VMs any more, and moves those that run, a few at a time. What does not run stays.
    pub(super) async fn drain_host(&self) -> Result<DrainReport, ApiError> {
        self.core.call(|core| core.set_draining(true)).await??;
        let (_go_on, stop) = watch::channel(false);
        self.move_all(stop).await
    }

    /// Moves the VMs that run away from a host that is about to stop, until `stop` is true: what is on its way then
    /// is given up, or ends if it is too late for that.
    ///
    /// # Errors
    /// If the agent has no core any more.
    pub async fn drain_to_stop(&self, stop: watch::Receiver<bool>) -> Result<DrainReport, ApiError> {
        self.core.call(Core::stop_taking).await?;
        self.move_all(stop).await
    }

    async fn move_all(&self, stop: watch::Receiver<bool>) -> Result<DrainReport, ApiError> {
        let running = |core: &mut Core| {
            let me = core.me();
            let vms = core.vms().into_iter().filter(|vm| vm.host.0 == me && vm.state == "running");
            vms.map(|vm| vm.name).collect::<Vec<String>>()
        };
        let names = self.core.call(running).await?;
        let moves = names.into_iter().map(|name| {
            let stop = stop.clone();
            async move {
                let moved = match name.parse::<Name>() {
                    Ok(parsed) => self.move_away(parsed, stop).await,
                    Err(error) => Err(ApiError::invalid(error.to_string())),
                };
                (name, moved)
            }
        });
        let mut report = DrainReport::default();
        let mut moves = futures::stream::iter(moves).buffer_unordered(DRAINS_AT_ONCE);
        while let Some((name, moved)) = moves.next().await {
            match moved {
                Ok(moved) => report.moved.push(moved),
                Err(error) => report.stayed.push(StayedVm { name, reason: error.detail }),
            }
        }
        Ok(report)
    }

    /// Moves one VM to the best host, unless all shall stop.
    async fn move_away(&self, name: Name, mut stop: watch::Receiver<bool>) -> Result<MigrationReport, ApiError> {
        if *stop.borrow_and_update() {
            return Err(ApiError::conflict("The agent stops"));
        }
        let request = VmMigrate { best: true, ..VmMigrate::default() };
        let mut moving = pin!(self.move_vm(name.clone(), request, watch::Sender::default()));
        tokio::select! {
            moved = &mut moving => moved,
            () = told_to(&mut stop) => {
                // What has not begun ends with the future that would begin it.
                let vm = self.moving(&name).map_err(|_| ApiError::conflict("The agent stops"))?;
                if let Err(error) = self.migrations.cancel(vm).await {
                    tracing::debug!("A VM leaves until the end: {error}");
                }
                let settled = tokio::time::timeout(SETTLE_TIME_MAX, moving).await;
                settled.unwrap_or_else(|_| Err(ApiError::new(ErrorCode::Timeout, "Its move did not end in time")))
            }
        }
    }

    /// Ends a migration of a VM of this host.
    pub(super) async fn cancel_move(&self, name: Name) -> Result<(), ApiError> {
        self.migrations.cancel(self.moving(&name)?).await
    }

    /// Says which copy of a VM runs.
    pub(super) async fn resolve_move(&self, name: Name, request: VmResolve) -> Result<(), ApiError> {
        let verdict = match request.copy {
            WhichCopy::Here => Verdict::Here,
            WhichCopy::There => Verdict::There,
        };
        self.migrations.resolve(self.moving(&name)?, verdict).await
    }

    fn moving(&self, name: &Name) -> Result<VmId, ApiError> {
        let none = || ApiError::conflict(format!("No migration of VM {name} is under way on this host"));
        self.migrations.waiting(name).ok_or_else(none)
    }
}

/// The first of `hosts` that is one of `holders`, or else the first.
fn preferred(hosts: &[HostId], holders: &[HostId]) -> Option<HostId> {
    hosts.iter().find(|host| holders.contains(host)).or_else(|| hosts.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_have_the_image_come_first() {
        let [a, b, c] = [1, 2, 3].map(|byte| HostId([byte; 32]));
        let best = |holders: &[HostId]| preferred(&[a, b], holders);
        assert_eq!((best(&[]), best(&[a, b]), best(&[c, b])), (Some(a), Some(a), Some(b)));
        assert_eq!(preferred(&[], &[a]), None);
    }
}
