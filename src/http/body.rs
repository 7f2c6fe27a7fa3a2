//! Request bodies: read whole within a bound, taken for JSON only if they say so, and every unknown field told.

use std::time::Duration;

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use futures_util::StreamExt;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use tokio::time::{Instant, timeout_at};

use super::problem::{
    BODY_TIMEOUT, BODY_TOO_LARGE, FieldError, INVALID_BODY, INVALID_JSON, Problem, UNSUPPORTED_MEDIA_TYPE,
    VALIDATION_FAILED,
};

/// How many times the limit is read of a body that is too large: its sender hears of the refusal only once it has sent
/// all, but must not go on for ever.
const MAX_EXCESS: usize = 64;

/// A body must be there within this time: the largest needs 14 KB/s, and a client that dribbles holds memory.
const BODY_TIME: Duration = Duration::from_secs(20);

/// Most unknown fields that are told by name: an error must not be many times the size of what was sent.
pub(super) const MAX_UNKNOWN_TOLD: usize = 32;

/// Largest body of a request that is no question.
const MAX_SMALL_BYTES: usize = 64 << 10;

/// A small JSON object.
pub(super) struct JsonBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<JsonBody<T>, Problem> {
        let (parts, body) = request.into_parts();
        match parse(&read(&parts.headers, body, MAX_SMALL_BYTES).await?)? {
            (Some(value), errors) if errors.is_empty() => Ok(JsonBody(value)),
            (_, errors) => Err(Problem::listing(VALIDATION_FAILED, errors)),
        }
    }
}

/// The whole of a JSON body, if it is one and of at most `limit` bytes.
pub(super) async fn read(headers: &HeaderMap, body: axum::body::Body, limit: usize) -> Result<Vec<u8>, Problem> {
    let body = read_whole(body, limit).await?;
    // Only now: a refusal that leaves the body unread is lost when the connection is reset.
    if !is_json(headers) {
        return Err(Problem::new(UNSUPPORTED_MEDIA_TYPE, "send the body as Content-Type: application/json"));
    }
    Ok(body)
}

/// The whole of a body of at most `limit` bytes.
pub(super) async fn read_whole(body: axum::body::Body, limit: usize) -> Result<Vec<u8>, Problem> {
    // Announced as larger than even that, so it would not be read to its end anyway.
    let said = axum::body::HttpBody::size_hint(&body).lower();
    if said > (MAX_EXCESS * limit) as u64 {
        return Err(too_large(limit));
    }
    let until = Instant::now() + BODY_TIME;
    let mut chunks = body.into_data_stream();
    let mut body = Vec::new();
    let mut size = 0;
    while let Some(chunk) = timeout_at(until, chunks.next()).await.map_err(|_| late())? {
        let chunk =
            chunk.map_err(|_| Problem::new(INVALID_BODY, "the body ended before it was complete; send it again"))?;
        size += chunk.len();
        if size <= limit {
            body.extend_from_slice(&chunk);
        } else if size > MAX_EXCESS * limit {
            break;
        }
    }
    if size > limit {
        return Err(too_large(limit));
    }
    Ok(body)
}

fn too_large(limit: usize) -> Problem {
    Problem::new(BODY_TOO_LARGE, format!("the body must be at most {limit} bytes ({} KiB)", limit / 1024))
}

fn late() -> Problem {
    Problem::new(BODY_TIMEOUT, format!("the body was not there within {} s; send it again", BODY_TIME.as_secs()))
}

/// The body, with its unknown fields as errors; none if a field is of the wrong type.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<(Option<T>, Vec<FieldError>), Problem> {
    // Serde takes a list for a struct, field by field: not here.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Ok((None, vec![FieldError::new("$", "must be a JSON object, not a list")]));
    }
    let mut errors = Vec::new();
    let mut unknown = 0;
    let mut track = serde_path_to_error::Track::new();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let read = serde_ignored::deserialize(tracked, |path| {
        unknown += 1;
        if unknown <= MAX_UNKNOWN_TOLD {
            errors.push(FieldError::new(told(&path), "is not a field of this request"));
        }
    });
    if unknown > MAX_UNKNOWN_TOLD {
        errors.push(FieldError::new("$", format!("has {} more unknown fields", unknown - MAX_UNKNOWN_TOLD)));
    }
    match read.and_then(|body: T| json.end().map(|()| body)) {
        Ok(body) => Ok((Some(body), errors)),
        Err(error) if error.is_data() => {
            let path = track.path().to_string();
            let field = if path == "." { "$".to_owned() } else { path };
            // The place in the text is no help where the field is named.
            let message = error.to_string();
            let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
            errors.push(FieldError::new(field, message));
            Ok((None, errors))
        }
        Err(error) => {
            let detail = if bytes.trim_ascii().is_empty() {
                "the body is empty; send a JSON object".to_owned()
            } else {
                format!("the body is not valid JSON: {error}")
            };
            Err(Problem::new(INVALID_JSON, detail))
        }
    }
}

/// A whole number, however it is written: JSON has one kind of number, and `60.0` is as whole as `60`.
pub(super) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else { return Ok(None) };
    let float = number.as_f64().filter(|_| number.is_f64());
    // As text, a float shows its fraction if it has one, and never an exponent.
    let text = float.map_or_else(|| number.to_string(), |float| float.to_string());
    text.parse().map(Some).map_err(|_| D::Error::custom(format_args!("must be a whole number, not {number}")))
}

/// A path as in the errors of known fields: `requests[3].name`.
fn told(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", told(parent)),
        Path::Map { parent, key } => match told(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => told(parent),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_whole_however_it_is_written() {
        #[derive(serde::Deserialize)]
        struct Holder {
            #[serde(default, deserialize_with = "whole")]
            n: Option<i64>,
        }
        let read = |json: &str| serde_json::from_str::<Holder>(json).map(|holder| holder.n).map_err(|e| e.to_string());
        for json in [r#"{"n": 60}"#, r#"{"n": 60.0}"#, r#"{"n": 6e1}"#] {
            assert_eq!(read(json), Ok(Some(60)), "{json}");
        }
        assert_eq!((read("{}"), read(r#"{"n": null}"#), read(r#"{"n": -1}"#)), (Ok(None), Ok(None), Ok(Some(-1))));
        for json in [r#"{"n": 0.5}"#, r#"{"n": 1e300}"#, r#"{"n": 18446744073709551615}"#] {
            assert!(read(json).unwrap_err().contains("must be a whole number"), "{json}");
        }
        assert!(read(r#"{"n": "60"}"#).is_err());
    }

    #[test]
    fn only_json_is_taken_for_json() {
        let is = |kind: &'static str| is_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, kind.parse().unwrap())]));
        assert!(is("application/json") && is("Application/JSON ; charset=utf-8"));
        assert!(!is("text/json") && !is("application/jsonp") && !is("") && !is_json(&HeaderMap::new()));
    }
}
