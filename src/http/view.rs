//! A job as clients see it. The only place where a job's state is mapped to an HTTP answer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    headers,
    memos::Memos,
    problem::{CANCELLED, Problem, kind_of},
};
use crate::{
    analysis::memo::Memo,
    clock::Timestamp,
    job::{
        AtRisk, Attempt, AttemptError, AttemptOutcome, Cached, Depth, FailureCode, Job, JobId, JobRecord, JobState,
        JobStatus, Priority, TokenUsage,
        delivery::{CallbackEvent, Delivery, DeliveryTry},
    },
    ledger::dollars,
    queue::Outlook,
};

/// Shortest `Retry-After` of a pending job. A client in a hurry uses `wait` instead.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Longest `Retry-After` from an estimate: estimates are not reliable for longer.
const MAX_ETA_INTERVAL: Duration = Duration::from_mins(1);

/// Longest `Retry-After` of a scheduled job.
const MAX_POLL_INTERVAL: Duration = Duration::from_hours(1);

/// The large parts of a job that a list shows only if they are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Include {
    context: bool,
    result: bool,
    raw_answer: bool,
}

impl Include {
    pub(super) const ALL: Include = Include { context: true, result: true, raw_answer: true };

    pub(super) fn add(&mut self, parts: &str) -> Result<(), String> {
        for part in parts.split(',') {
            match part.trim() {
                "context" => self.context = true,
                "result" => self.result = true,
                "raw_answer" => self.raw_answer = true,
                _ => return Err(format!("must be a list of context, result and raw_answer, not {parts:?}")),
            }
        }
        Ok(())
    }
}

/// A job. Fields that do not apply are absent.
#[derive(Serialize, ToSchema)]
#[schema(as = Job)]
pub(super) struct JobView<'a> {
    /// The job's id. Ids sort by creation time.
    pub(super) id: Uuid,
    status: JobStatus,
    priority: Priority,
    /// When the job was accepted.
    created_at: Timestamp,
    /// When the running or last attempt started.
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    /// When the job ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
    /// Earliest start. Present while the job is scheduled.
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<Timestamp>,
    /// The job fails if it is still queued at this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_at: Option<Timestamp>,
    /// Number of attempts, including the running one.
    attempts_made: u32,
    /// The question, as submitted.
    query: &'a str,
    /// The background, as submitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<&'a str>,
    /// The options, as submitted.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    options: &'a [String],
    /// The requested model.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    /// The requested prompt version.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_version: Option<&'a str>,
    /// The depth of the memo: `brief` or `full`. For `auto`, the service chose it at the submission. A second call after one
    /// that took too long is always brief: see the attempts.
    depth: Depth,
    /// The labels, as submitted.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: &'a BTreeMap<String, String>,
    /// The name of the API key or the subject of the token that submitted the job. Absent if none was needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'a str>,
    /// Where the webhook is sent when the job ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    callback_url: Option<&'a str>,
    /// The events that it is sent for, as submitted. Absent for every end of the job.
    #[serde(skip_serializing_if = "<[CallbackEvent]>::is_empty")]
    callback_events: &'a [CallbackEvent],
    /// State of that webhook.
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery: Option<DeliveryView<'a>>,
    /// The id of the HTTP request that submitted the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    /// The attempts that have ended, oldest first.
    attempts: Vec<AttemptView<'a>>,
    /// The memo of a succeeded job.
    #[schema(value_type = Option<Memo>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Arc<RawValue>>,
    /// The model that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_by: Option<&'a str>,
    /// The models that declined to answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused_by: Vec<&'a str>,
    /// The memo comes from this job, which had the same question and was running. This job made no call and cost nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    shared_with: Option<Uuid>,
    /// The memo comes from an earlier job with the same question. This job made no call and cost nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    cached: Option<Cached>,
    /// Position and estimate of a waiting job.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<Outlook>,
    /// Tokens of all attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<TokenUsage>,
    /// Cost of all attempts at list prices, in US dollars. Absent if a model has no known price.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_usd: Option<f64>,
    /// Why the job failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<AttemptError>,
    links: Links,
    #[serde(skip)]
    now: Timestamp,
}

/// An attempt that has ended.
#[derive(Serialize, ToSchema)]
#[schema(as = Attempt)]
pub(super) struct AttemptView<'a> {
    /// The first attempt has number 1.
    number: u32,
    /// How many attempts in a row returned the job to the queue. This is the last of them, `started_at` is of the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    releases: Option<u32>,
    started_at: Timestamp,
    finished_at: Timestamp,
    /// How the attempt ended.
    outcome: AttemptOutcome,
    /// Why the attempt did not succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a AttemptError>,
    /// HTTP status of Claude's answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    http_status: Option<u16>,
    /// Anthropic's id of the call, for their support.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    /// The model that answered or, without an answer, the requested one.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_version: Option<&'a str>,
    /// SHA-256 of the prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_sha256: Option<&'a str>,
    /// The depth of the memo that this attempt requested: `brief` or `full`.
    #[serde(skip_serializing_if = "Option::is_none")]
    depth: Option<Depth>,
    /// This attempt repeats the call and shows Claude the rejected answer of that attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    asked_again_after: Option<u32>,
    /// The memo was parsed from the stored answer of that attempt. No call was made and nothing was billed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reparsed_from: Option<u32>,
    /// Tokens of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<TokenUsage>,
    /// Cost of the call at list prices, in US dollars. Absent if the model has no known price.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_usd: Option<f64>,
    /// The call was sent and its outcome is unknown.
    may_have_been_billed: bool,
    /// The most that the call can have cost, estimated before the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    at_risk: Option<AtRiskView>,
    /// Errors in the answer's JSON that were repaired to parse it, such as `trailing_comma` or `whole_number`.
    #[serde(skip_serializing_if = "Option::is_none")]
    repaired: Option<&'a [String]>,
    /// Claude's answer, if it could not be parsed as a memo (`invalid_output`, `answer_truncated`, `time_limit`).
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_answer: Option<&'a str>,
}

/// The webhook to `callback_url`.
#[derive(Serialize, ToSchema)]
#[schema(as = Delivery)]
struct DeliveryView<'a> {
    /// The `webhook-id` of the message, the same for every try.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// `waiting` for the job to end, `pending`, `delivered`, `given_up` after a day, `disabled` by a `410`, or `skipped`
    /// because `callback_events` does not have the event, or the job was imported.
    state: &'static str,
    /// When the next try is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_at: Option<Timestamp>,
    /// Oldest first.
    tries: &'a [DeliveryTry],
}

impl<'a> DeliveryView<'a> {
    fn new(job: JobId, delivery: &'a Delivery) -> DeliveryView<'a> {
        let id = (delivery.number > 0).then(|| delivery.message_id(job));
        DeliveryView { id, state: delivery.state.into(), next_at: delivery.next_at(), tries: &delivery.tries }
    }
}

/// The most that a call with unknown outcome can have cost.
#[derive(Serialize, ToSchema)]
#[schema(as = AtRisk)]
struct AtRiskView {
    /// Estimated from the length of the prompt.
    input_tokens: u64,
    /// The `max_tokens` of the call.
    output_tokens: u64,
    /// Cost of both at list prices, in US dollars. Absent if the model has no known price.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_usd: Option<f64>,
}

impl From<&AtRisk> for AtRiskView {
    fn from(risk: &AtRisk) -> AtRiskView {
        let cost_usd = risk.nanodollars.map(dollars);
        AtRiskView { input_tokens: risk.input_tokens, output_tokens: risk.output_tokens, cost_usd }
    }
}

/// Paths of the actions that the job's state allows.
#[derive(Serialize, ToSchema)]
pub(super) struct Links {
    /// GET the job.
    #[serde(rename = "self")]
    this: String,
    /// GET the job's progress as server-sent events.
    events: String,
    /// GET the job's page, for people.
    page: String,
    /// POST to cancel the job. Present while it is pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel: Option<String>,
    /// POST to retry the job. Present if it has failed or was cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<String>,
    /// POST to send the webhook again. Present if the job has ended and has a `callback_url`.
    #[serde(skip_serializing_if = "Option::is_none")]
    resend_webhook: Option<String>,
}

impl<'a> JobView<'a> {
    pub(super) fn new(record: &'a JobRecord, now: Timestamp, include: Include, memos: &Memos) -> JobView<'a> {
        let JobRecord { job, request, attempts, delivery } = record;
        let status = job.status(now);
        let run_at = match job.state {
            JobState::Queued { run_at } => (run_at > now).then_some(run_at),
            JobState::Running | JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => None,
        };
        JobView {
            id: job.id,
            status,
            priority: job.priority,
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
            run_at,
            deadline_at: job.deadline_at,
            attempts_made: job.attempt,
            query: &request.query,
            context: request.context.as_deref().filter(|_| include.context),
            options: &request.options,
            model: request.model.as_deref(),
            prompt_version: request.prompt_version.as_deref(),
            depth: request.depth,
            metadata: &request.metadata,
            caller: request.caller.as_deref(),
            callback_url: request.callback_url.as_deref(),
            callback_events: &request.callback_events,
            delivery: delivery.as_ref().map(|delivery| DeliveryView::new(job.id, delivery)),
            request_id: request.request_id.as_deref(),
            attempts: attempts.iter().map(|attempt| AttemptView::new(attempt, include.raw_answer)).collect(),
            result: include.result.then(|| memos.of(record)).flatten(),
            answered_by: record.answer().and_then(|attempt| attempt.report.model.as_deref()),
            refused_by: attempts
                .iter()
                .filter(|attempt| attempt.report.error.as_ref().is_some_and(|error| error.code == FailureCode::Refused))
                .filter_map(|attempt| attempt.report.model.as_deref())
                .collect(),
            shared_with: record.answer().and_then(|attempt| attempt.report.shared_with),
            cached: record.answer().and_then(|attempt| attempt.report.cached),
            queue: None,
            usage: usage(attempts),
            cost_usd: cost(attempts).map(dollars),
            error: record.error(),
            links: links(job, request.callback_url.is_some()),
            now,
        }
    }

    pub(super) fn with_outlook(self, queue: Option<Outlook>) -> JobView<'a> {
        JobView { queue, ..self }
    }

    pub(super) fn respond(&self, status: StatusCode) -> Response {
        self.paced((status, json(self.body())).into_response())
    }

    pub(super) fn respond_if_new(&self, asked: &HeaderMap) -> Response {
        let body = self.body();
        let tag = headers::etag(&body);
        let response = match headers::is_known(asked, &tag) {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => json(body).into_response(),
        };
        let mut response = self.paced(response);
        response.headers_mut().insert(header::ETAG, tag);
        // A cache may store it, but must revalidate it.
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        response
    }

    fn body(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Adds `Retry-After` while the job is pending.
    fn paced(&self, mut response: Response) -> Response {
        match self.status {
            JobStatus::Queued | JobStatus::Scheduled | JobStatus::Running => {
                let eta = |queue: &Outlook| queue.eta_seconds.map_or(MAX_ETA_INTERVAL, Duration::from_secs);
                let eta = self.queue.as_ref().map_or(Duration::ZERO, eta);
                let wait = self.run_at.map_or(eta.min(MAX_ETA_INTERVAL), |run_at| run_at.since(self.now));
                let seconds = wait.clamp(POLL_INTERVAL, MAX_POLL_INTERVAL).as_secs();
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            JobStatus::Succeeded | JobStatus::Failed | JobStatus::Cancelled => {}
        }
        response
    }

    /// The answer to a client that submitted the job and may have waited: the memo, the error, or `202`.
    pub(super) fn respond_to_asker(&self) -> Response {
        let status = match self.status {
            JobStatus::Succeeded => StatusCode::OK,
            JobStatus::Queued | JobStatus::Scheduled | JobStatus::Running => StatusCode::ACCEPTED,
            JobStatus::Failed | JobStatus::Cancelled => return self.located(self.problem().into_response()),
        };
        self.located(self.respond(status))
    }

    /// The answer to a client whose job failed or, if it has no error, was cancelled while the client waited.
    fn problem(&self) -> Problem {
        let problem = match &self.error {
            Some(error) => Problem::new(kind_of(error.code), error.message.clone()),
            None => Problem::new(CANCELLED, "the job was cancelled while you waited for it"),
        };
        problem.with_job(self)
    }

    fn located(&self, mut response: Response) -> Response {
        if let Ok(location) = HeaderValue::from_str(&self.links.this) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

impl<'a> AttemptView<'a> {
    fn new(attempt: &'a Attempt, with_raw_answer: bool) -> AttemptView<'a> {
        let report = &attempt.report;
        let code = report.error.as_ref().map(|error| error.code);
        let unreadable =
            matches!(code, Some(FailureCode::InvalidOutput | FailureCode::AnswerTruncated | FailureCode::TimeLimit));
        AttemptView {
            number: attempt.number,
            releases: (attempt.outcome == AttemptOutcome::Released).then_some(attempt.folded + 1),
            started_at: attempt.started_at,
            finished_at: attempt.finished_at,
            outcome: attempt.outcome,
            error: report.error.as_ref(),
            http_status: report.http_status,
            request_id: report.request_id.as_deref(),
            model: report.model.as_deref(),
            prompt_version: report.prompt_version.as_deref(),
            prompt_sha256: report.prompt_sha256.as_deref(),
            depth: report.depth,
            asked_again_after: report.asked_again_after,
            reparsed_from: report.reparsed_from,
            usage: report.usage,
            cost_usd: report.nanodollars.map(dollars),
            may_have_been_billed: report.may_have_been_billed,
            at_risk: report.at_risk.as_ref().map(AtRiskView::from),
            repaired: Some(report.repaired.as_slice()).filter(|repaired| !repaired.is_empty()),
            raw_answer: report.raw_answer.as_deref().filter(|_| unreadable && with_raw_answer),
        }
    }
}

pub(super) fn links(job: &Job, has_webhook: bool) -> Links {
    let this = path(job.id);
    let link = |action| Some(format!("{this}/{action}"));
    let resend = if has_webhook { link("resend-webhook") } else { None };
    let (cancel, retry, resend_webhook) = match job.state {
        JobState::Queued { .. } | JobState::Running => (link("cancel"), None, None),
        JobState::Succeeded => (None, None, resend),
        JobState::Failed { .. } | JobState::Cancelled => (None, link("retry"), resend),
    };
    let (events, page) = (format!("{this}/events"), format!("/jobs/{}", job.id));
    Links { this, events, page, cancel, retry, resend_webhook }
}

fn json(body: Vec<u8>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body)
}

fn path(id: JobId) -> String {
    format!("/api/v1/jobs/{id}")
}

fn usage(attempts: &[Arc<Attempt>]) -> Option<TokenUsage> {
    attempts.iter().filter_map(|attempt| attempt.report.usage).reduce(TokenUsage::plus)
}

/// The cost of all billed attempts; `None` if there are none, or if the price of one is unknown.
fn cost(attempts: &[Arc<Attempt>]) -> Option<u64> {
    let mut billed = attempts.iter().filter(|attempt| attempt.report.usage.is_some()).peekable();
    billed.peek()?;
    billed.map(|attempt| attempt.report.nanodollars).try_fold(0, |sum: u64, cost| Some(sum.saturating_add(cost?)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        job::{AttemptReport, FailureClass, Job, JobEvent, JobRequest, Owner},
        queue::WaitingFor,
    };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
    }

    /// A job after `events`, one a second.
    fn record(events: &[JobEvent]) -> JobRecord {
        let mut job = Job::new(JobId::nil(), Priority::Normal, at(0));
        job.deadline_at = Some(at(4));
        let mut attempts = Vec::new();
        for (event, now) in events.iter().zip(1..) {
            attempts.extend(job.closed_attempt(event, at(now)).map(Arc::new));
            job = job.apply(event, at(now)).unwrap();
        }
        let request = JobRequest { query: "Buy or build?".to_owned(), ..JobRequest::default() };
        JobRecord { job, request: Arc::new(request), attempts, delivery: None }
    }

    fn claim() -> JobEvent {
        JobEvent::Claim { owner: Owner::ANY, asks: None }
    }

    fn failing(code: FailureCode) -> Arc<AttemptReport> {
        let error = AttemptError { code, message: "it did not work".to_owned() };
        let usage = TokenUsage { input_tokens: 10, output_tokens: 2, ..TokenUsage::default() };
        Arc::new(AttemptReport {
            error: Some(error),
            usage: Some(usage),
            nanodollars: Some(1),
            raw_answer: Some("hm".to_owned()),
            ..AttemptReport::default()
        })
    }

    fn json_of(record: &JobRecord, now: Timestamp) -> Value {
        serde_json::to_value(JobView::new(record, now, Include::ALL, &Memos::default())).unwrap()
    }

    #[test]
    fn a_fresh_job_has_no_empty_fields() {
        assert_eq!(
            json_of(&record(&[]), at(0)),
            json!({
                "id": JobId::nil(),
                "status": "queued",
                "priority": "normal",
                "created_at": at(0),
                "deadline_at": at(4),
                "depth": "auto",
                "attempts_made": 0,
                "query": "Buy or build?",
                "attempts": [],
                "links": {
                    "self": "/api/v1/jobs/00000000-0000-0000-0000-000000000000",
                    "events": "/api/v1/jobs/00000000-0000-0000-0000-000000000000/events",
                    "page": "/jobs/00000000-0000-0000-0000-000000000000",
                    "cancel": "/api/v1/jobs/00000000-0000-0000-0000-000000000000/cancel"
                }
            })
        );
    }

    #[test]
    fn a_result_is_passed_through_byte_for_byte() {
        let stored = r#"{"b":1,  "a":1.10}"#;
        let result = Some(RawValue::from_string(stored.to_owned()).unwrap());
        let retry = JobEvent::Retry {
            attempt: 1,
            run_at: at(2),
            class: FailureClass::Other,
            report: failing(FailureCode::InvalidOutput),
        };
        let mut report = failing(FailureCode::Internal);
        let seen = Arc::make_mut(&mut report);
        seen.result = result;
        seen.error = None;
        let record = record(&[claim(), retry, claim(), JobEvent::Succeed { attempt: 2, report }]);
        let view = JobView::new(&record, at(9), Include::ALL, &Memos::default());
        let text = serde_json::to_string(&view).unwrap();
        assert!(text.contains(stored), "{text}");
        let json = json_of(&record, at(9));
        assert_eq!(json["usage"]["input_tokens"], 20);
        assert_eq!((&json["cost_usd"], &json["attempts"][1]["cost_usd"]), (&json!(2e-9), &json!(1e-9)));
        assert_eq!(json["attempts"][0]["raw_answer"], "hm", "an unreadable answer is shown");
        assert_eq!(json["attempts"][1].get("raw_answer"), None, "a readable one is not");
        assert_eq!(json["attempts"][1].get("result"), None);
        assert_eq!(view.respond_to_asker().status(), StatusCode::OK);
    }

    #[test]
    fn a_waiting_client_gets_a_failed_job_as_a_problem() {
        let fail = JobEvent::Fail { attempt: 1, code: FailureCode::Refused, report: failing(FailureCode::Refused) };
        let record = record(&[claim(), fail]);
        let view = JobView::new(&record, at(9), Include::ALL, &Memos::default());
        assert_eq!(view.error.as_ref().unwrap().message, "it did not work");
        let response = view.respond_to_asker();
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(view.respond(StatusCode::OK).headers().get(header::RETRY_AFTER), None);
    }

    #[test]
    fn the_error_of_a_missed_deadline_is_not_that_of_an_earlier_attempt() {
        let release = JobEvent::Release { attempt: 1, run_at: at(2), is_demoted: false, report: Arc::default() };
        let retry = JobEvent::Retry {
            attempt: 2,
            run_at: at(4),
            class: FailureClass::Other,
            report: failing(FailureCode::Overloaded),
        };
        let record = record(&[claim(), release, claim(), retry, JobEvent::MissDeadline]);
        let view = JobView::new(&record, at(9), Include::ALL, &Memos::default());
        assert!(view.error.as_ref().unwrap().message.contains("deadline"));
        assert_eq!(view.respond_to_asker().status(), StatusCode::GATEWAY_TIMEOUT);
    }

    #[test]
    fn a_waiting_client_gets_a_cancelled_job_as_a_conflict_and_can_retry_it() {
        let record = record(&[JobEvent::Cancel { at_risk: None }]);
        let view = JobView::new(&record, at(9), Include::ALL, &Memos::default());
        assert_eq!(view.respond_to_asker().status(), StatusCode::CONFLICT);
        let json = json_of(&record, at(9));
        assert_eq!(json["links"]["retry"], format!("{}/retry", path(JobId::nil())));
        assert_eq!(json["links"].get("cancel"), None);
    }

    #[test]
    fn a_job_that_waits_for_an_operator_asks_pollers_to_wait_a_minute() {
        let record = record(&[]);
        let outlook = Outlook { position: Some(1), eta_seconds: None, waiting_for: WaitingFor::Gate };
        let response = JobView::new(&record, at(0), Include::ALL, &Memos::default())
            .with_outlook(Some(outlook))
            .respond(StatusCode::OK);
        assert_eq!(response.headers()[header::RETRY_AFTER], "60");
    }

    #[test]
    fn a_scheduled_job_asks_pollers_to_wait_until_its_time() {
        let mut record = record(&[]);
        record.job.state = JobState::Queued { run_at: at(90) };
        let view = JobView::new(&record, at(30), Include::ALL, &Memos::default());
        let response = view.respond_to_asker();
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        assert_eq!(response.headers()[header::RETRY_AFTER], "60");
        assert_eq!(response.headers()[header::LOCATION], path(JobId::nil()));
        assert_eq!(json_of(&record, at(30))["status"], "scheduled");
    }
}
