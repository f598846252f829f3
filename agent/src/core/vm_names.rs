//! Names of VMs: asked of the registrar of a name before a VM is made, kept for other hosts until its row has come, and
//! settled when two hosts meet that each have a VM of one name.

use super::{Core, Handle};
use crate::swarm::streams::{Inbound, StreamKind, Streams};
use crate::vm::VmError;
use anyhow::Context;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use virtuoso_overlay::ids::{HostId, VmId};
use virtuoso_overlay::membership::is_name;
use virtuoso_overlay::table::{Body, Standing, VmRow, VmState};
use virtuoso_overlay::vm::names::{
    NAME_MESSAGE_BYTES_MAX, NameAnswer, NameQuestion, another_name, goes_before, registrars,
};
use virtuoso_overlay::wire::codec;

/// Questions about names.
pub const VM_NAME: StreamKind = StreamKind::new("vm-name");

/// Hosts that are asked one after the other until one answers.
const REGISTRARS_MAX: usize = 3;
/// How long each of them may take. Members are connected, or connect within a few round trips.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);
/// How long the row of a VM may take to come to its registrar.
const ROW_TIME_MAX: Duration = Duration::from_secs(10);
/// The VM will be made: its row is on its way.
const KEEP: u8 = 1;

/// Asks for names.
#[derive(Clone)]
pub struct Names {
    /// The core, for the tables.
    pub core: Handle,
    /// Ways to other hosts.
    pub streams: Streams,
}

/// A name that a VM may have. The registrar forgets it when this is dropped.
#[must_use]
pub struct Promised(Option<Box<dyn Duplex>>);

/// A way to a host, which may be this one itself.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// A VM of this host that must take another name.
pub struct LostName {
    /// The VM.
    pub vm: VmId,
    /// Its new name.
    pub name: String,
    /// Who has the VM that keeps the name.
    pub to: HostId,
}

impl Names {
    /// Gets a name for a new VM of this host. A host that reaches no other one decides alone.
    ///
    /// # Errors
    /// [`VmError::NameTaken`] if another VM has it or gets it.
    pub async fn claim(&self, name: &str, vm: VmId) -> anyhow::Result<Promised> {
        let question = NameQuestion { name: name.to_owned(), vm };
        let wanted = question.name.clone();
        let (me, order) = self.core.call(move |core| (core.me(), core.registrars_of(&wanted))).await?;
        for host in order.into_iter().take(REGISTRARS_MAX) {
            let asked = timeout(ANSWER_TIME_MAX, self.ask(me, host, &question)).await;
            match asked.map_err(anyhow::Error::from).and_then(|asked| asked) {
                Ok((NameAnswer::Yours, stream)) => return Ok(Promised(Some(stream))),
                Ok((NameAnswer::Taken(holder), _)) => {
                    let host = self.core.call(move |core| core.name_of(holder)).await?;
                    return Err(VmError::NameTaken { name: question.name, host }.into());
                }
                Ok((NameAnswer::Busy, _)) => return Err(VmError::NamesBusy.into()),
                Err(error) => tracing::debug!(%host, "Can't ask for the name of a VM: {error:#}"),
            }
        }
        Ok(Promised(None))
    }

    async fn ask(
        &self,
        me: HostId,
        host: HostId,
        question: &NameQuestion,
    ) -> anyhow::Result<(NameAnswer, Box<dyn Duplex>)> {
        let mut stream: Box<dyn Duplex> = if host == me {
            let (ours, theirs) = tokio::io::duplex(2 * NAME_MESSAGE_BYTES_MAX);
            tokio::spawn(answer(self.core.clone(), me, theirs));
            Box::new(ours)
        } else {
            Box::new(self.streams.open(host, VM_NAME).await?)
        };
        write_message(&mut stream, &codec::encode(question)).await?;
        let answer = read_message(&mut stream).await?;
        let answer = codec::decode::<_, NAME_MESSAGE_BYTES_MAX, NAME_MESSAGE_BYTES_MAX>(&answer)?;
        Ok((answer, stream))
    }

    /// Whether a VM of this host that is being made must give way to another one of its name after all: its host could
    /// not be asked, or asked another registrar.
    ///
    /// # Errors
    /// [`VmError::NameTaken`] if it must.
    pub async fn check(&self, vm: VmId) -> anyhow::Result<()> {
        let rival = self.core.call(move |core| {
            let me = core.me();
            let own = core.vm_rows().find(|(host, row)| *host == me && row.id == vm).map(|(_, row)| row)?;
            let (host, _) = core.rival_of(own)?;
            Some((own.name.clone(), core.name_of(host)))
        });
        match rival.await? {
            Some((name, host)) => Err(VmError::NameTaken { name, host }.into()),
            None => Ok(()),
        }
    }

    /// The VMs of this host that must take other names.
    pub async fn lost(&self) -> anyhow::Result<Vec<LostName>> {
        Ok(self.core.call(|core| core.lost_names()).await?)
    }
}

impl Promised {
    /// The VM's row is in this host's table: the registrar remembers the name until it has it too.
    pub async fn keep(self) {
        if let Some(mut stream) = self.0
            && let Err(error) = stream.write_u8(KEEP).await
        {
            tracing::debug!("The registrar of a VM's name is gone: {error}");
        }
    }
}

/// Serves questions of other hosts until the agent stops.
pub async fn serve_names(core: Handle, mut inbound: mpsc::Receiver<Inbound>) {
    while let Some(Inbound { host, stream }) = inbound.recv().await {
        tokio::spawn(answer(core.clone(), host, stream));
    }
}

async fn answer(core: Handle, host: HostId, stream: impl Duplex) {
    if let Err(error) = try_answer(&core, host, stream).await {
        tracing::debug!(%host, "Can't answer a question about a VM's name: {error:#}");
    }
}

async fn try_answer(core: &Handle, host: HostId, mut stream: impl Duplex) -> anyhow::Result<()> {
    let bytes = timeout(ANSWER_TIME_MAX, read_message(&mut stream)).await??;
    let question: NameQuestion = codec::decode::<_, NAME_MESSAGE_BYTES_MAX, NAME_MESSAGE_BYTES_MAX>(&bytes)?;
    anyhow::ensure!(is_name(&question.name), "A VM can't have that name");
    let asked = question.clone();
    let answer = core.call(move |core| core.promise_name(host, &asked)).await?;
    let told = write_message(&mut stream, &codec::encode(&answer)).await;
    if answer != NameAnswer::Yours {
        return told;
    }
    // Until the other side says so or goes away: it has only to write a row.
    let kept = timeout(ROW_TIME_MAX, stream.read_u8()).await;
    if matches!(kept, Ok(Ok(KEEP))) && timeout(ROW_TIME_MAX, row_of(core, question.vm)).await.is_err() {
        tracing::debug!(name = question.name, "The row of a VM that has its name did not come");
    }
    core.call(move |core| core.name_promises.forget(&question)).await?;
    told
}

/// Waits until the row of a VM is here.
async fn row_of(core: &Handle, vm: VmId) -> anyhow::Result<()> {
    let mut changes = core.call(|core| core.vm_changes()).await?;
    loop {
        changes.borrow_and_update();
        if core.call(move |core| core.vm_rows().any(|(_, row)| row.id == vm)).await? {
            return Ok(());
        }
        changes.changed().await?;
    }
}

async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u8().await?);
    if length > NAME_MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> anyhow::Result<()> {
    let length = u8::try_from(message.len()).context("A message is too long")?;
    stream.write_u8(length).await?;
    stream.write_all(message).await?;
    stream.flush().await.context("Can't write a message")
}

impl Core {
    /// The rows of all VMs, with their hosts.
    pub(super) fn vm_rows(&self) -> impl Iterator<Item = (HostId, &VmRow)> {
        let bodies = self.node.iter().flat_map(|node| node.table().bodies());
        bodies.filter_map(|(host, body)| match body {
            Body::Vm(row) => Some((host, row)),
            _ => None,
        })
    }

    /// The hosts that may keep a name, in their order.
    fn registrars_of(&self, name: &str) -> Vec<HostId> {
        let now = self.clock.mono();
        let Some(node) = &self.node else { return Vec::new() };
        let table = node.table();
        let is_alive = |host: &HostId| matches!(table.standing(*host, now), Some((Standing::Alive, _)));
        let others = table.hosts().map(|(host, _)| host).filter(is_alive);
        registrars(name, others.chain([self.me()]))
    }

    fn promise_name(&mut self, host: HostId, question: &NameQuestion) -> NameAnswer {
        let holder = self.vm_rows().find(|(_, row)| row.name == question.name && row.id != question.vm);
        match holder.map(|(holder, _)| holder) {
            Some(holder) => NameAnswer::Taken(holder),
            None => self.name_promises.ask(host, question),
        }
    }

    /// Another VM of the same name that keeps it.
    fn rival_of(&self, own: &VmRow) -> Option<(HostId, &VmRow)> {
        self.vm_rows().find(|(_, row)| row.name == own.name && row.id != own.id && goes_before(row, own))
    }

    /// VMs of this host that are there, and whose name another one keeps that is there too.
    fn lost_names(&self) -> Vec<LostName> {
        let me = self.me();
        let own = self.vm_rows().filter(|(host, row)| *host == me && row.state != VmState::Creating);
        let lost = own.filter_map(|(_, row)| {
            let (to, _) = self.rival_of(row)?;
            let is_taken = |name: &str| self.vm_rows().any(|(_, row)| row.name == name);
            Some(LostName { vm: row.id, name: another_name(&row.name, row.id, is_taken), to })
        });
        lost.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_question_or_an_error(wire: Vec<u8>) {
            if let Ok(message) = futures::executor::block_on(read_message(&mut &wire[..])) {
                prop_assert!(message.len() <= NAME_MESSAGE_BYTES_MAX);
                codec::decode::<NameQuestion, NAME_MESSAGE_BYTES_MAX, NAME_MESSAGE_BYTES_MAX>(&message).ok();
            }
        }
    }
}
