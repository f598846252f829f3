//! Byte sizes as users write them: `8GiB`, `512 MiB`, `1.5TiB` or plain bytes. Only IEC units: `GB` is refused, because
//! half of its users mean `GiB`.

use serde::de::Unexpected;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteSize(pub u64);

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSizeError {
    /// No digits, or something else than digits before the unit.
    #[error("Not a size: `{0}`: expected a number with an IEC unit, such as 8GiB or 512MiB")]
    Number(String),
    /// A unit that is not IEC.
    #[error("Unknown unit `{0}`: use B, KiB, MiB, GiB, TiB or PiB")]
    Unit(String),
    /// More than 64 bits, or a fraction of a byte.
    #[error("Not a size: `{0}` is not a whole number of bytes below 16 EiB")]
    Range(String),
}

/// Units from small to large; each is 1024 times the one before.
const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/// Digits after the point: more can't change a `PiB` by a byte that anyone meant.
const FRACTION_DIGITS_MAX: usize = 9;

impl FromStr for ByteSize {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        let text = text.trim();
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..split], text[split..].trim_start());
        let unit = match unit {
            "" => 0,
            _ => UNITS.iter().position(|u| u.eq_ignore_ascii_case(unit)).ok_or_else(|| {
                if number.is_empty() { ParseSizeError::Number(text.into()) } else { ParseSizeError::Unit(unit.into()) }
            })?,
        };
        scale(number, 10 * unit).ok_or_else(|| {
            let digits = number.bytes().any(|b| b.is_ascii_digit()) && number.matches('.').count() <= 1;
            if digits { ParseSizeError::Range(text.into()) } else { ParseSizeError::Number(text.into()) }
        })
    }
}

/// `number` times two to the power of `shift`, if that is a whole number of bytes.
fn scale(number: &str, shift: usize) -> Option<ByteSize> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > FRACTION_DIGITS_MAX || number.ends_with('.') {
        return None;
    }
    let whole = u128::from(whole.parse::<u64>().ok()?) << shift;
    let fraction = match fraction {
        "" => 0,
        digits => {
            let power = 10_u128.pow(u32::try_from(digits.len()).ok()?);
            let scaled = u128::from(digits.parse::<u64>().ok()?) << shift;
            // Thirds and tenths of a unit are rarely whole bytes: what is below a byte is dropped, unless the unit is
            // the byte.
            if shift == 0 && scaled != 0 {
                return None;
            }
            scaled / power
        }
    };
    u64::try_from(whole + fraction).ok().map(ByteSize)
}

/// The largest unit that holds the size exactly, so that the text reads back as the same size.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut unit = 0;
        let mut value = self.0;
        while value != 0 && value.is_multiple_of(1024) && unit + 1 < UNITS.len() {
            value /= 1024;
            unit += 1;
        }
        f.pad(&format!("{value}{}", UNITS[unit]))
    }
}

impl ByteSize {
    /// For people: at most one digit after the point, such as `7.8GiB`.
    pub fn rounded(self) -> String {
        let mut unit = 0;
        while unit + 1 < UNITS.len() && self.0 >= 1 << (10 * (unit + 1)) {
            unit += 1;
        }
        let tenths = (u128::from(self.0) * 10) >> (10 * unit);
        match tenths % 10 {
            0 => format!("{}{}", tenths / 10, UNITS[unit]),
            tenth => format!("{}.{tenth}{}", tenths / 10, UNITS[unit]),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// From a text with a unit or from a plain number of bytes.
impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl serde::de::Visitor<'_> for SizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as \"8GiB\" or a number of bytes")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
        Ok(ByteSize(bytes))
    }

    fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
        u64::try_from(bytes).map(ByteSize).map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_users_write() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("8GiB", 8 << 30),
            ("8 gib", 8 << 30),
            ("1.5TiB", 3 << 39),
            ("0.1MiB", 104_857),
            ("16383PiB", 16383 << 50),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!("8GB".parse::<ByteSize>(), Err(ParseSizeError::Unit("GB".into())));
        assert_eq!("many".parse::<ByteSize>(), Err(ParseSizeError::Number("many".into())));
        assert_eq!("GiB".parse::<ByteSize>(), Err(ParseSizeError::Number("GiB".into())));
        assert_eq!("".parse::<ByteSize>(), Err(ParseSizeError::Number("".into())));
        assert_eq!("-1".parse::<ByteSize>(), Err(ParseSizeError::Number("-1".into())));
        assert_eq!("1.2.3MiB".parse::<ByteSize>(), Err(ParseSizeError::Number("1.2.3MiB".into())));
        assert_eq!("0.5".parse::<ByteSize>(), Err(ParseSizeError::Range("0.5".into())));
        assert_eq!("16384PiB".parse::<ByteSize>(), Err(ParseSizeError::Range("16384PiB".into())));
        assert_eq!(
            "99999999999999999999".parse::<ByteSize>(),
            Err(ParseSizeError::Range("99999999999999999999".into()))
        );
    }

    #[test]
    fn rounds_for_people() {
        assert_eq!(ByteSize(8 << 30).rounded(), "8GiB");
        assert_eq!(ByteSize((8 << 30) - 1).rounded(), "7.9GiB");
        assert_eq!(ByteSize(1023).rounded(), "1023B");
        assert_eq!(ByteSize(u64::MAX).rounded(), "16383.9PiB");
    }

    proptest! {
        #[test]
        fn text_round_trips(bytes: u64) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn any_text_is_handled(text in ".{0,40}") {
            let _ = text.parse::<ByteSize>();
        }
    }
}
