//! Request bodies: read completely up to a limit, accepted as JSON only with a JSON content type. All mistakes are reported
//! at once, each with its place.

use std::{collections::HashMap, time::Duration};

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use futures_util::StreamExt;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::Value;
use serde_path_to_error::Segment;
use tokio::time::{Instant, timeout_at};

use super::problem::{
    BODY_TIMEOUT, BODY_TOO_LARGE, FieldError, INVALID_BODY, INVALID_JSON, Problem, UNSUPPORTED_MEDIA_TYPE,
    VALIDATION_FAILED,
};

/// A body that is too large is read up to this many times the limit: many clients read the refusal only after they have
/// sent everything, but must not send for ever.
const MAX_EXCESS: usize = 64;

/// A body must arrive within this time (14 KB/s for the largest), because a slow client holds memory.
const BODY_TIME: Duration = Duration::from_secs(20);

/// Most mistakes reported of a body: an error must not be much larger than the request.
pub(super) const MAX_ERRORS: usize = 32;

/// Most bytes that are read again to find further mistakes, because each takes another reading: enough for all of a
/// question, not for all of a large batch.
const MAX_READ_AGAIN: usize = MAX_ERRORS * (256 << 10);

/// Most characters of a message. Some repeat the value that is wrong.
const MAX_MESSAGE: usize = 300;

/// Largest body of a request other than a submission.
const MAX_SMALL_BYTES: usize = 64 << 10;

pub(super) struct JsonBody<T>(Option<T>, Vec<FieldError>);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<JsonBody<T>, Problem> {
        let (parts, body) = request.into_parts();
        let (body, errors) = parse(&read(&parts.headers, body, MAX_SMALL_BYTES).await?)?;
        Ok(JsonBody(body, errors))
    }
}

impl<T> JsonBody<T> {
    /// What `check` makes of the body, or all mistakes: those of the JSON and those that `check` finds.
    pub(super) fn checked<R>(self, check: impl FnOnce(T) -> Result<R, Vec<FieldError>>) -> Result<R, Problem> {
        let JsonBody(body, mut errors) = self;
        match body.map(check) {
            Some(Ok(checked)) if errors.is_empty() => Ok(checked),
            checked => {
                add_found(&mut errors, checked.and_then(Result::err).unwrap_or_default());
                Err(Problem::listing(VALIDATION_FAILED, errors))
            }
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

pub(super) async fn read_whole(body: axum::body::Body, limit: usize) -> Result<Vec<u8>, Problem> {
    // The announced size is too large to be read to the end, so refuse it at once.
    let said = axum::body::HttpBody::size_hint(&body).lower();
    if said > (MAX_EXCESS * limit) as u64 {
        return Err(too_large(limit));
    }
    let until = Instant::now() + BODY_TIME;
    let late = |_| {
        Problem::new(BODY_TIMEOUT, format!("the body did not arrive within {} s; send it again", BODY_TIME.as_secs()))
    };
    let mut chunks = body.into_data_stream();
    let mut body = Vec::new();
    let mut size = 0;
    while let Some(chunk) = timeout_at(until, chunks.next()).await.map_err(late)? {
        let chunk = chunk.map_err(|_| match said > limit as u64 {
            true => too_large(limit),
            false => Problem::new(INVALID_BODY, "the body ended before it was complete; send it again"),
        })?;
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

/// The body, with its mistakes as errors: unknown fields, values of the wrong type, fields given twice. The body is without
/// them, and `None` if nothing can be read.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<(Option<T>, Vec<FieldError>), Problem> {
    // A byte order mark before JSON may be ignored (RFC 8259, section 8.1), and editors on Windows write it.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    // Serde would accept a list as a struct, field by field.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Ok((None, vec![FieldError::new("$", "must be a JSON object, not a list")]));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let first = match serde_path_to_error::deserialize(&mut json) {
        Ok(body) if json.end().is_ok() => return Ok((Some(body), Vec::new())),
        Ok(_) => None,
        Err(error) => Some(error),
    };
    let body = serde_json::from_slice(bytes).map_err(|error| {
        let detail = match bytes.trim_ascii().is_empty() {
            true => "the body is empty; send a JSON object".to_owned(),
            false => format!("the body is not valid JSON: {error}"),
        };
        Problem::new(INVALID_JSON, detail)
    })?;
    // A field that is given twice can be seen only here: in `body` it is there once.
    let twice = first.map(|error| Mistake::new(&error)).filter(|mistake| mistake.message == GIVEN_TWICE);
    let error = |mistake: Mistake| FieldError::new(text(&mistake.place, &HashMap::new()), mistake.message);
    let errors = twice.map(error).into_iter().collect();
    Ok(read_around_mistakes(body, errors, (MAX_READ_AGAIN / bytes.len()).clamp(1, MAX_ERRORS)))
}

/// Reads the body again and again, each time without the value of the mistake that ended the last time.
fn read_around_mistakes<T: DeserializeOwned>(
    mut body: Value,
    mut errors: Vec<FieldError>,
    most: usize,
) -> (Option<T>, Vec<FieldError>) {
    // How many items each list has lost: those after them have moved.
    let mut lost = HashMap::<String, usize>::new();
    loop {
        let Mistake { place, message } = match serde_path_to_error::deserialize(&body) {
            Ok(read) => return (Some(read), errors),
            Err(error) => Mistake::new(&error),
        };
        let field = Some(text(&place, &lost)).filter(|field| !field.is_empty()).unwrap_or_else(|| "$".to_owned());
        if errors.len() >= most {
            errors.push(FieldError::new("$", "may have more errors; correct these first"));
            return (None, errors);
        }
        let is_new = errors.iter().all(|error| error.field != field);
        if let Some(Segment::Seq { .. }) = place.last() {
            let list = field.rfind('[').map_or("", |end| &field[..end]);
            *lost.entry(list.to_owned()).or_default() += 1;
        }
        if is_new {
            errors.push(FieldError::new(field, message));
        }
        if !take_out(&mut body, &place) {
            return (None, errors);
        }
    }
}

/// Adds the errors that a check of the read values found, but for those of fields and lists that could not be read.
pub(super) fn add_found(errors: &mut Vec<FieldError>, mut found: Vec<FieldError>) {
    let is_of = |field: &str, known: &str| {
        known.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
    };
    found.retain(|error| !errors.iter().any(|known| is_of(&error.field, &known.field)));
    errors.append(&mut found);
}

/// The indexes of the items that a list still has, if `errors` names those that could not be read.
pub(super) fn indexes(errors: &[FieldError], name: impl Fn(usize) -> String) -> impl Iterator<Item = usize> {
    (0..).filter(move |&index| errors.is_empty() || !errors.iter().any(|error| error.field == name(index)))
}

struct Mistake {
    place: Vec<Segment>,
    message: String,
}

const GIVEN_TWICE: &str = "must be given once";

impl Mistake {
    /// Serde's error, in its own words but for the place.
    fn new(error: &serde_path_to_error::Error<serde_json::Error>) -> Mistake {
        let is_step = |segment: &&Segment| matches!(segment, Segment::Map { .. } | Segment::Seq { .. });
        let mut place: Vec<Segment> = error.path().iter().take_while(is_step).cloned().collect();
        let message = error.inner().to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
        for (start, plain) in [("missing field `", "is required"), ("duplicate field `", GIVEN_TWICE)] {
            if let Some(name) = message.strip_prefix(start).and_then(|rest| rest.strip_suffix('`')) {
                place.push(Segment::Map { key: name.to_owned() });
                return Mistake { place, message: plain.to_owned() };
            }
        }
        let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.rsplit_once("`, expected "));
        let message =
            unknown.map_or_else(|| message.to_owned(), |(_, expected)| format!("unknown field, expected {expected}"));
        Mistake { place, message: message.chars().take(MAX_MESSAGE).collect() }
    }
}

/// Removes the value at this place of a body. False if there is no such value.
fn take_out(body: &mut Value, place: &[Segment]) -> bool {
    let Some((last, parents)) = place.split_last() else { return false };
    let parent = parents.iter().try_fold(body, |value, step| match step {
        Segment::Map { key } => value.get_mut(key),
        Segment::Seq { index } => value.get_mut(index),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    match (parent, last) {
        (Some(Value::Object(fields)), Segment::Map { key }) => fields.remove(key).is_some(),
        (Some(Value::Array(items)), Segment::Seq { index }) if *index < items.len() => {
            items.remove(*index);
            true
        }
        _ => false,
    }
}

/// A whole number in any notation: JSON has one number type, so `60.0` is as whole as `60`.
pub(super) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else { return Ok(None) };
    let float = number.as_f64().filter(|_| number.is_f64());
    // Rust writes a float with its fraction, if it has one, and never with an exponent.
    let text = float.map_or_else(|| number.to_string(), |float| float.to_string());
    text.parse().map(Some).map_err(|_| D::Error::custom(format_args!("must be a whole number, not {number}")))
}

/// A place in a body as text: `requests[3].name`. `lost` says how many items each list has lost.
fn text(place: &[Segment], lost: &HashMap<String, usize>) -> String {
    place.iter().fold(String::new(), |before, step| match step {
        Segment::Seq { index } => format!("{before}[{}]", index + lost.get(&before).unwrap_or(&0)),
        Segment::Map { key } if before.is_empty() => key.clone(),
        Segment::Map { key } => format!("{before}.{key}"),
        Segment::Enum { .. } | Segment::Unknown => before,
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

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, expecting = "an object")]
    struct Outer {
        #[serde(default)]
        inner: Vec<Inner>,
        #[serde(default)]
        is_dry: bool,
        must: u8,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, expecting = "an object")]
    struct Inner {
        kind: Option<Kind>,
        #[serde(default)]
        labels: std::collections::BTreeMap<String, String>,
        #[serde(default)]
        words: Vec<String>,
    }

    #[derive(Debug, Deserialize)]
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
    fn a_mistake_is_reported_with_its_place() {
        for (json, field, message) in [
            (r#"{"must": "x"}"#, "must", "invalid type: string \"x\", expected u8"),
            (r#"{"must": 1, "is_dry": 1}"#, "is_dry", "invalid type: integer `1`, expected a boolean"),
            (r#"{"must": 1, "inner": {}}"#, "inner", "invalid type: map, expected a sequence"),
            (r#"{"must": 1, "inner": [1.5]}"#, "inner[0]", "invalid type: floating point `1.5`, expected an object"),
            (
                r#"{"must": 1, "inner": [{"labels": {"a": null}}]}"#,
                "inner[0].labels.a",
                "invalid type: null, expected a string",
            ),
            (
                r#"{"must": 1, "inner": [{"kind": "good"}]}"#,
                "inner[0].kind",
                "unknown variant `good`, expected `very_good` or `bad`",
            ),
            (r#"{"must": 1, "must": 2}"#, "must", "must be given once"),
            (r#"{"must": 1, "mist": 2}"#, "mist", "unknown field, expected one of `inner`, `is_dry`, `must`"),
            ("{}", "must", "is required"),
            ("true", "$", "invalid type: boolean `true`, expected an object"),
        ] {
            assert_eq!(wrong(json), [(field.to_owned(), message.to_owned())], "{json}");
        }
        let endless = wrong(&format!("{{\"must\": 1, \"inner\": [{{\"kind\": \"{}\"}}]}}", "x".repeat(10_000)));
        assert_eq!(endless[0].1.len(), MAX_MESSAGE);
    }

    #[test]
    fn all_mistakes_are_reported_and_the_rest_is_read() {
        let json = r#"{"must": 7, "mist": {"a": 1}, "is_dry": "no", "inner": [
            5, {"words": ["a", 1, "b", null, "c"], "labels": {"a": "b", "c": 3}}, 6, {"kind": 9, "kinds": 1}]}"#;
        let (read, errors) = parse::<Outer>(json.as_bytes()).unwrap();
        let mut fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        fields.sort_unstable();
        let all = [
            "inner[0]",
            "inner[1].labels.c",
            "inner[1].words[1]",
            "inner[1].words[3]",
            "inner[2]",
            "inner[3].kind",
            "inner[3].kinds",
            "is_dry",
            "mist",
        ];
        assert_eq!(fields, all);
        let read = read.unwrap();
        assert_eq!((read.must, read.is_dry, read.inner.len(), read.inner[0].labels.len()), (7, false, 2, 1));
        assert!(read.inner[1].kind.is_none());
        assert_eq!(read.inner[0].words, ["a", "b", "c"]);
        let names = |index| format!("inner[1].words[{index}]");
        assert_eq!(indexes(&errors, names).take(3).collect::<Vec<_>>(), [0, 2, 4]);
        assert_eq!(wrong(r#"{"must": "x", "mist": 1, "is_dry": 0}"#).len(), 3, "a required field among them");
    }

    #[test]
    fn a_large_body_is_not_read_again_and_again() {
        let body = format!("{{\"a\": 1, \"b\": 2, \"c\": \"{}\"}}", "x".repeat(MAX_READ_AGAIN / 2 + 1));
        let errors = wrong(&body);
        assert_eq!(errors.len(), 2, "{:?}", errors.iter().map(|(field, _)| field).collect::<Vec<_>>());
        assert_eq!((&*errors[0].0, &*errors[1].0), ("a", "$"));
    }

    #[test]
    fn only_a_json_content_type_is_accepted() {
        let is = |kind: &'static str| is_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, kind.parse().unwrap())]));
        assert!(is("application/json") && is("Application/JSON ; charset=utf-8"));
        assert!(!is("text/json") && !is("application/jsonp") && !is("") && !is_json(&HeaderMap::new()));
    }
}
