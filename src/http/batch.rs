//! `POST /api/v1/analyze/batch`: submits many jobs, all or none.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tracing::info;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    api::Api,
    body,
    extract::Submitter,
    headers::{IDEMPOTENCY_REPLAYED, idempotency_key, wants_its_own},
    observe,
    problem::Problem,
    submission::{self, BatchBody, MAX_BATCH_BYTES},
    view::{self, Links},
};
use crate::job::JobStatus;

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
    let jobs = jobs.iter().map(|job| BatchJob { id: job.id, status: job.status(now), links: view::links(job, false) });
    let mut response = (StatusCode::ACCEPTED, Json(Batch { jobs: jobs.collect() })).into_response();
    if replayed {
        response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}
