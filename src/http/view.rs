//! A job as clients see it, and the one mapping of its state to an answer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{etag, problem::Problem};
use crate::{
    analysis::Memo,
    clock::Timestamp,
    job::{
        AtRisk, Attempt, AttemptError, AttemptOutcome, Cached, FailureCode, Job, JobId, JobRecord, JobState, JobStatus,
        Priority, TokenUsage,
        delivery::{Delivery, DeliveryState, DeliveryTry},
    },
    ledger::dollars,
    queue::Outlook,
};

/// Shortest `Retry-After` of a pending job; a client in a hurry asks with `wait` instead.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Longest `Retry-After` that is made of an estimate: estimates are not worth more.
const MAX_ETA_INTERVAL: Duration = Duration::from_mins(1);

/// Longest `Retry-After` of all, however far off a scheduled job is.
const MAX_POLL_INTERVAL: Duration = Duration::from_hours(1);

/// A question on its way to a memo. What does not apply is absent.
#[derive(Serialize, ToSchema)]
#[schema(as = Job)]
pub(super) struct JobView<'a> {
    /// Names the job; ids sort by time of creation.
    #[schema(value_type = String, format = Uuid)]
    pub(super) id: JobId,
    /// Where in its life the job is.
    status: JobStatus,
    /// Its place in the order.
    priority: Priority,
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When its running or last attempt began.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
    /// Not before then; while it is scheduled.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<Timestamp>,
    /// It fails if it is still queued then.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_at: Option<Timestamp>,
    /// Attempts so far, the running one included.
    attempts_made: u32,
    /// The question.
    query: &'a str,
    /// What the asker knows besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<&'a str>,
    /// Options that the asker wants considered.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    options: &'a [String],
    /// The model asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    /// The version of the prompts asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_version: Option<&'a str>,
    /// The caller's own labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: &'a BTreeMap<String, String>,
    /// Who asked: the name of the key or token; absent where none was needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'a str>,
    /// Who is told when the job ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    callback_url: Option<&'a str>,
    /// What came of telling it so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery: Option<DeliveryView<'a>>,
    /// The id of the HTTP request that brought the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    /// What became of each attempt that has ended, oldest first.
    attempts: Vec<AttemptView<'a>>,
    /// The memo, once the job has succeeded.
    #[schema(value_type = Option<Memo>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    /// The job whose call brought the memo: it asked the same while this one waited, so nothing was called for this one and
    /// nothing billed.
    #[schema(value_type = Option<String>, format = Uuid)]
    #[serde(skip_serializing_if = "Option::is_none")]
    shared_with: Option<JobId>,
    /// The memo was there before: whose it was. Nothing was called and nothing billed.
    #[serde(skip_serializing_if = "Option::is_none")]
    cached: Option<Cached>,
    /// While it waits: why, how many go before it, and when its answer may come.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<Outlook>,
    /// Tokens over all attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<TokenUsage>,
    /// What these cost at list prices, in US dollars; absent if one of the models has no price.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_usd: Option<f64>,
    /// Why the job failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<AttemptError>,
    /// Where to go from here.
    links: Links,
}

/// An attempt that has ended.
#[derive(Serialize, ToSchema)]
#[schema(as = Attempt)]
pub(super) struct AttemptView<'a> {
    /// 1 for the first.
    number: u32,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// When it ended.
    #[schema(value_type = String, format = DateTime)]
    finished_at: Timestamp,
    /// How it ended.
    outcome: AttemptOutcome,
    /// Why it did not succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a AttemptError>,
    /// HTTP status of Claude's answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    http_status: Option<u16>,
    /// Claude's own id of the call, for its support.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    /// The model that answered, or was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    /// The version of the prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_version: Option<&'a str>,
    /// SHA-256 of those prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_sha256: Option<&'a str>,
    /// The attempt whose answer was of no use and which Claude was told about.
    #[serde(skip_serializing_if = "Option::is_none")]
    asked_again_after: Option<u32>,
    /// The attempt whose kept answer was read again; nothing was called and nothing billed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reparsed_from: Option<u32>,
    /// Tokens of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<TokenUsage>,
    /// What these cost at list prices, in US dollars; absent if the model has no price.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_usd: Option<f64>,
    /// The call was sent and its end is not known.
    may_have_been_billed: bool,
    /// What it costs at most, if it was billed: an estimate made before the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    at_risk: Option<AtRiskView>,
    /// The answer as it came, where it could not be read as a memo (`invalid_output`, `answer_truncated`).
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_answer: Option<&'a str>,
}

/// How the `callback_url` is told of the job's end.
#[derive(Serialize, ToSchema)]
#[schema(as = Delivery)]
struct DeliveryView<'a> {
    /// The `webhook-id` of the message; the same at every try.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// `waiting` for the job's end, `pending`, `delivered`, `given_up` after a day, or `disabled` by a `410`.
    state: &'static str,
    /// When it is tried next.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    next_at: Option<Timestamp>,
    /// How it was tried, oldest first.
    tries: &'a [DeliveryTry],
}

impl<'a> DeliveryView<'a> {
    fn new(id: JobId, delivery: &'a Delivery) -> DeliveryView<'a> {
        let state = match delivery.state {
            DeliveryState::Waiting => "waiting",
            DeliveryState::Pending { .. } => "pending",
            DeliveryState::Delivered => "delivered",
            DeliveryState::GivenUp => "given_up",
            DeliveryState::Disabled => "disabled",
        };
        let id = (delivery.number > 0).then(|| delivery.message_id(id));
        DeliveryView { id, state, next_at: delivery.next_at(), tries: &delivery.tries }
    }
}

/// What a call of unknown end may have cost.
#[derive(Serialize, ToSchema)]
#[schema(as = AtRisk)]
struct AtRiskView {
    /// Input tokens, estimated from the length of the prompt.
    input_tokens: u64,
    /// Output tokens: the most that were asked for.
    output_tokens: u64,
    /// Both at list prices, in US dollars; absent if the model has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_usd: Option<f64>,
}

impl AtRiskView {
    fn new(risk: &AtRisk) -> AtRiskView {
        AtRiskView {
            input_tokens: risk.input_tokens,
            output_tokens: risk.output_tokens,
            cost_usd: risk.nanodollars.map(dollars),
        }
    }
}

/// Paths of what can be done with a job as it is.
#[derive(Serialize, ToSchema)]
pub(super) struct Links {
    /// The job (GET).
    #[serde(rename = "self")]
    this: String,
    /// News of the job as it comes, as a stream of events (GET).
    events: String,
    /// The job's page, for people (GET).
    page: String,
    /// Gives the job up (POST); while it is pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel: Option<String>,
    /// Puts the job back into the queue (POST); when it has failed or was cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<String>,
}

impl<'a> JobView<'a> {
    pub(super) fn new(record: &'a JobRecord, now: Timestamp) -> JobView<'a> {
        let JobRecord { job, request, attempts, delivery } = record;
        let status = job.status(now);
        let run_at = match job.state {
            JobState::Queued { run_at } => (run_at > now).then_some(run_at),
            JobState::Running { .. } | JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => None,
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
            context: request.context.as_deref(),
            options: &request.options,
            model: request.model.as_deref(),
            prompt_version: request.prompt_version.as_deref(),
            metadata: &request.metadata,
            caller: request.caller.as_deref(),
            callback_url: request.callback_url.as_deref(),
            delivery: delivery.as_ref().map(|delivery| DeliveryView::new(job.id, delivery)),
            request_id: request.request_id.as_deref(),
            attempts: attempts.iter().map(|attempt| AttemptView::new(attempt)).collect(),
            result: record.result(),
            shared_with: record.answer().and_then(|attempt| attempt.report.shared_with),
            cached: record.answer().and_then(|attempt| attempt.report.cached),
            queue: None,
            usage: usage(attempts),
            cost_usd: cost(attempts).map(dollars),
            error: record.error(),
            links: links(job),
        }
    }

    /// With what is ahead of the job, if it waits.
    pub(super) fn with_outlook(self, queue: Option<Outlook>) -> JobView<'a> {
        JobView { queue, ..self }
    }

    /// The job as an answer; `Retry-After` while it is pending.
    pub(super) fn respond(&self, status: StatusCode, now: Timestamp) -> Response {
        self.paced((status, json(self.body())).into_response(), now)
    }

    /// The job as an answer to a client that may have it already, which is told so by a `304`.
    pub(super) fn respond_if_new(&self, asked: &HeaderMap, now: Timestamp) -> Response {
        let body = self.body();
        let tag = etag::of(&body);
        let response = match etag::is_known(asked, &tag) {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => json(body).into_response(),
        };
        let mut response = self.paced(response, now);
        response.headers_mut().insert(header::ETAG, tag);
        // A cache may keep it, but has to ask whether it still holds.
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        response
    }

    fn body(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// With `Retry-After` while the job is pending.
    fn paced(&self, mut response: Response, now: Timestamp) -> Response {
        match self.status {
            JobStatus::Queued | JobStatus::Scheduled | JobStatus::Running => {
                let eta = self
                    .queue
                    .as_ref()
                    .map_or(Duration::ZERO, |queue| queue.eta_seconds.map_or(MAX_ETA_INTERVAL, Duration::from_secs));
                let wait = self.run_at.map_or(eta.min(MAX_ETA_INTERVAL), |run_at| run_at.since(now));
                let seconds = wait.clamp(POLL_INTERVAL, MAX_POLL_INTERVAL).as_secs();
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            JobStatus::Succeeded | JobStatus::Failed | JobStatus::Cancelled => {}
        }
        response
    }

    /// What a client is told that asked a question and may have waited: the memo, why there will be none, or that the
    /// job is accepted.
    pub(super) fn respond_to_asker(&self, now: Timestamp) -> Response {
        let status = match self.status {
            JobStatus::Succeeded => StatusCode::OK,
            JobStatus::Queued | JobStatus::Scheduled | JobStatus::Running => StatusCode::ACCEPTED,
            JobStatus::Failed | JobStatus::Cancelled => return self.located(Problem::of_job(self).into_response()),
        };
        self.located(self.respond(status, now))
    }

    fn located(&self, mut response: Response) -> Response {
        if let Ok(location) = HeaderValue::from_str(&self.links.this) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

impl<'a> AttemptView<'a> {
    fn new(attempt: &'a Attempt) -> AttemptView<'a> {
        let report = &attempt.report;
        let code = report.error.as_ref().map(|error| error.code);
        let unreadable = matches!(code, Some(FailureCode::InvalidOutput | FailureCode::AnswerTruncated));
        AttemptView {
            number: attempt.number,
            started_at: attempt.started_at,
            finished_at: attempt.finished_at,
            outcome: attempt.outcome,
            error: report.error.as_ref(),
            http_status: report.http_status,
            request_id: report.request_id.as_deref(),
            model: report.model.as_deref(),
            prompt_version: report.prompt_version.as_deref(),
            prompt_sha256: report.prompt_sha256.as_deref(),
            asked_again_after: report.asked_again_after,
            reparsed_from: report.reparsed_from,
            usage: report.usage,
            cost_usd: report.nanodollars.map(dollars),
            may_have_been_billed: report.may_have_been_billed,
            at_risk: report.at_risk.as_ref().map(AtRiskView::new),
            raw_answer: report.raw_answer.as_deref().filter(|_| unreadable),
        }
    }
}

/// What can be done with a job as it is.
pub(super) fn links(job: &Job) -> Links {
    let this = path(job.id);
    let link = |action| Some(format!("{this}/{action}"));
    let (cancel, retry) = match job.state {
        JobState::Queued { .. } | JobState::Running { .. } => (link("cancel"), None),
        JobState::Succeeded => (None, None),
        JobState::Failed { .. } | JobState::Cancelled => (None, link("retry")),
    };
    Links { events: format!("{this}/events"), page: format!("/jobs/{}", job.id), this, cancel, retry }
}

fn json(body: Vec<u8>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body)
}

fn path(id: JobId) -> String {
    format!("/api/v1/jobs/{id}")
}

fn usage(attempts: &[Arc<Attempt>]) -> Option<TokenUsage> {
    attempts.iter().filter_map(|attempt| attempt.report.usage).reduce(|sum, usage| TokenUsage {
        input_tokens: sum.input_tokens + usage.input_tokens,
        output_tokens: sum.output_tokens + usage.output_tokens,
        cache_creation_input_tokens: sum.cache_creation_input_tokens + usage.cache_creation_input_tokens,
        cache_read_input_tokens: sum.cache_read_input_tokens + usage.cache_read_input_tokens,
    })
}

/// What all attempts cost that were billed; none if there are none, or one has no price.
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
        job::{AttemptReport, FailureClass, Job, JobEvent, JobRequest},
        queue::WaitingFor,
    };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
    }

    /// A job to which `events` happened, one a second.
    fn record(events: &[JobEvent]) -> JobRecord {
        let mut job = Job::new(JobId::nil(), Priority::Normal, at(0));
        job.deadline_at = Some(at(3));
        let mut attempts = Vec::new();
        for (event, now) in events.iter().zip(1..) {
            attempts.extend(job.closed_attempt(event, at(now)).map(Arc::new));
            job = job.apply(event, at(now)).unwrap();
        }
        let request = JobRequest { query: "Buy or build?".to_owned(), ..JobRequest::default() };
        JobRecord { job, request: Arc::new(request), attempts, delivery: None }
    }

    fn claim() -> JobEvent {
        JobEvent::Claim { lease_until: at(60) }
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
        serde_json::to_value(JobView::new(record, now)).unwrap()
    }

    #[test]
    fn a_fresh_job_tells_no_more_than_there_is() {
        assert_eq!(
            json_of(&record(&[]), at(0)),
            json!({
                "id": JobId::nil(),
                "status": "queued",
                "priority": "normal",
                "created_at": at(0),
                "deadline_at": at(3),
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
    fn a_result_is_passed_through_as_it_was_stored() {
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
        let view = JobView::new(&record, at(9));
        let text = serde_json::to_string(&view).unwrap();
        assert!(text.contains(stored), "{text}");
        let json = json_of(&record, at(9));
        assert_eq!(json["usage"]["input_tokens"], 20);
        assert_eq!((&json["cost_usd"], &json["attempts"][1]["cost_usd"]), (&json!(2e-9), &json!(1e-9)));
        assert_eq!(json["attempts"][0]["raw_answer"], "hm", "an unreadable answer is shown");
        assert_eq!(json["attempts"][1].get("raw_answer"), None, "a readable one is not");
        assert_eq!(json["attempts"][1].get("result"), None);
        assert_eq!(view.respond_to_asker(at(9)).status(), StatusCode::OK);
    }

    #[test]
    fn a_job_that_failed_while_waited_for_is_a_problem() {
        let fail = JobEvent::Fail { attempt: 1, code: FailureCode::Refused, report: failing(FailureCode::Refused) };
        let record = record(&[claim(), fail]);
        let view = JobView::new(&record, at(9));
        assert_eq!(view.error.as_ref().unwrap().message, "it did not work");
        let response = view.respond_to_asker(at(9));
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(view.respond(StatusCode::OK, at(9)).headers().get(header::RETRY_AFTER), None);
    }

    #[test]
    fn a_missed_deadline_is_not_told_in_the_words_of_an_older_failure() {
        let retry = JobEvent::Retry {
            attempt: 1,
            run_at: at(2),
            class: FailureClass::Other,
            report: failing(FailureCode::Overloaded),
        };
        let record = record(&[claim(), retry, JobEvent::MissDeadline]);
        let view = JobView::new(&record, at(9));
        assert!(view.error.as_ref().unwrap().message.contains("deadline"));
        assert_eq!(view.respond_to_asker(at(9)).status(), StatusCode::GATEWAY_TIMEOUT);
    }

    #[test]
    fn a_cancelled_job_is_a_conflict_to_its_waiter_and_can_be_retried() {
        let record = record(&[JobEvent::Cancel { at_risk: None }]);
        let view = JobView::new(&record, at(9));
        assert_eq!(view.respond_to_asker(at(9)).status(), StatusCode::CONFLICT);
        let json = json_of(&record, at(9));
        assert_eq!(json["links"]["retry"], format!("{}/retry", path(JobId::nil())));
        assert_eq!(json["links"].get("cancel"), None);
    }

    #[test]
    fn a_job_that_waits_for_a_person_sends_pollers_away_for_a_minute() {
        let record = record(&[]);
        let outlook = Outlook { position: Some(1), eta_seconds: None, waiting_for: WaitingFor::Gate };
        let response = JobView::new(&record, at(0)).with_outlook(Some(outlook)).respond(StatusCode::OK, at(0));
        assert_eq!(response.headers()[header::RETRY_AFTER], "60");
    }

    #[test]
    fn a_scheduled_job_sends_pollers_away_until_its_time() {
        let mut record = record(&[]);
        record.job.state = JobState::Queued { run_at: at(90) };
        let view = JobView::new(&record, at(30));
        let response = view.respond_to_asker(at(30));
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        assert_eq!(response.headers()[header::RETRY_AFTER], "60");
        assert_eq!(response.headers()[header::LOCATION], path(JobId::nil()));
        assert_eq!(json_of(&record, at(30))["status"], "scheduled");
    }
}
