//! A job with all that belongs to it, and the words in which jobs are listed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    Attempt, AttemptError, AttemptOutcome, FailureCode, Job, JobState,
    delivery::{CallbackEvent, Delivery},
};
use crate::clock::Timestamp;

/// What a client asked. Written once at submission, never changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRequest {
    /// The question.
    pub query: String,
    /// What the asker knows besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// Options that the asker wants considered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// The model asked for; none means the service's own setting at the time of the attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The version of the prompts asked for; none means the service's own setting at the time of the attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_version: Option<String>,
    /// How much the memo says. The queue replaces `auto` at submission, as only it can tell what fits the client's time.
    #[serde(default, skip_serializing_if = "Depth::is_auto")]
    pub depth: Depth,
    /// The caller's own labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Name of the key or token subject that submitted it; none where callers have no names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// Where a webhook is sent when the job ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback_url: Option<String>,
    /// The events that it is sent for; of an empty list, every end of the job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub callback_events: Vec<CallbackEvent>,
    /// Id of the HTTP request that brought the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The trace that the HTTP request belonged to, as a W3C `traceparent`, if traces are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Length of a memo. A longer memo takes longer.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantNames,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Depth {
    /// `brief` where a client waits and a full memo would not be ready in time, else `full`.
    #[default]
    Auto,
    /// The conclusion and what carries it: 700 to 900 tokens.
    Brief,
    /// Everything: 1,300 to 3,700 tokens.
    Full,
}

impl Depth {
    /// Whether the choice is left to the service.
    pub fn is_auto(&self) -> bool {
        *self == Depth::Auto
    }

    /// This depth, or for `auto` the usual one of a client that waits or does not.
    #[must_use]
    pub fn resolved(self, is_waited_for: bool) -> Depth {
        match self {
            Depth::Auto if is_waited_for => Depth::Brief,
            Depth::Auto => Depth::Full,
            Depth::Brief | Depth::Full => self,
        }
    }
}

/// A client's name for a submission: as long as it is in force, the same name means the same job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyKey {
    /// Of what the client sent as the name: the first half of its SHA-256.
    pub key: [u8; 16],
    /// Of what was asked, in the same way: another question under the same name is a mistake.
    pub body: [u8; 16],
    /// Until when it is in force.
    pub expires_at: Timestamp,
}

impl IdempotencyKey {
    /// How long a key is in force: longer than any client retries, shorter than its jobs stay.
    pub const WINDOW: Duration = Duration::from_hours(24);
}

/// A job as a store gives it back.
#[derive(Clone, Debug)]
pub struct JobRecord {
    /// Its life.
    pub job: Job,
    /// What was asked.
    pub request: Arc<JobRequest>,
    /// What came of it so far, oldest first.
    pub attempts: Vec<Arc<Attempt>>,
    /// What is owed to its callback URL, if it has one.
    pub delivery: Option<Delivery>,
}

impl JobRecord {
    /// Of a job that has just been accepted.
    pub fn fresh(job: Job, request: Arc<JobRequest>) -> JobRecord {
        let delivery = request.callback_url.as_deref().map(Delivery::to);
        JobRecord { job, request, attempts: Vec::new(), delivery }
    }

    /// The memo, as it was stored, if the job has one.
    pub fn result(&self) -> Option<&RawValue> {
        self.answer()?.report.result.as_deref()
    }

    /// Whether the memo is a brief one.
    pub fn is_brief(&self) -> bool {
        self.answer().is_some_and(|attempt| attempt.report.depth == Some(Depth::Brief))
    }

    /// Bytes of its texts: question, answers, memo.
    pub fn text_bytes(&self) -> usize {
        let JobRequest { query, context, options, .. } = &*self.request;
        let asked =
            query.len() + context.as_ref().map_or(0, String::len) + options.iter().map(String::len).sum::<usize>();
        let of_attempt = |attempt: &Arc<Attempt>| {
            let report = &attempt.report;
            report.raw_answer.as_ref().map_or(0, String::len)
                + report.result.as_ref().map_or(0, |memo| memo.get().len())
        };
        asked + self.attempts.iter().map(of_attempt).sum::<usize>()
    }

    /// The attempt that brought the memo.
    pub fn answer(&self) -> Option<&Attempt> {
        let brought = |attempt: &&Arc<Attempt>| match attempt.outcome {
            AttemptOutcome::Succeeded | AttemptOutcome::Reparsed | AttemptOutcome::Shared => true,
            AttemptOutcome::Failed
            | AttemptOutcome::Released
            | AttemptOutcome::Cancelled
            | AttemptOutcome::OutcomeUnknown => false,
        };
        self.attempts.iter().rev().find(brought).map(|attempt| &**attempt)
    }

    /// Why a failed job failed, in the words of the attempt that it failed with.
    pub fn error(&self) -> Option<AttemptError> {
        let JobState::Failed { code } = self.job.state else { return None };
        let last = self.attempts.last().and_then(|attempt| attempt.report.error.as_ref());
        let known = last.filter(|error| error.code == code).map(|error| error.message.as_str());
        let message = match (code, known) {
            // The attempt's message is written for the model, which gets it in the repair prompt.
            (FailureCode::InvalidOutput, Some(wrong)) => {
                format!("Claude's answer could not be parsed as a memo: {wrong}; retry the job")
            }
            (_, Some(message)) => message.to_owned(),
            (FailureCode::Poisoned, None) => {
                let last = last.map_or("", |error| error.message.as_str());
                format!("this question was refused repeatedly while others were answered: {last}")
            }
            (FailureCode::DeadlineExceeded, None) => "the job's deadline passed before it could run".to_owned(),
            (other, None) => format!("the job failed: {other}"),
        };
        Some(AttemptError { code, message })
    }
}

/// State of a job.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
    strum::Display,
    strum::EnumString,
    strum::EnumIter,
    strum::IntoStaticStr,
    strum::VariantNames,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum JobStatus {
    /// Ready to run.
    Queued,
    /// Queued, but not before a certain time: on request, or between two attempts.
    Scheduled,
    /// An attempt is running.
    Running,
    /// The job has a memo.
    Succeeded,
    /// The job has an error.
    Failed,
    /// Cancelled by a client or an operator.
    Cancelled,
}

/// Number of jobs in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct StatusCounts {
    pub queued: usize,
    pub scheduled: usize,
    pub running: usize,
    pub succeeded: usize,
    pub failed: usize,
    pub cancelled: usize,
}

impl StatusCounts {
    /// The count of one status.
    pub fn of(&mut self, status: JobStatus) -> &mut usize {
        match status {
            JobStatus::Queued => &mut self.queued,
            JobStatus::Scheduled => &mut self.scheduled,
            JobStatus::Running => &mut self.running,
            JobStatus::Succeeded => &mut self.succeeded,
            JobStatus::Failed => &mut self.failed,
            JobStatus::Cancelled => &mut self.cancelled,
        }
    }
}
