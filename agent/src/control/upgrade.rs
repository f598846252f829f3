//! Connections that become something else than HTTP: a console, a display.

use super::problem::ApiError;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::future::Future;

/// Refuses a request that does not ask for `protocol`.
pub(super) fn require(request: &Request, protocol: &str) -> Result<(), ApiError> {
    if request.headers().get(header::UPGRADE).is_some_and(|wanted| wanted == protocol) {
        return Ok(());
    }
    Err(ApiError::invalid(format!("This needs `Upgrade: {protocol}`")))
}

/// Answers that the connection changes to `protocol`, and then lets `serve` have it.
pub(super) fn accept<F>(
    mut request: Request,
    protocol: &'static str,
    serve: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send,
{
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(stream) => serve(TokioIo::new(stream)).await,
            Err(error) => tracing::debug!(protocol, "Whoever asked for it is gone: {error}"),
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response
}
