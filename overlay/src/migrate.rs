//! Live migration as two state machines: [`Source`] on the host that has the VM, [`Target`] on the one that gets it.
//!
//! The one property that everything serves: **exactly one copy of the VM may run**, whatever is lost and whoever dies.
//! QEMU moves memory and disk; who may run is decided here, by a permission that the source gives once:
//!
//! - The guest is paused before QEMU sends the last bytes (`pause-before-switchover`), and the target's QEMU never runs
//!   a guest by itself (`-S`). So between the two there is a time in which neither runs, and the agents decide.
//! - The source writes [`Phase::Given`] to its disk, and only then says [`ToTarget::Go`]. From there on its own copy
//!   stays paused until the target has said, in so many words, that it did not take it ([`ToSource::Declined`]).
//! - The target runs the guest only after it has written [`Phase::Taken`], for which it needs two things: `Go`, and the
//!   word of its QEMU that memory and devices have arrived whole. A target that has not written it may drop its copy
//!   at any time, and says `Declined` for every migration that it does not know.
//! - Each side asks the other until it has an answer; nothing but an operator's verdict ([`Verdict`]) replaces one.
//!
//! `Go` is sent as soon as the source's QEMU has written its last byte, and not a round trip later when the target has
//! confirmed them: both travel together, and a target that can't use its copy declines.
//!
//! # The source
//!
//! | phase | guest | on disk | goes on with | fails by | then |
//! | --- | --- | --- | --- | --- | --- |
//! | Offering | runs | Trying | `Ready` | `Refused`, timeout, target lost, cancel | aborts |
//! | Mirroring | runs | Trying | disk is copied | mirror broke, target lost, cancel | aborts |
//! | Sending | runs, then paused | Trying | QEMU is at the last bytes | stream broke, target lost, cancel | aborts |
//! | Draining | paused | Trying | last disk blocks are there | anything, 5 s | aborts |
//! | Switching | paused | Given | QEMU has written all | anything, 5 s | aborts |
//! | Given | paused | Given | `Taken` | `Declined`; target silent: a verdict is asked for | erases the VM; aborts |
//! | Fetching | runs there | Given | post-copy has ended | target silent: a verdict is asked for | erases it; aborts |
//! | Aborting | runs again | Aborted | `Declined` | target silent: goes on telling it | forgets the migration |
//!
//! # The target
//!
//! | phase | on disk | goes on with | fails by | then |
//! | --- | --- | --- | --- | --- |
//! | Preparing | Preparing | QEMU waits for memory | no room, no file, no QEMU; `Abort`; source lost | drops its copy |
//! | Receiving | Preparing | memory whole, and `Go` | stream broke, `Abort`, source lost | drops its copy |
//! | Holding | Preparing | `Go` | `Abort`; source silent: a verdict is asked for | drops its copy |
//! | Taking | Taken | the guest runs | QEMU refuses | Preparing again, drops its copy |
//! | Running | Taken | `Finish` | `Abort` (a verdict): shelves its copy | the VM is its own |
//! | Emptying | Taken | the rest of the memory is there | its stream broke | ends the guest |
//!
//! In post-copy the guest runs at the target while some of its memory is at the source only. When that comes no more,
//! the guest hangs: the operator hears so ([`Notice::Starving`]), and may begin it anew from its disk at any time. It
//! is ended only when the source says that it has nothing left. A source whose QEMU died in that time keeps its disk
//! until the target has spoken again, and says that the guest has ended, not that it moved ([`Outcome::Ended`]).
//!
//! The source writes `Given` while QEMU sends the last bytes, as writing takes long; only `Go` gives anything.
//!
//! After a restart each side begins from what is on its disk and what its QEMU process says: `Trying` aborts, `Given`
//! waits for the target, `Aborted` lets the guest run and tells the target; `Preparing` drops its copy unless all of it
//! is there (then it is in `Holding`), `Taken` runs it.

mod message;
mod source;
mod target;
#[cfg(test)]
mod tests;

pub use message::{Arrival, Offer, ToSource, ToTarget};
pub use source::{Source, SourceEffect, SourceInput};
pub use target::{Target, TargetEffect, TargetInput};

use crate::ids::{HostId, VmId};
use crate::wire::codec::{self, CodecError, MEMORY_FACTOR};
use bincode::{Decode, Encode};
use std::time::Duration;

/// One attempt to move a VM. Drawn at random by the source, never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub struct MigrationId(pub [u8; 16]);

/// What a host writes to its disk about a migration that it takes part in.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Record {
    /// Which one.
    pub id: MigrationId,
    /// The VM.
    pub vm: VmId,
    /// The other host.
    pub peer: HostId,
    /// What was decided.
    pub phase: Phase,
}

/// What survives a restart of the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Phase {
    /// Source: the VM is here, and may be on its way.
    Trying,
    /// Source: the target may run the VM, and this host may not.
    Given,
    /// Source: the VM stays here, and the target has not confirmed that it knows.
    Aborted,
    /// Target: a copy is being made that may not run.
    Preparing,
    /// Target: the VM is here.
    Taken,
}

/// An operator's word about a migration whose other host is gone for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The copy of this host runs.
    Here,
    /// The copy of the other host runs.
    There,
}

/// When memory may be fetched after the guest has begun to run at the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub enum PostCopy {
    /// When copying it beforehand does not come to an end.
    #[default]
    Auto,
    /// Never: the guest is slowed down instead.
    Never,
    /// At once.
    Now,
}

/// Something that the operator is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// The migration came to a new step.
    Step(Step),
    /// Nobody knows whether the other host runs the VM. It is asked again and again; if it is gone for good, a verdict
    /// is needed.
    InDoubt,
    /// The guest went on at the other host, which is silent before it has all of the memory. It is waited for; if it is
    /// gone for good, a verdict is needed.
    Severed,
    /// It answers again.
    Answered,
    /// The guest hangs: it needs memory that is at the other host, from where nothing comes.
    Starving,
    /// The memory comes again.
    Fed,
    /// Both hosts ran the VM after a verdict; this one has stopped its copy and kept the disk aside.
    Shelved,
}

/// The steps of a migration, as shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The target is asked.
    Reserve,
    /// The target has a machine that waits.
    Prepare,
    /// The disk is copied.
    Disk,
    /// The memory is copied.
    Memory,
    /// The guest is paused.
    SwitchOver,
    /// The guest runs at the target.
    Resume,
    /// The source has nothing of it left.
    Finish,
}

/// How a migration ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The VM is at the target, which told how it went.
    Moved(Arrival),
    /// The VM stayed at the source.
    Stayed(String),
    /// The VM is at the target, and its guest does not run any more: why.
    Ended(String),
}

/// How long the target may take to make room and start a machine.
pub const OFFER_TIME_MAX: Duration = Duration::from_secs(60);
/// How long the guest may be paused before the migration is given up: guests' TCP connections and watchdogs bear it.
pub const SWITCH_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the guest may be paused until QEMU has sent what it changed last; if that takes longer, it goes on and is
/// paused again later. Users take this for a hiccup.
pub const PAUSE_TIME_MAX: Duration = Duration::from_millis(300);
/// How long a guest that was paused in vain is left alone.
pub const PAUSE_AGAIN_TIME: Duration = Duration::from_secs(2);
/// How long the other host may be out of reach while the guest runs at the source.
pub const LOST_TIME_MAX: Duration = Duration::from_secs(45);
/// Time between two questions to a host that does not answer.
pub const ASK_TIME: Duration = Duration::from_secs(1);
/// Time after which the operator hears that the other host does not answer.
pub const DOUBT_TIME: Duration = Duration::from_secs(15);
/// Time without memory after which the operator hears that a guest hangs for it. Streams that broke are made again
/// within a second or two.
pub const STARVING_TIME: Duration = Duration::from_secs(5);
/// Bytes of a reason.
pub const WHY_BYTES_MAX: usize = 1024;
/// Bytes of a message: the definition of a VM with its keys is most of an offer.
pub const MESSAGE_BYTES_MAX: usize = 2 << 20;
const RECORD_BYTES_MAX: usize = 256;

impl Record {
    /// The record as bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, RECORD_BYTES_MAX, { RECORD_BYTES_MAX * MEMORY_FACTOR }>(bytes)
    }
}

impl Phase {
    /// Whether a record of this phase is that of a source.
    pub const fn is_source(self) -> bool {
        matches!(self, Self::Trying | Self::Given | Self::Aborted)
    }
}

impl Step {
    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::Prepare => "prepare",
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::SwitchOver => "switch-over",
            Self::Resume => "resume",
            Self::Finish => "finish",
        }
    }
}

/// A reason within its bound.
fn bounded(mut why: String) -> String {
    let mut end = why.len().min(WHY_BYTES_MAX);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    why.truncate(end);
    why
}
