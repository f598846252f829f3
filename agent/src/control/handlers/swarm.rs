//! Peers, members and the way in.

use super::Answered;
use crate::control::extract::Body;
use crate::control::model::{Approve, Invite, InviteRequest, Member, Peer, PendingHost};
use crate::control::problem::ApiError;
use crate::control::router::Api;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

/// Hosts with a control connection to this one.
#[utoipa::path(get, path = "/v1/peers", responses((status = 200, body = [Peer]), (status = "default", body = ApiError)))]
pub(in crate::control) async fn peers(State(api): State<Api>) -> Answered<Vec<Peer>> {
    api.backend.peers().await.map(Json)
}

/// Hosts that the swarm has admitted.
#[utoipa::path(get, path = "/v1/swarm/members", operation_id = "list_members",
    responses((status = 200, body = [Member]), (status = "default", body = ApiError)))]
pub(in crate::control) async fn members(State(api): State<Api>) -> Answered<Vec<Member>> {
    api.backend.members().await.map(Json)
}

/// Hosts that wait to be admitted.
#[utoipa::path(get, path = "/v1/swarm/pending", operation_id = "list_pending",
    responses((status = 200, body = [PendingHost]), (status = "default", body = ApiError)))]
pub(in crate::control) async fn pending(State(api): State<Api>) -> Answered<Vec<PendingHost>> {
    api.backend.pending().await.map(Json)
}

/// Admit a host that waits.
#[utoipa::path(post, path = "/v1/swarm/approve", request_body = Approve,
    responses((status = 200, body = Member), (status = "default", body = ApiError)))]
pub(in crate::control) async fn approve(State(api): State<Api>, Body(request): Body<Approve>) -> Answered<Member> {
    api.backend.approve(request.peer).await.map(Json)
}

/// Make a ticket.
#[utoipa::path(post, path = "/v1/swarm/invite", request_body = InviteRequest,
    responses((status = 201, body = Invite), (status = "default", body = ApiError)))]
pub(in crate::control) async fn invite(
    State(api): State<Api>,
    Body(request): Body<InviteRequest>,
) -> Result<(StatusCode, Json<Invite>), ApiError> {
    let invite = api.backend.invite(request).await?;
    Ok((StatusCode::CREATED, Json(invite)))
}
