//! `POST /api/v1/analyze`: submits a question as a job, and returns the memo to clients that wait.
//! `POST /api/v1/analyze/batch`: submits many questions, all or none.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::time::timeout_at;
use tracing::{debug, info, warn};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    api::{Api, allowance},
    body,
    extract::{Params, Submitter},
    headers::{IDEMPOTENCY_REPLAYED, idempotency_key, wants_its_own},
    observe,
    problem::Problem,
    submission::{self, BatchBody, Body, MAX_BATCH_BYTES, max_body_bytes},
    view::{JobView, Links, links},
    wait::{Held, PREFERENCE_APPLIED, Wait},
};
use crate::{
    digest::ModelKey,
    job::{JobRecord, JobStatus},
    queue::{Accepted, Queue, Waiting},
};

/// How long reading an ended job may take once the wait is over. After that the answer is the job as it was.
const READ_GRACE: Duration = Duration::from_millis(250);

/// Submit a question
///
/// The job is durable on disk before the answer is sent. With `wait`, the answer comes when the job has ended, at most
/// after 30 s. If the job cannot end in that time, the answer is `202`, often at once. The job then continues;
/// `queue.eta_seconds` and `Retry-After` say when to ask again.
#[utoipa::path(
    post, path = "/api/v1/analyze", tag = "analysis",
    params(
        ("wait" = inline(Option<Wait>), Query, description = "Like `wait` in the body. Overrides it"),
        ("Prefer" = Option<String>, Header, description = "`wait=N` (RFC 7240). Used when `wait` is not given. \
            `Preference-Applied` is sent when it was honoured"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
            pattern = "^[!-~]([ -~]*[!-~])?$", description = "Your id for this request, up to 255 characters. \
            The same key with the same request returns the same job, with `Idempotency-Replayed: true`, for \
            24 hours"),
        ("Cache-Control" = Option<String>, Header, description = "`no-cache` makes a new call to Claude. Without it, a job \
            may get the answer of another job with the same question, see `cached` and `shared_with`")
    ),
    request_body = Body,
    responses(
        (status = 200, description = "The job has succeeded: the job with its memo (with `wait`, or from the cache)", body = JobView<'static>, headers(
            ("Idempotency-Replayed" = bool, description = "`true` for an existing job of the same Idempotency-Key")
        )),
        (status = 202, description = "The job is accepted. Poll `Location` after `Retry-After`", body = JobView<'static>, headers(
            ("Retry-After" = u64, description = "Seconds to wait before the next poll"),
            ("Idempotency-Replayed" = bool, description = "`true` for an existing job of the same Idempotency-Key")
        )),
        (status = 409, description = "`cancelled` while waiting; `job` has the job"),
        (status = 410, description = "`job_removed`: the job of this Idempotency-Key was removed"),
        (status = 422, description = "`validation_failed`: `errors` lists all invalid fields. `idempotency_key_reused`: the \
            key belongs to another request. `refused` while waiting: Claude refused to answer"),
        (status = 502, description = "The call to Claude failed while waiting; `job` has the job"),
        (status = 429, description = "`rate_limited`: more jobs than SUBMITS_PER_MINUTE. `too_many_pending`: more pending jobs \
            than a tenth of MAX_QUEUED_JOBS, the most of one caller"),
        (status = 503, description = "`queue_full`, `storage_low`, `shutting_down`, `storage_unavailable`, `timeout`"),
        (status = 504, description = "`deadline_exceeded` or `timeout` while waiting; `job` has the job")
    )
)]
pub(super) async fn analyze(
    submitter: Submitter,
    State(api): State<Arc<Api>>,
    mut params: Params,
    request: Request,
) -> Result<Response, Problem> {
    let (Parts { headers, .. }, body) = request.into_parts();
    let body = body::read(&headers, body, max_body_bytes(api.max_query_length)).await?;
    let wait = params.last("wait", Wait::parse);
    params.end()?;
    let idempotency_key = idempotency_key(&headers)?;
    let (mut submission, wait_in_body) = submission::parse(&body, api.bounds(), api.queue.wall())?;
    submission.request.request_id = Some(observe::request_id());
    submission.request.traceparent = observe::traceparent();
    submission.request.caller = submitter.name;
    submission.by = submitter.by;
    submission.idempotency_key = idempotency_key;
    submission.wants_its_own = wants_its_own(&headers);
    let wait = wait.or(wait_in_body);
    let preferred = Wait::preferred(&headers).filter(|_| wait.is_none());
    let until = wait.or(preferred).and_then(Wait::until);
    let lane = submission.request.model.as_deref().map(ModelKey::of);
    let accepted = match until {
        Some(until) => api.queue.ask(submission, until, || allowance(&api.limits, lane)).await,
        None => api.queue.enqueue(submission).await.map(|accepted| (accepted, None)),
    };
    api.show_quota(submitter.by);
    let (Accepted { mut record, replayed }, waiting) = accepted?;
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
    debug!(job.id = %job.id, query = request.query, "question of the job");
    let held = until.map(|_| Held::new(&api.metrics));
    if let Some(waiting) = &waiting
        && let Some(waited) = hold(&api.queue, waiting).await
    {
        record = waited;
    }
    if let Some(held) = held {
        held.answered(&record.job.state);
    }
    let mut response = api.view(&record).respond_to_asker();
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

/// The job at its end, or as soon as it cannot end in time. `None` if the job can't be read; it stays accepted.
async fn hold(queue: &Queue, waiting: &Waiting) -> Option<JobRecord> {
    match timeout_at(waiting.until() + READ_GRACE, queue.answer(waiting)).await {
        Ok(Ok(record)) => Some(record),
        Ok(Err(error)) => {
            warn!(job.id = %waiting.job(), %error, "failed to read a job for a waiting client");
            None
        }
        Err(_) => None,
    }
}

/// The jobs of a batch.
#[derive(Serialize, ToSchema)]
pub(super) struct Batch {
    /// One job for each request, in the same order.
    jobs: Vec<BatchJob>,
}

/// A job of a batch in short form. `links.self` has the whole job.
#[derive(Serialize, ToSchema)]
struct BatchJob {
    id: Uuid,
    status: JobStatus,
    links: Links,
}

/// Submit many questions
///
/// Accepts all requests or no request, in one commit, also if the service crashes. If one request is invalid, all are
/// refused, and the error names its index (`requests[7].query`). The body may have up to 8 MiB.
#[utoipa::path(
    post, path = "/api/v1/analyze/batch", operation_id = "analyze_batch", tag = "analysis",
    params(
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
            pattern = "^[!-~]([ -~]*[!-~])?$", description = "Your id for the whole batch, up to 255 characters. \
            The same key with the same requests in the same order returns the same jobs, with \
            `Idempotency-Replayed: true`"),
        ("Cache-Control" = Option<String>, Header, description = "As for a single question")
    ),
    request_body = BatchBody,
    responses(
        (status = 202, description = "All jobs are accepted", body = Batch,
            headers(("Idempotency-Replayed" = bool, description = "`true` for existing jobs of the same Idempotency-Key"))),
        (status = 400, description = "`invalid_parameter`: the Idempotency-Key is not valid"),
        (status = 410, description = "`job_removed`: a job of this Idempotency-Key was removed"),
        (status = 422, description = "`validation_failed`: `errors` lists all invalid fields. `idempotency_key_reused`: the \
            key belongs to another request"),
        (status = 429, description = "`rate_limited`: more jobs than SUBMITS_PER_MINUTE. `too_many_pending`: more pending jobs \
            than a tenth of MAX_QUEUED_JOBS, the most of one caller"),
        (status = 503, description = "`queue_full` (no room for the whole batch), `storage_low`, `shutting_down`, \
            `storage_unavailable`, `timeout`")
    )
)]
pub(super) async fn batch(
    submitter: Submitter,
    State(api): State<Arc<Api>>,
    request: Request,
) -> Result<Response, Problem> {
    let (Parts { headers, .. }, body) = request.into_parts();
    let body = body::read(&headers, body, MAX_BATCH_BYTES).await?;
    let idempotency_key = idempotency_key(&headers)?;
    let mut submissions = submission::parse_batch(&body, api.bounds(), api.queue.wall())?;
    let request_id = observe::request_id();
    for submission in &mut submissions {
        submission.request.request_id = Some(request_id.clone());
        submission.request.caller.clone_from(&submitter.name);
        submission.by = submitter.by;
        submission.wants_its_own = wants_its_own(&headers);
    }
    let accepted = api.queue.enqueue_all(submissions, idempotency_key.as_deref()).await;
    api.show_quota(submitter.by);
    let (jobs, replayed) = accepted?;
    info!(request.id = request_id, jobs = jobs.len(), replayed, "batch received");
    let now = api.queue.now();
    let jobs = jobs.iter().map(|job| BatchJob { id: job.id, status: job.status(now), links: links(job, false) });
    let mut response = (StatusCode::ACCEPTED, Json(Batch { jobs: jobs.collect() })).into_response();
    if replayed {
        response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}
