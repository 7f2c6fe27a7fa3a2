//! An ended attempt, and the codes of failure.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{id::JobId, request::Depth};
use crate::clock::Timestamp;

/// Most entries in the history of a job; the oldest go first. A job may be retried again and again.
pub const MAX_ATTEMPTS: usize = 100;

/// An ended attempt: an entry of the job's append-only history. Usually it made a call to Claude; the outcome says if not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attempt {
    pub number: u32,
    pub started_at: Timestamp,
    /// When it was settled, cancelled or given up.
    pub finished_at: Timestamp,
    pub outcome: AttemptOutcome,
    /// So many released attempts before it have no entry of their own: this one stands for them too, and began when the
    /// first of them did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub folded: u32,
    pub report: Arc<AttemptReport>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Attempt {
    /// Takes the place of the entry before it, if both only gave the job back.
    #[must_use]
    pub fn fold(self, before: &Attempt) -> Attempt {
        let is_unspent = |attempt: &Attempt| {
            attempt.outcome == AttemptOutcome::Released
                && attempt.report.usage.is_none()
                && !attempt.report.may_have_been_billed
        };
        if !is_unspent(&self) || !is_unspent(before) || before.number + 1 != self.number {
            return self;
        }
        Attempt { started_at: before.started_at, folded: before.folded + 1, ..self }
    }

    pub fn stands_for(&self, number: u32) -> bool {
        (self.number - self.folded..=self.number).contains(&number)
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, strum::Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum AttemptOutcome {
    /// The attempt produced the memo.
    Succeeded,
    /// The attempt failed; `error` says why.
    Failed,
    /// The job returned to the queue without using up an attempt: rate limit, pause or shutdown.
    Released,
    /// The job was cancelled during the call, which may have been billed.
    Cancelled,
    /// The worker stopped during the call, which may have been answered and billed.
    OutcomeUnknown,
    /// No call: the memo was parsed from the stored answer of an earlier attempt.
    Reparsed,
    /// No call: the memo is that of another job with the same question.
    Shared,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AttemptReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<AttemptError>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// The upstream's own id of the call, for its support.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The model that answered, or was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_version: Option<String>,
    /// SHA-256 of those prompts, in hexadecimal: the same version may have been edited since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_sha256: Option<String>,
    /// The depth that the call asked for: brief or full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<Depth>,
    /// The attempt whose rejected answer was shown to the model in this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked_again_after: Option<u32>,
    /// The attempt whose stored answer was parsed again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reparsed_from: Option<u32>,
    /// The job whose call brought the result, while this one waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_with: Option<JobId>,
    /// Set if the result was there before the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached: Option<Cached>,
    /// As the upstream reported it. The output of an answer that broke off is estimated from the text that came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<TokenUsage>,
    /// The cost, in nano-dollars (1e-9 $); absent if the model had no price, which is not a price of zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nanodollars: Option<u64>,
    /// The call was sent and its end is not known.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub may_have_been_billed: bool,
    /// What it costs at most, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_risk: Option<AtRisk>,
    /// The memo, as JSON; only where the attempt brought it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    /// Slips of the answer that were recovered, such as `trailing_comma`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repaired: Vec<String>,
    /// The text of the answer as it came, so that a better parser can read it again for nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_answer: Option<String>,
}

impl AttemptReport {
    /// The report of an attempt that can't report any more: its call may have been billed.
    pub fn unknown(message: &str, at_risk: Option<AtRisk>) -> AttemptReport {
        AttemptReport {
            error: Some(AttemptError { code: FailureCode::OutcomeUnknown, message: message.to_owned() }),
            may_have_been_billed: true,
            at_risk,
            ..AttemptReport::default()
        }
    }

    /// The report of a job that waited for the answer to the same question.
    pub fn shared(&self, with: JobId) -> AttemptReport {
        AttemptReport { shared_with: Some(with), ..self.answer() }
    }

    /// The report of a job whose answer was there before.
    pub fn cached(&self, from: Cached) -> AttemptReport {
        AttemptReport { cached: Some(from), ..self.answer() }
    }

    fn answer(&self) -> AttemptReport {
        AttemptReport {
            model: self.model.clone(),
            prompt_version: self.prompt_version.clone(),
            prompt_sha256: self.prompt_sha256.clone(),
            depth: self.depth,
            result: self.result.clone(),
            repaired: self.repaired.clone(),
            ..AttemptReport::default()
        }
    }
}

/// The job that a cached answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cached {
    pub job_id: Uuid,
    /// When that job got its answer.
    pub finished_at: Timestamp,
}

/// Why an attempt or a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttemptError {
    /// Stable code, for programs.
    pub code: FailureCode,
    /// What failed, for people.
    pub message: String,
}

// On disk a code is its place in this list: append only, never reorder.
/// Stable code of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::Display, strum::EnumIter, strum::EnumString, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum FailureCode {
    /// The job's deadline passed before it could run.
    DeadlineExceeded,
    /// The worker stopped during the call, so the outcome is unknown.
    OutcomeUnknown,
    /// The answer could not be parsed as a memo. It is stored unchanged.
    InvalidOutput,
    /// Claude refused to answer.
    Refused,
    /// The answer reached the limit of output tokens.
    AnswerTruncated,
    /// Claude rejected the request.
    InvalidRequest,
    /// Claude rejected the request because of its size.
    RequestTooLarge,
    /// Claude rejected the API key.
    AuthenticationFailed,
    /// The account has no credit, or its spending limit is reached.
    BillingFailed,
    /// The API key does not have this permission.
    PermissionDenied,
    /// The model is unknown or retired.
    ModelNotFound,
    /// The account's rate limit is reached.
    RateLimited,
    /// Claude is overloaded.
    Overloaded,
    /// Claude reported an internal error.
    UpstreamError,
    /// The connection failed. Nothing was sent.
    ConnectFailed,
    /// The connection broke after the request was sent.
    ConnectionLost,
    /// Claude's own time limit was reached, or Claude stopped sending.
    Timeout,
    /// The answer did not follow the Messages API.
    MalformedResponse,
    /// Internal error. The log has the details.
    Internal,
    /// The service stopped during the call, or stopped or was paused before it.
    Shutdown,
    /// The answer's stream ended without its last event.
    StreamCut,
    /// Claude ended its answer with an error.
    StreamError,
    /// Question and answer are too long for the model's context window.
    ContextWindowExceeded,
    /// The requested prompt version no longer exists.
    PromptVersionUnknown,
    /// The rest of the daily budget is too small for the call.
    BudgetReached,
    /// The model has no known price, which a daily cost budget needs.
    ModelUnpriced,
    /// The proxy requires a user name and password.
    ProxyRefused,
    /// Claude rejected this question again and again while it answered others.
    Poisoned,
    /// The call reached its time limit. The received text is stored.
    TimeLimit,
}

/// The most that a call of unknown outcome may have cost, estimated before the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtRisk {
    /// Estimated from the length of the prompt.
    pub input_tokens: u64,
    /// The most that were asked for.
    pub output_tokens: u64,
    /// Both at list prices, in nano-dollars (1e-9 $); absent if the model has no price.
    pub nanodollars: Option<u64>,
}

/// What a failure counts as: each kind has a bound of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// No connection: nothing was sent, nothing is billed.
    Connect,
    /// The upstream is overloaded and turned the call away.
    Overload,
    /// The answer was cut or could not be read, and was billed.
    InvalidOutput,
    /// The call was turned away in a way that may be this question's alone.
    Suspect,
    /// The model declined, and another is asked.
    Refused,
    /// Any other that another attempt may not meet.
    Other,
}

/// How often a job failed, by class, and how often it let others go first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failures {
    connect: u16,
    overload: u16,
    invalid_output: u16,
    suspect: u8,
    refused: u8,
    other: u16,
    demoted: u16,
}

impl Failures {
    #[cfg(test)]
    pub(crate) fn of(class: FailureClass, count: u16) -> Failures {
        let mut failures = Failures::default();
        (0..count).for_each(|_| failures.add(class));
        failures
    }

    pub fn add(&mut self, class: FailureClass) {
        match class {
            FailureClass::Connect => self.connect = self.connect.saturating_add(1),
            FailureClass::Overload => self.overload = self.overload.saturating_add(1),
            FailureClass::InvalidOutput => self.invalid_output = self.invalid_output.saturating_add(1),
            FailureClass::Suspect => self.suspect = self.suspect.saturating_add(1),
            FailureClass::Refused => self.refused = self.refused.saturating_add(1),
            FailureClass::Other => self.other = self.other.saturating_add(1),
        }
    }

    pub fn count(self, class: FailureClass) -> u32 {
        match class {
            FailureClass::Connect => self.connect.into(),
            FailureClass::Overload => self.overload.into(),
            FailureClass::InvalidOutput => self.invalid_output.into(),
            FailureClass::Suspect => self.suspect.into(),
            FailureClass::Refused => self.refused.into(),
            FailureClass::Other => self.other.into(),
        }
    }

    pub fn demote(&mut self) {
        self.demoted = self.demoted.saturating_add(1);
    }

    pub fn demotions(self) -> u32 {
        self.demoted.into()
    }
}

/// Tokens as reported by Claude.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenUsage {
    /// Input tokens billed at the full price.
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Input tokens written to the prompt cache.
    #[serde(default)]
    pub cache_creation_input_tokens: u64,
    /// Input tokens read from the prompt cache.
    #[serde(default)]
    pub cache_read_input_tokens: u64,
}

impl TokenUsage {
    #[must_use]
    pub fn plus(self, other: TokenUsage) -> TokenUsage {
        self.combined(other, u64::saturating_add)
    }

    #[must_use]
    pub fn minus(self, other: TokenUsage) -> TokenUsage {
        self.combined(other, u64::saturating_sub)
    }

    fn combined(self, other: TokenUsage, combine: fn(u64, u64) -> u64) -> TokenUsage {
        TokenUsage {
            input_tokens: combine(self.input_tokens, other.input_tokens),
            output_tokens: combine(self.output_tokens, other.output_tokens),
            cache_creation_input_tokens: combine(self.cache_creation_input_tokens, other.cache_creation_input_tokens),
            cache_read_input_tokens: combine(self.cache_read_input_tokens, other.cache_read_input_tokens),
        }
    }

    pub fn total_input(&self) -> u64 {
        self.input_tokens.saturating_add(self.cache_creation_input_tokens).saturating_add(self.cache_read_input_tokens)
    }

    pub fn total(&self) -> u64 {
        self.total_input().saturating_add(self.output_tokens)
    }
}
