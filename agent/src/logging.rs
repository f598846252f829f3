//! Logs: to stderr, as text or JSON, with a level that can change while the agent runs.

use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt as text, reload, util::SubscriberInitExt};

/// Libraries whose every packet and connection would be told: they speak up only when an operator must look.
const QUIET: [&str; 12] = [
    "hickory_proto",
    "hickory_resolver",
    "hyper",
    "libp2p",
    "mio",
    "multistream_select",
    "netlink_proto",
    "quinn",
    "quinn_proto",
    "quinn_udp",
    "rustls",
    "yamux",
];

/// Kademlia warns at every start of a first host that it knows nobody, which is no operator's business.
const KADEMLIA: &str = "libp2p_kad=error";

/// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,virtuoso_engine=debug`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogFilter(String);

/// What a line of the log looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, for log collectors.
    Json,
}

/// Why a text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Not a log level: `{0}`: expected error, warn, info, debug or trace, or TARGET=LEVEL pairs with commas between"
)]
pub struct ParseFilterError(String);

/// Changes the level of a running agent.
#[derive(Clone)]
pub struct LogHandle(reload::Handle<EnvFilter, Registry>);

/// Starts logging. Call once, before anything else can log.
pub fn start(filter: &LogFilter, format: LogFormat) -> anyhow::Result<LogHandle> {
    let (reloadable, handle) = reload::Layer::new(filter.env_filter());
    let lines = text::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let started = Registry::default().with(reloadable).with(lines).try_init();
    started.context("Logging was started before")?;
    Ok(LogHandle(handle))
}

impl LogHandle {
    /// From now on, what `filter` lets through is logged.
    pub fn set(&self, filter: &LogFilter) -> anyhow::Result<()> {
        self.0.reload(filter.env_filter()).context("Can't change the log level")
    }
}

impl LogFilter {
    /// This filter after the quiet libraries, so that it can name one of them and be heard.
    fn env_filter(&self) -> EnvFilter {
        let quiet = QUIET.map(|target| format!("{target}=warn")).join(",");
        EnvFilter::builder().parse_lossy(format!("{quiet},{KADEMLIA},{}", self.0))
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".into())
    }
}

impl FromStr for LogFilter {
    type Err = ParseFilterError;

    fn from_str(text: &str) -> Result<Self, ParseFilterError> {
        // A lone word that is no level would be taken for a target and silence everything else.
        let level = |word: &str| word == "off" || word.parse::<tracing::Level>().is_ok();
        let directive = |part: &str| match part.rsplit_once('=') {
            Some((target, word)) => !target.is_empty() && level(word),
            None => level(part),
        };
        let valid = text.split(',').all(directive) && EnvFilter::builder().parse(text).is_ok();
        if valid { Ok(Self(text.into())) } else { Err(ParseFilterError(text.into())) }
    }
}

impl TryFrom<String> for LogFilter {
    type Error = ParseFilterError;

    fn try_from(text: String) -> Result<Self, ParseFilterError> {
        text.parse()
    }
}

impl From<LogFilter> for String {
    fn from(filter: LogFilter) -> Self {
        filter.0
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        for right in ["info", "off", "debug,libp2p=info", "warn,virtuoso_engine=trace"] {
            assert_eq!(right.parse::<LogFilter>().unwrap().to_string(), right);
        }
        for wrong in ["", "loud", "info,engine", "a=loud", "info,,debug", "a="] {
            assert!(wrong.parse::<LogFilter>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn libraries_are_quiet_unless_named() {
        assert!(LogFilter("debug".into()).env_filter().to_string().contains("quinn=warn"));
        let named = LogFilter("debug,quinn=trace".into()).env_filter().to_string();
        assert!(named.contains("quinn=trace") && !named.contains("quinn=warn"), "{named}");
    }
}
