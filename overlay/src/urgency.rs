//! When the thread that carries frames should run before everybody else.
//!
//! A real-time thread runs at once, but it wakes up where it last ran, which may be another CPU than the one that has
//! the packet. That CPU must then be interrupted, which in a virtual machine costs more than the whole way of a packet.
//! An ordinary thread is woken beside the packet, but waits for its turn when the machine is busy. So it is an ordinary
//! one while that makes it wait for nothing, and a real-time one as soon as it waits.

use crate::time::Instant;
use std::time::Duration;

/// Time between two looks at the figures.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Time over which waits are added up.
const WINDOW: Duration = Duration::from_millis(50);

/// To wait for the one who brings a packet to finish, or for an idle CPU to wake up, is a wait as well, but not one
/// that a priority would shorten.
const WAIT_OF_TURN: Duration = Duration::from_micros(50);

/// Such waits between two looks that are let pass: who takes more turns than these is not a thread that nobody needs.
const WAIT_OF_TURNS_MAX: Duration = Duration::from_micros(500);

/// Waits in one window, beyond those of the turns, that make the thread urgent: one part in a hundred.
const WAIT_MAX: Duration = Duration::from_micros(500);

/// A thread that uses less of a CPU than one part in so many may try to be an ordinary one again.
const CALM_PART: u32 = 8;

/// How long an urgent thread must be calm before it tries, at first and at most: twice as long after every failure.
const CALM_MIN: Duration = Duration::from_millis(100);
/// See [`CALM_MIN`].
const CALM_MAX: Duration = Duration::from_secs(10);

/// A trial that went well for so long ends the row of failures.
const TRIAL: Duration = Duration::from_secs(1);

/// What the operating system tells of a thread, since it began.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// Time on a CPU.
    pub ran: Duration,
    /// Time in which it could run and had no CPU.
    pub waited: Duration,
    /// How often it got a CPU.
    pub turns: u64,
}

/// Decides from time to time.
#[derive(Debug)]
pub struct Urgency {
    is_urgent: bool,
    last: Usage,
    looked_at: Instant,
    window_since: Instant,
    /// What was waited in the window.
    waited: Duration,
    /// Since when the thread has been calm, or an ordinary one.
    since: Instant,
    calm: Duration,
}

impl Urgency {
    /// An ordinary thread.
    pub fn new(now: Instant) -> Self {
        Self {
            is_urgent: false,
            last: Usage::default(),
            looked_at: now,
            window_since: now,
            waited: Duration::ZERO,
            since: now,
            calm: CALM_MIN,
        }
    }

    /// Whether it is time to call [`Urgency::judge`].
    pub fn is_due(&self, now: Instant) -> bool {
        now.since(self.looked_at) >= LOOK_INTERVAL
    }

    /// Whether the thread should be a real-time one from now on.
    pub fn judge(&mut self, now: Instant, usage: Usage) -> bool {
        let period = now.since(self.looked_at);
        let ran = usage.ran.saturating_sub(self.last.ran);
        let waited = usage.waited.saturating_sub(self.last.waited);
        let turns = u32::try_from(usage.turns.saturating_sub(self.last.turns)).unwrap_or(u32::MAX);
        (self.last, self.looked_at) = (usage, now);
        if self.is_urgent {
            if ran > period / CALM_PART {
                self.since = now;
            } else if now.since(self.since) >= self.calm {
                self.change(now, false);
            }
            return self.is_urgent;
        }
        if now.since(self.window_since) >= WINDOW {
            (self.window_since, self.waited) = (now, Duration::ZERO);
        }
        self.waited += waited.saturating_sub((WAIT_OF_TURN * turns).min(WAIT_OF_TURNS_MAX));
        if self.waited > WAIT_MAX {
            let failed = now.since(self.since) < TRIAL;
            self.calm = if failed { (self.calm * 2).min(CALM_MAX) } else { CALM_MIN };
            self.change(now, true);
        }
        self.is_urgent
    }

    fn change(&mut self, now: Instant, is_urgent: bool) {
        (self.is_urgent, self.since) = (is_urgent, now);
        (self.window_since, self.waited) = (now, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thread {
        urgency: Urgency,
        now: Instant,
        usage: Usage,
    }

    impl Thread {
        fn new() -> Self {
            Self { urgency: Urgency::new(Instant(0)), now: Instant(0), usage: Usage::default() }
        }

        /// Ten milliseconds of its life.
        fn live(&mut self, ran_us: u64, wait_us: u64, turns: u64) -> bool {
            self.now = self.now + Duration::from_millis(10);
            self.usage.ran += Duration::from_micros(ran_us);
            self.usage.waited += Duration::from_micros(wait_us * turns);
            self.usage.turns += turns;
            assert!(self.urgency.is_due(self.now));
            self.urgency.judge(self.now, self.usage)
        }
    }

    #[test]
    fn a_load_that_never_waits_is_not_urgent() {
        let mut thread = Thread::new();
        assert!((0..1000).all(|_| !thread.live(500, 8, 20)));
        assert!((0..1000).all(|_| !thread.live(9000, 8, 20)), "nor is a heavy one that has the CPU");
        assert!(
            (0..1000).all(|look| !thread.live(500, if look % 10 == 0 { 30 } else { 5 }, 20)),
            "a wait now and then"
        );
        assert!((0..1000).all(|_| !thread.live(300, 40, 10)), "nor is one whose CPU has to wake up for each packet");
        assert!((0..100).any(|_| thread.live(300, 100, 10)), "but one that waits for others");
    }

    #[test]
    fn a_wait_makes_it_urgent_until_it_is_calm() {
        let mut thread = Thread::new();
        assert!(thread.live(5000, 1000, 3));
        assert!((0..1000).all(|_| thread.live(5000, 0, 20)), "busy: stays urgent");
        let looks = (0..).take_while(|_| thread.live(100, 0, 20)).count();
        assert!((9..22).contains(&looks), "{looks}");
    }

    #[test]
    fn a_machine_that_stays_busy_is_tried_ever_less_often() {
        let mut thread = Thread::new();
        let mut ordinary = 0;
        for _ in 0..6000 {
            let wait = if thread.urgency.is_urgent { 0 } else { 2000 };
            ordinary += u32::from(!thread.live(100, wait, 5));
        }
        assert!(ordinary <= 12, "{ordinary} of a minute's looks were waits");
        assert!((0..1100).any(|_| !thread.live(100, 0, 5)), "when the machine is idle again, it is seen");
    }

    #[test]
    fn it_is_not_asked_too_often() {
        let mut urgency = Urgency::new(Instant(0));
        assert!(!urgency.is_due(Instant(4_999)));
        assert!(urgency.is_due(Instant(5_000)));
        urgency.judge(Instant(5_000), Usage::default());
        assert!(!urgency.is_due(Instant(6_000)));
    }
}
