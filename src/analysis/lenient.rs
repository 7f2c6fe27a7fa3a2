//! JSON as models nearly write it, rewritten as JSON.
//!
//! Recovers slips that leave no doubt about what is meant, and names them: a trailing comma, a comment, a raw line break in
//! a text. It invents nothing: what is cut stays cut. Whether the outcome is JSON is up to serde_json.

use std::collections::BTreeSet;

/// A slip of an answer that was recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(super) enum Repair {
    /// A comma before a closing bracket.
    TrailingComma,
    Comment,
    /// A line break, tab or the like within a text, not escaped.
    ControlCharacter,
    /// `True`, `None` and the like.
    Literal,
    Punctuation,
    /// Curly, full-width or single quotes around a text.
    QuoteCharacter,
    /// A quote within a text, not escaped.
    UnescapedQuote,
    UnquotedKey,
    /// An escape that JSON does not have.
    Escape,
    /// `4.0` for `4`.
    WholeNumber,
    /// `"4"` for `4`.
    NumberAsText,
    /// `"true"` for `true`.
    BooleanAsText,
    /// `two-way door` for `two_way_door`.
    EnumWord,
    /// The JSON is a text within JSON: its quotes are escaped.
    QuotedJson,
}

pub(super) struct Rewritten {
    pub(super) json: String,
    /// Bytes of the text that the JSON was made of.
    pub(super) length: usize,
    pub(super) repairs: BTreeSet<Repair>,
}

/// Rewrites the object or list that `text` begins with. `None` where no JSON can be meant.
pub(super) fn rewrite(text: &str) -> Option<Rewritten> {
    let mut scanner = Scanner { text, at: 0, json: String::with_capacity(text.len()), repairs: BTreeSet::new() };
    let mut depth = 0_usize;
    while let Some(c) = scanner.next() {
        match ascii(c) {
            open @ ('{' | '[') => {
                depth += 1;
                scanner.structural(c, open);
            }
            close @ ('}' | ']') => {
                scanner.drop_trailing_comma();
                scanner.structural(c, close);
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    break;
                }
            }
            sign @ (',' | ':') => scanner.structural(c, sign),
            '/' | '#' => scanner.comment(c)?,
            _ if quote(c).is_some() => scanner.string(c),
            _ if is_blank(c) => scanner.json.push(if c.is_ascii() { c } else { ' ' }),
            number @ ('-' | '+' | '.' | '0'..='9') => scanner.structural(c, number),
            'e' | 'E' if scanner.json.ends_with(|c: char| c.is_ascii_digit()) => scanner.json.push(c),
            _ => scanner.word(c)?,
        }
        if depth == 0 {
            return None;
        }
    }
    let Scanner { at, json, repairs, .. } = scanner;
    Some(Rewritten { json, length: at, repairs })
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    json: String,
    repairs: BTreeSet<Repair>,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn structural(&mut self, found: char, meant: char) {
        if found != meant {
            self.repairs.insert(Repair::Punctuation);
        }
        self.json.push(meant);
    }

    fn drop_trailing_comma(&mut self) {
        let end = self.json.trim_end().len();
        if self.json[..end].ends_with(',') {
            self.json.remove(end - 1);
            self.repairs.insert(Repair::TrailingComma);
        }
    }

    /// Skips a comment, whose first character was taken.
    fn comment(&mut self, first: char) -> Option<()> {
        let rest = self.rest();
        let length = match (first, rest.chars().next()) {
            ('/', Some('*')) => rest.find("*/").map_or(rest.len(), |end| end + 2),
            ('#', _) | ('/', Some('/')) => rest.find(['\n', '\r']).unwrap_or(rest.len()),
            _ => return None,
        };
        self.at += length;
        self.repairs.insert(Repair::Comment);
        Some(())
    }

    /// A literal, perhaps as Python has it, or a key without quotes.
    fn word(&mut self, first: char) -> Option<()> {
        let start = self.at - first.len_utf8();
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '$');
        let end = self.rest().find(|c| !is_part(c)).unwrap_or(self.rest().len());
        let word = &self.text[start..self.at + end];
        self.at += end;
        if let Some(literal) = literal(word) {
            if literal != word {
                self.repairs.insert(Repair::Literal);
            }
            self.json.push_str(literal);
            return Some(());
        }
        if !is_part(first) || !self.rest().trim_start().starts_with([':', '：']) {
            return None;
        }
        self.repairs.insert(Repair::UnquotedKey);
        self.json.extend(["\"", word, "\""]);
        Some(())
    }

    /// A text, whose opening quote was taken, up to the quote that ends it. A missing one is not put in.
    fn string(&mut self, open: char) {
        if open != '"' {
            self.repairs.insert(Repair::QuoteCharacter);
        }
        self.json.push('"');
        while let Some(c) = self.next() {
            if closes(open, c) {
                if ends_string(self.rest()) {
                    return self.json.push('"');
                }
                if c == '"' {
                    self.repairs.insert(Repair::UnescapedQuote);
                }
            }
            match c {
                '\\' => self.escape(),
                '"' => self.json.push_str("\\\""),
                '\0'..='\x1f' => {
                    self.repairs.insert(Repair::ControlCharacter);
                    self.control_character(c);
                }
                c => self.json.push(c),
            }
        }
    }

    fn control_character(&mut self, c: char) {
        self.json.push_str(&format!("\\u{:04x}", u32::from(c)));
    }

    /// An escape, whose backslash was taken.
    fn escape(&mut self) {
        let rest = self.rest();
        let Some(c) = self.next() else { return self.json.push('\\') };
        match c {
            '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => self.json.extend(['\\', c]),
            'u' => self.unicode_escape(rest),
            _ => {
                self.repairs.insert(Repair::Escape);
                match c {
                    '\0'..='\x1f' => self.control_character(c),
                    // Only a quote can be meant; before anything else it is a backslash.
                    _ if quote(c).is_some() => self.json.push(c),
                    _ => self.json.extend(['\\', '\\', c]),
                }
            }
        }
    }

    /// `\uXXXX`, of which `u` was taken and `rest` begins there. Half of a surrogate pair alone stands for nothing.
    fn unicode_escape(&mut self, rest: &str) {
        let unit = |rest: &str| {
            let digits = rest.strip_prefix('u')?.get(..4)?;
            u16::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
        };
        let Some(first) = unit(rest) else {
            self.repairs.insert(Repair::Escape);
            return self.json.push_str("\\\\u");
        };
        let second = rest[5..].strip_prefix('\\').and_then(unit);
        let length = match (first, second) {
            (0xd800..=0xdbff, Some(0xdc00..=0xdfff)) => "uXXXX\\uXXXX".len(),
            (0xd800..=0xdfff, _) => {
                self.repairs.insert(Repair::Escape);
                self.at += "XXXX".len();
                return self.json.push(char::REPLACEMENT_CHARACTER);
            }
            _ => "uXXXX".len(),
        };
        self.json.push('\\');
        self.json.push_str(&rest[..length]);
        self.at += length - "u".len();
    }
}

/// The ASCII character that a full-width one stands for.
pub(super) fn ascii(c: char) -> char {
    match c {
        '、' => ',',
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c),
        _ => c,
    }
}

/// The ASCII quote that a quote stands for.
fn quote(c: char) -> Option<char> {
    match c {
        '"' | '“' | '”' | '„' | '‟' | '＂' => Some('"'),
        '\'' | '‘' | '’' | '‚' | '＇' | '`' => Some('\''),
        _ => None,
    }
}

/// Whether `c` can end a text that `open` began. A curly quote within straight ones is part of the text.
fn closes(open: char, c: char) -> bool {
    c == open || !matches!(open, '"' | '\'' | '`') && quote(c).is_some() && quote(c) == quote(open)
}

fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{feff}' | '\u{200b}')
}

fn literal(word: &str) -> Option<&'static str> {
    match word {
        "true" | "True" | "TRUE" => Some("true"),
        "false" | "False" | "FALSE" => Some("false"),
        "null" | "None" | "NULL" => Some("null"),
        _ => None,
    }
}

/// Whether a quote before `rest` ends its text: what JSON has after a text follows, and after a comma or colon what JSON
/// has there. So a quote within a text, which should have been escaped, is seldom taken for the end.
fn ends_string(rest: &str) -> bool {
    let rest = rest.trim_start_matches(is_blank);
    let mut chars = rest.chars();
    match chars.next().map(ascii) {
        None | Some('}' | ']' | '/' | '#') => true,
        Some(',' | ':') => {
            let after = chars.as_str().trim_start_matches(is_blank);
            let word = after.find(|c: char| !c.is_alphanumeric() && c != '_').map_or(after, |end| &after[..end]);
            match after.chars().next() {
                None => true,
                Some(c) if quote(c).is_some() => true,
                Some(c) if "{[}]-/#".contains(ascii(c)) || ascii(c).is_ascii_digit() => true,
                Some(_) => literal(word).is_some() || after[word.len()..].trim_start().starts_with([':', '：']),
            }
        }
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// The JSON that is read, and the repairs.
    fn read(text: &str) -> Option<(Value, Vec<&'static str>)> {
        let Rewritten { json, repairs, .. } = rewrite(text)?;
        Some((serde_json::from_str(&json).ok()?, repairs.into_iter().map(Into::into).collect()))
    }

    #[test]
    fn each_slip_is_recovered_and_named() {
        for (text, value, repair) in [
            ("{\"a\": [1, 2, ], }", json!({"a": [1, 2]}), "trailing_comma"),
            ("{ // it\n\"a\": /* is */ 1 # so\n}", json!({"a": 1}), "comment"),
            ("{\"a\": \"one\ntwo\tthree\"}", json!({"a": "one\ntwo\tthree"}), "control_character"),
            ("{\"a\": True, \"b\": None, \"c\": FALSE}", json!({"a": true, "b": null, "c": false}), "literal"),
            ("｛\"a\"：［1，2］｝", json!({"a": [1, 2]}), "punctuation"),
            ("{“a”: “b “c” d”}", json!({"a": "b “c” d"}), "quote_character"),
            ("{'a': 'it's \"b\"'}", json!({"a": "it's \"b\""}), "quote_character"),
            ("{\"a\": \"the \"best\", they say\"}", json!({"a": "the \"best\", they say"}), "unescaped_quote"),
            ("{\"a\": \"所谓\"先做\"，然后\"}", json!({"a": "所谓\"先做\"，然后"}), "unescaped_quote"),
            ("{a: 1, b_2: {c: 2}}", json!({"a": 1, "b_2": {"c": 2}}), "unquoted_key"),
            (r#"{"a": "it\'s C:\dir \uzz"}"#, json!({"a": r"it's C:\dir \uzz"}), "escape"),
            (r#"{"a": "\ud83d! \ud83d\ude00"}"#, json!({"a": "\u{fffd}! 😀"}), "escape"),
        ] {
            assert_eq!(read(text), Some((value, vec![repair])), "{text}");
        }
    }

    #[test]
    fn valid_json_stays_the_same() {
        let text = r#"{"a": [1, -2.5e+3, true, null, "“x”, // # {y} \" \\ \u00fc 'z'"], "b": {"c": ""}}"#;
        let after = rewrite(&format!("{text} and more")).unwrap();
        assert_eq!((after.json.as_str(), after.length, after.repairs.len()), (text, text.len(), 0));
    }

    #[test]
    fn json_that_is_cut_is_not_completed() {
        for text in
            ["{\"a\": \"b", "{\"a\": \"b\"", "{\"a\": [1, 2", "{'a': 'b", "{memo}", "{ {} ", "{/x}", "x", "", "}"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]{}:,\"'“”＂，：\\\\u0-9a-fdT/*# \n\u{200b}🙂é]{0,60}") {
            if let Some(rewritten) = rewrite(&text) {
                prop_assert!(rewritten.length <= text.len() && text.is_char_boundary(rewritten.length));
            }
        }

        #[test]
        fn any_json_stays_the_same(text in any::<String>(), key in any::<String>(), number in any::<i64>()) {
            let value = json!({key: [text, number, null, {"a": true}], "z": {}});
            prop_assert_eq!(read(&value.to_string()), Some((value.clone(), vec![])));
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(read(&pretty), Some((value, vec![])));
        }
    }
}
