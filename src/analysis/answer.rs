//! Finding the memo in an answer's text.
//!
//! One strategy for all forms, be it bare JSON, a code fence or prose around it: try to read a memo at every brace
//! that can open an object. Lacks the judgement whether the memo makes sense; that is `consistency`.

use serde_json::error::Category;
use serde_json::{Deserializer, Value};

use super::{DecisionAnalysis, ParseError};

/// The first memo in `text`. If there is none, the error is that of the longest stretch of JSON that looks like one:
/// what was meant as the memo, rather than a part of it or an example beside it.
///
/// The time is linear in the text: `serde_json` gives up at 128 levels, so no byte is read for more than 128 braces.
pub(super) fn read(text: &str) -> Result<DecisionAnalysis, ParseError> {
    let mut likeliest = (0, ParseError::NoJson);
    for (start, brace) in text.match_indices('{') {
        if !text[start + brace.len()..].trim_start().starts_with('"') {
            continue;
        }
        match read_at(&text[start..]) {
            Ok(analysis) => return Ok(analysis),
            Err(failure) if failure.0 > likeliest.0 => likeliest = failure,
            Err(_) => {}
        }
    }
    Err(likeliest.1)
}

/// The memo whose opening brace `text` starts with, or how many bytes of it look like one and why they are not.
fn read_at(text: &str) -> Result<DecisionAnalysis, (usize, ParseError)> {
    let mut stream = Deserializer::from_str(text).into_iter::<Value>();
    let error = match stream.next() {
        Some(Ok(value)) => {
            let fields = &super::schema()["properties"];
            let akin = value.as_object().is_some_and(|object| object.keys().any(|key| fields.get(key).is_some()));
            return serde_path_to_error::deserialize(value).map_err(|error| {
                let path = error.path().to_string();
                let message = error.into_inner().to_string();
                (if akin { stream.byte_offset() } else { 1 }, ParseError::WrongShape { path, message })
            });
        }
        Some(Err(error)) => error,
        None => return Err((0, ParseError::NoJson)),
    };
    if error.classify() == Category::Eof {
        return Err((text.len(), ParseError::Truncated(error.to_string())));
    }
    let lines_before = text.split_inclusive('\n').take(error.line().saturating_sub(1));
    let extent = lines_before.map(str::len).sum::<usize>() + error.column();
    Err((extent, ParseError::InvalidJson(error.to_string())))
}
