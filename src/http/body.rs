//! Request bodies: read completely up to a limit, accepted as JSON only with a JSON content type. Every unknown field is
//! reported.
//!
//! - `wrong`: messages for invalid values, in plain words

mod wrong;

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

use self::wrong::Step;
use super::problem::{
    BODY_TIMEOUT, BODY_TOO_LARGE, FieldError, INVALID_BODY, INVALID_JSON, Problem, UNSUPPORTED_MEDIA_TYPE,
    VALIDATION_FAILED,
};

/// A body that is too large is read up to this many times the limit: many clients read the refusal only after they have
/// sent everything, but must not send for ever.
const MAX_EXCESS: usize = 64;

/// A body must arrive within this time (14 KB/s for the largest), because a slow client holds memory.
const BODY_TIME: Duration = Duration::from_secs(20);

/// Most unknown fields reported by name: an error must not be much larger than the request.
pub(super) const MAX_UNKNOWN_NAMED: usize = 32;

/// Largest body of a request other than a submission.
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

/// The whole JSON body, at most `limit` bytes.
pub(super) async fn read(headers: &HeaderMap, body: axum::body::Body, limit: usize) -> Result<Vec<u8>, Problem> {
    let body = read_whole(body, limit).await?;
    // Checked after reading: a refusal that leaves the body unread is lost when the connection is reset.
    if !is_json(headers) {
        return Err(Problem::new(UNSUPPORTED_MEDIA_TYPE, "send the body as Content-Type: application/json"));
    }
    if let Some(encoding) = encoding(headers) {
        let detail = format!("the body is {encoding}; send it as UTF-8 and without Content-Encoding");
        return Err(Problem::new(UNSUPPORTED_MEDIA_TYPE, detail));
    }
    Ok(body)
}

/// How a body is encoded, if it is neither plain nor UTF-8.
fn encoding(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name)?.to_str().ok();
    let coding = text(header::CONTENT_ENCODING).unwrap_or("identity").trim();
    let charset = text(header::CONTENT_TYPE).unwrap_or_default().split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
    });
    let is = |value: &str, known: &[&str]| known.iter().any(|known| value.eq_ignore_ascii_case(known));
    if !is(coding, &["identity", ""]) {
        return Some(format!("encoded by {coding:?}"));
    }
    charset.filter(|charset| !is(charset, &["utf-8", "utf8", "us-ascii"])).map(|charset| format!("in {charset:?}"))
}

/// The whole body, at most `limit` bytes.
pub(super) async fn read_whole(body: axum::body::Body, limit: usize) -> Result<Vec<u8>, Problem> {
    // The announced size is too large to be read to the end, so refuse it at once.
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
    Problem::new(BODY_TIMEOUT, format!("the body did not arrive within {} s; send it again", BODY_TIME.as_secs()))
}

/// The body and its unknown fields as errors. The body is `None` if a field has the wrong type.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<(Option<T>, Vec<FieldError>), Problem> {
    // A byte order mark before JSON may be ignored (RFC 8259, section 8.1), and editors on Windows write it.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    // Serde would accept a list as a struct, field by field.
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
        if unknown <= MAX_UNKNOWN_NAMED {
            errors.push(no_field::<T>(&path));
        }
    });
    if unknown > MAX_UNKNOWN_NAMED {
        errors.push(FieldError::new("$", format!("has {} more unknown fields", unknown - MAX_UNKNOWN_NAMED)));
    }
    match read.and_then(|body: T| json.end().map(|()| body)) {
        Ok(body) => Ok((Some(body), errors)),
        // For a wrong enum value serde reports the same error category as for broken JSON.
        Err(error) if error.is_data() || serde_json::from_slice::<serde_json::Value>(bytes).is_ok() => {
            errors.push(wrong_value::<T>(&track.path(), &error));
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

/// The error for a field that `T` does not have.
fn no_field<T: DeserializeOwned>(path: &serde_ignored::Path<'_>) -> FieldError {
    let mut place = steps(path);
    place.pop();
    let of = match text(&place) {
        place if place.is_empty() => "this request".to_owned(),
        place => place,
    };
    let known = wrong::fields::<T>(&place).map(|known| format!("; allowed fields: {}", known.join(", ")));
    FieldError::new(text(&steps(path)), format!("is not a field of {of}{}", known.unwrap_or_default()))
}

/// The error for a value that `T` can't have at this path.
fn wrong_value<T: DeserializeOwned>(path: &serde_path_to_error::Path, error: &serde_json::Error) -> FieldError {
    use serde_path_to_error::Segment;
    let place: Vec<Step> = path
        .iter()
        .map_while(|segment| match segment {
            Segment::Map { key } => Some(Step::Field(key.clone())),
            Segment::Seq { index } => Some(Step::Item(*index)),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect();
    // The field is named, so its line and column are of no help.
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    for (start, wrong) in [("missing field `", "is required"), ("duplicate field `", "must be given once")] {
        if let Some(name) = message.strip_prefix(start).and_then(|rest| rest.strip_suffix('`')) {
            let is_named = place.last() == Some(&Step::Field(name.to_owned()));
            let field = [place, vec![Step::Field(name.to_owned())]].concat();
            return FieldError::new(text(&field[..field.len() - usize::from(is_named)]), wrong);
        }
    }
    let field = if place.is_empty() { "$".to_owned() } else { text(&place) };
    FieldError::new(field, wrong::plain(message, wrong::words::<T>(&place)))
}

/// A whole number in any notation: JSON has one number type, so `60.0` is as whole as `60`.
pub(super) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else { return Ok(None) };
    let float = number.as_f64().filter(|_| number.is_f64());
    // Rust writes a float with its fraction, if it has one, and never with an exponent.
    let text = float.map_or_else(|| number.to_string(), |float| float.to_string());
    text.parse().map(Some).map_err(|_| D::Error::custom(format_args!("must be a whole number, not {number}")))
}

/// The path to an unknown field.
fn steps(path: &serde_ignored::Path<'_>) -> Vec<Step> {
    use serde_ignored::Path;
    let (parent, step) = match path {
        Path::Root => return Vec::new(),
        Path::Seq { parent, index } => (parent, Some(Step::Item(*index))),
        Path::Map { parent, key } => (parent, Some(Step::Field(key.clone()))),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => (parent, None),
    };
    let mut steps = steps(parent);
    steps.extend(step);
    steps
}

/// A path in a body as text: `requests[3].name`.
fn text(place: &[Step]) -> String {
    place.iter().fold(String::new(), |before, step| match step {
        Step::Item(index) => format!("{before}[{index}]"),
        Step::Field(name) if before.is_empty() => name.clone(),
        Step::Field(name) => format!("{before}.{name}"),
    })
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

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "the test only parses them")]
    struct Outer {
        #[serde(default)]
        inner: Vec<Inner>,
        #[serde(default)]
        is_dry: bool,
        must: u8,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "the test only parses them")]
    struct Inner {
        kind: Option<Kind>,
        #[serde(default)]
        labels: std::collections::BTreeMap<String, String>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        VeryGood,
        Bad,
    }

    fn wrong(json: &str) -> Vec<(String, String)> {
        let (_, errors) = parse::<Outer>(json.as_bytes()).unwrap();
        errors.into_iter().map(|error| (error.field, error.message)).collect()
    }

    #[test]
    fn a_value_of_the_wrong_type_is_described_in_plain_words() {
        for (json, field, message) in [
            (r#"{"must": "x"}"#, "must", "must be u8, not the string \"x\""),
            (r#"{"is_dry": 1}"#, "is_dry", "must be true or false, not the number 1"),
            (r#"{"inner": {}}"#, "inner", "must be a list, not an object"),
            (r#"{"inner": [[]]}"#, "inner[0]", "must be a JSON object, not a list"),
            (r#"{"inner": [{}, 1.5]}"#, "inner[1]", "must be a JSON object, not the number 1.5"),
            (
                r#"{"inner": [{"labels": "x"}]}"#,
                "inner[0].labels",
                "must be an object of strings, not the string \"x\"",
            ),
            (r#"{"inner": [{"labels": {"a": null}}]}"#, "inner[0].labels.a", "must be a string, not null"),
            (r#"{"inner": [{"kind": "good"}]}"#, "inner[0].kind", "must be one of very_good, bad, not \"good\""),
            (r#"{"inner": [{"kind": 5}]}"#, "inner[0].kind", "must be one of very_good, bad"),
            (
                r#"{"inner": [{"kind": {"bad": 5}}]}"#,
                "inner[0].kind",
                "must be one of very_good, bad, not the number 5",
            ),
            (r#"{"must": 1, "must": 2}"#, "must", "must be given once"),
            ("{}", "must", "is required"),
            ("true", "$", "must be a JSON object, not true"),
        ] {
            assert_eq!(wrong(json), [(field.to_owned(), message.to_owned())], "{json}");
        }
        let endless = wrong(&format!("{{\"inner\": [{{\"kind\": \"{}\"}}]}}", "x".repeat(10_000)));
        assert!(endless[0].1.len() < 200 && endless[0].1.ends_with('…'), "{endless:?}");
    }

    #[test]
    fn the_error_for_an_unknown_field_lists_the_allowed_ones() {
        let json = r#"{"must": 1, "mist": {"a": 1}, "inner": [{"kinds": 1, "labels": {"a": "b"}}]}"#;
        let errors = wrong(json);
        let message = "is not a field of this request; allowed fields: inner, is_dry, must";
        assert_eq!(errors[0], ("mist".to_owned(), message.to_owned()));
        let message = "is not a field of inner[0]; allowed fields: kind, labels";
        assert_eq!(errors[1..], [("inner[0].kinds".to_owned(), message.to_owned())]);
    }

    #[test]
    fn only_a_json_content_type_is_accepted() {
        let is = |kind: &'static str| is_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, kind.parse().unwrap())]));
        assert!(is("application/json") && is("Application/JSON ; charset=utf-8"));
        assert!(!is("text/json") && !is("application/jsonp") && !is("") && !is_json(&HeaderMap::new()));
    }
}
