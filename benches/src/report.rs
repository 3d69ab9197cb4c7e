//! What a run prints, and the page that it writes.

use std::{fmt::Write as _, sync::Mutex};

static PAGE: Mutex<String> = Mutex::new(String::new());

/// Prints a line, and puts it on the page.
pub fn line(text: &str) {
    println!("{text}");
    page(text);
}

/// Puts a line on the page only.
pub fn page(text: &str) {
    let mut page = PAGE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    page.push_str(text);
    page.push('\n');
}

/// Begins a section whose rows are [`row`]s.
pub fn section(title: &str) {
    println!("\n# {title}");
    page(&format!("\n## {title}\n\n| what | measured | target |\n| --- | ---: | --- |"));
}

/// One line of a section: what was measured, the figure, and what it is to be.
pub fn row(what: &str, figure: &str, target: &str) {
    println!("{what:<58} {figure:>22}   {target}");
    page(&format!("| {what} | {figure} | {target} |"));
}

/// A table with a heading line; the first column is to the left.
pub fn table(heading: &[String], rows: &[Vec<String>]) {
    let widths: Vec<usize> = (0..heading.len())
        .map(|i| rows.iter().chain([&heading.to_vec()]).map(|row| row[i].chars().count()).max().unwrap_or(0))
        .collect();
    let text = |row: &[String]| {
        let mut text = String::from("|");
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ =
                if i == 0 { write!(text, " {cell:<width$} |") } else { write!(text, " {cell:>width$} |") };
        }
        text
    };
    line(&text(heading));
    let rule: String = widths.iter().enumerate().fold("|".to_owned(), |mut rule, (i, _)| {
        rule.push_str(if i == 0 { " --- |" } else { " ---: |" });
        rule
    });
    line(&rule);
    rows.iter().for_each(|row| line(&text(row)));
}

/// Everything that was put on the page.
pub fn take_page() -> String {
    std::mem::take(&mut *PAGE.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}
