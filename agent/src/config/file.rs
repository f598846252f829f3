//! The configuration file: TOML to [`Layer`]. Every error names the file and the line, an unknown key also the nearest
//! one that exists.

use super::Layer;
use super::nearest::nearest;
use anyhow::{Context, anyhow};
use serde::de::{Deserialize, Deserializer, Error as _};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read};
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// Bytes of a configuration file: a full one has a few thousand.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The keys of the file's root and of each table, `None` where the operator names the keys. A test holds this list and
/// [`Layer`] together.
const KEYS: &[(&str, Option<&[&str]>)] = &[
    ("name", Some(&[])),
    ("state_dir", Some(&[])),
    ("socket", Some(&[])),
    ("socket_group", Some(&[])),
    ("listen", Some(&[])),
    ("bootstrap", Some(&[])),
    ("advertise", Some(&[])),
    ("mdns", Some(&[])),
    ("labels", None),
    ("limits", Some(&["vcpus", "memory", "disk"])),
    ("drain_on_stop", Some(&[])),
    ("drain_time_s", Some(&[])),
    ("dns", Some(&["listen"])),
    ("links", Some(&["congestion", "rate_mbit", "threads", "peers"])),
    ("offloads", Some(&["csum", "tso4", "tso6", "uso"])),
    ("log", Some(&["level", "format"])),
];

/// Reads the file, or `None` if there is none.
pub fn read(path: &Path) -> anyhow::Result<Option<Layer>> {
    let text = match std::fs::File::open(path) {
        Ok(file) => {
            let mut text = String::new();
            let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
            read.with_context(|| format!("Can't read the configuration file {}", path.display()))?;
            text
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("Can't open the configuration file {}", path.display()));
        }
    };
    anyhow::ensure!(text.len() as u64 <= FILE_BYTES_MAX, "{} is larger than 1 MiB", path.display());
    parse(&text, &path.display().to_string()).map(Some)
}

/// Parses the text of `file`.
pub fn parse(text: &str, file: &str) -> anyhow::Result<Layer> {
    let at = |error: &toml::de::Error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        anyhow!("{file}:{line}: {}", error.message().trim_end())
    };
    let table = DeTable::parse(text).map_err(|error| at(&error))?;
    let unknown = unknown_keys(table.get_ref());
    if !unknown.is_empty() {
        return Err(anyhow!(unknown.iter().fold(String::new(), |mut all, (offset, message)| {
            let newline = if all.is_empty() { "" } else { "\n" };
            let _ = write!(all, "{newline}{file}:{}: {message}", line_of(text, *offset));
            all
        })));
    }
    toml::from_str(text).map_err(|error| {
        let key = error.span().and_then(|span| key_of(table.get_ref(), span.start));
        let name = key.map(|key| format!("Bad value of `{key}`: ")).unwrap_or_default();
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        anyhow!("{file}:{line}: {name}{}", error.message().trim_end())
    })
}

/// The key whose value stands at `offset`, with the tables that it is in.
fn key_of(table: &DeTable<'_>, offset: usize) -> Option<String> {
    table.iter().find_map(|(key, value)| match value.get_ref() {
        // The span of a table may be that of its header only.
        DeValue::Table(inner) => key_of(inner, offset).map(|inner| format!("{}.{inner}", key.get_ref())),
        _ => value.span().contains(&offset).then(|| key.get_ref().to_string()),
    })
}

/// Offset and complaint for each key that means nothing.
fn unknown_keys(root: &DeTable<'_>) -> Vec<(usize, String)> {
    let names: Vec<&str> = KEYS.iter().map(|(name, _)| *name).collect();
    let mut unknown = Vec::new();
    for (key, value) in root {
        let name = key.get_ref().as_ref();
        let Some((_, inner)) = KEYS.iter().find(|(known, _)| *known == name) else {
            unknown.push((key.span().start, complaint(name, "", &names)));
            continue;
        };
        let (DeValue::Table(table), Some(inner)) = (value.get_ref(), inner) else { continue };
        for key in table.keys().filter(|key| !inner.contains(&key.get_ref().as_ref())) {
            unknown.push((key.span().start, complaint(key.get_ref(), &format!("{name}."), inner)));
        }
    }
    unknown.sort();
    unknown
}

fn complaint(key: &str, table: &str, keys: &[&str]) -> String {
    match nearest(key, keys) {
        Some(near) => format!("Unknown key `{table}{key}`: did you mean `{table}{near}`?"),
        None if keys.is_empty() => {
            format!("Unknown key `{table}{key}`: `{}` is not a table", table.trim_end_matches('.'))
        }
        None => format!("Unknown key `{table}{key}`: the keys here are {}", keys.join(", ")),
    }
}

/// The line of a byte, counted from 1.
fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1
}

/// Labels are text; `gpu = 1` and `ssd = true` are what users write.
pub(super) fn deserialize_labels<'de, D: Deserializer<'de>>(
    input: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    let labels = BTreeMap::<String, toml::Value>::deserialize(input)?;
    let text = |(key, value): (String, toml::Value)| match value {
        toml::Value::String(text) => Ok((key, text)),
        toml::Value::Integer(number) => Ok((key, number.to_string())),
        toml::Value::Boolean(truth) => Ok((key, truth.to_string())),
        other => Err(D::Error::custom(format!(
            "Label `{key}` is of type {}; a text, a number or true and false are possible",
            other.type_str()
        ))),
    };
    let labels: BTreeMap<_, _> = labels.into_iter().map(text).collect::<Result<_, _>>()?;
    for (key, value) in &labels {
        super::check_label(key, value).map_err(D::Error::custom)?;
    }
    Ok(Some(labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text, "agent.toml").unwrap_err().to_string()
    }

    #[test]
    fn names_file_line_and_nearest_key() {
        assert_eq!(error("mdns = true\n\nnmae = \"a\""), "agent.toml:3: Unknown key `nmae`: did you mean `name`?");
        assert_eq!(
            error("[limits]\nmem = \"1GiB\"\nvcpu = 1\nmemry = 1"),
            "agent.toml:2: Unknown key `limits.mem`: the keys here are vcpus, memory, disk\n\
             agent.toml:3: Unknown key `limits.vcpu`: did you mean `limits.vcpus`?\n\
             agent.toml:4: Unknown key `limits.memry`: did you mean `limits.memory`?"
        );
        assert!(error("frobnicate = 1").starts_with("agent.toml:1: Unknown key `frobnicate`: the keys here are name,"));
    }

    #[test]
    fn names_the_line_of_a_wrong_value() {
        let cases = [
            ("\nname = \"A B\"", "agent.toml:2: Bad value of `name`: Not a name: `A B`"),
            ("name = 1", "agent.toml:1: Bad value of `name`: invalid type: integer `1`"),
            ("listen = \"4747\"", "agent.toml:1: Bad value of `listen`: Not an address and port to listen on: `4747`"),
            (
                "bootstrap = [\n  \"192.0.2.1:4747\",\n]",
                "agent.toml:1: Bad value of `bootstrap`: Not a multiaddress: `192.0.2.1:4747`",
            ),
            ("advertise = [\"/ip4/192.0.2.1\"]", "agent.toml:1: Bad value of `advertise`: Not an address of an agent"),
            ("[limits]\nmemory = \"8GB\"", "agent.toml:2: Bad value of `limits.memory`: Unknown unit `GB`"),
            ("[limits]\nmemory = -1", "agent.toml:2: Bad value of `limits.memory`: invalid value"),
            ("[labels]\n\"a b\" = 1", "agent.toml:1: Not a label: `a b`"),
            ("[log]\nlevel = \"loud=\"", "agent.toml:2: Bad value of `log.level`: Not a log level"),
            ("[log]\nformat = \"xml\"", "agent.toml:2: Bad value of `log.format`: unknown variant `xml`"),
            ("[links]\nthreads = 65", "agent.toml:2: Bad value of `links.threads`: 65 threads are too many"),
            ("limits = 3", "agent.toml:1: Bad value of `limits`: invalid type"),
            ("name.x = 3", "agent.toml:1: Unknown key `name.x`: `name` is not a table"),
            ("name = \"a\"\nname = \"b\"", "agent.toml:2: duplicate key"),
            ("name = \"a", "agent.toml:1: "),
        ];
        for (text, start) in cases {
            let error = error(text);
            assert!(error.starts_with(start), "{text}: {error}");
        }
    }

    #[test]
    fn the_list_of_keys_is_that_of_the_types() {
        // The types refuse unknown keys themselves, so each listed key must get past their check.
        for (key, inner) in KEYS {
            let known = |text: &str| match toml::from_str::<Layer>(text) {
                Ok(_) => true,
                Err(error) => !error.message().starts_with("unknown field"),
            };
            assert!(known(&format!("{key} = []")), "{key}");
            for inner in inner.unwrap_or_default() {
                assert!(known(&format!("{key}.{inner} = []")), "{key}.{inner}");
            }
        }
        // And the types list no more than is listed here.
        let all = toml::from_str::<Layer>("zzz = 1").unwrap_err();
        assert_eq!(all.message().matches('`').count() / 2, KEYS.len() + 1, "{}", all.message());
    }

    #[test]
    fn a_missing_file_is_no_layer() {
        assert_eq!(read(Path::new("/nonexistent/agent.toml")).unwrap(), None);
        assert!(read(Path::new("/")).is_err());
    }
}
