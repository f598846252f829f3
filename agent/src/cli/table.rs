//! Aligned text tables: one line per object, no wrapping, no colours, so that `grep`, `awk` and eyes can read them.

use std::fmt;

/// Rows under headings.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Empty for a list of keys and values.
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table under `headings`. A column whose heading starts with `>` is aligned to the right.
    pub(super) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.into(), rows: Vec::new() }
    }

    /// A list of keys and values.
    pub(super) fn list() -> Self {
        Self::default()
    }

    /// Adds a line. An empty cell becomes `-`, so that each line has all columns.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| printable(if cell.is_empty() { "-".into() } else { cell }));
        self.rows.push(cells.collect());
    }

    fn widths(&self) -> Vec<usize> {
        let headings = self.headings.iter().map(|heading| heading.trim_start_matches('>').len()).collect();
        self.rows.iter().fold(headings, |mut widths: Vec<usize>, row| {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
            widths
        })
    }
}

/// Names of other hosts are shown: nothing in them may move the cursor or break a line.
fn printable(text: String) -> String {
    if text.chars().any(char::is_control) { text.escape_debug().to_string() } else { text }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        let headings: Vec<String> = self.headings.iter().map(|h| h.trim_start_matches('>').into()).collect();
        let heading_line = (!headings.is_empty()).then_some(&headings);
        for row in heading_line.into_iter().chain(&self.rows) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let right = self.headings.get(column).is_some_and(|heading| heading.starts_with('>'));
                let cell = if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
                line.push_str(&cell);
                line.push_str("  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", ">SIZE", "HOST"]);
        table.row(["a".into(), "10GiB".into(), "alpha".into()]);
        table.row(["debian-12".into(), "2B".into(), String::new()]);
        let lines = ["NAME        SIZE  HOST", "a          10GiB  alpha", "debian-12     2B  -", ""];
        assert_eq!(table.to_string(), lines.join("\n"));
    }

    #[test]
    fn an_empty_table_has_its_headings_and_a_list_has_none() {
        assert_eq!(Table::new(&["NAME"]).to_string(), "NAME\n");
        let mut list = Table::list();
        list.row(["name".into(), "x\ny".into()]);
        assert_eq!(list.to_string(), "name  x\\ny\n");
    }
}
