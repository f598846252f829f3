//! A client of QEMU's monitor: commands with ids, answers and events on one Unix socket.

use super::descriptor;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// How long an answer may take. QEMU's main loop answers in milliseconds, unless the host thrashes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Commands that wait for QEMU.
const COMMANDS_MAX: usize = 16;
/// Events that wait for their reader, who does nothing else.
const EVENTS_MAX: usize = 256;
/// Bytes of one line: the longest answers describe all devices.
const LINE_BYTES_MAX: u64 = 4 << 20;

/// The capability of running commands beside the main loop.
const OUT_OF_BAND: &str = "oob";

/// The way to one QEMU. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Qmp(mpsc::Sender<Command>);

/// Something that happened in QEMU.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Event {
    /// Its name, as `SHUTDOWN`.
    pub event: String,
    /// What belongs to it.
    #[serde(default)]
    pub data: Value,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU refuses.
    #[error("QEMU refuses {command}: {reason}")]
    Refused {
        /// What it was asked for.
        command: String,
        /// What it says.
        reason: String,
    },
    /// The connection is gone, and most probably QEMU.
    #[error("QEMU's monitor is closed")]
    Closed,
    /// QEMU hangs.
    #[error("QEMU does not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
    /// The other end does not speak QMP.
    #[error("Can't understand QEMU's monitor: {0}")]
    Broken(String),
    /// The socket fails.
    #[error("Can't reach QEMU's monitor: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
struct Command {
    name: String,
    arguments: Value,
    lane: Lane,
    descriptor: Option<OwnedFd>,
    answer: oneshot::Sender<Result<Value, QmpError>>,
}

/// Where QEMU runs a command.
#[derive(Clone, Copy, Debug)]
enum Lane {
    /// In its main loop, one after the other.
    Main,
    /// Beside it, also while that hangs.
    Beside,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    Greeting {
        #[serde(rename = "QMP")]
        qmp: Greeting,
    },
    Answer {
        #[serde(rename = "return")]
        value: Value,
        id: Option<u64>,
    },
    Refusal {
        error: Refusal,
        id: Option<u64>,
    },
    Event(Event),
}

/// What the monitor can do besides.
#[derive(Deserialize)]
struct Greeting {
    #[serde(default)]
    capabilities: Vec<Value>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Takes over a fresh connection: greeting, then commands. Events go to the receiver until the connection ends.
    ///
    /// # Errors
    /// If the other end does not speak QMP, or not in time.
    pub async fn start(stream: UnixStream) -> Result<(Self, mpsc::Receiver<Event>), QmpError> {
        let (read, write) = stream.into_split();
        let mut lines = Lines(BufReader::new(read));
        let greeting = tokio::time::timeout(ANSWER_TIMEOUT, lines.next()).await.map_err(|_| QmpError::Timeout)??;
        let Some(Message::Greeting { qmp: Greeting { capabilities } }) = greeting else {
            return Err(QmpError::Broken("it does not greet".into()));
        };
        let wanted: Vec<Value> = capabilities.into_iter().filter(|name| name == OUT_OF_BAND).collect();
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(serve(lines, write, inbox, events));
        let qmp = Self(commands);
        qmp.run_with("qmp_capabilities", json!({"enable": wanted})).await?;
        Ok((qmp, receiver))
    }

    /// Whether the connection is gone, and most probably QEMU.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Runs a command without arguments.
    ///
    /// # Errors
    /// If QEMU refuses or is gone.
    pub async fn run(&self, command: &str) -> Result<Value, QmpError> {
        self.run_with(command, json!({})).await
    }

    /// Runs a command.
    ///
    /// # Errors
    /// If QEMU refuses or is gone.
    pub async fn run_with(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.send(command, arguments, Lane::Main, None).await
    }

    /// Runs a command that QEMU can run while its main loop hangs.
    ///
    /// # Errors
    /// If QEMU refuses or is gone.
    pub async fn run_beside(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.send(command, arguments, Lane::Beside, None).await
    }

    /// Gives QEMU a descriptor, which other commands call `name`.
    ///
    /// # Errors
    /// If QEMU refuses or is gone.
    pub async fn give(&self, name: &str, descriptor: OwnedFd) -> Result<(), QmpError> {
        self.send("getfd", json!({"fdname": name}), Lane::Main, Some(descriptor)).await.map(drop)
    }

    async fn send(
        &self,
        command: &str,
        arguments: Value,
        lane: Lane,
        descriptor: Option<OwnedFd>,
    ) -> Result<Value, QmpError> {
        let (answer, result) = oneshot::channel();
        let (name, asked) = (command, Instant::now());
        let command = Command { name: name.to_owned(), arguments, lane, descriptor, answer };
        self.0.send(command).await.map_err(|_| QmpError::Closed)?;
        let result = tokio::time::timeout(ANSWER_TIMEOUT, result).await;
        tracing::trace!("QEMU took {} us for {name}", asked.elapsed().as_micros());
        match result {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(QmpError::Closed),
            Err(_) => Err(QmpError::Timeout),
        }
    }
}

/// Serves one connection until it ends.
async fn serve(
    mut lines: Lines,
    mut write: OwnedWriteHalf,
    mut commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
) {
    // Reading a line can't be cancelled in the middle, so it has a task of its own.
    let (messages, mut inbox) = mpsc::channel(1);
    let reader = tokio::spawn(async move {
        loop {
            match lines.next().await {
                Ok(Some(message)) => {
                    if messages.send(message).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => return tracing::debug!("A monitor broke: {error}"),
            }
        }
    });
    let mut waiting: HashMap<u64, Command> = HashMap::new();
    let mut next = 0_u64;
    loop {
        tokio::select! {
            message = inbox.recv() => match message {
                Some(message) => take(message, &mut waiting, &events),
                None => break,
            },
            command = commands.recv() => {
                let Some(mut command) = command else { break };
                next += 1;
                let (line, descriptor) = (command.line(next), command.descriptor.take());
                waiting.insert(next, command);
                // Nobody waits any more for those that timed out.
                waiting.retain(|_, command| !command.answer.is_closed());
                if say(&mut write, line.as_bytes(), descriptor).await.is_err() {
                    break;
                }
            }
        }
    }
    reader.abort();
}

/// Writes a line, and passes a descriptor along.
async fn say(write: &mut OwnedWriteHalf, line: &[u8], descriptor: Option<OwnedFd>) -> io::Result<()> {
    let mut said = 0;
    if let Some(descriptor) = descriptor {
        let stream: &UnixStream = write.as_ref();
        let send = || descriptor::send_with(stream.as_fd(), line, &descriptor);
        said = stream.async_io(Interest::WRITABLE, send).await?;
    }
    write.write_all(&line[said..]).await
}

impl Command {
    fn line(&self, id: u64) -> String {
        let verb = match self.lane {
            Lane::Main => "execute",
            Lane::Beside => "exec-oob",
        };
        format!("{}\n", json!({verb: self.name, "arguments": self.arguments, "id": id}))
    }
}

fn take(message: Message, waiting: &mut HashMap<u64, Command>, events: &mpsc::Sender<Event>) {
    let (id, result) = match message {
        Message::Greeting { .. } => return,
        Message::Event(event) => {
            if let Err(error) = events.try_send(event) {
                tracing::debug!("An event of QEMU is lost: {error}");
            }
            return;
        }
        Message::Answer { value, id } => (id, Ok(value)),
        Message::Refusal { error, id } => (id, Err(error.desc)),
    };
    let Some(command) = id.and_then(|id| waiting.remove(&id)) else { return };
    let result = result.map_err(|reason| QmpError::Refused { command: command.name, reason });
    // Whoever asked may have gone away.
    command.answer.send(result).ok();
}

struct Lines(BufReader<OwnedReadHalf>);

impl Lines {
    async fn next(&mut self) -> Result<Option<Message>, QmpError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.0).take(LINE_BYTES_MAX);
        if bounded.read_until(b'\n', &mut line).await? == 0 {
            return Ok(None);
        }
        serde_json::from_slice(&line).map(Some).map_err(|error| QmpError::Broken(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn line(stream: &mut BufReader<UnixStream>) -> Value {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn tell(stream: &mut BufReader<UnixStream>, value: Value) {
        stream.write_all(format!("{value}\r\n").as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn answers_find_their_commands_between_events() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut qemu = BufReader::new(theirs);
        tell(&mut qemu, json!({"QMP": {"version": {}, "capabilities": ["oob", "other"]}})).await;
        let start = tokio::spawn(Qmp::start(ours));
        let hello = line(&mut qemu).await;
        assert_eq!((&hello["execute"], &hello["arguments"]["enable"]), (&json!("qmp_capabilities"), &json!(["oob"])));
        tell(&mut qemu, json!({"event": "RESUME", "timestamp": {}})).await;
        tell(&mut qemu, json!({"return": {}, "id": hello["id"]})).await;
        let (qmp, mut events) = start.await.unwrap().unwrap();
        assert_eq!(events.recv().await.unwrap().event, "RESUME");

        let (one, two) = (qmp.clone(), qmp.clone());
        let first = tokio::spawn(async move { one.run("query-status").await });
        let first_id = line(&mut qemu).await["id"].clone();
        let second = tokio::spawn(async move { two.run_with("eject", json!({"id": "cd0"})).await });
        let second_id = line(&mut qemu).await["id"].clone();
        tell(&mut qemu, json!({"error": {"class": "GenericError", "desc": "No medium"}, "id": second_id})).await;
        tell(&mut qemu, json!({"return": {"status": "running"}, "id": first_id})).await;
        assert_eq!(first.await.unwrap().unwrap()["status"], "running");
        assert_eq!(second.await.unwrap().unwrap_err().to_string(), "QEMU refuses eject: No medium");

        let (beside, giving) = (qmp.clone(), qmp.clone());
        let third = tokio::spawn(async move { beside.run_beside("migrate-pause", json!({})).await });
        let asked = line(&mut qemu).await;
        assert_eq!(asked["exec-oob"], "migrate-pause");
        tell(&mut qemu, json!({"return": {}, "id": asked["id"]})).await;
        third.await.unwrap().unwrap();
        let (passed, _) = UnixStream::pair().unwrap();
        let passed = OwnedFd::from(passed.into_std().unwrap());
        let fourth = tokio::spawn(async move { giving.give("memory0", passed).await });
        let asked = line(&mut qemu).await;
        assert_eq!((&asked["execute"], &asked["arguments"]["fdname"]), (&json!("getfd"), &json!("memory0")));
        tell(&mut qemu, json!({"return": {}, "id": asked["id"]})).await;
        fourth.await.unwrap().unwrap();

        drop(qemu);
        assert!(events.recv().await.is_none());
        assert!(matches!(qmp.run("quit").await, Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn what_does_not_greet_is_no_qemu() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut other = BufReader::new(theirs);
        tell(&mut other, json!({"event": "RESUME"})).await;
        assert!(matches!(Qmp::start(ours).await, Err(QmpError::Broken(_))));
    }
}
