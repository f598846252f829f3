//! Virtual machines. What concerns one of them is answered by its own host: requests have been forwarded by then.

use super::{Answered, cdrom};
use crate::control::backend::Origin;
use crate::control::caller::KnownCaller;
use crate::control::extract::{Body, Named};
use crate::control::model::{
    CdromInsert, MigrationProgress, MigrationReport, Progress, Vm, VmClone, VmCreate, VmMigrate, VmResolve, VmStop,
};
use crate::control::problem::ApiError;
use crate::control::router::Api;
use crate::control::stream::long_work;
use crate::control::upgrade;
use crate::vm::VmLimitsChange;
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use tokio::sync::watch;

/// What a console's connection is upgraded to.
pub(crate) const CONSOLE_PROTOCOL: &str = "virtuoso-console";

/// The query of a removal.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::control) struct Removal {
    #[serde(default)]
    force: bool,
}

/// All VMs of the swarm.
#[utoipa::path(get, path = "/v1/vms", operation_id = "list_vms",
    responses((status = 200, body = [Vm]), (status = "default", body = ApiError)))]
pub(in crate::control) async fn list(State(api): State<Api>) -> Answered<Vec<Vm>> {
    api.backend.vms().await.map(Json)
}

/// Make a VM, here or on another host.
#[utoipa::path(post, path = "/v1/vms", operation_id = "create_vm", request_body = VmCreate,
    responses((status = 201, body = Vm), (status = "default", body = ApiError)))]
pub(in crate::control) async fn create(
    State(api): State<Api>,
    Extension(origin): Extension<Origin>,
    caller: Option<Extension<ConnectInfo<KnownCaller>>>,
    Body(mut request): Body<VmCreate>,
) -> Result<(StatusCode, Json<Vm>), ApiError> {
    if let Some(wanted) = request.cdrom.take() {
        request.cdrom = Some(cdrom::lend(&api, origin, caller, wanted).await?);
    }
    let lent = request.cdrom.clone();
    let made = api.backend.create_vm(request, origin).await;
    if made.is_err()
        && let Some(CdromInsert::Disc(loan)) = &lent
    {
        api.backend.take_back(loan);
    }
    Ok((StatusCode::CREATED, Json(made?)))
}

/// One VM.
#[utoipa::path(get, path = "/v1/vms/{name}", operation_id = "show_vm",
    params(("name" = String, Path, description = "The VM")),
    responses((status = 200, body = Vm), (status = "default", body = ApiError)))]
pub(in crate::control) async fn show(State(api): State<Api>, Named(name): Named) -> Answered<Vm> {
    api.backend.vm(name).await.map(Json)
}

/// Remove a VM and its disk.
#[utoipa::path(delete, path = "/v1/vms/{name}", operation_id = "delete_vm",
    params(("name" = String, Path, description = "The VM"),
        ("force" = Option<bool>, Query, description = "Also if it runs")),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(in crate::control) async fn delete(
    State(api): State<Api>,
    Named(name): Named,
    removal: Result<Query<Removal>, axum::extract::rejection::QueryRejection>,
) -> Result<StatusCode, ApiError> {
    let Query(removal) = removal.map_err(|rejection| ApiError::invalid(rejection.body_text()))?;
    api.backend.delete_vm(name, removal.force).await.map(|()| StatusCode::NO_CONTENT)
}

/// Start a VM.
#[utoipa::path(post, path = "/v1/vms/{name}/start", operation_id = "start_vm",
    params(("name" = String, Path, description = "The VM")),
    responses((status = 200, body = Vm), (status = "default", body = ApiError)))]
pub(in crate::control) async fn start(State(api): State<Api>, Named(name): Named) -> Answered<Vm> {
    api.backend.start_vm(name).await.map(Json)
}

/// End a VM.
#[utoipa::path(post, path = "/v1/vms/{name}/stop", operation_id = "stop_vm", request_body = VmStop,
    params(("name" = String, Path, description = "The VM")),
    responses((status = 200, body = Vm), (status = "default", body = ApiError)))]
pub(in crate::control) async fn stop(
    State(api): State<Api>,
    Named(name): Named,
    Body(request): Body<VmStop>,
) -> Answered<Vm> {
    api.backend.stop_vm(name, request).await.map(Json)
}

/// Press a VM's reset button.
#[utoipa::path(post, path = "/v1/vms/{name}/reset", operation_id = "reset_vm",
    params(("name" = String, Path, description = "The VM")),
    responses((status = 200, body = Vm), (status = "default", body = ApiError)))]
pub(in crate::control) async fn reset(State(api): State<Api>, Named(name): Named) -> Answered<Vm> {
    api.backend.reset_vm(name).await.map(Json)
}

/// Make a copy of a VM, with an id and addresses of its own, here or on another host. With `Accept: text/event-stream`
/// the answer tells of the copy of its disk.
#[utoipa::path(post, path = "/v1/vms/{name}/clone", operation_id = "clone_vm", request_body = VmClone,
    params(("name" = String, Path, description = "The VM that is copied")),
    responses((status = 201, body = Vm), (status = "default", body = ApiError)))]
pub(in crate::control) async fn clone(
    State(api): State<Api>,
    headers: HeaderMap,
    Named(name): Named,
    Body(request): Body<VmClone>,
) -> Response {
    let (sender, progress) = watch::channel(Progress::default());
    let work = Box::pin(async move { api.backend.clone_vm(name, request, sender).await });
    long_work(&headers, StatusCode::CREATED, work, progress).await
}

/// Change what a VM may use.
#[utoipa::path(post, path = "/v1/vms/{name}/limits", operation_id = "limit_vm", request_body = VmLimitsChange,
    params(("name" = String, Path, description = "The VM")),
    responses((status = 200, body = Vm), (status = "default", body = ApiError)))]
pub(in crate::control) async fn limit(
    State(api): State<Api>,
    Named(name): Named,
    Body(change): Body<VmLimitsChange>,
) -> Answered<Vm> {
    api.backend.limit_vm(name, change).await.map(Json)
}

/// Move a VM to another host while it runs. With `Accept: text/event-stream` the answer is a stream of `progress`
/// events that ends with `done` or `error`. Closing the connection cancels, until the guest runs at the target.
#[utoipa::path(post, path = "/v1/vms/{name}/migrate", operation_id = "migrate_vm", request_body = VmMigrate,
    params(("name" = String, Path, description = "The VM")),
    responses((status = 200, body = MigrationReport), (status = "default", body = ApiError)))]
pub(in crate::control) async fn migrate(
    State(api): State<Api>,
    headers: HeaderMap,
    Named(name): Named,
    Body(request): Body<VmMigrate>,
) -> Response {
    let (sender, progress) = watch::channel(MigrationProgress::default());
    let work = Box::pin(async move { api.backend.migrate_vm(name, request, sender).await });
    long_work(&headers, StatusCode::OK, work, progress).await
}

/// Give a migration up: the VM stays where it is.
#[utoipa::path(delete, path = "/v1/vms/{name}/migrate", operation_id = "cancel_migration",
    params(("name" = String, Path, description = "The VM")),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(in crate::control) async fn cancel_migration(
    State(api): State<Api>,
    Named(name): Named,
) -> Result<StatusCode, ApiError> {
    api.backend.cancel_migration(name).await.map(|()| StatusCode::NO_CONTENT)
}

/// Say which copy of a VM runs, because the other host of its migration is gone for good.
#[utoipa::path(post, path = "/v1/vms/{name}/migrate/resolve", operation_id = "resolve_migration",
    request_body = VmResolve, params(("name" = String, Path, description = "The VM")),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(in crate::control) async fn resolve_migration(
    State(api): State<Api>,
    Named(name): Named,
    Body(request): Body<VmResolve>,
) -> Result<StatusCode, ApiError> {
    api.backend.resolve_migration(name, request).await.map(|()| StatusCode::NO_CONTENT)
}

/// What a VM wrote to its serial console lately.
#[utoipa::path(get, path = "/v1/vms/{name}/console", operation_id = "vm_console_history",
    params(("name" = String, Path, description = "The VM")),
    responses((status = 200, content_type = "application/octet-stream"), (status = "default", body = ApiError)))]
pub(in crate::control) async fn history(State(api): State<Api>, Named(name): Named) -> Result<Response, ApiError> {
    let history = api.backend.vm_console_history(name).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], history).into_response())
}

/// A VM's serial console, both ways, after an upgrade of the connection to `virtuoso-console`. It stays open while the
/// VM moves.
#[utoipa::path(post, path = "/v1/vms/{name}/console", operation_id = "vm_console",
    params(("name" = String, Path, description = "The VM")),
    responses((status = 101), (status = "default", body = ApiError)))]
pub(in crate::control) async fn console(
    State(api): State<Api>,
    Named(name): Named,
    request: Request,
) -> Result<Response, ApiError> {
    upgrade::require(&request, CONSOLE_PROTOCOL)?;
    let session = api.backend.vm_console(name).await?;
    Ok(upgrade::accept(request, CONSOLE_PROTOCOL, |watcher| session(Box::new(watcher))))
}
