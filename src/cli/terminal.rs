//! What the commands print: JSON, listings, bars, and texts of others without characters that control a terminal or that
//! reorder text.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
};

use anyhow::Context;
use comfy_table::{ContentArrangement, Table, TableStyle};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use crate::analysis::text::{is_shown, on_one_line};

/// The text as one line, without escape sequences and characters that are not shown.
pub(super) fn clean(text: &str) -> String {
    on_one_line(&console::strip_ansi_codes(text))
}

fn json(value: &impl Serialize) -> serde_json::Result<String> {
    Ok(escaped(&serde_json::to_string_pretty(value)?).into_owned())
}

/// The text with characters that are not shown as JSON escapes them, such as `\u009b`. Line breaks stay.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    let stays = |c: char| c == '\n' || is_shown(c);
    if text.chars().all(stays) {
        return Cow::Borrowed(text);
    }
    // Characters that are not shown have at most four digits.
    let escape = |c: char| if stays(c) { c.to_string() } else { format!("\\u{:04x}", u32::from(c)) };
    Cow::Owned(text.chars().map(escape).collect())
}

pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{}", json(value)?)?)
}

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

/// A bar on standard error; hidden if that is not a terminal.
pub(super) fn bar(steps: u64, after: &str) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(steps);
    if !io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template(&format!("[{{bar:30}}] {after}")).context("the style of the bar")?;
    bar.set_style(style.progress_chars("=> "));
    Ok(bar)
}

pub(super) fn text(object: &Value, field: &str) -> String {
    clean(object[field].as_str().unwrap_or_default())
}

pub(super) fn count(object: &Value, field: &str) -> u64 {
    object[field].as_u64().unwrap_or_default()
}

pub(super) fn items<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object[field].as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn facts(lines: &[(&str, String)], width: usize, colours: bool) -> String {
    let dim = console::Style::new().force_styling(colours).dim();
    lines.iter().map(|(name, value)| format!("{} {value}\n", dim.apply_to(format!("{name:<width$}")))).collect()
}

/// An amount of money, to the hundredth of a cent: a call costs a few cents.
pub(super) fn dollars(amount: f64) -> String {
    format!("{amount:.4} US dollars")
}

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

/// The terminal's width; 80 without one.
pub(super) fn width() -> usize {
    console::Term::stdout().size_checked().map_or(80, |(_, columns)| usize::from(columns))
}

/// Whether to use colours on standard output. NO_COLOR overrides everything, see <https://no-color.org>.
pub(super) fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && console::colors_enabled()
}

#[cfg(test)]
mod tests {
    use serde_json::json as value;

    use super::*;

    /// Every character that a terminal obeys or that reorders others.
    fn obeyed() -> String {
        let controls = (0..0xa0).filter_map(char::from_u32).filter(|c| c.is_control());
        controls.chain("\u{61c}\u{200e}\u{202a}\u{202e}\u{2066}\u{2069}".chars()).collect()
    }

    #[test]
    fn json_has_no_character_that_a_terminal_obeys_and_still_means_the_same() {
        let value = value!({ obeyed(): [obeyed(), "plain – ü 好"] });
        let text = json(&value).unwrap();
        assert!(text.chars().all(|c| c == '\n' || is_shown(c)), "{text:?}");
        assert!(text.contains("plain – ü 好") && text.contains("\\u009b"));
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        let written = escaped(&value.to_string()).into_owned();
        assert!(written.chars().all(is_shown), "{written:?}");
        assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), value);
    }

    #[test]
    fn a_clean_line_has_the_visible_text_alone() {
        assert_eq!(clean(&format!("a\u{1b}[2Jb {}c\u{9b}31m", obeyed())), "ab c");
        assert_eq!(escaped("one\ntwo\u{9b}2J"), "one\ntwo\\u009b2J");
    }
}
