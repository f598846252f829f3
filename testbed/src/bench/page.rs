//! The report as one HTML file, with bars where tunnels stand beside each other. It needs no other file and no script.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value};

/// Writes the figures of `report` as a page.
pub(super) fn write(file: &Path, report: &impl Serialize) -> Result<()> {
    let report = serde_json::to_value(report).context("The report is no JSON")?;
    fs::write(file, page(&report)).with_context(|| format!("Cannot write {}", file.display()))
}

fn page(report: &Value) -> String {
    let mut body = String::new();
    for (name, part) in report.as_object().into_iter().flatten() {
        let heading = escaped(&words(name));
        let content = if name == "tunnels" { tunnels(part) } else { content(part) };
        let _ = write!(body, "<section><h2>{heading}</h2>{content}</section>");
    }
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>Virtuoso: figures</title><style>{STYLE}</style><h1>Virtuoso: figures</h1>{body}</html>\n"
    )
}

/// A chart for each figure, and how each tunnel was set up. The single rounds are in the JSON file.
fn tunnels(tunnels: &Value) -> String {
    let about = |tunnel: &Value| {
        let field = |key: &str| escaped(tunnel[key].as_str().unwrap_or_default());
        format!("<tr><th>{}<td>{}<td>MTU {}", field("name"), field("about"), content(&tunnel["guest_mtu"]))
    };
    let rows: String = tunnels["measured"].as_array().into_iter().flatten().map(about).collect();
    let skipped: String = tunnels["skipped"].as_array().into_iter().flatten().map(content).collect();
    format!("{}<table>{rows}</table><p>{skipped}</p>", charts(tunnels))
}

fn charts(tunnels: &Value) -> String {
    let measured: Vec<&Value> = tunnels["measured"].as_array().into_iter().flatten().collect();
    let figures = measured.iter().find_map(|tunnel| tunnel["median"].as_object());
    let charts = figures.into_iter().flat_map(Map::keys).map(|figure| {
        let bars: Vec<(&str, f64)> = measured
            .iter()
            .filter_map(|tunnel| Some((tunnel["name"].as_str()?, tunnel["median"][figure].as_f64()?)))
            .collect();
        format!("<figure><figcaption>{}</figcaption>{}</figure>", escaped(&words(figure)), chart(&bars))
    });
    format!("<div class=charts>{}</div>", charts.collect::<String>())
}

fn chart(bars: &[(&str, f64)]) -> String {
    let most = bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let height = bars.len() * ROW;
    let mut svg = format!("<svg viewBox='0 0 {WIDTH} {height}' role=img>");
    for (row, (name, value)) in bars.iter().enumerate() {
        let (top, length) = (row * ROW, value / most * f64::from(BAR_MAX));
        let (middle, thickness) = (top + ROW / 2, ROW - 6);
        let class = if *name == "virtuoso" { " class=ours" } else { "" };
        let _ = write!(
            svg,
            "<text x='{NAMES}' y='{middle}' class=name>{}</text>\
             <rect{class} x='{}' y='{}' width='{length:.1}' height='{thickness}'/>\
             <text x='{:.1}' y='{middle}'>{}</text>",
            escaped(name),
            NAMES + 6,
            top + 3,
            f64::from(NAMES + 12) + length,
            number(*value),
        );
    }
    svg + "</svg>"
}

/// A list of alike objects as a table, everything else as names and values.
fn content(value: &Value) -> String {
    match value {
        Value::Array(items) if items.iter().all(Value::is_object) && !items.is_empty() => table(items),
        Value::Array(items) if items.iter().all(Value::is_number) => {
            items.iter().map(content).collect::<Vec<_>>().join(", ")
        }
        Value::Array(items) => items.iter().map(|item| format!("<p>{}</p>", content(item))).collect(),
        Value::Object(fields) => {
            let row =
                |(name, value): (&String, &Value)| format!("<tr><th>{}<td>{}", escaped(&words(name)), content(value));
            format!("<table>{}</table>", fields.iter().map(row).collect::<String>())
        }
        Value::Number(figure) => number(figure.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => escaped(text),
        Value::Bool(_) | Value::Null => value.to_string(),
    }
}

fn table(items: &[Value]) -> String {
    let columns: Vec<&String> = items[0].as_object().into_iter().flat_map(Map::keys).collect();
    let head: String = columns.iter().map(|column| format!("<th>{}", escaped(&words(column)))).collect();
    let row = |item: &Value| {
        let cells = columns.iter().map(|column| format!("<td>{}", content(&item[column.as_str()])));
        format!("<tr>{}", cells.collect::<String>())
    };
    format!("<table><tr>{head}{}</table>", items.iter().map(row).collect::<String>())
}

fn number(value: f64) -> String {
    match value {
        value if value.fract() == 0.0 && value.abs() < 1e15 => format!("{value:.0}"),
        value if value.abs() >= 100.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    }
}

/// A key of the JSON as a phrase, its unit in brackets.
fn words(name: &str) -> String {
    let units = [("_gbit_s", "Gbit/s"), ("_mb_per_s", "MB/s"), ("_s_per_gb", "s/GB"), ("_per_s", "1/s")];
    let short = [("_bytes", "bytes"), ("_percent", "%"), ("_us", "us"), ("_ms", "ms"), ("_s", "s")];
    let with_unit = units.iter().chain(&short).find_map(|(suffix, unit)| Some((name.strip_suffix(suffix)?, unit)));
    match with_unit {
        Some((name, unit)) => format!("{} ({unit})", name.replace('_', " ")),
        None => name.replace('_', " "),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

const WIDTH: u32 = 420;
/// Where bars begin.
const NAMES: u32 = 80;
const BAR_MAX: u32 = 260;
const ROW: usize = 22;
const STYLE: &str = "\
    body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}\
    h2{margin-top:2.5rem;border-bottom:1px solid #d0d7de}\
    table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
    th,td{padding:.2rem .7rem;text-align:left;vertical-align:top;border-bottom:1px solid #eaeef2}\
    .charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(22rem,1fr));gap:1rem 2rem}\
    figure{margin:0}figcaption{font-weight:600;margin-bottom:.3rem}\
    svg{width:100%}svg text{font-size:12px;dominant-baseline:middle;fill:#57606a}svg .name{text-anchor:end}\
    rect{fill:#afb8c1}rect.ours{fill:#0969da}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_every_figure_and_no_markup_of_others() {
        let tunnel = |name: &str, rate: f64| serde_json::json!({"name": name, "median": {"tcp_1_gbit_s": rate}});
        let report = serde_json::json!({
            "machine": {"kernel": "6.1 <x>"},
            "vms": {"list_ms": [1.5, 2], "moved_percent": 3, "import_mb_per_s": 400},
            "tunnels": {"measured": [tunnel("virtuoso", 4.73), tunnel("tinc", 0.7)], "skipped": ["a: b & c"]},
        });
        let page = page(&report);
        for part in [
            "list (ms)<td>1.50, 2",
            "moved (%)<td>3",
            "import (MB/s)",
            "6.1 &lt;x&gt;",
            "4.73",
            "class=ours",
            "tcp 1 (Gbit/s)",
            "a: b &amp; c",
            ">tinc<",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        assert!(!page.contains("<x>"));
    }

    #[test]
    fn the_longest_bar_is_the_largest_figure() {
        let svg = chart(&[("a", 1.0), ("b", 4.0)]);
        assert!(svg.contains("width='65.0'") && svg.contains("width='260.0'"), "{svg}");
    }
}
