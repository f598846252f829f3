//! Quantities as a topology writes them: `20ms`, `0.5%`, `100Mbit`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Span(pub(crate) Duration);

/// A probability, 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Fraction(pub(crate) f64);

/// Bits per second, more than zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct BitRate(pub(crate) u64);

impl Span {
    pub(crate) fn as_nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl TryFrom<String> for Span {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        let (number, unit) = split(&text)?;
        let second = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            _ => return Err(anyhow::anyhow!("{text:?} is no time like 20ms (units: us, ms, s)")),
        };
        ensure!(number * second <= 3600.0, "{text:?} is more than an hour");
        Ok(Self(Duration::from_secs_f64(number * second)))
    }
}

impl TryFrom<String> for Fraction {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        let (number, unit) = split(&text)?;
        ensure!(unit == "%" && number <= 100.0, "{text:?} is no share like 0.5%");
        Ok(Self(number / 100.0))
    }
}

impl TryFrom<String> for BitRate {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        let (number, unit) = split(&text)?;
        let bit = match unit {
            "kbit" => 1e3,
            "Mbit" => 1e6,
            "Gbit" => 1e9,
            _ => return Err(anyhow::anyhow!("{text:?} is no rate like 100Mbit (units: kbit, Mbit, Gbit)")),
        };
        let bits = number * bit;
        ensure!((1e3..=1e12).contains(&bits), "{text:?} is not in 1kbit..=1000Gbit");
        Ok(Self(bits.round() as u64))
    }
}

fn split(text: &str) -> Result<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..end].parse().with_context(|| format!("{text:?} does not begin with a number"))?;
    Ok((number, &text[end..]))
}
