//! Whatever a client sends is either a submission within every limit or a problem, never a panic. `PROPTEST_CASES` sets
//! the number of cases.

use std::sync::LazyLock;

use proptest::{collection::vec, prelude::*, sample::Index};
use serde_json::{Map, Value, json};

use super::{
    submission::{self, Bounds},
    wait::Wait,
};
use crate::{agent::models::Models, clock::Timestamp, job::callback::Callbacks, prompts::Prompts};

const MAX_QUERY_LENGTH: usize = 40;

/// A request with values that are right, nearly right, or of another type.
fn question() -> impl Strategy<Value = Value> {
    let strange = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        vec(any::<String>(), 0..4).prop_map(Value::from),
    ];
    let text = "\\PC{1,45}".prop_map(Value::from);
    let field = prop_oneof![
        (Just("query"), text.clone()),
        (Just("context"), text.clone()),
        (Just("options"), vec("\\PC{0,20}", 0..12).prop_map(Value::from)),
        (Just("priority"), "high|normal|low|urgent".prop_map(Value::from)),
        (Just("wait"), any::<f64>().prop_map(Value::from)),
        (Just("run_at"), "[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:00:00(Z|\\+01:00)".prop_map(Value::from)),
        (Just("deadline_seconds"), any::<i64>().prop_map(Value::from)),
        (Just("model"), "a|b/c|[a-z0-9/ -]{0,110}".prop_map(Value::from)),
        (Just("callback_url"), "(https|http|file)://[a-z0-9.:\\[\\]@/]{0,40}".prop_map(Value::from)),
        (Just("prompt_version"), "v1|v2|\\.\\./v1".prop_map(Value::from)),
        (
            Just("metadata"),
            proptest::collection::btree_map("\\PC{0,70}", "\\PC{0,20}", 0..20).prop_map(|labels| json!(labels))
        ),
        (Just("unknown"), strange.clone()),
        (Just("query"), strange.clone()),
        (Just("options"), strange.clone()),
        (Just("metadata"), strange),
    ];
    (text, vec(field, 0..6)).prop_map(|(query, fields)| {
        let mut question = Map::from_iter([("query".to_owned(), query)]);
        question.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Value::Object(question)
    })
}

/// A body with some bytes changed, removed or inserted.
fn broken() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        question().prop_map(|question| question.to_string()),
        vec(question(), 0..5).prop_map(|questions| json!({ "requests": questions }).to_string()),
        // Nested deep enough to overflow a stack.
        (1..50_000_usize, "\\[|\\{\"a\":").prop_map(|(depth, open)| open.repeat(depth)),
    ];
    (body, vec((any::<Index>(), any::<u8>(), 0..3_u8), 0..4)).prop_map(|(body, changes)| {
        let mut bytes = body.into_bytes();
        for (place, byte, how) in changes {
            if bytes.is_empty() {
                break;
            }
            let place = place.index(bytes.len());
            match how {
                0 => bytes[place] = byte,
                1 => drop(bytes.remove(place)),
                _ => bytes.insert(place, byte),
            }
        }
        bytes
    })
}

static PUBLIC: std::sync::LazyLock<Callbacks> = std::sync::LazyLock::new(Callbacks::default);

fn bounds(prompts: &Prompts) -> Bounds<'_> {
    static MODELS: LazyLock<Models> = LazyLock::new(|| Models::new("a".to_owned(), Vec::new(), vec!["b/c".to_owned()]));
    Bounds { max_query_length: MAX_QUERY_LENGTH, callbacks: &PUBLIC, prompts, models: &MODELS }
}

fn prompts() -> &'static Prompts {
    static PROMPTS: std::sync::OnceLock<Prompts> = std::sync::OnceLock::new();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts");
    PROMPTS.get_or_init(|| Prompts::load(&folder).unwrap())
}

fn is_within(request: &crate::job::JobRequest) -> bool {
    (1..=MAX_QUERY_LENGTH).contains(&request.query.chars().count())
        && request.options.len() <= 8
        && request.metadata.len() <= 16
        && request.model.as_ref().is_none_or(|model| ["a", "b/c"].contains(&model.as_str()))
        && request.callback_url.as_ref().is_none_or(|url| url.starts_with("https://"))
}

proptest! {
    #[test]
    fn a_request_is_accepted_within_every_limit_or_refused(question in question()) {
        let now = Timestamp::from_millis(1_800_000_000_000);
        if let Ok((submission, _)) = submission::parse(question.to_string().as_bytes(), bounds(prompts()), now) {
            prop_assert!(is_within(&submission.request), "{question}");
            prop_assert_eq!(Some(submission.request.query.as_str()), question["query"].as_str());
        }
    }

    #[test]
    fn a_broken_body_is_never_a_panic(body in broken()) {
        let now = Timestamp::from_millis(1_800_000_000_000);
        if let Ok((submission, _)) = submission::parse(&body, bounds(prompts()), now) {
            prop_assert!(is_within(&submission.request));
        }
        if let Ok(submissions) = submission::parse_batch(&body, bounds(prompts()), now) {
            prop_assert!(submissions.iter().all(|submission| is_within(&submission.request)));
        }
    }

    #[test]
    fn a_wait_is_bounded_or_refused(text in "\\PC{0,20}|-?[0-9]{1,40}(\\.[0-9]{0,40})?(e-?[0-9]{1,4})?|true|false") {
        if let Ok(wait) = Wait::parse(&text) {
            let applied = wait.applied();
            let seconds: u64 = applied.to_str().unwrap().trim_start_matches("wait=").parse().unwrap();
            prop_assert!(seconds <= 30, "{text}: {seconds}");
        }
    }
}
