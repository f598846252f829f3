//! Displays of VMs: the way to the VNC server of one, and a picture of what it shows.

use crate::control::extract::Named;
use crate::control::problem::ApiError;
use crate::control::router::Api;
use crate::control::upgrade;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};

/// What a display's connection is upgraded to: RFB, as VNC viewers speak it.
pub(crate) const DISPLAY_PROTOCOL: &str = "virtuoso-display";

/// A VM's display, both ways, after an upgrade of the connection to `virtuoso-display`: RFB as VNC viewers speak it.
#[utoipa::path(post, path = "/v1/vms/{name}/display", operation_id = "vm_display",
    params(("name" = String, Path, description = "The VM")),
    responses((status = 101), (status = "default", body = ApiError)))]
pub(in crate::control) async fn display(
    State(api): State<Api>,
    Named(name): Named,
    request: Request,
) -> Result<Response, ApiError> {
    upgrade::require(&request, DISPLAY_PROTOCOL)?;
    let session = api.backend.vm_display(name).await?;
    Ok(upgrade::accept(request, DISPLAY_PROTOCOL, |viewer| session(Box::new(viewer))))
}

/// What a VM's display shows, as a PNG.
#[utoipa::path(get, path = "/v1/vms/{name}/screenshot", operation_id = "vm_screenshot",
    params(("name" = String, Path, description = "The VM")),
    responses((status = 200, content_type = "image/png"), (status = "default", body = ApiError)))]
pub(in crate::control) async fn screenshot(State(api): State<Api>, Named(name): Named) -> Result<Response, ApiError> {
    let picture = api.backend.vm_screenshot(name).await?;
    Ok(([(header::CONTENT_TYPE, "image/png")], picture).into_response())
}
