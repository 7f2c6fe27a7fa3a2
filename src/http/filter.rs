//! The job filter, as query parameters and as JSON, and the cursors of listings.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use strum::VariantNames;
use utoipa::ToSchema;

use super::{problem::FieldError, submission::MAX_METADATA};
use crate::{
    clock::Timestamp,
    job::{Cursor, FailureCode, JobFilter, JobId, JobStatus, Priority, Side},
};

/// Longest text of a condition, in characters.
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
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    created_from: Option<Timestamp>,
    /// Jobs accepted before this time (RFC 3339).
    #[schema(value_type = Option<String>, format = DateTime)]
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
    /// Parses a query parameter, if it is a condition. The error says what is allowed.
    pub(super) fn take(&mut self, name: &str, value: &str) -> Option<Result<(), String>> {
        let taken = match name {
            "ids" => value.split(',').try_for_each(|id| {
                let wrong = |_| format!("must be ids of jobs, separated by commas, not {id:?}");
                let ids = self.ids.get_or_insert_default();
                if ids.len() == MAX_IDS_IN_QUERY {
                    return Err(format!("must be at most {MAX_IDS_IN_QUERY} ids"));
                }
                id.parse().map(|id| ids.push(id)).map_err(wrong)
            }),
            "status" => one_of(value, JobStatus::VARIANTS).map(|status| self.status.push(status)),
            "priority" => one_of(value, Priority::VARIANTS).map(|priority| self.priority.push(priority)),
            "code" => one_of(value, FailureCode::VARIANTS).map(|code| self.code.push(code)),
            "created_from" => time(value).map(|time| self.created_from = Some(time)),
            "created_before" => time(value).map(|time| self.created_before = Some(time)),
            "text" => once(&mut self.text, value),
            "model" => once(&mut self.model, value),
            "caller" => once(&mut self.caller, value),
            "metadata" => match value.split_once('=') {
                Some((key, label)) => {
                    self.labels.push((key.to_owned(), label.to_owned()));
                    Ok(())
                }
                None => Err(format!("must be key=value, not {value:?}")),
            },
            _ => return None,
        };
        Some(taken)
    }

    /// The filter, or all its errors.
    pub(super) fn filter(self) -> Result<JobFilter, Vec<FieldError>> {
        let mut errors = Vec::new();
        let texts = [("text", &self.text), ("model", &self.model), ("caller", &self.caller)];
        for (name, text) in texts.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?))) {
            let count = text.chars().count();
            if !(1..=MAX_TEXT).contains(&count) {
                errors.push(FieldError::new(name, format!("must have 1 to {MAX_TEXT} characters, not {count}")));
            }
        }
        // No ids must not mean all jobs.
        if let Some(count) = self.ids.as_ref().map(Vec::len).filter(|count| !(1..=MAX_IDS).contains(count)) {
            errors.push(FieldError::new("ids", format!("must be 1 to {MAX_IDS} ids, not {count}")));
        }
        let labels = self.metadata.len() + self.labels.len();
        // A job can't have more.
        if labels > MAX_METADATA {
            let message = format!("must be at most {MAX_METADATA} labels, not {labels}");
            errors.push(FieldError::new("metadata", message));
        }
        if errors.is_empty() {
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
        } else {
            Err(errors)
        }
    }
}

fn one_of<T: std::str::FromStr>(value: &str, allowed: &[&str]) -> Result<T, String> {
    value.parse().map_err(|_| format!("must be one of {}, not {value:?}", allowed.join(", ")))
}

/// A moment, as a query parameter.
pub(super) fn time(value: &str) -> Result<Timestamp, String> {
    serde_json::from_value(value.into()).map_err(|error: serde_json::Error| error.to_string())
}

fn once(place: &mut Option<String>, value: &str) -> Result<(), String> {
    match place.replace(value.to_owned()) {
        None => Ok(()),
        Some(_) => Err("must be given once".to_owned()),
    }
}

pub(super) const WRONG_CURSOR: &str = "is not a cursor of this service; start without a cursor";

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
        assert_eq!(crate::http::openapi().to_json().unwrap().matches(PATTERN).count(), 6);
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

    #[test]
    fn conditions_add_up() {
        let mut conditions = Conditions::default();
        let ids = ["01a20a05-6ed7-7618-a47d-ce15724b97e5", "01a20a05-6ed7-7618-a47d-ce15724b97e6"];
        for (name, value) in [
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
        ] {
            conditions.take(name, value).unwrap().unwrap();
        }
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
        let wrong = |name: &str, value: &str| Conditions::default().take(name, value).unwrap().unwrap_err();
        assert!(wrong("status", "done").contains("queued, scheduled, running"));
        assert!(wrong("priority", "urgent").contains("high, normal, low"));
        assert!(wrong("code", "oops").contains("deadline_exceeded"));
        assert!(wrong("created_from", "yesterday").contains("RFC 3339"));
        assert!(wrong("ids", "01a2,x").contains("ids of jobs, separated by commas, not \"01a2\""));
        let no_ids = Conditions { ids: Some(Vec::new()), ..Conditions::default() };
        assert_eq!(no_ids.filter().unwrap_err()[0].message, "must be 1 to 1000 ids, not 0");
        assert!(wrong("metadata", "team").contains("key=value"));
        assert!(Conditions::default().take("state", "failed").is_none());
        let mut twice = Conditions::default();
        assert_eq!(twice.take("text", "a"), Some(Ok(())));
        assert!(twice.take("text", "b").unwrap().is_err());
        let long = Conditions { text: Some("x".repeat(501)), model: Some(String::new()), ..Conditions::default() };
        assert_eq!(long.filter().unwrap_err().len(), 2);
    }
}
