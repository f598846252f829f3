//! How many threads the data plane has.

use serde::{Deserialize, Serialize};

/// The most that an operator may ask for.
const THREADS_MAX: u16 = 64;

/// The most that are started unasked. Each of them is a core that guests don't have when links are busy.
const OWN_THREADS_MAX: usize = 8;

/// Processors for each thread that is started unasked: the others are for guests.
const PROCESSORS_PER_THREAD: usize = 4;

/// Threads of the data plane, at most 64; 0 is as many as suit the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Threads(u16);

impl Threads {
    /// How many there are: with one it does everything, with more the others have the links.
    pub(super) fn count(self) -> usize {
        match self.0 {
            0 => suitable(std::thread::available_parallelism().map_or(1, usize::from)),
            asked => asked.into(),
        }
    }
}

impl TryFrom<u16> for Threads {
    type Error = String;

    fn try_from(threads: u16) -> Result<Self, String> {
        if threads <= THREADS_MAX {
            Ok(Self(threads))
        } else {
            Err(format!("{threads} threads are too many; {THREADS_MAX} are allowed"))
        }
    }
}

impl From<Threads> for u16 {
    fn from(threads: Threads) -> Self {
        threads.0
    }
}

/// One thread for a quarter of the machine.
fn suitable(processors: usize) -> usize {
    (processors / PROCESSORS_PER_THREAD).clamp(1, OWN_THREADS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_machines_have_one_thread() {
        assert_eq!([1, 2, 4, 7, 8, 16, 128].map(suitable), [1, 1, 1, 1, 2, 4, 8]);
        assert!(Threads::default().count() >= 1);
    }

    #[test]
    fn what_is_asked_for_is_bounded() {
        assert_eq!(Threads::try_from(3).unwrap().count(), 3);
        assert!(Threads::try_from(65).is_err());
    }
}
