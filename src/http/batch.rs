//! `POST /api/v1/analyze/batch`: submits many jobs, all or none.

use std::sync::Arc;

use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Request, State},
    http::{HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tracing::info;
use utoipa::ToSchema;

use super::{
    analyze::{IDEMPOTENCY_REPLAYED, idempotency_key},
    api::Api,
    body,
    extract::{Submitter, wants_its_own},
    observe,
    problem::Problem,
    submission::{self, BatchBody, MAX_BATCH_BYTES},
    view::{self, Links},
};
use crate::job::{JobId, JobStatus};

/// The jobs of a batch.
#[derive(Serialize, ToSchema)]
pub(super) struct Batch {
    /// One job for each request, in the same order.
    jobs: Vec<BatchJob>,
}

/// A job of a batch in short form. `links.self` has the whole job.
#[derive(Serialize, ToSchema)]
struct BatchJob {
    #[schema(value_type = String, format = Uuid)]
    id: JobId,
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
        (status = 202, description = "All jobs are accepted", body = Batch, headers(
                ("Idempotency-Replayed" = bool, description = "`true` for existing jobs of the same Idempotency-Key")
            )),
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
pub(super) async fn batch(State(api): State<Arc<Api>>, questions: Questions) -> Result<Response, Problem> {
    let mut submissions = submission::parse_batch(&questions.body, api.bounds(), api.queue.wall())?;
    let request_id = observe::request_id();
    let Submitter { name, by } = questions.submitter;
    for submission in &mut submissions {
        submission.request.request_id = Some(request_id.clone());
        submission.request.caller.clone_from(&name);
        submission.by = by;
        submission.wants_its_own = questions.wants_its_own;
    }
    let accepted = api.queue.enqueue_all(submissions, questions.idempotency_key.as_deref()).await;
    api.show_quota(by);
    let (jobs, replayed) = accepted?;
    info!(request.id = request_id, jobs = jobs.len(), replayed, "batch received");
    let now = api.queue.now();
    let jobs = jobs.iter().map(|job| BatchJob { id: job.id, status: job.status(now), links: view::links(job) });
    let mut response = (StatusCode::ACCEPTED, Json(Batch { jobs: jobs.collect() })).into_response();
    if replayed {
        response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// A batch: its body, and the options from the headers.
pub(super) struct Questions {
    submitter: Submitter,
    body: Vec<u8>,
    idempotency_key: Option<String>,
    wants_its_own: bool,
}

impl FromRequest<Arc<Api>> for Questions {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Questions, Problem> {
        let (mut parts, body) = request.into_parts();
        let submitter = Submitter::from_request_parts(&mut parts, api).await?;
        let body = body::read(&parts.headers, body, MAX_BATCH_BYTES).await?;
        let idempotency_key = idempotency_key(&parts.headers)?;
        Ok(Questions { submitter, body, idempotency_key, wants_its_own: wants_its_own(&parts.headers) })
    }
}
