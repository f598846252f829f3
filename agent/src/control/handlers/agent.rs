//! The agent itself: status, health, configuration, events.

use super::Answered;
use crate::control::doctor;
use crate::control::model::{Doctor, Status};
use crate::control::problem::ApiError;
use crate::control::router::Api;
use crate::control::stream;
use crate::events::Event;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::IntoResponse;

/// This agent at a glance.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status), (status = "default", body = ApiError)))]
pub(in crate::control) async fn status(State(api): State<Api>) -> Answered<Status> {
    api.backend.status().await.map(Json)
}

/// What is well on this host and what is not.
#[utoipa::path(get, path = "/v1/doctor", responses((status = 200, body = Doctor), (status = "default", body = ApiError)))]
pub(in crate::control) async fn doctor(State(api): State<Api>) -> Answered<Doctor> {
    let config = api.config.borrow().clone();
    let mut checks = doctor::machine_checks(&config);
    checks.extend(api.backend.checks().await?);
    Ok(Json(checks.into()))
}

/// The configuration that the agent runs with, without secrets. Its keys are those of the configuration file.
#[utoipa::path(get, path = "/v1/config", responses((status = 200, body = Object), (status = "default", body = ApiError)))]
pub(in crate::control) async fn config(State(api): State<Api>) -> Json<crate::config::Config> {
    let config = api.config.borrow().clone();
    Json(config.as_ref().clone())
}

/// What happens, as server-sent events. Each has an id; a caller that sends the last one it saw as `Last-Event-ID`
/// hears what came after it.
#[utoipa::path(
    get, path = "/v1/events",
    params(("Last-Event-ID" = Option<u64>, Header, description = "The last event that was seen")),
    responses((status = 200, body = Event, content_type = "text/event-stream"), (status = "default", body = ApiError))
)]
pub(in crate::control) async fn events(
    State(api): State<Api>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, ApiError> {
    let seen = match headers.get("last-event-id") {
        None => None,
        Some(text) => {
            let id = text.to_str().ok().and_then(|text| text.parse().ok());
            Some(id.ok_or_else(|| ApiError::invalid("Header `Last-Event-ID` is not the id of an event"))?)
        }
    };
    Ok(stream::events(api.events.subscribe(seen)))
}
