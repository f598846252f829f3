//! Errors of the control API: `application/problem+json` (RFC 9457) with a `code` that scripts can rely on.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why something was not done.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{detail}")]
pub struct ApiError {
    /// Stable, for scripts.
    pub code: ErrorCode,
    /// The HTTP status.
    pub status: u16,
    /// What the code means.
    pub title: String,
    /// What is wrong, where, and what to do.
    pub detail: String,
}

/// What went wrong, in general.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request makes no sense.
    InvalidRequest,
    /// The caller may not do this.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The address exists, but not for this method.
    MethodNotAllowed,
    /// The state of things forbids it: it exists already, is in use, is not attached.
    Conflict,
    /// This host is not admitted to a swarm, or is no admin of it.
    NotPermittedBySwarm,
    /// No room on the disk.
    NoSpace,
    /// The operating system refuses: a capability or a device is missing.
    MissingRights,
    /// Stored content is damaged.
    Damaged,
    /// A peer is not reachable, or the agent is stopping.
    Unavailable,
    /// It took too long.
    Timeout,
    /// A fault of the agent.
    Internal,
    /// A code of a newer agent.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// HTTP status and meaning.
    fn meaning(self) -> (StatusCode, &'static str) {
        match self {
            Self::InvalidRequest => (StatusCode::BAD_REQUEST, "Invalid request"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "Not allowed"),
            Self::NotFound => (StatusCode::NOT_FOUND, "Not found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"),
            Self::Conflict => (StatusCode::CONFLICT, "Conflict"),
            Self::NotPermittedBySwarm => (StatusCode::FORBIDDEN, "Not permitted by the swarm"),
            Self::NoSpace => (StatusCode::INSUFFICIENT_STORAGE, "No space"),
            Self::MissingRights => (StatusCode::INTERNAL_SERVER_ERROR, "Missing rights"),
            Self::Damaged => (StatusCode::INTERNAL_SERVER_ERROR, "Damaged content"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "Unavailable"),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
            Self::Internal | Self::Unknown => (StatusCode::INTERNAL_SERVER_ERROR, "Internal error"),
        }
    }
}

impl ApiError {
    /// An error with the code's status.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        let (status, title) = code.meaning();
        Self { code, status: status.as_u16(), title: title.into(), detail: detail.into() }
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, detail)
    }

    /// The request makes no sense.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, detail)
    }

    /// The state of things forbids it.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(ErrorCode::Conflict, detail)
    }
}

/// What the agent could not foresee. An [`ApiError`] anywhere in the chain keeps its code.
impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        let code = error.downcast_ref::<Self>().map_or(ErrorCode::Internal, |known| known.code);
        Self::new(code, format!("{error:#}"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(self)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn keeps_the_code_of_the_cause() {
        let error = Err::<(), _>(ApiError::not_found("No network `blue`")).context("Can't attach").unwrap_err();
        let error = ApiError::from(error);
        assert_eq!((error.code, error.status), (ErrorCode::NotFound, 404));
        assert_eq!(error.detail, "Can't attach: No network `blue`");
        assert_eq!(ApiError::from(anyhow::anyhow!("x")).status, 500);
    }

    #[test]
    fn codes_of_newer_agents_can_be_read() {
        let json = r#"{"code":"quota","status":429,"title":"Quota","detail":"Too many"}"#;
        assert_eq!(serde_json::from_str::<ApiError>(json).unwrap().code, ErrorCode::Unknown);
    }
}
