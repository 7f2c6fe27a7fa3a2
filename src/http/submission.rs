//! The body of a submission: parsed, checked against every limit, and converted for the queue. All errors are reported
//! together.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    body,
    problem::{FieldError, Problem, VALIDATION_FAILED},
    wait::Wait,
};
use crate::{
    agent::models::Models,
    clock::Timestamp,
    job::{Depth, JobRequest, Priority, callback::Callbacks, delivery::CallbackEvent},
    prompts::Prompts,
    queue::Submission,
};

/// Largest body with the default MAX_QUERY_LENGTH: room for query, context and options.
const MAX_BODY_BYTES: usize = 256 * 1024;

/// The default of MAX_QUERY_LENGTH, which [`MAX_BODY_BYTES`] is made for.
const USUAL_QUERY_LENGTH: usize = 10_000;

/// Most bytes of a character in JSON: two `\uXXXX`, which some clients write for everything outside ASCII.
const MAX_BYTES_PER_CHAR: usize = 12;

/// Largest body for this MAX_QUERY_LENGTH. It grows with longer queries, or the two limits would contradict each other.
pub(super) fn max_body_bytes(max_query_length: usize) -> usize {
    MAX_BODY_BYTES + MAX_BYTES_PER_CHAR * max_query_length.saturating_sub(USUAL_QUERY_LENGTH)
}

/// Most characters of context: some 12,000 tokens, a tenth of a small context window.
const MAX_CONTEXT: usize = 50_000;

/// Most options: as many as a memo can hold, and every one is compared.
const MAX_OPTIONS: usize = 8;

/// Most characters of an option: a sentence or two. The rest belongs into the context.
const MAX_OPTION: usize = 500;

/// Most metadata entries: labels, not a document.
pub(super) const MAX_METADATA: usize = 16;

const MAX_METADATA_KEY: usize = 64;

const MAX_METADATA_VALUE: usize = 512;

const MAX_MODEL: usize = 100;

/// Longest deadline, in seconds: a week. A job that can wait longer needs no deadline.
const MAX_DEADLINE_SECONDS: i64 = 604_800;

/// How far ahead a job can be scheduled: a year, leap years included.
const MAX_RUN_AHEAD_DAYS: u64 = 366;

/// Most jobs in a batch: all are written in one commit.
pub(super) const MAX_BATCH: usize = 1_000;

/// Largest body of a batch: it is held in memory, and goes to disk in one commit.
pub(super) const MAX_BATCH_BYTES: usize = 8 << 20;

/// Most errors reported for a batch: the answer must not be much larger than the request.
const MAX_BATCH_ERRORS: usize = 100;

/// Requests to accept together or not at all.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
#[schema(as = BatchRequest)]
pub(super) struct BatchBody {
    /// 1 to 1,000 requests as for `POST /api/v1/analyze`, but without `wait`.
    #[schema(min_items = 1, max_items = 1_000)]
    requests: Vec<Body>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds<'a> {
    pub(super) max_query_length: usize,
    pub(super) callbacks: &'a Callbacks,
    pub(super) prompts: &'a Prompts,
    pub(super) models: &'a Models,
}

/// A decision question to analyse. Unknown fields are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
#[schema(as = AnalyzeRequest)]
pub(super) struct Body {
    /// The decision question, in any language. The memo is in the same language. At most `MAX_QUERY_LENGTH` characters
    /// (default 10,000).
    #[schema(required, value_type = String, pattern = r"\S", example = "Should we move our warehouse to Rotterdam?")]
    query: Option<String>,
    /// Background: figures, constraints, history.
    #[schema(max_length = 50_000)]
    context: Option<String>,
    /// Options that the memo must consider. No two may be equal, ignoring case.
    #[schema(max_items = 8)]
    options: Option<Vec<String>>,
    /// Default `normal`. One step of priority is worth ten minutes of waiting.
    priority: Option<Priority>,
    /// Wait for the end of the job.
    wait: Option<Wait>,
    /// Run the job at this time or later (RFC 3339), at most 366 days ahead.
    run_at: Option<Timestamp>,
    /// Fail the job if it has not started after this many seconds.
    #[schema(minimum = 1, maximum = 604_800)]
    #[serde(default, deserialize_with = "body::whole")]
    deadline_seconds: Option<i64>,
    /// A Claude model that the setting ALLOWED_MODELS allows. Default: the setting MODEL_NAME.
    #[schema(min_length = 1, max_length = 100, pattern = "^[A-Za-z0-9_.:/@-]+$")]
    model: Option<String>,
    /// `brief`, `full` or `auto` (default). `auto` means `full`, or `brief` if the client waits and a full memo would not be
    /// ready in time.
    depth: Option<Depth>,
    /// Send a signed webhook (Standard Webhooks) to this URL when the job ends. An https URL with a public address.
    #[schema(max_length = 2_048, example = "https://example.com/hook")]
    callback_url: Option<String>,
    /// The events that the webhook is sent for. Default: `job.succeeded`, `job.failed` and `job.cancelled`. A memo that asks
    /// for more information is sent as `job.needs_information` if that is in the list, else as `job.succeeded`.
    #[schema(min_items = 1, max_items = 4)]
    callback_events: Option<Vec<CallbackEvent>>,
    /// A prompt version from `GET /api/v1/admin/prompts`. Default: the newest version.
    prompt_version: Option<String>,
    /// Your own labels: up to 16, keys up to 64 characters, values up to 512.
    metadata: Option<BTreeMap<String, String>>,
}

/// The submission in a valid body, and how long the client wants to wait.
pub(super) fn parse(body: &[u8], bounds: Bounds<'_>, now: Timestamp) -> Result<(Submission, Option<Wait>), Problem> {
    let (body, mut errors) = body::parse::<Body>(body)?;
    if let Some(body) = &body {
        let found = check(body, bounds, now, body::indexes(&errors, |index| format!("options[{index}]")));
        body::add_found(&mut errors, found);
    }
    match body {
        Some(body) if errors.is_empty() => {
            let wait = body.wait;
            Ok((submission(body), wait))
        }
        _ => Err(Problem::listing(VALIDATION_FAILED, errors)),
    }
}

/// The submissions of a valid batch, in their order. An error names the index of its item.
pub(super) fn parse_batch(body: &[u8], bounds: Bounds<'_>, now: Timestamp) -> Result<Vec<Submission>, Problem> {
    let (body, mut errors) = body::parse::<BatchBody>(body)?;
    let requests = body.map(|body| body.requests);
    match requests.as_ref().map(Vec::len) {
        Some(0) if errors.is_empty() => errors.push(FieldError::new("requests", "must not be empty")),
        None | Some(..=MAX_BATCH) => {}
        Some(count) => {
            let message = format!("must be at most {MAX_BATCH}, not {count}; send the rest as another batch");
            return Err(Problem::listing(VALIDATION_FAILED, vec![FieldError::new("requests", message)]));
        }
    }
    let mut found = Vec::new();
    let indexes = body::indexes(&errors, |index| format!("requests[{index}]"));
    for (body, index) in requests.iter().flatten().zip(indexes) {
        let options = body::indexes(&errors, move |option| format!("requests[{index}].options[{option}]"));
        let mut wrong = check(body, bounds, now, options);
        if body.wait.is_some() {
            wrong.push(FieldError::new("wait", "is not allowed in a batch; get the jobs by their ids instead"));
        }
        found.extend(wrong.into_iter().map(|error| error.within(&format!("requests[{index}]"))));
    }
    body::add_found(&mut errors, found);
    if errors.len() > MAX_BATCH_ERRORS {
        let more = errors.len() - MAX_BATCH_ERRORS;
        errors.truncate(MAX_BATCH_ERRORS);
        errors.push(FieldError::new("requests", format!("has {more} more errors")));
    }
    match requests {
        Some(requests) if errors.is_empty() => Ok(requests.into_iter().map(submission).collect()),
        _ => Err(Problem::listing(VALIDATION_FAILED, errors)),
    }
}

/// An error for each wrong value of `body`. `indexes` are those of its options.
fn check(body: &Body, bounds: Bounds<'_>, now: Timestamp, indexes: impl Iterator<Item = usize>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut check = |field: &str, wrong: Option<String>| {
        errors.extend(wrong.map(|message| FieldError::new(field, message)));
    };
    check("query", wrong_query(body.query.as_deref(), bounds.max_query_length));
    check("context", body.context.as_deref().and_then(|context| too_long(context, MAX_CONTEXT)));
    let options = body.options.as_deref().unwrap_or_default();
    let count = options.len();
    check("options", (count > MAX_OPTIONS).then(|| format!("must be at most {MAX_OPTIONS}, not {count}")));
    let mut known = HashMap::new();
    for (option, index) in options.iter().take(MAX_OPTIONS).zip(indexes) {
        let mut wrong = is_blank(option).or_else(|| too_long(option, MAX_OPTION));
        if wrong.is_none() {
            let first = known.insert(option.trim().to_lowercase(), index);
            wrong = first.map(|first| format!("must not be the same as options[{first}]"));
        }
        check(&format!("options[{index}]"), wrong);
    }
    let latest = now.plus(Duration::from_hours(24 * MAX_RUN_AHEAD_DAYS));
    let too_late = |run_at| format!("must be at most {MAX_RUN_AHEAD_DAYS} days ahead, not {run_at}");
    check("run_at", body.run_at.filter(|run_at| *run_at > latest).map(too_late));
    check("deadline_seconds", body.deadline_seconds.and_then(|seconds| wrong_deadline(seconds, body.run_at, now)));
    check("model", body.model.as_deref().and_then(|model| wrong_model(model, bounds.models)));
    check("callback_url", body.callback_url.as_deref().and_then(|url| bounds.callbacks.check(url).err()));
    check("callback_events", body.callback_events.as_deref().and_then(|events| wrong_events(events, body)));
    let prompts = body.prompt_version.as_deref().and_then(|version| bounds.prompts.check(version).err());
    check("prompt_version", prompts.map(|error| error.to_string()));
    check_metadata(body.metadata.as_ref().unwrap_or(&BTreeMap::new()), check);
    errors
}

fn check_metadata(metadata: &BTreeMap<String, String>, mut check: impl FnMut(&str, Option<String>)) {
    let count = metadata.len();
    check("metadata", (count > MAX_METADATA).then(|| format!("must be at most {MAX_METADATA} entries, not {count}")));
    for (key, value) in metadata.iter().take(MAX_METADATA) {
        if key.is_empty() {
            check("metadata", Some("must not have an empty key".to_owned()));
        } else if let Some(message) = too_long(key, MAX_METADATA_KEY) {
            let start: String = key.chars().take(MAX_METADATA_KEY).collect();
            check("metadata", Some(format!("key {start:?}… {message}")));
        } else {
            check(&format!("metadata.{key}"), too_long(value, MAX_METADATA_VALUE));
        }
    }
}

fn wrong_query(query: Option<&str>, max_length: usize) -> Option<String> {
    let Some(query) = query else { return Some("is required: the decision question to analyse".to_owned()) };
    is_blank(query).or_else(|| too_long(query, max_length))
}

fn wrong_deadline(seconds: i64, run_at: Option<Timestamp>, now: Timestamp) -> Option<String> {
    if !(1..=MAX_DEADLINE_SECONDS).contains(&seconds) {
        return Some(format!("must be from 1 to {MAX_DEADLINE_SECONDS}, not {seconds}"));
    }
    let deadline = now.plus(Duration::from_secs(seconds.unsigned_abs()));
    let message = "must end after run_at, because the deadline counts from now";
    run_at.filter(|run_at| *run_at >= deadline).map(|_| message.to_owned())
}

fn wrong_model(model: &str, models: &Models) -> Option<String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@".contains(&byte);
    if !(1..=MAX_MODEL).contains(&model.len()) || !model.bytes().all(is_allowed) {
        let rule = "letters, digits or - _ . : / @, for example claude-sonnet-5-5";
        return Some(format!("must be 1 to {MAX_MODEL} {rule}"));
    }
    models.check(model).err()
}

fn wrong_events(events: &[CallbackEvent], body: &Body) -> Option<String> {
    let repeated = (1..).zip(events).find_map(|(next, event)| events.get(next..)?.contains(event).then_some(event));
    match (events, repeated) {
        ([], _) => Some("must not be empty; leave it out for every end of the job".to_owned()),
        (_, Some(event)) => Some(format!("must not have {event} twice")),
        (_, None) if body.callback_url.is_none() => Some("needs a callback_url to send them to".to_owned()),
        (_, None) => None,
    }
}

fn submission(body: Body) -> Submission {
    Submission {
        request: JobRequest {
            query: body.query.unwrap_or_default(),
            context: body.context.filter(|context| !context.trim().is_empty()),
            options: body.options.unwrap_or_default(),
            model: body.model,
            depth: body.depth.unwrap_or_default(),
            callback_url: body.callback_url,
            callback_events: body.callback_events.unwrap_or_default(),
            prompt_version: body.prompt_version,
            metadata: body.metadata.unwrap_or_default(),
            ..JobRequest::default()
        },
        priority: body.priority.unwrap_or_default(),
        run_at: body.run_at,
        deadline: body.deadline_seconds.map(|seconds| Duration::from_secs(seconds.unsigned_abs())),
        ..Submission::default()
    }
}

fn is_blank(text: &str) -> Option<String> {
    text.trim().is_empty().then(|| "must not be blank".to_owned())
}

fn too_long(text: &str, limit: usize) -> Option<String> {
    // No text has more characters than bytes.
    if text.len() <= limit {
        return None;
    }
    let count = text.chars().count();
    (count > limit).then(|| format!("must be at most {limit} characters, not {count}"))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use axum::{http::StatusCode, response::IntoResponse};
    use serde_json::{Value, json};

    use super::*;

    static PUBLIC: std::sync::LazyLock<Callbacks> = std::sync::LazyLock::new(Callbacks::default);

    fn bounds(prompts: &Prompts) -> Bounds<'_> {
        static MODELS: LazyLock<Models> = LazyLock::new(|| {
            Models::new("claude-sonnet-5-5".to_owned(), Vec::new(), vec!["claude-opus-5-5".to_owned()])
        });
        Bounds { max_query_length: 20, callbacks: &PUBLIC, prompts, models: &MODELS }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
    }

    fn prompts() -> Prompts {
        Prompts::load(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts")).unwrap()
    }

    #[test]
    fn an_unknown_prompt_version_is_refused_with_a_list_of_the_known_ones() {
        let body = json!({"query": "q", "prompt_version": "v99", "deadline_seconds": 0}).to_string();
        let problem = format!("{:?}", parse(body.as_bytes(), bounds(&prompts()), at(0)).unwrap_err());
        assert!(problem.contains("deadline_seconds") && problem.contains("prompt_version"), "{problem}");
        assert!(problem.contains("known versions: v1"), "{problem}");
    }

    /// The wrong fields of a body.
    fn wrong(body: &Value) -> Vec<String> {
        wrong_text(&body.to_string()).into_iter().map(|error| error.field).collect()
    }

    fn wrong_text(body: &str) -> Vec<FieldError> {
        parse(body.as_bytes(), bounds(&prompts()), at(0))
            .map_or_else(|problem| problem.errors().to_vec(), |_| Vec::new())
    }

    #[test]
    fn a_request_with_every_field_becomes_a_submission() {
        let body = json!({
            "query": "Buy or build?", "context": " ", "options": ["buy", "build"], "priority": "high", "wait": 2,
            "run_at": "2027-01-15T08:00:30Z", "deadline_seconds": 60, "model": "claude-sonnet-5-5",
            "prompt_version": "v1", "metadata": {"team": "ops"}
        });
        let (submission, wait) = parse(body.to_string().as_bytes(), bounds(&prompts()), at(0)).unwrap();
        assert_eq!(wait, Wait::parse("2").ok());
        assert_eq!((submission.priority, submission.deadline), (Priority::High, Some(Duration::from_mins(1))));
        assert_eq!(submission.run_at, Some(at(30)));
        assert_eq!(submission.request.context, None, "a blank context counts as absent");
        assert_eq!(submission.request.options, ["buy", "build"]);
        assert_eq!(submission.request.metadata["team"], "ops");
        assert_eq!(submission.request.prompt_version.as_deref(), Some("v1"));
    }

    #[test]
    fn a_model_that_is_not_allowed_is_refused_with_a_list_of_those_that_are() {
        assert!(wrong(&json!({"query": "q", "model": "claude-opus-5-5"})).is_empty());
        let errors = wrong_text(&json!({"query": "q", "model": "claude-opus-9"}).to_string());
        let message =
            "\"claude-opus-9\" is not one of the models that ALLOWED_MODELS lists: claude-opus-5-5, claude-sonnet-5-5";
        assert_eq!(errors, [FieldError::new("model", message)]);
    }

    #[test]
    fn null_counts_as_absent_and_the_query_is_required() {
        assert!(wrong(&json!({"query": "q", "wait": null, "options": null, "priority": null})).is_empty());
        assert_eq!(wrong(&json!({"query": null})), ["query"]);
        assert_eq!(wrong(&json!({})), ["query"]);
        assert_eq!(wrong(&json!({"query": " \n\u{3000}"})), ["query"]);
    }

    #[test]
    fn all_errors_are_reported_together() {
        let options: Vec<String> = (0..11).map(|option| option.to_string()).collect();
        let metadata: BTreeMap<String, &str> = (0..17).map(|key| (format!("k{key}"), "v")).collect();
        let body = json!({
            "qurey": 1, "query": "x".repeat(21), "context": "x".repeat(MAX_CONTEXT + 1), "options": options,
            "run_at": "2099-01-01T00:00:00Z", "deadline_seconds": 0, "model": "a b", "metadata": metadata, "x": {}
        });
        let mut fields = wrong(&body);
        fields.sort();
        let all = ["context", "deadline_seconds", "metadata", "model", "options", "query", "qurey", "run_at", "x"];
        assert_eq!(fields, all);
    }

    #[test]
    fn lengths_are_counted_in_characters() {
        assert!(wrong(&json!({"query": "迁".repeat(20)})).is_empty());
        let errors = wrong_text(&json!({"query": "迁".repeat(21)}).to_string());
        assert_eq!(errors, [FieldError::new("query", "must be at most 20 characters, not 21")]);
    }

    #[test]
    fn each_option_and_label_is_checked() {
        let body = json!({"query": "q", "options": ["a", "", "x".repeat(501)]});
        assert_eq!(wrong(&body), ["options[1]", "options[2]"]);
        let body = json!({"query": "q", "metadata": {"": "v", "k": "x".repeat(513), "x".repeat(65): "v"}});
        assert_eq!(wrong(&body), ["metadata", "metadata.k", "metadata"]);
    }

    #[test]
    fn no_option_may_be_given_twice() {
        let errors = wrong_text(&json!({"query": "q", "options": ["Buy", "build", " buy ", "Lease"]}).to_string());
        assert_eq!(errors, [FieldError::new("options[2]", "must not be the same as options[0]")]);
    }

    #[test]
    fn callback_events_are_known_ones_each_once_and_have_a_url() {
        let of =
            |events: Value| json!({"query": "q", "callback_url": "https://example.com/", "callback_events": events});
        assert!(wrong(&of(json!(["job.failed", "job.needs_information"]))).is_empty());
        assert!(wrong(&of(json!(null))).is_empty());
        for (body, message) in [
            (of(json!([])), "must not be empty"),
            (of(json!(["job.failed", "job.cancelled", "job.failed"])), "must not have job.failed twice"),
            (json!({"query": "q", "callback_events": ["job.failed"]}), "needs a callback_url"),
        ] {
            let errors = wrong_text(&body.to_string());
            assert!(errors[0].field == "callback_events" && errors[0].message.starts_with(message), "{errors:?}");
        }
        let errors = wrong_text(&of(json!(["job.done"])).to_string());
        let message = "unknown variant `job.done`, expected one of `job.succeeded`, `job.needs_information`, `job.failed`, \
                       `job.cancelled`";
        assert_eq!(errors, [FieldError::new("callback_events[0]", message)]);
    }

    #[test]
    fn a_deadline_before_the_start_is_refused() {
        let body = json!({"query": "q", "run_at": at(60), "deadline_seconds": 60});
        assert_eq!(wrong(&body), ["deadline_seconds"]);
    }

    #[test]
    fn mistakes_of_type_name_and_value_are_reported_together() {
        let body =
            r#"{"z": 1, "query": 5, "options": ["a", 2, "", 3, "A"], "priority": "urgent", "deadline_seconds": 0}"#;
        let errors = wrong_text(body);
        let mut fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        fields.sort_unstable();
        let all =
            ["deadline_seconds", "options[1]", "options[2]", "options[3]", "options[4]", "priority", "query", "z"];
        assert_eq!(fields, all);
        assert!(errors.contains(&FieldError::new("options[4]", "must not be the same as options[0]")));
        assert!(errors.contains(&FieldError::new("options[1]", "invalid type: integer `2`, expected a string")));
        let batch =
            r#"{"requests": [{"query": "q"}, 7, {"options": ["a", 1, "a"]}, {"query": "q", "wait": 1}], "x": 1}"#;
        let problem = parse_batch(batch.as_bytes(), bounds(&prompts()), at(0)).unwrap_err();
        let mut fields: Vec<&str> = problem.errors().iter().map(|error| error.field.as_str()).collect();
        fields.sort_unstable();
        let all = [
            "requests[1]",
            "requests[2].options[1]",
            "requests[2].options[2]",
            "requests[2].query",
            "requests[3].wait",
            "x",
        ];
        assert_eq!(fields, all);
    }

    #[test]
    fn a_value_of_the_wrong_type_is_reported_once() {
        for (body, field) in [
            (r#"{"query": 5}"#, "query"),
            (r#"{"query": "q", "priority": "urgent"}"#, "priority"),
            (r#"{"query": "q", "priority": 5}"#, "priority"),
            (r#"{"query": "q", "run_at": "tomorrow"}"#, "run_at"),
            (r#"{"query": "q", "deadline_seconds": 1.5}"#, "deadline_seconds"),
            (r#"{"query": "q", "metadata": {"a": 1}}"#, "metadata.a"),
            (r#"{"query": "q", "wait": "yes"}"#, "wait"),
            (r#"["q"]"#, "$"),
            (r#""q""#, "$"),
        ] {
            let errors = wrong_text(body);
            assert_eq!(errors.len(), 1, "{body}: {errors:?}");
            assert_eq!(errors[0].field, field, "{body}: {errors:?}");
        }
    }

    #[test]
    fn thousands_of_unknown_fields_do_not_make_a_huge_answer() {
        let fields: String = (0..10_000).map(|number| format!("\"a{number}\":1,")).collect();
        let errors = wrong_text(&format!("{{{fields}\"query\": \"q\"}}"));
        assert_eq!(errors.len(), body::MAX_ERRORS + 1);
        assert_eq!(errors.last(), Some(&FieldError::new("$", "may have more errors; correct these first")));
    }

    #[test]
    fn broken_json_is_reported_with_its_place() {
        for broken in ["", "{", "{\"query\": \"q\",}", "{\"query\": \"q\"} x", "query", "\u{feff}{"] {
            let problem = parse(broken.as_bytes(), bounds(&prompts()), at(0)).unwrap_err();
            let text = format!("{problem:?}");
            assert!(broken.is_empty() || text.contains("line 1 column"), "{text}");
            assert_eq!(problem.into_response().status(), StatusCode::BAD_REQUEST, "{broken}");
        }
        assert!(parse(b"{\"query\": \"\xff\"}", bounds(&prompts()), at(0)).is_err());
    }
}
