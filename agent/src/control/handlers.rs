//! One function for each verb: parts of the request in, a call of the backend, its answer out.

pub(super) mod agent;
pub(super) mod cdrom;
pub(super) mod display;
pub(super) mod host;
pub(super) mod image;
pub(super) mod network;
pub(super) mod swarm;
pub(super) mod vm;

use super::problem::ApiError;
use axum::Json;

/// What a handler answers.
type Answered<T> = Result<Json<T>, ApiError>;
