//! Images.

use super::Answered;
use crate::control::extract::{Body, Named};
use crate::control::model::{Image, ImageExport, ImageImport, ImagePull, ImageVerification, Progress};
use crate::control::problem::ApiError;
use crate::control::router::Api;
use crate::control::stream::long_work;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use tokio::sync::watch;

/// All images of the swarm.
#[utoipa::path(get, path = "/v1/images", operation_id = "list_images",
    responses((status = 200, body = [Image]), (status = "default", body = ApiError)))]
pub(in crate::control) async fn list(State(api): State<Api>) -> Answered<Vec<Image>> {
    api.backend.images().await.map(Json)
}

/// Import a file of the agent's host into its store. With `Accept: text/event-stream` the answer is a stream of
/// `progress` events that ends with `done` or `error`. Closing the connection cancels.
#[utoipa::path(post, path = "/v1/images", operation_id = "import_image", request_body = ImageImport,
    responses((status = 201, body = Image), (status = "default", body = ApiError)))]
pub(in crate::control) async fn import(
    State(api): State<Api>,
    headers: HeaderMap,
    Body(request): Body<ImageImport>,
) -> Result<Response, ApiError> {
    check_absolute(&request.path)?;
    let (sender, progress) = watch::channel(Progress::default());
    let work = Box::pin(async move { api.backend.import_image(request, sender).await });
    Ok(long_work(&headers, StatusCode::CREATED, work, progress).await)
}

/// One image.
#[utoipa::path(get, path = "/v1/images/{name}", operation_id = "show_image",
    params(("name" = String, Path, description = "The image")),
    responses((status = 200, body = Image), (status = "default", body = ApiError)))]
pub(in crate::control) async fn show(State(api): State<Api>, Named(name): Named) -> Answered<Image> {
    api.backend.image(name).await.map(Json)
}

/// Remove an image from this host.
#[utoipa::path(delete, path = "/v1/images/{name}", operation_id = "remove_image",
    params(("name" = String, Path, description = "The image")),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(in crate::control) async fn remove(State(api): State<Api>, Named(name): Named) -> Result<StatusCode, ApiError> {
    api.backend.remove_image(name).await.map(|()| StatusCode::NO_CONTENT)
}

fn check_absolute(path: &std::path::Path) -> Result<(), ApiError> {
    if path.is_absolute() {
        return Ok(());
    }
    let detail = format!("`{}` is a relative path; the agent works in another directory", path.display());
    Err(ApiError::invalid(detail))
}

/// Write an image of this host to a new raw file with holes. With `Accept: text/event-stream` as in import.
#[utoipa::path(post, path = "/v1/images/{name}/export", operation_id = "export_image", request_body = ImageExport,
    params(("name" = String, Path, description = "The image")),
    responses((status = 200, description = "The file is complete"), (status = "default", body = ApiError)))]
pub(in crate::control) async fn export(
    State(api): State<Api>,
    headers: HeaderMap,
    Named(name): Named,
    Body(request): Body<ImageExport>,
) -> Result<Response, ApiError> {
    check_absolute(&request.path)?;
    let (sender, progress) = watch::channel(Progress::default());
    let work = Box::pin(async move { api.backend.export_image(name, request, sender).await });
    Ok(long_work(&headers, StatusCode::OK, work, progress).await)
}

/// Fetch an image from all hosts that have it. With `Accept: text/event-stream` as in import.
#[utoipa::path(post, path = "/v1/images/{image}/pull", operation_id = "pull_image", request_body = ImagePull,
    params(("image" = String, Path, description = "The image's name or digest")),
    responses((status = 201, body = Image), (status = "default", body = ApiError)))]
pub(in crate::control) async fn pull(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(image): Path<String>,
    Body(request): Body<ImagePull>,
) -> Response {
    let (sender, progress) = watch::channel(Progress::default());
    let work = Box::pin(async move { api.backend.pull_image(image, request, sender).await });
    long_work(&headers, StatusCode::CREATED, work, progress).await
}

/// Read and hash all that this host has of an image. With `Accept: text/event-stream` as in import.
#[utoipa::path(post, path = "/v1/images/{name}/verify", operation_id = "verify_image",
    params(("name" = String, Path, description = "The image")),
    responses((status = 200, body = ImageVerification), (status = "default", body = ApiError)))]
pub(in crate::control) async fn verify(State(api): State<Api>, headers: HeaderMap, Named(name): Named) -> Response {
    let (sender, progress) = watch::channel(Progress::default());
    let work = Box::pin(async move { api.backend.verify_image(name, sender).await });
    long_work(&headers, StatusCode::OK, work, progress).await
}
