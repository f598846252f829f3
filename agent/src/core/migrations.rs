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
use tokio::sync::watch;
use virtuoso_overlay::ids::{HostId, VmId};
use virtuoso_overlay::migrate::{PostCopy, Verdict};

/// VMs that leave a drained host at the same time: more would only slow each other down on one link.
const DRAINS_AT_ONCE: usize = 2;

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
        let options = MigrateOptions { to, post_copy, bandwidth };
        let mut report = self.migrations.migrate(name, options, progress).await?;
        report.host_name = self.core.call(move |core| core.name_of(to)).await?;
        Ok(report)
    }

    async fn target_named(&self, name: &Name, host: String) -> Result<HostId, ApiError> {
        let (me, to) = self.core.call(move |core| core.host_named(&host).map(|to| (core.me(), to))).await??;
        if me == to {
            return Err(ApiError::conflict(format!("VM {name} is on that host already")));
        }
        Ok(to)
    }

    /// The best of the other hosts that have room.
    pub(super) async fn best_target(&self, name: &Name) -> Result<HostId, ApiError> {
        let spec = self.vms.info(name).await.map_err(super::vm_error)?.spec;
        let query = vec![
            ("vcpus".to_owned(), spec.vcpus.to_string()),
            ("memory".to_owned(), spec.memory_bytes.to_string()),
            ("disk".to_owned(), spec.disk_bytes.to_string()),
            ("explain".to_owned(), "true".to_owned()),
        ];
        let me = self.core.call(|core| core.me()).await?;
        let mut reasons = Vec::new();
        for found in self.find_hosts(host_query(query)?).await? {
            if found.host.id.0 == me {
                continue;
            }
            if found.rank.is_some() {
                return Ok(found.host.id.0);
            }
            reasons.push(format!("{}: {}", found.host.name, found.left_out.join("; ")));
        }
        let detail = format!("No other host has room for VM {name}. {}", reasons.join(". "));
        Err(ApiError::new(ErrorCode::NoSpace, detail.trim().to_owned()))
    }

    /// Takes no VMs any more, and moves those that run, a few at a time. What does not run stays.
    pub(super) async fn drain_host(&self) -> Result<DrainReport, ApiError> {
        let running = move |core: &mut Core| {
            core.set_draining(true)?;
            let me = core.me();
            let vms = core.vms().into_iter().filter(|vm| vm.host.0 == me && vm.state == "running");
            anyhow::Ok(vms.map(|vm| vm.name).collect::<Vec<String>>())
        };
        let names = self.core.call(running).await??;
        let moves = names.into_iter().map(|name| async move {
            let parsed = name.parse::<Name>().map_err(|error| ApiError::invalid(error.to_string()));
            let request = VmMigrate { best: true, ..VmMigrate::default() };
            let moved = match parsed {
                Ok(parsed) => self.move_vm(parsed, request, watch::Sender::default()).await,
                Err(error) => Err(error),
            };
            (name, moved)
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
