//! The agent's control API as a program uses it: HTTP/1.1 over its Unix socket, one connection for each request. For
//! measurements, in which the start of a client process would be most of the time.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Longer than any answer takes.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// What is at `path`, as `/v1/vms`.
pub(crate) fn get(socket: &Path, path: &str) -> Result<Value> {
    parse(&ask(socket, &format!("GET {path} HTTP/1.1\r\nhost: virtuoso\r\nconnection: close\r\n\r\n"))?)
}

/// The bytes of the answer to `get`, so that only the agent's work is measured.
pub(crate) fn get_bytes(socket: &Path, path: &str) -> Result<Vec<u8>> {
    let answer = ask(socket, &format!("GET {path} HTTP/1.1\r\nhost: virtuoso\r\nconnection: close\r\n\r\n"))?;
    body(&answer).map(<[u8]>::to_vec)
}

/// Sends `content` to `path`.
pub(crate) fn post(socket: &Path, path: &str, content: &Value) -> Result<Value> {
    let content = content.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: virtuoso\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        content.len()
    );
    parse(&ask(socket, &(head + &content))?)
}

fn ask(socket: &Path, request: &str) -> Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("No agent at {}", socket.display()))?;
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("The agent's answer broke off")?;
    Ok(answer)
}

fn parse(answer: &[u8]) -> Result<Value> {
    serde_json::from_slice(body(answer)?).context("The agent's answer is no JSON")
}

/// The content of an answer that is a success, and has its length in its head.
fn body(answer: &[u8]) -> Result<&[u8]> {
    const GAP: &[u8] = b"\r\n\r\n";
    let end = answer.windows(GAP.len()).position(|bytes| bytes == GAP).context("The agent's answer has no head")?;
    let (head, body) = (String::from_utf8_lossy(&answer[..end]), &answer[end + GAP.len()..]);
    let status = head.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
    match status {
        Some(200..300) => {}
        _ => bail!("The agent answered {head}: {}", String::from_utf8_lossy(body)),
    }
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    ensure!(length == Some(body.len()), "The agent's answer has {} bytes, and says {length:?}", body.len());
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_answers_that_are_whole_and_a_success() {
        let whole = b"HTTP/1.1 201 Created\r\nContent-Length: 7\r\n\r\n{\"a\":1}";
        assert_eq!(parse(whole).unwrap()["a"], 1);
        assert!(parse(&whole[..whole.len() - 1]).is_err() && parse(b"HTTP/1.1 200 OK").is_err());
        let refused = parse(b"HTTP/1.1 409 Conflict\r\ncontent-length: 2\r\n\r\nno").unwrap_err();
        assert!(refused.to_string().contains("409"), "{refused}");
    }
}
