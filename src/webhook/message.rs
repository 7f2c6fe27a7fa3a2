//! The bodies of messages. A signature covers the whole body, and so the caller and the URL in it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    analysis::{
        decision::{Asked, Status},
        memo::Shown,
    },
    clock::Timestamp,
    job::{AttemptError, JobId, JobRecord, JobState, JobStatus, delivery::CallbackEvent},
};

/// The `type` of a test message.
const TEST: &str = "webhook.test";

/// A message that reports the end of a job.
#[derive(Serialize)]
pub(super) struct Message<'a> {
    r#type: CallbackEvent,
    timestamp: Option<Timestamp>,
    data: Data<'a>,
}

/// The job.
#[derive(Serialize)]
struct Data<'a> {
    id: JobId,
    status: JobStatus,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
    /// Who submitted it; absent for callers without a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'a str>,
    callback_url: &'a str,
    query: &'a str,
    metadata: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Shown<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<AttemptError>,
}

impl<'a> Message<'a> {
    pub(super) fn new(record: &'a JobRecord) -> Message<'a> {
        let JobRecord { job, request, .. } = record;
        let asked = Asked { query: &request.query, options: &request.options, is_brief: record.is_brief() };
        let result = record.result().map(|stored| Shown::new(stored, &asked));
        let data = Data {
            id: job.id,
            // An ended job has the same status at every time.
            status: job.status(job.created_at),
            created_at: job.created_at,
            finished_at: job.finished_at,
            caller: request.caller.as_deref(),
            callback_url: request.callback_url.as_deref().unwrap_or_default(),
            query: &request.query,
            metadata: &request.metadata,
            result,
            error: record.error(),
        };
        let event = event(job.state, &data, &request.callback_events);
        Message { r#type: event, timestamp: job.finished_at, data }
    }

    /// Whether the request chose this event. Without a choice, it is every end of the job.
    pub(super) fn is_chosen(&self, chosen: &[CallbackEvent]) -> bool {
        chosen.is_empty() || chosen.contains(&self.r#type)
    }
}

/// A memo that asks for information is an event of its own only to those who chose that.
fn event(state: JobState, data: &Data<'_>, chosen: &[CallbackEvent]) -> CallbackEvent {
    let needs_information =
        matches!(&data.result, Some(Shown::Memo(memo)) if memo.analysis.status == Status::NeedsInformation);
    match state {
        JobState::Failed { .. } => CallbackEvent::Failed,
        JobState::Cancelled => CallbackEvent::Cancelled,
        JobState::Succeeded | JobState::Queued { .. } | JobState::Running { .. } => {
            if needs_information && chosen.contains(&CallbackEvent::NeedsInformation) {
                CallbackEvent::NeedsInformation
            } else {
                CallbackEvent::Succeeded
            }
        }
    }
}

/// A message that reports nothing: to try a receiver.
#[derive(Serialize)]
pub(super) struct TestMessage<'a> {
    r#type: &'static str,
    timestamp: Timestamp,
    data: TestData<'a>,
}

#[derive(Serialize)]
struct TestData<'a> {
    test: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'a str>,
    callback_url: &'a str,
}

impl<'a> TestMessage<'a> {
    pub(super) fn new(caller: Option<&'a str>, callback_url: &'a str, timestamp: Timestamp) -> TestMessage<'a> {
        TestMessage { r#type: TEST, timestamp, data: TestData { test: true, caller, callback_url } }
    }
}
