//! The bodies of messages. A signature covers the whole body, and so the caller and the URL in it.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    analysis::{
        decision::{Asked, Status},
        memo::{Memo, Shown},
    },
    clock::Timestamp,
    config::values::Origin,
    job::{AttemptError, JobRecord, JobState, JobStatus, delivery::CallbackEvent},
};

/// A message that reports the end of a job.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookMessage)]
pub struct Message<'a> {
    /// Ignore types that you do not know.
    r#type: CallbackEvent,
    /// When the job ended.
    timestamp: Option<Timestamp>,
    data: Data<'a>,
}

/// The job that ended.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookData)]
struct Data<'a> {
    id: Uuid,
    status: JobStatus,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
    /// Who submitted the job. Absent for callers without a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'a str>,
    /// The URL that the job's caller named. Check that it is yours.
    callback_url: &'a str,
    /// The page of the memo, if PUBLIC_URL is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<String>,
    /// The question, as submitted.
    query: &'a str,
    /// The labels, as submitted.
    metadata: &'a BTreeMap<String, String>,
    /// The memo of a succeeded job.
    #[schema(value_type = Option<Memo>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Shown<'a>>,
    /// Why the job failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<AttemptError>,
}

impl<'a> Message<'a> {
    pub(super) fn new(record: &'a JobRecord, public_url: Option<&Origin>) -> Message<'a> {
        let JobRecord { job, request, .. } = record;
        let data = Data {
            id: job.id,
            // An ended job has the same status at every time.
            status: job.status(job.created_at),
            created_at: job.created_at,
            finished_at: job.finished_at,
            caller: request.caller.as_deref(),
            callback_url: request.callback_url.as_deref().unwrap_or_default(),
            page: public_url.map(|url| format!("{url}/jobs/{}", job.id)),
            query: &request.query,
            metadata: &request.metadata,
            result: memo(record),
            error: record.error(),
        };
        // A memo that asks for information is an event of its own only to those who chose that.
        let asks = matches!(&data.result, Some(Shown::Memo(memo)) if memo.analysis.status == Status::NeedsInformation)
            && request.callback_events.contains(&CallbackEvent::NeedsInformation);
        let r#type = match job.state {
            JobState::Failed { .. } => CallbackEvent::Failed,
            JobState::Cancelled => CallbackEvent::Cancelled,
            JobState::Succeeded if asks => CallbackEvent::NeedsInformation,
            JobState::Succeeded | JobState::Queued { .. } | JobState::Running => CallbackEvent::Succeeded,
        };
        Message { r#type, timestamp: job.finished_at, data }
    }

    /// Whether the request chose this event. Without a choice, it is every end of the job.
    pub(super) fn is_chosen(&self, chosen: &[CallbackEvent]) -> bool {
        chosen.is_empty() || chosen.contains(&self.r#type)
    }
}

pub fn memo(record: &JobRecord) -> Option<Shown<'_>> {
    let JobRecord { request, .. } = record;
    let asked = Asked { query: &request.query, options: &request.options, is_brief: record.is_brief() };
    record.result().map(|stored| Shown::new(stored, &asked))
}

/// A message that reports nothing: to test a receiver.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookTestMessage)]
pub struct TestMessage<'a> {
    /// `webhook.test`.
    #[schema(value_type = String)]
    r#type: &'static str,
    /// When the message was sent.
    timestamp: Timestamp,
    data: TestData<'a>,
}

/// What a test message says.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookTestData)]
struct TestData<'a> {
    /// Always `true`.
    test: bool,
    /// Who sent the test. Absent for callers without a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'a str>,
    /// The URL of the test.
    callback_url: &'a str,
}

impl<'a> TestMessage<'a> {
    pub(super) fn new(caller: Option<&'a str>, callback_url: &'a str, timestamp: Timestamp) -> TestMessage<'a> {
        TestMessage { r#type: "webhook.test", timestamp, data: TestData { test: true, caller, callback_url } }
    }
}
