//! Hosts.

use super::Answered;
use crate::control::extract::Wanted;
use crate::control::model::{DrainReport, Host, HostMatch};
use crate::control::problem::ApiError;
use crate::control::router::Api;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

/// All hosts of the swarm.
#[utoipa::path(get, path = "/v1/hosts", operation_id = "list_hosts",
    responses((status = 200, body = [Host]), (status = "default", body = ApiError)))]
pub(in crate::control) async fn list(State(api): State<Api>) -> Answered<Vec<Host>> {
    api.backend.hosts().await.map(Json)
}

/// Take no VMs any more, and move those that run to other hosts.
#[utoipa::path(post, path = "/v1/host/drain", operation_id = "drain",
    responses((status = 200, body = DrainReport), (status = "default", body = ApiError)))]
pub(in crate::control) async fn drain(State(api): State<Api>) -> Answered<DrainReport> {
    api.backend.drain().await.map(Json)
}

/// Take VMs again.
#[utoipa::path(delete, path = "/v1/host/drain", operation_id = "undrain",
    responses((status = 204), (status = "default", body = ApiError)))]
pub(in crate::control) async fn undrain(State(api): State<Api>) -> Result<StatusCode, ApiError> {
    api.backend.undrain().await.map(|()| StatusCode::NO_CONTENT)
}

/// Hosts that a VM fits on, best first.
#[utoipa::path(get, path = "/v1/hosts/find", operation_id = "find_hosts",
    params(
        ("vcpus" = Option<u32>, Query, description = "Free virtual CPUs"),
        ("memory" = Option<String>, Query, description = "Free memory, as 8GiB"),
        ("disk" = Option<String>, Query, description = "Free disk space, as 20GiB"),
        ("label" = Option<Vec<String>>, Query, description = "A label, as gpu=1 or gpu; can be repeated"),
        ("image" = Option<String>, Query, description = "An image; hosts that have it come first"),
        ("explain" = Option<bool>, Query, description = "Also tell the hosts that were left out, and why"),
    ),
    responses((status = 200, body = [HostMatch]), (status = "default", body = ApiError)))]
pub(in crate::control) async fn find(State(api): State<Api>, Wanted(query): Wanted) -> Answered<Vec<HostMatch>> {
    api.backend.find_hosts(query).await.map(Json)
}
