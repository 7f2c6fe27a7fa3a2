//! Finding the memo in an answer's text.
//!
//! One strategy for all forms, be it bare JSON, a code fence or prose around it: try to read a memo at every brace
//! that can open an object. Does not judge whether the memo makes sense: `consistency` does.

use serde_json::error::Category;
use serde_json::{Deserializer, Value};

use super::{ParseError, decision::DecisionAnalysis};

/// How many times over a text is read: once for each level of objects in it. A memo has 2, one in a wrapper 3; without
/// a bound a hostile text of 500 KB would keep a worker busy for seconds.
const MAX_READINGS: usize = 8;

/// Why no memo could be read at a brace.
struct Miss {
    /// How many bytes were read before that was clear.
    read: usize,
    /// Whether it may have been meant as the memo: it has a field of one, or broke before that could be seen.
    akin: bool,
    error: ParseError,
}

/// The first memo in `text`. If there is none, the error is that of the longest stretch of JSON that looks like one:
/// what was meant as the memo, rather than a part of it or an example beside it.
pub(super) fn read(text: &str) -> Result<DecisionAnalysis, ParseError> {
    // What structured output promises, in one pass; the careful reading below tells what is wrong with anything else.
    if let Ok(analysis) = serde_json::from_str(text) {
        return Ok(analysis);
    }
    let mut allowance = text.len().saturating_mul(MAX_READINGS);
    let mut likeliest = Miss { read: 0, akin: false, error: ParseError::NoJson };
    for (start, brace) in text.match_indices('{') {
        if !text[start + brace.len()..].trim_start().starts_with('"') {
            continue;
        }
        let miss = match read_at(&text[start..]) {
            Ok(analysis) => return Ok(analysis),
            Err(miss) => miss,
        };
        allowance = allowance.saturating_sub(miss.read);
        if (miss.akin, miss.read) > (likeliest.akin, likeliest.read) {
            likeliest = miss;
        }
        if allowance == 0 {
            break;
        }
    }
    Err(likeliest.error)
}

/// The memo whose opening brace `text` starts with.
fn read_at(text: &str) -> Result<DecisionAnalysis, Miss> {
    let mut stream = Deserializer::from_str(text).into_iter::<Value>();
    let error = match stream.next() {
        Some(Ok(value)) => {
            let fields = &super::schema()["properties"];
            let akin = value.as_object().is_some_and(|object| object.keys().any(|key| fields.get(key).is_some()));
            return serde_path_to_error::deserialize(value).map_err(|error| {
                let path = error.path().to_string();
                let error = ParseError::WrongShape { path, message: error.into_inner().to_string() };
                Miss { read: stream.byte_offset(), akin, error }
            });
        }
        Some(Err(error)) => error,
        None => return Err(Miss { read: 0, akin: false, error: ParseError::NoJson }),
    };
    if error.classify() == Category::Eof {
        return Err(Miss { read: text.len(), akin: true, error: ParseError::Truncated(error.to_string()) });
    }
    let lines_before = text.split_inclusive('\n').take(error.line().saturating_sub(1));
    let read = lines_before.map(str::len).sum::<usize>() + error.column();
    Err(Miss { read, akin: true, error: ParseError::InvalidJson(error.to_string()) })
}
