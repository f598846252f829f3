//! Server-sent events: the agent's own, and the progress of long work. Work lives as long as its connection: a caller
//! who goes away has cancelled it.

use super::problem::ApiError;
use crate::events::EventStream;
use axum::Json;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use futures::future::BoxFuture;
use serde::Serialize;
use std::convert::Infallible;
use tokio::sync::watch;

/// The agent's events from `stream`.
pub(super) fn events(stream: EventStream) -> impl IntoResponse {
    let stream = futures::stream::unfold(stream, |mut stream| async move {
        let event = stream.next().await?;
        let told = json_event(&event).id(event.id.to_string());
        Some((Ok::<_, Infallible>(told), stream))
    });
    Sse::new(stream).keep_alive(KeepAlive::default())
}

/// Does the work and answers with its result. A caller who accepts `text/event-stream` hears `progress` events, then
/// `done` with the result or `error` with the problem.
pub(super) async fn long_work<T: Serialize + Send + 'static, P: Serialize + Clone + Send + Sync + 'static>(
    headers: &HeaderMap,
    done_status: StatusCode,
    work: BoxFuture<'static, Result<T, ApiError>>,
    progress: watch::Receiver<P>,
) -> Response {
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    if accepts.flat_map(|value| value.split(',')).any(|kind| kind.trim().starts_with("text/event-stream")) {
        return Sse::new(follow(work, progress)).keep_alive(KeepAlive::default()).into_response();
    }
    match work.await {
        Ok(result) => (done_status, Json(result)).into_response(),
        Err(error) => error.into_response(),
    }
}

struct Following<T, P> {
    work: BoxFuture<'static, Result<T, ApiError>>,
    progress: watch::Receiver<P>,
}

fn follow<T: Serialize + Send + 'static, P: Serialize + Clone + Send + Sync + 'static>(
    work: BoxFuture<'static, Result<T, ApiError>>,
    progress: watch::Receiver<P>,
) -> impl Stream<Item = Result<Event, Infallible>> + Send + 'static {
    futures::stream::unfold(Some(Following { work, progress }), |following| async move {
        let mut following = following?;
        tokio::select! {
            biased;
            result = &mut following.work => {
                let told = match result {
                    Ok(result) => json_event(&result).event("done"),
                    Err(error) => json_event(&error).event("error"),
                };
                Some((Ok(told), None))
            }
            Ok(()) = following.progress.changed() => {
                let progress = following.progress.borrow_and_update().clone();
                Some((Ok(json_event(&progress).event("progress")), Some(following)))
            }
        }
    })
}

fn json_event(value: &impl Serialize) -> Event {
    // Maps with text keys and plain values always have a JSON form.
    Event::default().data(serde_json::to_string(value).expect("the API's types have a JSON form"))
}
