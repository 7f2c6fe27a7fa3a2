//! Texts of the model and of users, for display.

/// `text` on one line, without the characters that are not shown.
pub fn on_one_line(text: &str) -> String {
    let words = text.split_whitespace().map(|word| word.replace(|c| !is_shown(c), ""));
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Whether a character is shown. A terminal obeys control characters, and the others here change the order of the text.
pub fn is_shown(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub(super) fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}
