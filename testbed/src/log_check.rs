//! Judges the log of an agent: every warning, error or panic that a scenario has not declared is a failure.

/// A declared warning or error: a line of `host`'s log (any host if `None`) that contains `text`.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) host: Option<String>,
    pub(crate) text: String,
}

/// The lines of `log` that an operator would have to look at and nobody declared.
pub(crate) fn unexpected(host: &str, log: &str, expected: &[Expected]) -> Vec<String> {
    let declared = |line: &str| {
        let about_host = |e: &&Expected| e.host.as_deref().is_none_or(|name| name == host);
        expected.iter().filter(about_host).any(|e| line.contains(&e.text))
    };
    let lines = log.lines().map(strip_colours);
    lines.filter(|line| is_alarming(line) && !declared(line)).collect()
}

/// A text log line is `TIME LEVEL target: ..`; a JSON one has a level key; a panic and the last words of the
/// process have neither.
fn is_alarming(line: &str) -> bool {
    let level = |word: &str| matches!(word, "WARN" | "ERROR");
    line.split_whitespace().take(2).any(level)
        || [r#""level":"WARN""#, r#""level":"ERROR""#].iter().any(|key| line.contains(key))
        || (line.starts_with("thread '") && line.contains("panicked at"))
        || line.starts_with("Error")
        || line.starts_with("fatal runtime error")
}

fn strip_colours(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.split_once('m').map_or("", |(_, text)| text));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-01-01T00:00:00.000Z  INFO virtuoso::daemon: Ready
2026-01-01T00:00:01.000Z  WARN virtuoso::swarm: Bootstrap is not reachable address=10.0.0.1
\u{1b}[2m2026-01-01T00:00:02Z\u{1b}[0m \u{1b}[31mERROR\u{1b}[0m virtuoso: Socket lost
2026-01-01T00:00:03.000Z  INFO virtuoso: A message about a WARN is none
{\"timestamp\":\"2026\",\"level\":\"WARN\",\"fields\":{\"message\":\"Odd\"}}
thread 'main' panicked at agent/src/main.rs:1:1:
Error: Cannot open the state directory";

    fn expected(host: Option<&str>, text: &str) -> Expected {
        Expected { host: host.map(str::to_owned), text: text.to_owned() }
    }

    #[test]
    fn finds_every_alarming_line() {
        let found = unexpected("alpha", LOG, &[]);
        assert_eq!(found.len(), 5, "{found:#?}");
        assert!(found[1].contains("ERROR virtuoso: Socket lost"));
    }

    #[test]
    fn leaves_out_what_was_declared_for_this_host() {
        let declared = [expected(Some("alpha"), "Bootstrap is not reachable"), expected(None, "panicked")];
        assert_eq!(unexpected("alpha", LOG, &declared).len(), 3);
        assert_eq!(unexpected("beta", LOG, &declared).len(), 4);
    }
}
