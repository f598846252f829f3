//! Names of hosts, networks and images: one DNS label each, so that every name can stand in a host name.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use virtuoso_overlay::limits::NAME_CHARS_MAX;

/// One DNS label: 1 to 63 of `a-z`, `0-9` and `-`, with no `-` at either end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Not a name: `{0}`: expected 1 to 63 of a-z, 0-9 and -, with no - at either end")]
pub struct ParseNameError(String);

impl FromStr for Name {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, ParseNameError> {
        let valid = (1..=NAME_CHARS_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        // A wrong text may be megabytes long; its start is enough to recognise it.
        if valid { Ok(Self(text.into())) } else { Err(ParseNameError(text.chars().take(NAME_CHARS_MAX + 1).collect())) }
    }
}

impl TryFrom<String> for Name {
    type Error = ParseNameError;

    fn try_from(text: String) -> Result<Self, ParseNameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The name among `names` that someone who wrote `wrong` may have meant, as the end of a sentence; else nothing.
pub fn meant<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let distant = |name: &&str| (distance(wrong, name), name.len());
    let nearest = names.into_iter().filter(|name| name.len() <= NAME_CHARS_MAX).min_by_key(distant);
    let near = nearest.filter(|name| distance(wrong, name) <= 1 + wrong.len() / 4);
    near.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

/// Insertions, deletions and changes between two texts; of a long one only as much as a name has is looked at.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().take(NAME_CHARS_MAX).collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, a) in one.chars().take(NAME_CHARS_MAX).enumerate() {
        let mut above_left = row[0];
        row[0] = index + 1;
        for (column, b) in other.iter().enumerate() {
            let changed = above_left + usize::from(a != *b);
            above_left = row[column + 1];
            row[column + 1] = changed.min(above_left + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_dns_labels_only() {
        for right in ["a", "debian-12", "0", &"x".repeat(63)] {
            assert_eq!(right.parse::<Name>().unwrap().to_string(), right);
        }
        for wrong in ["", "-a", "a-", "A", "a.b", "a b", "ä", "a/b", "..", &"x".repeat(64)] {
            assert!(wrong.parse::<Name>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn near_names_are_offered() {
        let names = ["debian-12", "alpine", "web"];
        assert_eq!(meant("debian12", names), "; did you mean debian-12?");
        assert_eq!(meant("alpin", names), "; did you mean alpine?");
        assert_eq!(meant("ubuntu-24", names), "");
        assert_eq!(meant("", names), "");
        assert_eq!((distance("kitten", "sitting"), distance("", "abc"), distance("a", "a")), (3, 3, 0));
    }
}
