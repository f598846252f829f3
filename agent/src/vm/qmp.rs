//! A client of QEMU's monitor: commands with ids, answers and events on one Unix socket. A connection outlives the
//! agent that made it (`monitor.rs`); the next one goes on with it.
//!
//! QEMU takes eight commands that wait for its main loop, and then none at all. So it has one at a time: those that can
//! help out a main loop that hangs find their way.

use super::descriptor;
use crate::entropy;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
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
/// What makes QEMU forget half a command: no JSON has it.
const RESET: &[u8] = b"\xff\n";
/// A command out of band that changes nothing.
const PING: &str = "query-yank";

/// The way to one QEMU. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Qmp {
    main: mpsc::Sender<Command>,
    beside: mpsc::Sender<Command>,
}

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
        let (mut lines, write) = split(stream)?;
        let greeting = tokio::time::timeout(ANSWER_TIMEOUT, lines.next()).await.map_err(|_| QmpError::Timeout)??;
        let Some(Message::Greeting { qmp: Greeting { capabilities } }) = greeting else {
            return Err(QmpError::Broken("it does not greet".into()));
        };
        let wanted: Vec<Value> = capabilities.into_iter().filter(|name| name == OUT_OF_BAND).collect();
        let (qmp, events) = Self::serve(lines, write, 0);
        qmp.run_with("qmp_capabilities", json!({"enable": wanted})).await?;
        Ok((qmp, events))
    }

    /// Goes on with a connection that somebody else made, who may have said half a command, and have heard half an
    /// answer. QEMU's main loop may hang. What happened meanwhile is not told.
    ///
    /// # Errors
    /// If the other end does not speak QMP, or not in time.
    pub async fn resume(stream: UnixStream) -> Result<(Self, mpsc::Receiver<Event>), QmpError> {
        let (mut lines, mut write) = split(stream)?;
        // Nobody else has drawn the same: what was asked before is not taken for an answer. JSON has signed numbers.
        let mark = entropy::u64() >> 2;
        let ping = Command::line(Lane::Beside, PING, &json!({}), mark);
        let found = async {
            write.write_all(&[RESET, ping.as_bytes()].concat()).await?;
            lines.skip_to_answer(mark).await
        };
        tokio::time::timeout(ANSWER_TIMEOUT, found).await.map_err(|_| QmpError::Timeout)??;
        Ok(Self::serve(lines, write, mark))
    }

    /// Serves a connection whose next command has a higher id than `last`.
    fn serve(lines: Lines, write: UnixStream, last: u64) -> (Self, mpsc::Receiver<Event>) {
        let (main, main_inbox) = mpsc::channel(COMMANDS_MAX);
        let (beside, beside_inbox) = mpsc::channel(COMMANDS_MAX);
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let desk = Desk { waiting: HashMap::new(), busy: None, last, events };
        tokio::spawn(serve(lines, write, [main_inbox, beside_inbox], desk));
        (Self { main, beside }, receiver)
    }

    /// Whether the connection is gone, and most probably QEMU.
    pub fn is_closed(&self) -> bool {
        self.main.is_closed()
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
        let sender = match lane {
            Lane::Main => &self.main,
            Lane::Beside => &self.beside,
        };
        let answered = async {
            sender.send(command).await.map_err(|_| QmpError::Closed)?;
            result.await.unwrap_or(Err(QmpError::Closed))
        };
        let result = tokio::time::timeout(ANSWER_TIMEOUT, answered).await;
        tracing::trace!("QEMU took {} us for {name}", asked.elapsed().as_micros());
        result.unwrap_or(Err(QmpError::Timeout))
    }
}

/// Both directions. Tokio's halves of one descriptor shut the connection down when they end, for QEMU's copy of it too.
fn split(stream: UnixStream) -> io::Result<(Lines, UnixStream)> {
    let stream = stream.into_std()?;
    let write = UnixStream::from_std(stream.try_clone()?)?;
    Ok((Lines(BufReader::new(UnixStream::from_std(stream)?)), write))
}

/// What is known of the commands of one connection.
struct Desk {
    waiting: HashMap<u64, Command>,
    /// What QEMU's main loop has to do, whether anybody waits for it or not.
    busy: Option<u64>,
    /// The id of the last command.
    last: u64,
    events: mpsc::Sender<Event>,
}

/// Serves one connection until it ends.
async fn serve(
    mut lines: Lines,
    mut write: UnixStream,
    [mut main, mut beside]: [mpsc::Receiver<Command>; 2],
    mut desk: Desk,
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
    loop {
        let command = tokio::select! {
            message = inbox.recv() => match message {
                Some(message) => {
                    desk.take(message);
                    continue;
                }
                None => break,
            },
            command = main.recv(), if desk.busy.is_none() => command,
            command = beside.recv() => command,
        };
        let Some(mut command) = command else { break };
        // Nobody waits any more for one that timed out.
        if command.answer.is_closed() {
            continue;
        }
        let descriptor = command.descriptor.take();
        let line = desk.enter(command);
        if say(&mut write, line.as_bytes(), descriptor).await.is_err() {
            break;
        }
    }
    reader.abort();
}

/// Writes a line, and passes a descriptor along.
async fn say(write: &mut UnixStream, line: &[u8], descriptor: Option<OwnedFd>) -> io::Result<()> {
    let mut said = 0;
    if let Some(descriptor) = descriptor {
        let send = || descriptor::send_with(write.as_fd(), line, &descriptor);
        said = write.async_io(Interest::WRITABLE, send).await?;
    }
    write.write_all(&line[said..]).await
}

impl Command {
    fn line(lane: Lane, name: &str, arguments: &Value, id: u64) -> String {
        let verb = match lane {
            Lane::Main => "execute",
            Lane::Beside => "exec-oob",
        };
        format!("{}\n", json!({verb: name, "arguments": arguments, "id": id}))
    }
}

impl Desk {
    /// A command is about to be said: in these words.
    fn enter(&mut self, command: Command) -> String {
        self.last += 1;
        if matches!(command.lane, Lane::Main) {
            self.busy = Some(self.last);
        }
        let line = Command::line(command.lane, &command.name, &command.arguments, self.last);
        self.waiting.retain(|_, command| !command.answer.is_closed());
        self.waiting.insert(self.last, command);
        line
    }

    fn take(&mut self, message: Message) {
        let (id, result) = match message {
            Message::Greeting { .. } => return,
            Message::Event(event) => {
                if let Err(error) = self.events.try_send(event) {
                    tracing::debug!("An event of QEMU is lost: {error}");
                }
                return;
            }
            Message::Answer { value, id } => (id, Ok(value)),
            Message::Refusal { error, id } => (id, Err(error.desc)),
        };
        self.busy = self.busy.filter(|busy| id != Some(*busy));
        let Some(command) = id.and_then(|id| self.waiting.remove(&id)) else { return };
        let result = result.map_err(|reason| QmpError::Refused { command: command.name, reason });
        // Whoever asked may have gone away.
        command.answer.send(result).ok();
    }
}

struct Lines(BufReader<UnixStream>);

impl Lines {
    async fn next(&mut self) -> Result<Option<Message>, QmpError> {
        let Some(line) = self.line().await? else { return Ok(None) };
        serde_json::from_slice(&line).map(Some).map_err(|error| QmpError::Broken(error.to_string()))
    }

    async fn line(&mut self) -> Result<Option<Vec<u8>>, QmpError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.0).take(LINE_BYTES_MAX);
        let length = bounded.read_until(b'\n', &mut line).await?;
        Ok((length > 0).then_some(line))
    }

    /// Passes over all that comes before the answer to command `mark`, the rest of a line too.
    async fn skip_to_answer(&mut self, mark: u64) -> Result<(), QmpError> {
        while let Some(line) = self.line().await? {
            match serde_json::from_slice(&line) {
                // One without the command answers too.
                Ok(Message::Answer { id, .. } | Message::Refusal { id, .. }) if id == Some(mark) => return Ok(()),
                Ok(_) | Err(_) => {}
            }
        }
        Err(QmpError::Closed)
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
        tell(&mut qemu, json!({"return": {"status": "running"}, "id": first_id})).await;
        assert_eq!(first.await.unwrap().unwrap()["status"], "running");
        let second = tokio::spawn(async move { two.run_with("eject", json!({"id": "cd0"})).await });
        let second_id = line(&mut qemu).await["id"].clone();
        tell(&mut qemu, json!({"error": {"class": "GenericError", "desc": "No medium"}, "id": second_id})).await;
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
    async fn a_main_loop_that_hangs_has_one_command_and_others_pass_it() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut qemu = BufReader::new(theirs);
        let (lines, write) = split(ours).unwrap();
        let (qmp, _events) = Qmp::serve(lines, write, 7);
        let (one, two) = (qmp.clone(), qmp.clone());
        let first = tokio::spawn(async move { one.run("query-status").await });
        let hanging = line(&mut qemu).await;
        let second = tokio::spawn(async move { two.run("cont").await });
        let rescue = tokio::spawn({
            let qmp = qmp.clone();
            async move { qmp.run_beside("migrate-recover", json!({})).await }
        });
        let asked = line(&mut qemu).await;
        assert_eq!(asked["exec-oob"], "migrate-recover", "not the one that waits for the main loop");
        tell(&mut qemu, json!({"return": {}, "id": asked["id"]})).await;
        rescue.await.unwrap().unwrap();
        first.abort();
        second.abort();
        assert!(first.await.is_err() && second.await.is_err());
        // What nobody waits for any more is not said when it could be.
        tell(&mut qemu, json!({"return": {}, "id": hanging["id"]})).await;
        let third = tokio::spawn(async move { qmp.run("query-block").await });
        let asked = line(&mut qemu).await;
        assert_eq!(asked["execute"], "query-block");
        tell(&mut qemu, json!({"return": [], "id": asked["id"]})).await;
        third.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn another_takes_a_connection_over_wherever_it_was_left() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut qemu = BufReader::new(theirs);
        qemu.write_all(b"\"return\": {}, \"id\": 1}\r\n").await.unwrap();
        tell(&mut qemu, json!({"event": "STOP", "timestamp": {}})).await;
        let resumed = tokio::spawn(Qmp::resume(ours));
        let mut reset = Vec::new();
        qemu.read_until(b'\n', &mut reset).await.unwrap();
        assert_eq!(reset, b"\xff\n");
        let ping = line(&mut qemu).await;
        assert_eq!(ping["exec-oob"], PING);
        tell(&mut qemu, json!({"return": [], "id": ping["id"]})).await;
        tell(&mut qemu, json!({"error": {"class": "GenericError", "desc": "JSON parse error"}})).await;
        tell(&mut qemu, json!({"return": {"status": "paused"}, "id": 2})).await;
        let (qmp, mut events) = resumed.await.unwrap().unwrap();
        tell(&mut qemu, json!({"event": "RESUME", "timestamp": {}})).await;
        assert_eq!(events.recv().await.unwrap().event, "RESUME", "what was before is no news");
        let asking = tokio::spawn(async move { qmp.run("query-status").await });
        let asked = line(&mut qemu).await;
        assert!(asked["id"].as_u64() > ping["id"].as_u64());
        tell(&mut qemu, json!({"return": {"status": "running"}, "id": asked["id"]})).await;
        assert_eq!(asking.await.unwrap().unwrap()["status"], "running");
        drop(qemu);
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(Qmp::resume(ours).await.is_err());
    }

    #[test]
    fn an_agent_that_stops_leaves_its_end_open() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (kept, theirs) = runtime.block_on(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let kept = ours.as_fd().try_clone_to_owned().unwrap();
            let started = tokio::spawn(Qmp::start(ours));
            let mut qemu = BufReader::new(theirs);
            tell(&mut qemu, json!({"QMP": {"version": {}, "capabilities": ["oob"]}})).await;
            let hello = line(&mut qemu).await;
            tell(&mut qemu, json!({"return": {}, "id": hello["id"]})).await;
            // The connection is served until the agent is gone.
            std::mem::forget(started.await.unwrap().unwrap());
            (std::os::unix::net::UnixStream::from(kept), qemu.into_inner().into_std().unwrap())
        });
        drop(runtime);
        io::Write::write_all(&mut &kept, b"x").unwrap();
        let mut heard = [0];
        io::Read::read_exact(&mut &theirs, &mut heard).unwrap();
        assert_eq!(heard, *b"x");
    }

    #[tokio::test]
    async fn what_does_not_greet_is_no_qemu() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut other = BufReader::new(theirs);
        tell(&mut other, json!({"event": "RESUME"})).await;
        assert!(matches!(Qmp::start(ours).await, Err(QmpError::Broken(_))));
    }
}
