//! The rules by which frames may share a path with others.

use bincode::{Decode, Encode};
use std::fmt;
use std::str::FromStr;

/// What limits how much is on its way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Encode, Decode)]
pub enum Congestion {
    /// Nothing: guests' conversations bring their own control, and a second loop around them costs an inner BBR most
    /// of its rate on a lossy path.
    #[default]
    None,
    /// As one TCP connection: for paths that others share.
    Cubic,
    /// As long as packets wait at most some milliseconds on the path: for paths that nobody else uses.
    Delay,
}

/// Why a text is not a rule.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is no rule of congestion: there are none, cubic and delay")]
pub struct ParseCongestionError(String);

impl Congestion {
    const ALL: [Self; 3] = [Self::None, Self::Cubic, Self::Delay];

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Cubic => "cubic",
            Self::Delay => "delay",
        }
    }
}

impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Congestion {
    type Err = ParseCongestionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|rule| rule.name() == text);
        known.ok_or_else(|| ParseCongestionError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_others_refused() {
        for rule in Congestion::ALL {
            assert_eq!(rule.to_string().parse(), Ok(rule));
        }
        assert!("Cubic".parse::<Congestion>().unwrap_err().to_string().contains("`Cubic`"));
    }
}
