//! What may be done with a VM in which state, and what happens when its process ends.

use crate::limits::{VM_RESTARTS_MAX, VM_RESTARTS_TIME};
use crate::table::VmState;
use crate::time::Instant;
use std::collections::VecDeque;

/// What a user wants of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Run.
    Start,
    /// End in order, if the guest listens.
    Stop,
    /// End now.
    Kill,
    /// Begin again without warning.
    Reset,
    /// Be no more.
    Delete,
}

/// What the agent does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Starts its process.
    Launch,
    /// Presses its power button, and ends it if it does not listen.
    PowerDown,
    /// Ends its process.
    End,
    /// Presses its reset button.
    PressReset,
    /// Removes what is left of it.
    Remove,
    /// Nothing: it is so already.
    Nothing,
}

/// Why a wish is not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It needs a VM that runs.
    #[error("it is not running")]
    NotRunning,
    /// It needs a VM that does not run.
    #[error("it is running: stop it first")]
    Running,
    /// It is between two hosts.
    #[error("it is on its way to another host")]
    Migrating,
    /// It is not there yet.
    #[error("it is being made")]
    Creating,
}

/// Whether a VM whose process failed begins again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    /// It stays as it is, for someone to look at.
    #[default]
    Never,
    /// It begins again, unless it fails over and over.
    OnFailure,
}

/// Says what to do.
///
/// # Errors
/// If the VM's state does not allow it.
pub fn decide(state: VmState, wish: Wish) -> Result<Step, Denied> {
    use VmState::{Crashed, Creating, Migrating, Paused, Running, Stopped};
    match (state, wish) {
        (Migrating, _) => Err(Denied::Migrating),
        (Creating, _) => Err(Denied::Creating),
        (Stopped | Crashed, Wish::Start) => Ok(Step::Launch),
        (Running | Paused, Wish::Start) | (Stopped | Crashed, Wish::Stop | Wish::Kill) => Ok(Step::Nothing),
        (Running, Wish::Stop) => Ok(Step::PowerDown),
        // A guest that does not run does not hear its power button.
        (Paused, Wish::Stop) | (Running | Paused, Wish::Kill) => Ok(Step::End),
        (Running | Paused, Wish::Reset) => Ok(Step::PressReset),
        (Stopped | Crashed, Wish::Reset) => Err(Denied::NotRunning),
        (Stopped | Crashed, Wish::Delete) => Ok(Step::Remove),
        (Running | Paused, Wish::Delete) => Err(Denied::Running),
    }
}

/// The failures of one VM.
#[derive(Clone, Debug, Default)]
pub struct Failures(VecDeque<Instant>);

impl Failures {
    /// Its process failed: whether it begins again.
    pub fn begins_again(&mut self, now: Instant, policy: RestartPolicy) -> bool {
        self.0.retain(|then| now.since(*then) < VM_RESTARTS_TIME);
        if policy == RestartPolicy::Never || self.0.len() >= VM_RESTARTS_MAX {
            return false;
        }
        self.0.push_back(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_granted_or_denied_by_state() {
        for (state, wish, step) in [
            (VmState::Stopped, Wish::Start, Ok(Step::Launch)),
            (VmState::Crashed, Wish::Start, Ok(Step::Launch)),
            (VmState::Running, Wish::Start, Ok(Step::Nothing)),
            (VmState::Running, Wish::Stop, Ok(Step::PowerDown)),
            (VmState::Paused, Wish::Stop, Ok(Step::End)),
            (VmState::Running, Wish::Kill, Ok(Step::End)),
            (VmState::Crashed, Wish::Stop, Ok(Step::Nothing)),
            (VmState::Stopped, Wish::Reset, Err(Denied::NotRunning)),
            (VmState::Running, Wish::Delete, Err(Denied::Running)),
            (VmState::Crashed, Wish::Delete, Ok(Step::Remove)),
            (VmState::Migrating, Wish::Start, Err(Denied::Migrating)),
            (VmState::Creating, Wish::Delete, Err(Denied::Creating)),
        ] {
            assert_eq!(decide(state, wish), step, "{state:?} {wish:?}");
        }
    }

    #[test]
    fn a_vm_that_fails_over_and_over_stays_down() {
        let mut failures = Failures::default();
        let at = |seconds: u64| Instant(seconds * 1_000_000);
        assert!(!failures.clone().begins_again(at(0), RestartPolicy::Never));
        for second in 0..VM_RESTARTS_MAX as u64 {
            assert!(failures.begins_again(at(second), RestartPolicy::OnFailure));
        }
        assert!(!failures.begins_again(at(10), RestartPolicy::OnFailure));
        assert!(failures.begins_again(at(10 + VM_RESTARTS_TIME.as_secs()), RestartPolicy::OnFailure));
    }
}
