//! What the commands print: JSON, listings, bars, and texts of the service without anything a terminal would obey.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use comfy_table::{ContentArrangement, Table, TableStyle};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use crate::analysis::text::on_one_line;

/// Prints `value` as JSON, laid out for reading.
pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{}", serde_json::to_string_pretty(value)?)?)
}

/// A listing without borders.
pub(super) fn listing(header: impl Into<comfy_table::Row>) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table
}

pub(super) fn print_listing(table: &Table) -> io::Result<()> {
    let mut out = io::stdout().lock();
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim()))?;
    out.flush()
}

/// A bar on standard error, if that is a terminal.
pub(super) fn bar(steps: u64, after: &str) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(steps);
    if !io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template(&format!("[{{bar:30}}] {after}")).context("the style of the bar")?;
    bar.set_style(style.progress_chars("=> "));
    Ok(bar)
}

/// `text` on one line without anything a terminal would obey.
pub(super) fn clean(text: &str) -> String {
    on_one_line(&console::strip_ansi_codes(text))
}

/// A field as text; empty if it is missing.
pub(super) fn text(object: &Value, field: &str) -> String {
    clean(object[field].as_str().unwrap_or_default())
}

/// An amount of money, to the hundredth of a cent: a call costs a few cents.
pub(super) fn dollars(amount: f64) -> String {
    format!("{amount:.4} US dollars")
}

/// `object` without the fields that were not given.
pub(super) fn given(mut object: Value) -> Value {
    let is_given = |value: &Value| match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    };
    object.as_object_mut().into_iter().for_each(|fields| fields.retain(|_, value| is_given(value)));
    object
}

/// The terminal's width, or a page's.
pub(super) fn width() -> usize {
    console::Term::stdout().size_checked().map_or(80, |(_, columns)| usize::from(columns))
}

/// Whether to use colours on standard output. NO_COLOR overrides everything, see <https://no-color.org>.
pub(super) fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && console::colors_enabled()
}
