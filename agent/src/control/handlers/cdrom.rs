//! CD-ROM drives. A file is opened here, on the host of whoever asks, and with his rights; the drive may be elsewhere.

use super::Answered;
use crate::control::backend::{Origin, Target};
use crate::control::caller::KnownCaller;
use crate::control::extract::{Body, Named};
use crate::control::model::{CdromInsert, Vm};
use crate::control::problem::{ApiError, ErrorCode};
use crate::control::router::Api;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

/// Put a medium into the drive of a VM, in place of what is in it.
#[utoipa::path(post, path = "/v1/vms/{name}/cdrom", operation_id = "insert_cdrom", request_body = CdromInsert,
    params(("name" = String, Path, description = "The VM")),
    responses((status = 200, body = Vm), (status = "default", body = ApiError)))]
pub(in crate::control) async fn insert(
    State(api): State<Api>,
    Extension(origin): Extension<Origin>,
    caller: Option<Extension<ConnectInfo<KnownCaller>>>,
    Named(name): Named,
    Body(wanted): Body<CdromInsert>,
) -> Result<Response, ApiError> {
    let place = match origin {
        Origin::Local => api.backend.place(Target::Vm(name.clone())).await?,
        Origin::Member(_) => None,
    };
    let medium = lend(&api, origin, caller, wanted).await?;
    let inserted = match place {
        Some(host) => {
            let body = serde_json::to_vec(&medium).map_err(|error| ApiError::invalid(error.to_string()))?;
            let request = Request::builder()
                .method(Method::POST)
                .uri(format!("/v1/vms/{name}/cdrom"))
                .header(header::CONTENT_TYPE, "application/json")
                .body(body.into())
                .map_err(|error| ApiError::invalid(error.to_string()))?;
            api.backend.forward(host, request).await
        }
        None => api.backend.insert_cdrom(name, medium.clone()).await.map(|vm| Json(vm).into_response()),
    };
    let is_in = inserted.as_ref().is_ok_and(|response| response.status().is_success());
    if !is_in && let CdromInsert::Disc(loan) = &medium {
        api.backend.take_back(loan);
    }
    inserted
}

/// Take out what is in the drive of a VM.
#[utoipa::path(delete, path = "/v1/vms/{name}/cdrom", operation_id = "eject_cdrom",
    params(("name" = String, Path, description = "The VM")),
    responses((status = 200, body = Vm), (status = "default", body = ApiError)))]
pub(in crate::control) async fn eject(State(api): State<Api>, Named(name): Named) -> Answered<Vm> {
    api.backend.eject_cdrom(name).await.map(Json)
}

/// What another host can use of what was asked for: a file of this host becomes a loan.
pub(super) async fn lend(
    api: &Api,
    origin: Origin,
    caller: Option<Extension<ConnectInfo<KnownCaller>>>,
    wanted: CdromInsert,
) -> Result<CdromInsert, ApiError> {
    let forbidden = |why: &str| ApiError::new(ErrorCode::Forbidden, why);
    match (wanted, origin) {
        (CdromInsert::File(_), Origin::Member(_)) => Err(forbidden("Only users of the host itself lend its files")),
        (CdromInsert::Disc(_), Origin::Local) => Err(forbidden("Loans are made by agents: name the file")),
        (CdromInsert::Disc(loan), Origin::Member(host)) if loan.host.0 != host => {
            Err(forbidden("Only a file's own host lends it"))
        }
        (CdromInsert::File(path), Origin::Local) => {
            let caller = caller.and_then(|Extension(ConnectInfo(caller))| caller.0);
            let caller = caller.ok_or_else(|| forbidden("The kernel can't say who is calling"))?;
            api.backend.lend(path, caller.user()).await.map(CdromInsert::Disc)
        }
        (other @ (CdromInsert::Image(_) | CdromInsert::Disc(_)), _) => Ok(other),
    }
}
