//! How commands print what they have found: tables for people, JSON and YAML for programs.
//!
//! Invariant: colour and nothing else depends on the terminal, so what a script reads is what a person sees.

use std::{
    io::{self, IsTerminal as _, Write as _},
    iter,
};

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Serialize;

/// Form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputForm {
    /// Columns for people
    Table,
    /// More columns
    Wide,
    /// JSON, with all that there is
    Json,
    /// YAML, with all that there is
    Yaml,
}

impl OutputForm {
    /// An answer in this form: `table` is told whether it is to be wide.
    ///
    /// # Errors
    /// Where the value can't be written so.
    pub fn of<T: Serialize>(self, value: &T, table: impl FnOnce(bool) -> Columns) -> anyhow::Result<String> {
        Ok(match self {
            Self::Table => table(false).to_string(),
            Self::Wide => table(true).to_string(),
            Self::Json => serde_json::to_string_pretty(value)? + "\n",
            Self::Yaml => serde_yaml::to_string(value)?,
        })
    }
}

impl OutputForm {
    /// An answer in this form, where people are told more than a table: `text` is told whether it is to be wide.
    ///
    /// # Errors
    /// Where the value can't be written so.
    pub fn of_text<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(bool) -> String,
    ) -> anyhow::Result<String> {
        match self {
            Self::Table | Self::Wide => Ok(text(self == Self::Wide)),
            form => form.of(value, |_| Columns::new([])),
        }
    }
}

/// Colour of a word on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// Something is wrong.
    Red,
    /// Something may be wrong.
    Yellow,
    /// All is well.
    Green,
    /// Something aside.
    Faint,
}

impl Paint {
    const fn code(self) -> &'static str {
        match self {
            Self::Red => "31",
            Self::Yellow => "33",
            Self::Green => "32",
            Self::Faint => "2",
        }
    }

    /// The text in this colour, where standard output is a terminal and nobody forbids colours (`NO_COLOR`).
    pub fn on(self, text: &str) -> String {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if text.is_empty() || !io::stdout().is_terminal() || dumb || is_set("NO_COLOR") {
            return text.to_owned();
        }
        format!("\x1b[{}m{text}\x1b[0m", self.code())
    }
}

/// The colour of a cell, by its text.
type CellPaint = fn(&str) -> Option<Paint>;

/// A table with a header.
#[derive(Debug)]
pub struct Columns {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    /// Of the column whose cells are painted, and the colour of each cell.
    painted: Option<(usize, CellPaint)>,
}

impl Columns {
    /// A table with these columns and no rows.
    pub fn new(header: impl Into<Vec<&'static str>>) -> Self {
        Self { header: header.into(), rows: Vec::new(), painted: None }
    }

    /// Paints the cells of the column with this header.
    #[must_use]
    pub fn paint(mut self, header: &str, paint: CellPaint) -> Self {
        self.painted = self.header.iter().position(|known| *known == header).map(|at| (at, paint));
        self
    }

    /// Adds a row: as many cells as there are columns.
    pub fn row(&mut self, cells: impl Into<Vec<String>>) {
        let cells = cells.into();
        debug_assert_eq!(cells.len(), self.header.len());
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Columns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let length = |cell: &str| cell.chars().count();
        let width = |at: usize| {
            let cells = self.rows.iter().map(|row| length(&row[at]));
            cells.chain(iter::once(length(self.header[at]))).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let header = self.header.iter().map(|&cell| cell.to_owned()).collect();
        for (number, row) in iter::once(&header).chain(&self.rows).enumerate() {
            let mut line = String::new();
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = " ".repeat(width - length(cell) + 3);
                let paint = self.painted.filter(|(column, _)| *column == at && number > 0);
                let paint = paint.and_then(|(_, paint)| paint(cell));
                line += &paint.map_or(cell.clone(), |paint| paint.on(cell));
                line += &gap;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A cell for what may not be there.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Prints to standard output. A reader that has gone away (`| head`) is no failure.
///
/// # Errors
/// When it can't be written to for another reason.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_with_text() {
        let mut table = Columns::new(["NAME", "ENDPOINTS", "NOTE"]);
        table.row(["a-long-name".to_owned(), "1".to_owned(), String::new()]);
        table.row(["ü".to_owned(), or_dash(None::<u8>), "so".to_owned()]);
        let expected = "NAME          ENDPOINTS   NOTE\na-long-name   1\nü             -           so\n";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn one_value_comes_in_each_form() {
        let table = |wide: bool| Columns::new(if wide { vec!["A", "B"] } else { vec!["A"] });
        let of = |form: OutputForm| form.of(&[1], table).unwrap();
        assert_eq!(
            OutputForm::value_variants().iter().map(|form| of(*form)).collect::<Vec<_>>(),
            ["A\n", "A   B\n", "[\n  1\n]\n", "- 1\n"]
        );
    }
}
