//! Texts of the model and of users, for display.

/// `text` on one line, without control characters and the invisible ones that change the order in which others are
/// shown.
pub fn on_one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace(|c: char| c.is_control() || changes_direction(c), "")
}

fn changes_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub(super) fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}
