//! Request parts, with our own errors: what axum refuses becomes a problem like any other.

use super::model::HostQuery;
use super::problem::{ApiError, ErrorCode};
use crate::config::check_label;
use crate::name::Name;
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

/// The `{name}` in the address.
pub(super) struct Named(pub(super) Name);

/// The query of `/v1/hosts/find`.
pub(super) struct Wanted(pub(super) HostQuery);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let json = Json::<T>::from_request(request, state).await;
        json.map(|Json(value)| Self(value)).map_err(|rejection: JsonRejection| ApiError {
            status: rejection.status().as_u16(),
            ..ApiError::invalid(rejection.body_text())
        })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        let text = text.map_err(|rejection: PathRejection| ApiError::invalid(rejection.body_text()))?;
        text.parse().map(Self).map_err(|error| ApiError::invalid(format!("{error}")))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Wanted {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let pairs = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Query(pairs) = pairs.map_err(|rejection: QueryRejection| ApiError::invalid(rejection.body_text()))?;
        host_query(pairs).map(Self)
    }
}

/// A query whose every part means something.
pub(crate) fn host_query(pairs: Vec<(String, String)>) -> Result<HostQuery, ApiError> {
    let mut query = HostQuery::default();
    for (key, value) in pairs {
        let wrong = |why: &dyn std::fmt::Display| ApiError::invalid(format!("Query parameter `{key}`: {why}"));
        match key.as_str() {
            "vcpus" => query.vcpus = Some(value.parse().map_err(|error| wrong(&error))?),
            "memory" => query.memory = Some(value.parse().map_err(|error| wrong(&error))?),
            "disk" => query.disk = Some(value.parse().map_err(|error| wrong(&error))?),
            "image" => query.image = Some(value.parse().map_err(|error| wrong(&error))?),
            "explain" => query.explain = value.is_empty() || value.parse().map_err(|error| wrong(&error))?,
            "label" => {
                let (label, wanted) = value.split_once('=').map_or((&*value, None), |(k, v)| (k, Some(v)));
                check_label(label, wanted.unwrap_or_default()).map_err(|error| wrong(&error))?;
                query.labels.push((label.into(), wanted.map(Into::into)));
            }
            _ => {
                let known = "vcpus, memory, disk, label, image and explain";
                return Err(ApiError::new(
                    ErrorCode::InvalidRequest,
                    format!("Unknown query parameter `{key}`: known are {known}"),
                ));
            }
        }
    }
    Ok(query)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::ByteSize;

    fn query(text: &[(&str, &str)]) -> Result<HostQuery, ApiError> {
        host_query(text.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect())
    }

    #[test]
    fn reads_all_parts() {
        let read = query(&[("vcpus", "4"), ("memory", "8GiB"), ("label", "gpu=1"), ("label", "ssd"), ("explain", "")]);
        let labels = vec![("gpu".into(), Some("1".into())), ("ssd".into(), None)];
        let memory = Some(ByteSize(8 << 30));
        assert_eq!(read, Ok(HostQuery { vcpus: Some(4), memory, labels, explain: true, ..Default::default() }));
    }

    #[test]
    fn refuses_what_means_nothing() {
        for wrong in
            [("vcpus", "-1"), ("memory", "8GB"), ("cpu", "1"), ("label", "=1"), ("image", "A"), ("explain", "x")]
        {
            let error = query(&[wrong]).unwrap_err();
            assert!(error.status == 400 && error.detail.contains(wrong.0), "{error:?}");
        }
    }
}
