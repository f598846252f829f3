//! Networks, ports, addresses and links.

use super::Answered;
use crate::control::extract::{Body, Named};
use crate::control::model::{Attach, Detach, FdbEntry, Link, Network, NetworkCreate, Port};
use crate::control::problem::ApiError;
use crate::control::router::Api;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use virtuoso_overlay::limits::{NETWORK_MTU_MAX, NETWORK_MTU_MIN};

/// Bytes of an interface's name, with the final zero (`IFNAMSIZ`).
const INTERFACE_BYTES: usize = 16;

/// All networks of the swarm.
#[utoipa::path(get, path = "/v1/networks", operation_id = "list_networks",
    responses((status = 200, body = [Network]), (status = "default", body = ApiError)))]
pub(in crate::control) async fn list(State(api): State<Api>) -> Answered<Vec<Network>> {
    api.backend.networks().await.map(Json)
}

/// Make a network.
#[utoipa::path(post, path = "/v1/networks", operation_id = "create_network", request_body = NetworkCreate,
    responses((status = 201, body = Network), (status = "default", body = ApiError)))]
pub(in crate::control) async fn create(
    State(api): State<Api>,
    Body(request): Body<NetworkCreate>,
) -> Result<(StatusCode, Json<Network>), ApiError> {
    let mtus = u32::from(NETWORK_MTU_MIN)..=u32::from(NETWORK_MTU_MAX);
    if let Some(mtu) = request.mtu_bytes.filter(|mtu| !mtus.contains(mtu)) {
        let detail = format!("Not an MTU: {mtu}: expected {NETWORK_MTU_MIN} to {NETWORK_MTU_MAX} bytes");
        return Err(ApiError::invalid(detail));
    }
    let network = api.backend.create_network(request).await?;
    Ok((StatusCode::CREATED, Json(network)))
}

/// One network.
#[utoipa::path(get, path = "/v1/networks/{name}", operation_id = "show_network",
    params(("name" = String, Path, description = "The network")),
    responses((status = 200, body = Network), (status = "default", body = ApiError)))]
pub(in crate::control) async fn show(State(api): State<Api>, Named(name): Named) -> Answered<Network> {
    api.backend.network(name).await.map(Json)
}

/// Remove a network that is attached nowhere.
#[utoipa::path(delete, path = "/v1/networks/{name}", operation_id = "delete_network",
    params(("name" = String, Path, description = "The network")),
    responses((status = 204), (status = "default", body = ApiError)))]
pub(in crate::control) async fn delete(State(api): State<Api>, Named(name): Named) -> Result<StatusCode, ApiError> {
    api.backend.delete_network(name).await.map(|()| StatusCode::NO_CONTENT)
}

/// Attach a network on this host, or an interface to it.
#[utoipa::path(post, path = "/v1/networks/{name}/attach", request_body = Attach,
    params(("name" = String, Path, description = "The network")),
    responses((status = 200, body = Network), (status = "default", body = ApiError)))]
pub(in crate::control) async fn attach(
    State(api): State<Api>,
    Named(name): Named,
    Body(request): Body<Attach>,
) -> Answered<Network> {
    if request.interface.is_some() && request.uplink.is_some() {
        return Err(ApiError::invalid("`interface` and `uplink` exclude each other: attach them one after the other"));
    }
    if !request.mac.is_empty() && request.interface.is_none() {
        return Err(ApiError::invalid("`mac` needs the `interface` that the addresses are behind"));
    }
    for interface in request.interface.iter().chain(&request.uplink) {
        check_interface(interface)?;
    }
    if let Some(group) = request.mac.iter().find(|mac| mac.0.is_group()) {
        return Err(ApiError::invalid(format!("{group} is a group address; no port can have it")));
    }
    api.backend.attach(name, request).await.map(Json)
}

/// Take an interface out of a network, or the network off this host.
#[utoipa::path(post, path = "/v1/networks/{name}/detach", request_body = Detach,
    params(("name" = String, Path, description = "The network")),
    responses((status = 200, body = Network), (status = "default", body = ApiError)))]
pub(in crate::control) async fn detach(
    State(api): State<Api>,
    Named(name): Named,
    Body(request): Body<Detach>,
) -> Answered<Network> {
    if let Some(interface) = &request.interface {
        check_interface(interface)?;
    }
    api.backend.detach(name, request).await.map(Json)
}

/// Addresses on a network, and which host has them.
#[utoipa::path(get, path = "/v1/networks/{name}/fdb",
    params(("name" = String, Path, description = "The network")),
    responses((status = 200, body = [FdbEntry]), (status = "default", body = ApiError)))]
pub(in crate::control) async fn fdb(State(api): State<Api>, Named(name): Named) -> Answered<Vec<FdbEntry>> {
    api.backend.fdb(name).await.map(Json)
}

/// This host's ports.
#[utoipa::path(get, path = "/v1/ports", responses((status = 200, body = [Port]), (status = "default", body = ApiError)))]
pub(in crate::control) async fn ports(State(api): State<Api>) -> Answered<Vec<Port>> {
    api.backend.ports().await.map(Json)
}

/// Encrypted connections to other hosts, for frames.
#[utoipa::path(get, path = "/v1/links", responses((status = 200, body = [Link]), (status = "default", body = ApiError)))]
pub(in crate::control) async fn links(State(api): State<Api>) -> Answered<Vec<Link>> {
    api.backend.links().await.map(Json)
}

/// The kernel's rule for interface names.
fn check_interface(name: &str) -> Result<(), ApiError> {
    let valid = (1..INTERFACE_BYTES).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
        && name != "."
        && name != "..";
    if valid { Ok(()) } else { Err(ApiError::invalid(format!("Not an interface name: `{}`", name.escape_debug()))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names() {
        for right in ["eth0", "vb-0011aabb", "br0.100", "123456789012345"] {
            assert_eq!(check_interface(right), Ok(()), "{right}");
        }
        for wrong in ["", ".", "..", "a/b", "a b", "1234567890123456", "ä", "a\n"] {
            assert!(check_interface(wrong).is_err(), "{wrong}");
        }
    }
}
