//! Finding the memo in an answer's text.
//!
//! One strategy for bare JSON, code fences and prose: try to read a memo at every brace that can open an object. The last
//! memo counts, as a model that writes two means the second, and nothing before the end of its thinking. Whether the memo
//! makes sense is up to `consistency`.

use std::collections::BTreeSet;

use serde_json::{Deserializer, Value, error::Category};

use super::{
    consistency::Violation,
    decision::DecisionAnalysis,
    fit,
    lenient::{self, Repair},
    schema,
};

/// How many times over a text is read: once for each level of objects in it. A memo has 2, one in a wrapper 3. Without
/// a bound, a hostile text of 500 KB would keep a worker busy for seconds.
const MAX_READINGS: usize = 8;

/// An object with so many of a memo's fields is meant as one, whatever is wrong with it.
const MIN_FIELDS: usize = 3;

/// Why an answer can't be used. The messages are sent to the model, so they quote its ids and values, never its prose.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum ParseError {
    #[error("the answer has no JSON object")]
    NoJson,
    /// As a rule, the output limit cut it.
    #[error("the answer's JSON ends before it is complete ({0})")]
    Truncated(String),
    #[error("the answer's JSON can't be read: {0}, counted from its opening brace")]
    InvalidJson(String),
    /// `path` is a field such as `options[1].pros`, or `.` for the whole object.
    #[error("the answer's JSON is not a decision memo: {message} (at `{path}`)")]
    WrongShape { path: String, message: String },
    #[error("the memo can't be shown: {}", .0.iter().map(|violation| violation.message.as_str()).collect::<Vec<_>>().join("; "))]
    Inconsistent(Vec<Violation>),
}

impl ParseError {
    pub fn code(&self) -> &'static str {
        self.into()
    }
}

#[derive(Debug)]
pub(super) struct Found {
    pub(super) analysis: DecisionAnalysis,
    pub(super) repairs: BTreeSet<Repair>,
}

/// Why no memo could be read at a brace.
struct Miss {
    likeness: Likeness,
    /// How many bytes were read before the miss was clear.
    read: usize,
    error: ParseError,
}

/// Whether something that can't be read was meant as the memo.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Likeness {
    Unlike,
    /// It has a field of a memo, or broke off before that could be seen.
    Alike,
    Meant,
}

impl Likeness {
    fn new(fields_of_a_memo: usize) -> Likeness {
        match fields_of_a_memo {
            0 => Likeness::Unlike,
            MIN_FIELDS.. => Likeness::Meant,
            _ => Likeness::Alike,
        }
    }
}

const NOTHING: Miss = Miss { likeness: Likeness::Unlike, read: 0, error: ParseError::NoJson };

/// The last memo in `text`. If there is none, or a later one is broken, the error is that of the longest stretch of JSON
/// that looks like one: what was meant as the memo, rather than a part of it or an example beside it.
pub(super) fn read(text: &str) -> Result<Found, ParseError> {
    let text = text.trim_start_matches('\u{feff}');
    // What structured output promises, in one pass.
    if let Ok(analysis) = serde_json::from_str(text) {
        return Ok(Found { analysis, repairs: BTreeSet::new() });
    }
    let error = match read_prose(text) {
        Ok(found) => return Ok(found),
        Err(error) => error,
    };
    // A gateway may write the JSON as a text within JSON.
    let inner = unquoted(text).and_then(|inner| read_prose(&inner).ok());
    inner.map_or(Err(error), |mut found| {
        found.repairs.insert(Repair::QuotedJson);
        Ok(found)
    })
}

/// The text from the first object whose quotes are escaped to the quote that ends it.
fn unquoted(text: &str) -> Option<String> {
    let start = text.find("\\\"").and_then(|quote| text[..quote].rfind('{'))?;
    let mut is_escaped = false;
    let end = text[start..].find(|c| {
        let is_end = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end
    });
    let inner = &text[start..end.map_or(text.len(), |end| start + end)];
    // Line breaks between the tokens may be escaped too, or not.
    let inner = inner.replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t");
    serde_json::from_str(&format!("\"{inner}\"")).ok()
}

fn read_prose(text: &str) -> Result<Found, ParseError> {
    let mut allowance = text.len().saturating_mul(MAX_READINGS);
    let (mut found, mut likeliest) = (None, NOTHING);
    // What was found before the thinking that has not ended.
    let mut before = None;
    let mut is_thinking = false;
    let mut at = 0;
    while let Some(next) = text[at..].find(['{', '｛', '<']).filter(|_| allowance > 0) {
        at += next;
        let rest = &text[at..];
        if let Some(rest) = rest.strip_prefix('<') {
            if rest.starts_with("/think") {
                (found, likeliest, is_thinking) = (None, NOTHING, false);
            } else if rest.starts_with("think") && !is_thinking {
                (before, found, likeliest, is_thinking) = (found, None, NOTHING, true);
            }
            at += 1;
            continue;
        }
        match read_at(rest) {
            Ok((memo, length)) => {
                (found, likeliest) = (Some(memo), NOTHING);
                at += length;
            }
            Err(miss) => {
                allowance = allowance.saturating_sub(miss.read);
                if (miss.likeness, miss.read) > (likeliest.likeness, likeliest.read) {
                    likeliest = miss;
                }
                at += rest.chars().next().map_or(1, char::len_utf8);
            }
        }
    }
    if is_thinking {
        return before.ok_or_else(|| ParseError::Truncated("it ends within <think>".to_owned()));
    }
    match found {
        Some(memo) if likeliest.likeness < Likeness::Meant => Ok(memo),
        _ => Err(likeliest.error),
    }
}

/// The memo whose opening brace `text` starts with, and its length.
fn read_at(text: &str) -> Result<(Found, usize), Miss> {
    let mut stream = Deserializer::from_str(text).into_iter::<Value>();
    let error = match stream.next() {
        Some(Ok(value)) => return typed(value, BTreeSet::new(), stream.byte_offset()),
        Some(Err(error)) => error,
        None => return Err(NOTHING),
    };
    if error.classify() == Category::Eof {
        return Err(broken(text, &error));
    }
    let lines_before = text.split_inclusive('\n').take(error.line().saturating_sub(1));
    let read = lines_before.map(str::len).sum::<usize>() + error.column();
    let Some(rewritten) = lenient::rewrite(text) else {
        let is_object = text.strip_prefix('{').is_some_and(|rest| rest.trim_start().starts_with('"'));
        let miss = broken(&text[..text.floor_char_boundary(read)], &error);
        // Anything else is a brace in prose.
        return Err(if is_object { miss } else { Miss { read: miss.read, ..NOTHING } });
    };
    match serde_json::from_str(&rewritten.json) {
        Ok(value) => typed(value, rewritten.repairs, rewritten.length),
        // What is wrong besides the recovered slips.
        Err(error) => Err(broken(&text[..rewritten.length], &error)),
    }
}

/// The memo in JSON that was made of `length` bytes.
fn typed(mut value: Value, mut repairs: BTreeSet<Repair>, length: usize) -> Result<(Found, usize), Miss> {
    let schema = schema::parsed();
    let fields = &schema["properties"];
    let known = value.as_object().map_or(0, |object| object.keys().filter(|key| fields.get(key).is_some()).count());
    fit::fit(&mut value, schema, &mut repairs);
    match serde_path_to_error::deserialize(value) {
        Ok(analysis) => Ok((Found { analysis, repairs }, length)),
        Err(error) => {
            let path = error.path().to_string();
            let error = ParseError::WrongShape { path, message: error.into_inner().to_string() };
            Err(Miss { likeness: Likeness::new(known), read: length, error })
        }
    }
}

/// The miss at JSON that breaks off, or breaks, after `text`.
fn broken(text: &str, error: &serde_json::Error) -> Miss {
    let fields = schema::parsed()["properties"].as_object().into_iter().flatten();
    let known = fields.filter(|(field, _)| text.contains(&format!("\"{field}\""))).take(MIN_FIELDS).count();
    let message = error.to_string();
    let error = match error.classify() {
        Category::Eof => ParseError::Truncated(message),
        _ => ParseError::InvalidJson(message),
    };
    Miss { likeness: Likeness::new(known).max(Likeness::Alike), read: text.len(), error }
}
