//! When the thread that carries frames should run before everybody else.
//!
//! A real-time thread runs at once, but it wakes up where it last ran, which may be another CPU than the one that has
//! the packet. That CPU must then be interrupted, which in a virtual machine costs more than the whole way of a packet.
//! An ordinary thread is woken beside the packet, but waits for its turn when the machine is busy. So it is an ordinary
//! one while that makes it wait for nothing, and a real-time one as soon as it waits.

use crate::time::Instant;
use std::time::Duration;

/// Time between two looks at the figures. A look costs as much as a tenth of a packet's way.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Time over which waits are added up.
const WINDOW: Duration = Duration::from_millis(50);

/// To wait for the one who brings a packet to finish, or for an idle CPU to wake up, is a wait as well, but not one
/// that a priority would shorten.
const WAIT_OF_TURN: Duration = Duration::from_micros(50);

/// Such waits between two looks that are let pass: who takes more turns than these is not a thread that nobody needs.
const WAIT_OF_TURNS_MAX: Duration = Duration::from_millis(2);

/// Waits in one window, beyond those of the turns, that make the thread urgent: one part in a hundred.
const WAIT_MAX: Duration = Duration::from_micros(500);

/// A thread that uses less of a CPU than one part in so many is calm, and may try to be an ordinary one again.
const CALM_PART: u32 = 8;

/// What a calm thread waits for each turn on the average, before it becomes urgent: a real-time thread pays some ten
/// microseconds for each of them, so it must gain more than that, and not only now and then.
const WAIT_OF_CALM_TURN: Duration = Duration::from_micros(100);

/// A thread that carried nothing for so long waits for nobody's sake: it is not looked at, and what it waited meanwhile
/// does not count.
const IDLE: Duration = Duration::from_millis(50);

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
    /// When something was carried last.
    carried_at: Instant,
    window_since: Instant,
    /// What was waited in the window, beyond what is let pass, and in how many turns.
    waited: Duration,
    turns: u32,
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
            carried_at: now,
            window_since: now,
            waited: Duration::ZERO,
            turns: 0,
            since: now,
            calm: CALM_MIN,
        }
    }

    /// Notes that the thread carries something now.
    pub fn carry(&mut self, now: Instant) {
        self.carried_at = now;
    }

    /// Whether it is time to call [`Urgency::judge`].
    pub fn is_due(&self, now: Instant) -> bool {
        let matters = self.is_urgent || now.since(self.carried_at) < IDLE;
        matters && now.since(self.looked_at) >= LOOK_INTERVAL
    }

    /// Whether the thread should be a real-time one from now on.
    pub fn judge(&mut self, now: Instant, usage: Usage) -> bool {
        let period = now.since(self.looked_at);
        let ran = usage.ran.saturating_sub(self.last.ran);
        let waited = usage.waited.saturating_sub(self.last.waited);
        let turns = u32::try_from(usage.turns.saturating_sub(self.last.turns)).unwrap_or(u32::MAX);
        (self.last, self.looked_at) = (usage, now);
        let is_calm = ran <= period / CALM_PART;
        if self.is_urgent {
            if !is_calm {
                self.since = now;
            } else if now.since(self.since) >= self.calm {
                self.change(now, false);
            }
            return self.is_urgent;
        }
        let was_idle = period >= IDLE;
        if was_idle || now.since(self.window_since) >= WINDOW {
            self.begin_window(now);
        }
        if !was_idle {
            self.waited += waited.saturating_sub((WAIT_OF_TURN * turns).min(WAIT_OF_TURNS_MAX));
            self.turns = self.turns.saturating_add(turns);
        }
        if self.waited > WAIT_MAX && (!is_calm || self.waited > WAIT_OF_CALM_TURN * self.turns) {
            let failed = now.since(self.since) < TRIAL;
            self.calm = if failed { (self.calm * 2).min(CALM_MAX) } else { CALM_MIN };
            self.change(now, true);
        }
        self.is_urgent
    }

    fn change(&mut self, now: Instant, is_urgent: bool) {
        (self.is_urgent, self.since) = (is_urgent, now);
        self.begin_window(now);
    }

    fn begin_window(&mut self, now: Instant) {
        (self.window_since, self.waited, self.turns) = (now, Duration::ZERO, 0);
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

        /// Twenty milliseconds in which it carries something.
        fn live(&mut self, ran_us: u64, wait_us: u64, turns: u64) -> bool {
            self.pass(Duration::from_millis(20), ran_us, wait_us, turns);
            self.urgency.carry(self.now);
            assert!(self.urgency.is_due(self.now));
            self.urgency.judge(self.now, self.usage)
        }

        fn pass(&mut self, time: Duration, ran_us: u64, wait_us: u64, turns: u64) {
            self.now = self.now + time;
            self.usage.ran += Duration::from_micros(ran_us);
            self.usage.waited += Duration::from_micros(wait_us * turns);
            self.usage.turns += turns;
        }
    }

    #[test]
    fn a_load_that_never_waits_is_not_urgent() {
        let mut thread = Thread::new();
        assert!((0..1000).all(|_| !thread.live(1000, 8, 40)));
        assert!((0..1000).all(|_| !thread.live(18_000, 8, 40)), "nor is a heavy one that has the CPU");
        assert!((0..1000).all(|_| !thread.live(600, 40, 20)), "nor is one whose CPU has to wake up for each packet");
        assert!((0..100).any(|_| thread.live(600, 200, 20)), "but one that waits for others");
    }

    #[test]
    fn a_calm_thread_is_urgent_if_most_of_its_turns_wait() {
        let mut thread = Thread::new();
        assert!((0..1000).all(|look| !thread.live(600, if look % 3 == 0 { 100 } else { 5 }, 30)), "some wait");
        assert!((0..3).any(|_| thread.live(600, 400, 3)), "few turns, each of which waits");
    }

    #[test]
    fn a_busy_thread_is_urgent_if_any_turn_waits_for_long() {
        let mut thread = Thread::new();
        assert!((0..100).all(|_| !thread.live(10_000, 8, 100)));
        thread.usage.waited += Duration::from_millis(3);
        assert!(thread.live(10_000, 8, 100));
    }

    #[test]
    fn a_wait_makes_it_urgent_until_it_is_calm() {
        let mut thread = Thread::new();
        assert!(thread.live(10_000, 1000, 3));
        assert!((0..1000).all(|_| thread.live(10_000, 0, 40)), "busy: stays urgent");
        let looks = (0..).take_while(|_| thread.live(200, 0, 40)).count();
        assert!((4..11).contains(&looks), "{looks}");
    }

    #[test]
    fn what_an_idle_thread_waits_does_not_count() {
        let mut thread = Thread::new();
        assert!(!thread.live(100, 8, 2));
        thread.pass(Duration::from_secs(1), 100, 3000, 4);
        assert!(!thread.urgency.is_due(thread.now));
        assert!(!thread.live(100, 8, 2));
        assert!((0..3).any(|_| thread.live(100, 3000, 2)), "from the first packets on it does");
        thread.pass(Duration::from_secs(1), 100, 0, 2);
        assert!(thread.urgency.is_due(thread.now), "an urgent one does not stay so because it is idle");
        assert!(!thread.urgency.judge(thread.now, thread.usage));
    }

    #[test]
    fn a_machine_that_stays_busy_is_tried_ever_less_often() {
        let mut thread = Thread::new();
        let mut ordinary = 0;
        for _ in 0..3000 {
            let wait = if thread.urgency.is_urgent { 0 } else { 2000 };
            ordinary += u32::from(!thread.live(200, wait, 5));
        }
        assert!(ordinary <= 12, "{ordinary} of a minute's looks were waits");
        assert!((0..550).any(|_| !thread.live(200, 0, 5)), "when the machine is idle again, it is seen");
    }

    #[test]
    fn it_is_not_asked_too_often() {
        let mut urgency = Urgency::new(Instant(0));
        urgency.carry(Instant(19_999));
        assert!(!urgency.is_due(Instant(19_999)));
        assert!(urgency.is_due(Instant(20_000)));
        urgency.judge(Instant(20_000), Usage::default());
        assert!(!urgency.is_due(Instant(21_000)));
    }
}
