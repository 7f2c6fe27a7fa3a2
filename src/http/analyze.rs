//! `POST /api/v1/analyze`: a question in, a job out, and the memo too for those who wait.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{FromRequest, FromRequestParts, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue},
    response::Response,
};
use tokio::time::timeout_at;
use tracing::{debug, info, warn};

use super::{
    Api, body,
    extract::{Params, Submitter, wants_its_own},
    observe,
    problem::{FieldError, INVALID_PARAMETER, Problem},
    submission::{self, Body, max_body_bytes},
    view::JobView,
    wait::{Held, PREFERENCE_APPLIED, Wait},
};
use crate::{
    job::JobRecord,
    queue::{Accepted, Queue, Waiting},
};

/// How long reading an ended job may take once the wait is over; then the answer goes out without it.
const READ_GRACE: Duration = Duration::from_millis(250);

/// Longest idempotency key: UUIDs and the like with room to spare.
const MAX_IDEMPOTENCY_KEY: usize = 255;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Tells that the job was there before, under the same key.
pub(super) const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Ask a question
///
/// The job is on disk when the answer comes. With `wait` the answer is held until the job has ended, for 30 s at most.
/// If it can't have ended by then, the answer is `202` with the job as soon as that is known, often at once: the job
/// goes on, and `queue.eta_seconds` and `Retry-After` tell when to ask again.
#[utoipa::path(
    post, path = "/api/v1/analyze", tag = "analysis",
    params(
        ("wait" = inline(Option<Wait>), Query, description = "As `wait` in the body, and before it"),
        ("Prefer" = Option<String>, Header, description = "`wait=N` as in RFC 7240; used if `wait` is \
            said nowhere else, which `Preference-Applied` tells unless that was in vain"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
            pattern = "^[!-~]([ -~]*[!-~])?$", description = "Your own name for this question, up to 255 \
            characters: sent again with the same question within 24 hours, it is the \
            same job, told by `Idempotency-Replayed: true`"),
        ("Cache-Control" = Option<String>, Header, description = "`no-cache` has Claude asked for this question alone; \
            otherwise the answer may be one that is there or on its way, see `cached` and `shared_with`")
    ),
    request_body = Body,
    responses(
        (status = 200, description = "Waited for, and succeeded, or `cached`: the job with its memo", body = JobView<'static>, headers(
                ("Location" = String, description = "The job"),
                ("Idempotency-Replayed" = bool, description = "`true` if the job was there before, under the same key"),
                ("Preference-Applied" = String, description = "`wait=N`, where `Prefer` was followed"),
                ("RateLimit" = String, description = "What is left of the caller's quota, where SUBMITS_PER_MINUTE is set"),
                ("RateLimit-Policy" = String, description = "That quota")
            )),
        (status = 202, description = "Accepted; see `Location` and `Retry-After`", body = JobView<'static>,
            headers(
                ("Location" = String, description = "The job"),
                ("Retry-After" = u64, description = "So many seconds later there may be news of it"),
                ("Idempotency-Replayed" = bool, description = "`true` if the job was there before, under the same key"),
                ("Preference-Applied" = String, description = "`wait=N`, where `Prefer` was followed"),
                ("RateLimit" = String, description = "What is left of the caller's quota, where SUBMITS_PER_MINUTE is set"),
                ("RateLimit-Policy" = String, description = "That quota")
            )),
        (status = 409, description = "Waited for, and `cancelled`; the job is under `job`", headers(("Location" = String, description = "The job"))),
        (status = 410, description = "`job_removed`: the job of this Idempotency-Key is there no more"),
        (status = 422, description = "`validation_failed` with all that is wrong; `idempotency_key_reused` for another \
            question; or waited for, and `refused`"),
        (status = 502, description = "Waited for, and failed at Claude; the job is under `job`", headers(("Location" = String, description = "The job"))),
        (status = 429, description = "`rate_limited`: you asked more than SUBMITS_PER_MINUTE; `too_many_pending`: your \
            jobs are a tenth of MAX_QUEUED_JOBS, the most of one caller", headers(
                ("RateLimit" = String, description = "What is left of the caller's quota, where SUBMITS_PER_MINUTE is set"),
                ("RateLimit-Policy" = String, description = "That quota")
            )),
        (status = 503, description = "`queue_full`, `storage_low`, `shutting_down`, `storage_unavailable`, `timeout`"),
        (status = 504, description = "Waited for, and `deadline_exceeded` or `timeout`; the job is under `job`", headers(("Location" = String, description = "The job")))
    )
)]
pub(super) async fn analyze(State(api): State<Arc<Api>>, question: Question) -> Result<Response, Problem> {
    let (mut submission, wait) = submission::parse(&question.body, api.bounds(), api.queue.now())?;
    submission.request.request_id = Some(observe::request_id());
    submission.request.traceparent = observe::traceparent();
    submission.request.caller = question.submitter.submit(&api, 1)?;
    submission.idempotency_key = question.idempotency_key;
    submission.wants_its_own = question.wants_its_own;
    let wait = question.wait.or(wait);
    let preferred = question.preferred.filter(|_| wait.is_none());
    let until = wait.or(preferred).and_then(Wait::until);
    let (Accepted { mut record, replayed }, waiting) = match until {
        Some(until) => api.queue.ask(submission, until, || api.allowance()).await?,
        None => (api.queue.enqueue(submission).await?, None),
    };
    if until.is_some() && waiting.is_none() && !record.job.state.is_final() {
        api.metrics.waits_declined.inc();
    }
    let JobRecord { job, request, .. } = &record;
    info!(
        job.id = %job.id,
        request.id = request.request_id,
        query.bytes = request.query.len(),
        replayed,
        "request received"
    );
    debug!(job.id = %job.id, query = request.query, "the question");
    let held = until.map(|_| Held::new(&api.metrics));
    if let Some(waiting) = &waiting
        && let Some(waited) = hold(&api.queue, waiting).await
    {
        record = waited;
    }
    if let Some(held) = held {
        held.answered(&record.job.state);
    }
    let now = api.queue.now();
    let mut response = api.view(&record, now).respond_to_asker(now);
    if replayed {
        response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
    if let Some(preferred) = preferred
        && waiting.is_some()
    {
        response.headers_mut().insert(PREFERENCE_APPLIED, preferred.applied());
    }
    Ok(response)
}

/// The job as it is at its end, or once that can't come in time. None if that can't be read: the job is accepted all the
/// same.
async fn hold(queue: &Queue, waiting: &Waiting) -> Option<JobRecord> {
    match timeout_at(waiting.until() + READ_GRACE, queue.answer(waiting)).await {
        Ok(Ok(record)) => Some(record),
        Ok(Err(error)) => {
            warn!(job.id = %waiting.job(), %error, "a job can't be read for the client that waits for it");
            None
        }
        Err(_) => None,
    }
}

/// A request with a JSON body, and how long to wait as far as that is said outside of it.
pub(super) struct Question {
    submitter: Submitter,
    body: Vec<u8>,
    wait: Option<Wait>,
    preferred: Option<Wait>,
    idempotency_key: Option<String>,
    wants_its_own: bool,
}

impl FromRequest<Arc<Api>> for Question {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Question, Problem> {
        let (mut parts, body) = request.into_parts();
        let submitter = Submitter::from_request_parts(&mut parts, api).await?;
        let body = body::read(&parts.headers, body, max_body_bytes(api.max_query_length)).await?;
        let Ok(params) = Params::from_request_parts(&mut parts, api).await;
        let (wait, preferred) = (params.wait()?, Wait::preferred(&parts.headers));
        let idempotency_key = idempotency_key(&parts.headers)?;
        let wants_its_own = wants_its_own(&parts.headers);
        Ok(Question { submitter, body, wait, preferred, idempotency_key, wants_its_own })
    }
}

/// The client's name for its question: a string as RFC 8941 has it, with or without its quotes.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = given.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    let quoted = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let key = quoted.map_or_else(|| text.to_owned(), |inner| inner.replace("\\\"", "\"").replace("\\\\", "\\"));
    if given.next().is_some() || !(1..=MAX_IDEMPOTENCY_KEY).contains(&key.len()) {
        let message = format!("must be given once, with 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters");
        return Err(Problem::listing(INVALID_PARAMETER, vec![FieldError::new("Idempotency-Key", message)]));
    }
    Ok(Some(key))
}
