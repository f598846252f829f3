//! What a run says at its end.

use crate::options::Options;
use crate::world::World;
use serde::Serialize;

/// The result of a run with faults.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// What the run was like.
    pub options: Options,
    /// Depends on everything that happened.
    pub hash: String,
    /// How many things happened.
    pub events: u64,
    /// Seconds from the end of the faults until everything was in order.
    pub settled_s: Option<f64>,
    /// Numbered frames that guests sent.
    pub frames_sent: u64,
    /// Those that arrived.
    pub frames_received: u64,
    /// What went wrong, if anything.
    pub failure: Option<String>,
    /// What happened before it did.
    pub trace: Vec<String>,
}

impl RunReport {
    /// Sums a run up.
    pub fn new(world: &World, settled_s: Option<f64>, failure: Option<String>) -> Self {
        let (hash, events) = world.fingerprint();
        let failure = world.violations().first().map(|v| format!("{} s: {}", v.at.0 as f64 / 1e6, v.what)).or(failure);
        Self {
            options: world.options.clone(),
            hash: format!("{hash:016x}"),
            events,
            settled_s,
            frames_sent: world.model.frames.len() as u64,
            frames_received: world.model.frames.iter().filter(|frame| !frame.received.is_empty()).count() as u64,
            trace: if failure.is_some() { world.trace_tail() } else { Vec::new() },
            failure,
        }
    }

    /// One line, and everything about a failure.
    pub fn text(&self) -> String {
        let Self { options, hash, events, settled_s, frames_sent, frames_received, .. } = self;
        let settled = settled_s.map_or_else(|| "never".into(), |s| format!("{s:.1} s"));
        let mut text = format!(
            "seed {:<6} hosts {:<4} events {events:<8} frames {frames_received}/{frames_sent} in order after {settled} hash {hash}",
            options.seed, options.hosts
        );
        if let Some(failure) = &self.failure {
            text = format!("{text}\nFAILED: {failure}\n{options:#?}\n{}", self.trace.join("\n"));
        }
        text
    }
}
