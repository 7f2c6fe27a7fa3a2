//! The job filter, as query parameters and as JSON, and the cursors of listings.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use strum::VariantNames;
use utoipa::ToSchema;

use super::{extract::Params, problem::FieldError, submission::MAX_METADATA};
use crate::{
    clock::Timestamp,
    job::{Cursor, FailureCode, JobFilter, JobId, JobStatus, Priority, Side},
};

const MAX_TEXT: usize = 500;

/// Most ids of a filter: five pages of a listing.
const MAX_IDS: usize = 1_000;

/// Most ids in query parameters: those of one page. More would not fit into the head of a request.
const MAX_IDS_IN_QUERY: usize = 200;

/// A job must match all conditions. An empty filter matches all jobs.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
#[schema(as = JobFilter)]
#[serde(default, deny_unknown_fields, expecting = "an object")]
pub(super) struct Conditions {
    /// Jobs with one of these ids.
    #[schema(value_type = Option<Vec<Uuid>>, min_items = 1, max_items = 1000)]
    #[serde(skip_serializing_if = "Option::is_none")]
    ids: Option<Vec<JobId>>,
    /// Jobs with one of these statuses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    status: Vec<JobStatus>,
    /// Jobs with one of these priorities.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    priority: Vec<Priority>,
    /// Jobs that failed with one of these codes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    code: Vec<FailureCode>,
    /// Jobs accepted at this time or later (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    created_from: Option<Timestamp>,
    /// Jobs accepted before this time (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    created_before: Option<Timestamp>,
    /// Jobs whose query contains this text, ignoring case.
    #[schema(min_length = 1, max_length = 500)]
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// Jobs that requested this model or were answered by it.
    #[schema(min_length = 1, max_length = 500)]
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// Jobs with all of these labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    /// Labels from query parameters. They can give one key two values, which no job has.
    #[serde(skip)]
    labels: Vec<(String, String)>,
    /// Jobs submitted with this API key's name or token's subject.
    #[schema(min_length = 1, max_length = 500)]
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<String>,
}

impl Conditions {
    pub(super) fn from_params(caller: Option<String>, params: &mut Params) -> Conditions {
        let mut count = 0;
        let ids: Vec<Vec<JobId>> = params.all("ids", |value| {
            let parse = |id: &str| {
                count += 1;
                if count > MAX_IDS_IN_QUERY {
                    return Err(format!("must be at most {MAX_IDS_IN_QUERY} ids"));
                }
                id.parse().map_err(|_| format!("must be ids of jobs, separated by commas, not {id:?}"))
            };
            value.split(',').map(parse).collect()
        });
        Conditions {
            ids: Some(ids.concat()).filter(|ids| !ids.is_empty()),
            status: params.all("status", |value| one_of(value, JobStatus::VARIANTS)),
            priority: params.all("priority", |value| one_of(value, Priority::VARIANTS)),
            code: params.all("code", |value| one_of(value, FailureCode::VARIANTS)),
            created_from: params.last("created_from", time),
            created_before: params.last("created_before", time),
            text: once(params, "text"),
            model: once(params, "model"),
            labels: params.all("metadata", |value| {
                let label = value.split_once('=').map(|(key, label)| (key.to_owned(), label.to_owned()));
                label.ok_or_else(|| format!("must be key=value, not {value:?}"))
            }),
            metadata: BTreeMap::new(),
            caller,
        }
    }

    pub(super) fn filter(self) -> Result<JobFilter, Vec<FieldError>> {
        let mut errors = Vec::new();
        let mut wrong = |field, message| errors.push(FieldError::new(field, message));
        for (name, text) in [("text", &self.text), ("model", &self.model), ("caller", &self.caller)] {
            let count = text.as_ref().map_or(1, |text| text.chars().count());
            if !(1..=MAX_TEXT).contains(&count) {
                wrong(name, format!("must have 1 to {MAX_TEXT} characters, not {count}"));
            }
        }
        // No ids must not mean all jobs.
        if let Some(count) = self.ids.as_ref().map(Vec::len).filter(|count| !(1..=MAX_IDS).contains(count)) {
            wrong("ids", format!("must be 1 to {MAX_IDS} ids, not {count}"));
        }
        let labels = self.metadata.len() + self.labels.len();
        // A job can't have more.
        if labels > MAX_METADATA {
            wrong("metadata", format!("must be at most {MAX_METADATA} labels, not {labels}"));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let filter = JobFilter {
            ids: self.ids.map(BTreeSet::from_iter),
            statuses: self.status,
            priorities: self.priority,
            codes: self.code,
            created_from: self.created_from,
            created_before: self.created_before,
            model: self.model,
            metadata: self.metadata.into_iter().chain(self.labels).collect(),
            caller: self.caller,
            ..JobFilter::default()
        };
        Ok(filter.with_text(self.text.as_deref()))
    }
}

fn one_of<T: std::str::FromStr>(value: &str, allowed: &[&str]) -> Result<T, String> {
    value.parse().map_err(|_| format!("must be one of {}, not {value:?}", allowed.join(", ")))
}

pub(super) fn time(value: &str) -> Result<Timestamp, String> {
    serde_json::from_value(value.into()).map_err(|error: serde_json::Error| error.to_string())
}

pub(super) fn once(params: &mut Params, name: &'static str) -> Option<String> {
    let mut is_given = false;
    params.last(name, |value| match std::mem::replace(&mut is_given, true) {
        false => Ok(value.to_owned()),
        true => Err("must be given once".to_owned()),
    })
}

pub(super) fn cursor(value: &str) -> Result<Cursor, String> {
    decode_cursor(value).ok_or_else(|| "is not a cursor of this service; start without a cursor".to_owned())
}

pub(super) fn encode_cursor(cursor: Cursor) -> String {
    let side = match cursor.side {
        Side::Older => 0,
        Side::Newer => 1,
    };
    let mut bytes = [side; 9];
    bytes[1..].copy_from_slice(&cursor.from.to_be_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn decode_cursor(text: &str) -> Option<Cursor> {
    let bytes: [u8; 9] = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
    let (side, from) = bytes.split_first()?;
    let side = match side {
        0 => Side::Older,
        1 => Side::Newer,
        _ => return None,
    };
    Some(Cursor { side, from: u64::from_be_bytes(from.try_into().ok()?) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::JobRequest;

    /// The pattern of a cursor in the OpenAPI document.
    const PATTERN: &str = "^A[A-Za-f][A-Za-z0-9_-]{10}$";

    #[test]
    fn the_document_has_the_pattern_wherever_a_cursor_is_accepted() {
        assert_eq!(crate::http::openapi().to_json().unwrap().matches(PATTERN).count(), 5);
    }

    proptest! {
        #[test]
        fn a_cursor_survives_a_round_trip(newer: bool, from: u64) {
            let cursor = Cursor { side: if newer { Side::Newer } else { Side::Older }, from };
            prop_assert_eq!(decode_cursor(&encode_cursor(cursor)), Some(cursor));
        }

        #[test]
        fn every_text_that_matches_the_pattern_is_a_cursor(
            text in PATTERN.trim_start_matches('^').trim_end_matches('$'),
        ) {
            prop_assert!(decode_cursor(&text).is_some(), "{text}");
        }

        #[test]
        fn any_other_text_is_refused_without_a_panic(text in "\\PC{0,20}|[A-Za-z0-9_-]{12}") {
            if let Some(cursor) = decode_cursor(&text) {
                prop_assert_eq!(encode_cursor(cursor), text);
            }
        }
    }

    fn conditions(given: &[(&str, &str)]) -> (Conditions, Vec<FieldError>) {
        let given = given.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        let mut params = Params::new(given.collect());
        (Conditions::from_params(None, &mut params), params.errors())
    }

    #[test]
    fn conditions_add_up() {
        let ids = ["01a20a05-6ed7-7618-a47d-ce15724b97e5", "01a20a05-6ed7-7618-a47d-ce15724b97e6"];
        let (conditions, errors) = conditions(&[
            ("ids", ids[0]),
            ("ids", &ids.join(",")),
            ("status", "failed"),
            ("status", "scheduled"),
            ("priority", "low"),
            ("code", "refused"),
            ("created_from", "2026-11-23T10:10:00Z"),
            ("text", "Rotterdam"),
            ("metadata", "team=ops=1"),
            ("metadata", "k="),
            ("metadata", "k=other"),
        ]);
        assert_eq!(errors, []);
        let filter = conditions.filter().unwrap();
        assert_eq!(filter.ids, Some(ids.map(|id| id.parse().unwrap()).into()));
        assert_eq!(filter.statuses, [JobStatus::Failed, JobStatus::Scheduled]);
        assert_eq!((&*filter.priorities, &*filter.codes), (&[Priority::Low][..], &[FailureCode::Refused][..]));
        assert_eq!(filter.created_from, Some(Timestamp::from_millis(1_795_428_600_000)));
        let labels = [("k", ""), ("k", "other"), ("team", "ops=1")];
        assert_eq!(filter.metadata, labels.map(|(key, label)| (key.to_owned(), label.to_owned())).into());
        let request = JobRequest { metadata: [("k".to_owned(), "other".to_owned())].into(), ..JobRequest::default() };
        assert!(!filter.takes_request(&request), "no job has two labels of a key");
    }

    #[test]
    fn an_error_says_what_is_allowed() {
        let wrong = |name: &str, value: &str| conditions(&[(name, value)]).1.remove(0).message;
        assert!(wrong("status", "done").contains("queued, scheduled, running"));
        assert!(wrong("priority", "urgent").contains("high, normal, low"));
        assert!(wrong("code", "oops").contains("deadline_exceeded"));
        assert!(wrong("created_from", "yesterday").contains("RFC 3339"));
        assert!(wrong("ids", "01a2,x").contains("ids of jobs, separated by commas, not \"01a2\""));
        let no_ids = Conditions { ids: Some(Vec::new()), ..Conditions::default() };
        assert_eq!(no_ids.filter().unwrap_err()[0].message, "must be 1 to 1000 ids, not 0");
        assert!(wrong("metadata", "team").contains("key=value"));
        assert!(wrong("state", "failed").starts_with("is not a parameter"));
        assert_eq!(conditions(&[("text", "a"), ("text", "b")]).1, [FieldError::new("text", "must be given once")]);
        let long = Conditions { text: Some("x".repeat(501)), model: Some(String::new()), ..Conditions::default() };
        assert_eq!(long.filter().unwrap_err().len(), 2);
    }
}
