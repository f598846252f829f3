//! The priority of a thread of the engine: real-time where it would wait for a CPU otherwise, which is where latency
//! under load comes from; ordinary where it would not, because then it is woken beside the packet. [`Urgency`] decides.

use super::clock::Tick;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use virtuoso_overlay::urgency::{Urgency, Usage};

/// Priority of the calling thread.
pub(super) struct Priority {
    urgency: Urgency,
    is_realtime: bool,
    /// What the kernel tells of this thread. Without it, or without the right, the thread stays as it is.
    figures: Option<File>,
}

impl Priority {
    /// For the calling thread. Where the kernel tells nothing of threads, it is a real-time one from now on.
    pub(super) fn new(tick: Tick) -> Self {
        let mut priority = Self {
            urgency: Urgency::new(tick.now.mono),
            is_realtime: false,
            figures: File::open("/proc/thread-self/schedstat").ok(),
        };
        if !priority.set(true) {
            priority.figures = None;
        } else if priority.figures.is_some() {
            priority.set(false);
        }
        priority
    }

    /// Looks whether the thread had to wait, if it is time for that. `carries` says whether this turn found something.
    pub(super) fn review(&mut self, tick: Tick, carries: bool) {
        let Some(figures) = &self.figures else { return };
        if carries {
            self.urgency.carry(tick.now.mono);
        }
        if !self.urgency.is_due(tick.now.mono) {
            return;
        }
        let Some(usage) = read(figures) else {
            self.figures = None;
            return;
        };
        let is_urgent = self.urgency.judge(tick.now.mono, usage);
        if is_urgent != self.is_realtime && !self.set(is_urgent) {
            self.figures = None;
        }
    }

    /// Makes the thread a round-robin one of the lowest real-time priority, or an ordinary one. A thread that is
    /// started from here does not inherit it. False without the right to it.
    fn set(&mut self, is_realtime: bool) -> bool {
        let policy = if is_realtime { libc::SCHED_RR } else { libc::SCHED_OTHER };
        let priority = libc::sched_param { sched_priority: is_realtime.into() };
        // SAFETY: 0 names the calling thread, and the parameter outlives the call.
        let result = unsafe { libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &raw const priority) };
        if result != 0 {
            let error = io::Error::last_os_error();
            tracing::info!(%error, "No real-time priority for the data plane: grant CAP_SYS_NICE for lower latency");
            return false;
        }
        self.is_realtime = is_realtime;
        true
    }
}

/// Reads three numbers: nanoseconds on a CPU, nanoseconds of waiting for one, turns.
fn read(figures: &File) -> Option<Usage> {
    let mut text = [0; 64];
    let bytes = figures.read_at(&mut text, 0).ok()?;
    parse(std::str::from_utf8(&text[..bytes]).ok()?)
}

fn parse(text: &str) -> Option<Usage> {
    let mut numbers = text.split_ascii_whitespace().map(|number| number.parse().ok());
    let mut next = || numbers.next().flatten();
    let (ran, waited, turns) = (next()?, next()?, next()?);
    Some(Usage { ran: Duration::from_nanos(ran), waited: Duration::from_nanos(waited), turns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_thread_are_read() {
        let usage = parse("1500000 72000 2\n").unwrap();
        assert_eq!((usage.ran, usage.waited), (Duration::from_micros(1500), Duration::from_micros(72)));
        assert_eq!(usage.turns, 2);
        assert_eq!(parse("0 0\n"), None);
        assert_eq!(parse("a b c\n"), None);
        let figures = File::open("/proc/thread-self/schedstat");
        assert!(figures.is_err() || read(&figures.unwrap()).is_some_and(|usage| usage.turns > 0));
    }
}
