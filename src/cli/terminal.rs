//! Text of others on its way to a terminal: without characters that a terminal obeys, or that change the order of others.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, Write},
};

use serde::Serialize;

use crate::analysis::text::{is_shown, on_one_line};

/// The text as one line, without escape sequences and characters that are not shown.
pub(super) fn clean(text: &str) -> String {
    on_one_line(&console::strip_ansi_codes(text))
}

/// The value as indented JSON.
pub(super) fn json(value: &impl Serialize) -> serde_json::Result<String> {
    Ok(escaped(&serde_json::to_string_pretty(value)?).into_owned())
}

/// The text with characters that are not shown as JSON escapes them, such as `\u009b`. Line breaks stay.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    let stays = |c: char| c == '\n' || is_shown(c);
    if text.chars().all(stays) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().fold(String::with_capacity(text.len() + 64), |mut escaped, c| {
        if stays(c) {
            escaped.push(c);
        } else {
            // All of them have four digits at most.
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        }
        escaped
    }))
}

/// A writer that escapes what it is given. A character must not be split between two writes.
pub(super) struct Escaping<W>(pub(super) W);

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match str::from_utf8(bytes) {
            Ok(text) => self.0.write_all(escaped(text).as_bytes())?,
            Err(_) => self.0.write_all(escaped(&String::from_utf8_lossy(bytes)).as_bytes())?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Every character that a terminal obeys or that reorders others.
    fn obeyed() -> String {
        let controls = (0..0xa0).filter_map(char::from_u32).filter(|c| c.is_control());
        controls.chain("\u{61c}\u{200e}\u{202a}\u{202e}\u{2066}\u{2069}".chars()).collect()
    }

    #[test]
    fn json_has_no_character_that_a_terminal_obeys_and_still_means_the_same() {
        let value = json!({ obeyed(): [obeyed(), "plain – ü 好"] });
        let text = json(&value).unwrap();
        assert!(text.chars().all(|c| c == '\n' || is_shown(c)), "{text:?}");
        assert!(text.contains("plain – ü 好") && text.contains("\\u009b"));
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        let mut written = Vec::new();
        serde_json::to_writer(Escaping(&mut written), &value).unwrap();
        let written = String::from_utf8(written).unwrap();
        assert!(written.chars().all(is_shown), "{written:?}");
        assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), value);
    }

    #[test]
    fn a_clean_line_has_the_visible_text_alone() {
        assert_eq!(clean(&format!("a\u{1b}[2Jb {}c\u{9b}31m", obeyed())), "ab c");
        assert_eq!(escaped("one\ntwo\u{9b}2J"), "one\ntwo\\u009b2J");
    }
}
