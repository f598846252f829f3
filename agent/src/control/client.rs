//! A caller of the control API: HTTP/1.1 over the agent's Unix socket, one connection for each request.

use super::forward::HOST_HEADER;
use super::problem::ApiError;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// Bytes of one answer: rows of ten thousand hosts take about ten megabytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Bytes of one server-sent event.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// Talks to the agent behind one socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    /// The host that shall answer, if not the one behind the socket.
    host: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the socket.
    #[error("{}", unreachable_text(.socket, .cause))]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The agent refuses.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// The connection broke, or the answer makes no sense.
    #[error("The agent's answer can't be read: {0}")]
    Broken(String),
}

/// A request.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    path: String,
    body: Option<Vec<u8>>,
    /// What the connection becomes.
    upgrade: Option<&'static str>,
}

/// One server-sent event.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServerEvent {
    /// `message`, or what the server calls it.
    pub name: String,
    /// Its id, for `Last-Event-ID`.
    pub id: Option<String>,
    /// Its JSON.
    pub data: String,
}

/// Server-sent events as they come. Dropping it closes the connection.
#[derive(Debug)]
pub struct EventReader {
    body: Incoming,
    buffer: BytesMut,
}

impl Call {
    /// Reads something.
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None, upgrade: None }
    }

    /// Does something.
    pub fn post(path: impl Into<String>, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("the API's types have a JSON form");
        Self { method: Method::POST, path: path.into(), body: Some(body), upgrade: None }
    }

    /// Makes something else of the connection.
    pub fn upgrade(path: impl Into<String>, protocol: &'static str) -> Self {
        Self { method: Method::POST, path: path.into(), body: None, upgrade: Some(protocol) }
    }

    /// Removes something.
    pub fn delete(path: impl Into<String>) -> Self {
        Self { method: Method::DELETE, path: path.into(), body: None, upgrade: None }
    }
}

impl Client {
    /// A client of the agent at `socket`. Connects with each call.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), host: None }
    }

    /// The same, with `host` answering in place of the host behind the socket.
    #[must_use]
    pub fn asking(self, host: Option<String>) -> Self {
        Self { host, ..self }
    }

    /// The bytes of both directions after an upgrade of the connection.
    pub async fn upgraded(&self, call: Call) -> Result<TokioIo<Upgraded>, ClientError> {
        let response = self.send(call, "*/*", None).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(ClientError::Broken(format!("HTTP status {}", response.status())));
        }
        hyper::upgrade::on(response).await.map(TokioIo::new).map_err(broken)
    }

    /// The JSON that the agent answers.
    pub async fn call(&self, call: Call) -> Result<Bytes, ClientError> {
        let response = self.send(call, "application/json", None).await?;
        read_all(response).await
    }

    /// The answer, parsed.
    pub async fn fetch<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        parse(&self.call(call).await?)
    }

    /// The answer as a stream of events, after the one that was `seen` last.
    pub async fn stream(&self, call: Call, seen: Option<&str>) -> Result<EventReader, ClientError> {
        let response = self.send(call, "text/event-stream", seen).await?;
        Ok(EventReader { body: response.into_body(), buffer: BytesMut::new() })
    }

    async fn send(&self, call: Call, accept: &str, seen: Option<&str>) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|cause| ClientError::Unreachable { socket: self.socket.clone(), cause })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with the connection, and that ends when sender and body are dropped.
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder()
            .method(call.method)
            .uri(call.path)
            .header(header::HOST, "virtuoso")
            .header(header::ACCEPT, accept);
        if call.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(protocol) = call.upgrade {
            request = request.header(header::CONNECTION, "upgrade").header(header::UPGRADE, protocol);
        }
        if let Some(host) = &self.host {
            request = request.header(HOST_HEADER, host);
        }
        if let Some(seen) = seen {
            request = request.header("last-event-id", seen);
        }
        let request = request.body(Full::new(Bytes::from(call.body.unwrap_or_default()))).map_err(broken)?;
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let status = response.status();
        let body = read_all(response).await?;
        Err(match serde_json::from_slice::<ApiError>(&body) {
            Ok(problem) => ClientError::Refused(problem),
            Err(_) => ClientError::Broken(format!("HTTP status {status}")),
        })
    }
}

impl EventReader {
    /// The next event, or `None` at the end of the stream. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<ServerEvent>, ClientError> {
        loop {
            while let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let block = self.buffer.split_to(end + 2);
                if let Some(event) = parse_event(&String::from_utf8_lossy(&block)) {
                    return Ok(Some(event));
                }
            }
            if self.buffer.len() > EVENT_BYTES_MAX {
                return Err(ClientError::Broken("an event is larger than 1 MiB".into()));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            if let Ok(data) = frame.map_err(broken)?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

/// One block of lines; `None` if it is only a comment that keeps the connection alive.
fn parse_event(block: &str) -> Option<ServerEvent> {
    let mut event = ServerEvent { name: "message".into(), ..ServerEvent::default() };
    let mut lines = Vec::new();
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => event.name = value.into(),
            "id" => event.id = Some(value.into()),
            "data" => lines.push(value),
            _ => {}
        }
    }
    event.data = lines.join("\n");
    (!lines.is_empty()).then_some(event)
}

/// Parses JSON that the agent sent.
pub fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(json).map_err(broken)
}

async fn read_all(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    body.map(|body| body.to_bytes()).map_err(|error| ClientError::Broken(error.to_string()))
}

fn broken(error: impl std::fmt::Display) -> ClientError {
    ClientError::Broken(error.to_string())
}

fn unreachable_text(socket: &Path, cause: &io::Error) -> String {
    let socket = socket.display();
    match cause.kind() {
        ErrorKind::NotFound => format!(
            "No agent at {socket}: is it running? Start it with `systemctl start virtuoso` or `virtuoso agent`, or name \
             its socket with --socket"
        ),
        ErrorKind::ConnectionRefused => format!(
            "The agent at {socket} is not running any more: start it with `systemctl start virtuoso` or `virtuoso agent`"
        ),
        ErrorKind::PermissionDenied => format!(
            "No permission to use {socket}: use sudo, or become a member of its group with `sudo usermod -aG virtuoso \
             $USER` and log in again"
        ),
        _ => format!("Can't reach the agent at {socket}: {cause}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read() {
        let event = parse_event("event: done\nid: 7\ndata: {\"a\":\ndata: 1}\n\n").unwrap();
        assert_eq!(event, ServerEvent { name: "done".into(), id: Some("7".into()), data: "{\"a\":\n1}".into() });
        assert_eq!(parse_event("data:x").unwrap().name, "message");
        assert_eq!(parse_event(": keep-alive\n\n"), None);
    }

    #[tokio::test]
    async fn says_why_nobody_answers() {
        let client = Client::new("/nonexistent/v.sock");
        let error = client.call(Call::get("/v1/status")).await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }));
        assert!(error.to_string().starts_with("No agent at /nonexistent/v.sock: is it running?"), "{error}");
    }
}
