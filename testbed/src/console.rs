//! What the testbed tells its user, on stdout and stderr. A reader that has gone away (`| head`) ends nothing.

use std::fmt::Display;
use std::io::Write;

pub(crate) fn line(text: impl Display) {
    let mut out = std::io::stdout().lock();
    // The only likely error is a closed pipe: the run goes on, its report is in files.
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// What went wrong, on stderr.
pub(crate) fn complain(text: impl Display) {
    let mut out = std::io::stderr().lock();
    // Without stderr there is nobody to tell.
    let _ = writeln!(out, "testbed: {text}");
}

/// Rows as a table with columns as wide as needed; the first row is the header.
pub(crate) fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        line(cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
