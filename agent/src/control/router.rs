//! Addresses to handlers, the caller's rights before each of them, and the server around it.

use super::backend::{Backend, Origin};
use super::caller::{KnownCaller, Policy};
use super::forward;
use super::handlers;
use super::problem::{ApiError, ErrorCode};
use super::socket::ControlSocket;
use crate::config::Config;
use crate::events::EventLog;
use anyhow::Context;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::Method;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use virtuoso_overlay::ids::HostId;

/// Bytes of a request's body: the largest has a list of addresses.
pub(super) const BODY_BYTES_MAX: usize = 64 << 10;

/// How long answers that are under way may take after the agent began to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// What the handlers work with.
#[derive(Clone)]
pub struct Api {
    /// The agent.
    pub backend: Arc<dyn Backend>,
    /// What happens in it.
    pub events: EventLog,
    /// The configuration it runs with.
    pub config: watch::Receiver<Arc<Config>>,
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Virtuoso control API",
        description = "What `virtuoso` asks of the agent on this host. Errors are `application/problem+json` with a \
                       stable `code`."
    ),
    components(schemas(ApiError))
)]
struct Document;

/// The API's description, as served at `/v1/openapi.json`.
pub fn openapi() -> OpenApi {
    routes().split_for_parts().1
}

/// Serves the API until `stop` is ready. Closes the event log, so that watchers end.
pub async fn serve(
    socket: ControlSocket,
    api: Api,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let events = api.events.clone();
    let app = router(api, socket.policy());
    let (stopping, mut stopped) = watch::channel(false);
    let stop = async move {
        stop.await;
        events.close();
        let _ = stopping.send(true);
    };
    let service = app.into_make_service_with_connect_info::<KnownCaller>();
    let server = axum::serve(socket, service).with_graceful_shutdown(stop);
    tokio::select! {
        result = server.into_future() => result.context("The control socket failed"),
        () = async {
            let _ = stopped.wait_for(|stopping| *stopping).await;
            tokio::time::sleep(STOP_TIMEOUT).await;
        } => Ok(()),
    }
}

/// The whole API for callers under `policy`.
fn router(api: Api, policy: Policy) -> Router {
    common_routes()
        .layer(middleware::from_fn_with_state(api.clone(), forward::forward))
        .layer(middleware::from_fn_with_state(policy, authorise))
        .with_state(api)
}

/// The whole API for another host. It is never passed on to a third one.
pub(super) fn routes_for_members(api: Api, host: HostId) -> Router {
    common_routes().layer(middleware::from_fn_with_state(host, forward::authorise_member)).with_state(api)
}

fn common_routes() -> Router<Api> {
    let (router, document) = routes().split_for_parts();
    let document: Arc<OpenApi> = Arc::new(document);
    router
        .route("/v1/openapi.json", get(move || async move { Json(document.as_ref().clone()) }))
        .fallback(no_such_address)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

fn routes() -> OpenApiRouter<Api> {
    use handlers::{agent, cdrom, display, host, image, network, swarm, vm};
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(agent::status))
        .routes(routes!(agent::doctor))
        .routes(routes!(agent::config))
        .routes(routes!(agent::events))
        .routes(routes!(host::list))
        .routes(routes!(host::find))
        .routes(routes!(network::list, network::create))
        .routes(routes!(network::show, network::delete))
        .routes(routes!(network::attach))
        .routes(routes!(network::detach))
        .routes(routes!(network::fdb))
        .routes(routes!(network::ports))
        .routes(routes!(network::links))
        .routes(routes!(image::list, image::import))
        .routes(routes!(image::show, image::remove))
        .routes(routes!(image::export))
        .routes(routes!(image::pull))
        .routes(routes!(image::verify))
        .routes(routes!(swarm::peers))
        .routes(routes!(swarm::members))
        .routes(routes!(swarm::pending))
        .routes(routes!(swarm::approve))
        .routes(routes!(swarm::invite))
        .routes(routes!(vm::list, vm::create))
        .routes(routes!(vm::show, vm::delete))
        .routes(routes!(vm::start))
        .routes(routes!(vm::stop))
        .routes(routes!(vm::reset))
        .routes(routes!(vm::limit))
        .routes(routes!(vm::clone))
        .routes(routes!(vm::migrate, vm::cancel_migration))
        .routes(routes!(vm::resolve_migration))
        .routes(routes!(host::drain, host::undrain))
        .routes(routes!(vm::history, vm::console))
        .routes(routes!(cdrom::insert, cdrom::eject))
        .routes(routes!(display::display))
        .routes(routes!(display::screenshot))
}

/// Whoever can connect may look; to change something takes rights.
async fn authorise(
    State(policy): State<Policy>,
    ConnectInfo(caller): ConnectInfo<KnownCaller>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(caller) = caller.0 else {
        return ApiError::new(ErrorCode::Forbidden, "The kernel can't say who is calling").into_response();
    };
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    if looks || policy.may_change(&caller) {
        request.extensions_mut().insert(Origin::Local);
        return next.run(request).await;
    }
    tracing::info!(uid = caller.uid, pid = caller.pid, method = %request.method(), path = request.uri().path(), "Refused");
    let detail = format!(
        "The user with uid {} may only look: root, the agent's own user and members of the socket's group may do this",
        caller.uid
    );
    ApiError::new(ErrorCode::Forbidden, detail).into_response()
}

async fn no_such_address(request: Request) -> ApiError {
    ApiError::not_found(format!("No such address: `{}`; /v1/openapi.json lists all", request.uri().path()))
}

async fn no_such_method(request: Request) -> ApiError {
    let detail = format!("`{}` takes no {}; /v1/openapi.json lists all", request.uri().path(), request.method());
    ApiError::new(ErrorCode::MethodNotAllowed, detail)
}
