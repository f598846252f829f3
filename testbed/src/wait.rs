//! Waiting with a deadline that tells what was awaited and what was seen last.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::interrupt;

/// What one look found.
pub(crate) enum Seen<T> {
    Done(T),
    NotYet(String),
}

/// Between two looks: each look at an agent starts a client process, so not shorter.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Looks until `look` is done, at most for `limit`. An error of `look` counts as not yet seen.
pub(crate) fn until<T>(what: impl Display, limit: Duration, mut look: impl FnMut() -> Result<Seen<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let last = match look() {
            Ok(Seen::Done(value)) => return Ok(value),
            Ok(Seen::NotYet(last)) => last,
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= deadline {
            bail!("Waited {limit:?} for {what}; last seen: {last}");
        }
        interrupt::pause(LOOK_INTERVAL)?;
    }
}

/// `until` for a plain condition; `look` gives whether it holds and what it saw.
pub(crate) fn until_true(
    what: impl Display,
    limit: Duration,
    mut look: impl FnMut() -> Result<(bool, String)>,
) -> Result<()> {
    until(what, limit, || {
        let (holds, last) = look()?;
        Ok(if holds { Seen::Done(()) } else { Seen::NotYet(last) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_awaited_and_seen() {
        let error = until_true("rain", Duration::ZERO, || Ok((false, "sun".to_owned()))).unwrap_err();
        assert_eq!(error.to_string(), "Waited 0ns for rain; last seen: sun");
    }

    #[test]
    fn an_error_is_looked_at_again() {
        let mut looks = 0;
        let value = until("a value", Duration::from_secs(5), || {
            looks += 1;
            if looks == 1 {
                bail!("not there")
            }
            Ok(Seen::Done(looks))
        });
        assert_eq!(value.unwrap(), 2);
    }
}
