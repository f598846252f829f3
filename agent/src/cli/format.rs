//! Values as people read them.

use crate::size::ByteSize;
use std::collections::BTreeMap;

/// Bytes with a unit.
pub(super) fn bytes(bytes: u64) -> String {
    ByteSize(bytes).rounded()
}

/// A time span in its largest unit.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1}s"),
        s if s < 120.0 => format!("{s:.0}s"),
        s if s < 7_200.0 => format!("{:.0}m", s / 60.0),
        s if s < 172_800.0 => format!("{:.0}h", s / 3_600.0),
        s => format!("{:.0}d", s / 86_400.0),
    }
}

/// A round trip.
pub(super) fn rtt(rtt_us: Option<u64>) -> String {
    rtt_us.map_or_else(String::new, |us| format!("{}.{:02}ms", us / 1000, us % 1000 / 10))
}

/// `yes` or `no`.
pub(super) fn yes(truth: bool) -> String {
    if truth { "yes".into() } else { "no".into() }
}

/// A value's JSON word, as `alive`.
pub(super) fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// Values with commas between.
pub(super) fn list<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join(",")
}

/// Counters by name, those that counted something.
pub(super) fn counts(counters: &BTreeMap<String, u64>) -> String {
    list(counters.iter().map(|(name, count)| format!("{name}={count}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        assert_eq!([0.04, 59.6, 3600.0, 86_400.0, 864_000.0].map(seconds), ["0.0s", "60s", "60m", "24h", "10d"]);
        assert_eq!((rtt(Some(12_345)), rtt(None)), ("12.34ms".into(), String::new()));
        assert_eq!(word(&crate::control::model::HostState::Alive), "alive");
        assert_eq!(list([1, 2]), "1,2");
        let counters = BTreeMap::from([("queue_full".into(), 3), ("no_link".into(), 1)]);
        assert_eq!(counts(&counters), "no_link=1,queue_full=3");
    }
}
