//! Requests that another host answers: for a VM that is there, or because the caller named the host. They travel as
//! HTTP/1.1 over a stream between the two agents, and are served there by the same router, under the rights of members.

use super::backend::{Origin, Target};
use super::problem::{ApiError, ErrorCode};
use super::router::{Api, BODY_BYTES_MAX, routes_for_members};
use crate::swarm::streams::{Inbound, Stream, StreamKind};
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use std::time::Duration;
use tokio::sync::mpsc;
use virtuoso_overlay::ids::HostId;

/// Names the host that shall answer, by name or id.
pub(crate) const HOST_HEADER: &str = "x-virtuoso-host";

/// Requests of other hosts' users, and their answers.
pub const CONTROL: StreamKind = StreamKind::new("control");

/// How long another host may take to begin its answer. A VM's guest may take a minute to end.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(300);

/// The same if the question is how a VM is: what the tables tell of it is better than a long wait.
const LOOK_TIME_MAX: Duration = Duration::from_secs(5);

/// With a request: how long another host may take to begin its answer, if not as long as usual.
#[derive(Clone, Copy, Debug)]
pub struct Patience(pub Duration);

/// A file is opened here first, and its handler passes on the rest. A console and a display stay when the VM moves.
const HANDLED_HERE: [&str; 3] = ["/cdrom", "/console", "/display"];

/// Where VMs are.
const VMS: &str = "/v1/vms/";

/// Passes on what another host has to answer.
pub(super) async fn forward(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let target = match target(&request) {
        Ok(Some(target)) => target,
        Ok(None) => return next.run(request).await,
        Err(error) => return error.into_response(),
    };
    match api.backend.place(target).await {
        Ok(Some(host)) => {
            // What the tables tell of a VM is better than nothing if its host is not reachable.
            let fallback = look_at_vm(&request);
            if fallback.is_some() {
                request.extensions_mut().insert(Patience(LOOK_TIME_MAX));
            }
            match (api.backend.forward(host, request).await, fallback) {
                (Ok(response), _) => response,
                (Err(ApiError { code: ErrorCode::Unavailable | ErrorCode::Timeout, .. }), Some(look)) => {
                    next.run(look).await
                }
                (Err(error), _) => error.into_response(),
            }
        }
        Ok(None) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn target(request: &Request) -> Result<Option<Target>, ApiError> {
    if let Some(host) = request.headers().get(HOST_HEADER) {
        let host = host.to_str().map_err(|_| ApiError::invalid(format!("`{HOST_HEADER}` is not text")))?;
        return Ok(Some(Target::Host(host.to_owned())));
    }
    if *request.method() == Method::POST && HANDLED_HERE.iter().any(|end| request.uri().path().ends_with(end)) {
        return Ok(None);
    }
    let vm = request.uri().path().strip_prefix(VMS).and_then(|rest| rest.split('/').next());
    // A name that is none is refused by its handler.
    Ok(vm.and_then(|name| name.parse().ok()).map(Target::Vm))
}

/// The same request once more, if it only looks at a VM.
fn look_at_vm(request: &Request) -> Option<Request> {
    let is_look = request.method() == Method::GET
        && request.uri().path().strip_prefix(VMS).is_some_and(|name| !name.contains('/'))
        && !request.headers().contains_key(HOST_HEADER);
    if !is_look {
        return None;
    }
    let mut again = Request::new(Body::empty());
    *again.uri_mut() = request.uri().clone();
    *again.extensions_mut() = request.extensions().clone();
    Some(again)
}

/// Sends a request over a stream and returns the answer. An upgrade is carried through.
///
/// # Errors
/// If the request is too large, or the other host goes away.
pub async fn send(stream: Stream, mut request: Request) -> Result<Response, ApiError> {
    let ours = request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let patience = parts.extensions.get::<Patience>().map_or(ANSWER_TIME_MAX, |patience| patience.0);
    let body = to_bytes(body, BODY_BYTES_MAX).await.map_err(|error| ApiError::invalid(error.to_string()))?;
    let mut passed = Request::builder().method(parts.method).uri(parts.uri).header(header::HOST, "virtuoso");
    for name in [header::ACCEPT, header::CONTENT_TYPE, header::CONNECTION, header::UPGRADE] {
        if let Some(value) = parts.headers.get(&name) {
            passed = passed.header(name, value);
        }
    }
    let passed = passed.body(Body::from(body)).map_err(lost)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    // Ends with the connection, and that ends when sender and body are dropped.
    tokio::spawn(connection.with_upgrades());
    let answer = tokio::time::timeout(patience, sender.send_request(passed)).await;
    let mut answer = answer.map_err(lost)?.map_err(lost)?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(ours) = ours
    {
        let theirs = hyper::upgrade::on(&mut answer);
        tokio::spawn(join(ours, theirs));
        return Ok(switch_protocols(answer.headers()));
    }
    Ok(answer.map(Body::new).into_response())
}

fn switch_protocols(theirs: &HeaderMap) -> Response {
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = theirs.get(header::UPGRADE) {
        response.headers_mut().insert(header::UPGRADE, protocol.clone());
    }
    response
}

/// Carries bytes between two upgraded connections until either ends.
async fn join(ours: hyper::upgrade::OnUpgrade, theirs: hyper::upgrade::OnUpgrade) {
    let joined = async {
        let (ours, theirs) = tokio::try_join!(ours, theirs)?;
        let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
        tokio::io::copy_bidirectional(&mut ours, &mut theirs).await?;
        anyhow::Ok(())
    };
    if let Err(error) = joined.await {
        tracing::debug!("A forwarded connection ended: {error:#}");
    }
}

/// The request may have been carried out, or not.
fn lost(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Timeout, format!("The other host did not answer: {error}. Look before you try again"))
}

/// Serves the requests of other hosts until the agent stops.
pub async fn serve_members(mut inbound: mpsc::Receiver<Inbound>, api: Api) {
    while let Some(Inbound { host, stream }) = inbound.recv().await {
        let service = TowerToHyperService::new(routes_for_members(api.clone(), host));
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%host, "A member's request ended: {error}");
            }
        });
    }
}

/// What members may do for their users: look, and work with VMs. This host's interfaces, files and configuration, and
/// who is admitted, are its own users' business.
pub(super) async fn authorise_member(State(host): State<HostId>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let looks = *request.method() == Method::GET && path != "/v1/config";
    if !looks && path != "/v1/vms" && !path.starts_with(VMS) {
        tracing::info!(%host, method = %request.method(), path, "Refused");
        return ApiError::new(ErrorCode::Forbidden, "Only users of the host itself may do this").into_response();
    }
    request.extensions_mut().insert(Origin::Member(host));
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, path: &str, host: Option<&str>) -> Request {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(host) = host {
            request = request.header(HOST_HEADER, host);
        }
        request.body(Body::empty()).unwrap()
    }

    #[test]
    fn vms_and_named_hosts_are_targets() {
        let of = |method, path, host| target(&request(method, path, host)).unwrap();
        assert_eq!(of(Method::GET, "/v1/vms", None), None);
        assert_eq!(of(Method::GET, "/v1/networks/blue", None), None);
        let vm = Some(Target::Vm("a-1".parse().unwrap()));
        assert_eq!(of(Method::POST, "/v1/vms/a-1/start", None), vm);
        assert_eq!(of(Method::DELETE, "/v1/vms/a-1?force=true", None), vm);
        for here in ["/v1/vms/a-1/cdrom", "/v1/vms/a-1/console", "/v1/vms/a-1/display"] {
            assert_eq!(of(Method::POST, here, None), None);
        }
        assert_eq!(of(Method::GET, "/v1/vms/a-1/console", None), Some(Target::Vm("a-1".parse().unwrap())));
        assert_eq!(of(Method::GET, "/v1/networks", Some("beta")), Some(Target::Host("beta".into())));
    }

    #[test]
    fn only_looks_have_a_fallback() {
        assert!(look_at_vm(&request(Method::GET, "/v1/vms/a", None)).is_some());
        assert!(look_at_vm(&request(Method::GET, "/v1/vms/a/console", None)).is_none());
        assert!(look_at_vm(&request(Method::DELETE, "/v1/vms/a", None)).is_none());
        assert!(look_at_vm(&request(Method::GET, "/v1/vms/a", Some("beta"))).is_none());
    }
}
