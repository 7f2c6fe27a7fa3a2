//! `/api/v1/jobs/{id}`: look at a job, wait for it, give it up, try it again.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode, response::Response};

use super::{
    Api,
    extract::{Id, Params},
    problem::{Problem, ProblemBody},
    view::JobView,
    wait::Wait,
};

/// Look at a job
///
/// With `wait` the answer is held until the job has ended, for 30 s at most; it is `200` with the job either way.
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}", tag = "analysis",
    params(
        ("id" = uuid::Uuid, Path, description = "The job"),
        ("wait" = Option<String>, Query, description = "`true`, or so many seconds, at most 30")
    ),
    responses(
        (status = 200, description = "The job; `Retry-After` while it is pending", body = JobView<'static>),
        (status = 400, description = "`invalid_job_id`, `invalid_parameter`", body = ProblemBody<'static>,
            content_type = "application/problem+json"),
        (status = 404, description = "`job_not_found`", body = ProblemBody<'static>,
            content_type = "application/problem+json"),
        (status = 503, description = "`storage_unavailable`", body = ProblemBody<'static>,
            content_type = "application/problem+json")
    )
)]
pub(super) async fn get(State(api): State<Arc<Api>>, Id(id): Id, params: Params) -> Result<Response, Problem> {
    let record = match params.wait()?.and_then(Wait::until) {
        Some(until) => api.queue.wait(id, until).await?,
        None => api.queue.get(id).await?,
    };
    let now = api.queue.now();
    Ok(api.view(&record, now).respond(StatusCode::OK, now))
}

/// Give a job up
///
/// A queued job will not run; a running one is aborted, but may have been billed. A cancelled job stays so.
#[utoipa::path(
    post, path = "/api/v1/jobs/{id}/cancel", tag = "analysis",
    params(("id" = uuid::Uuid, Path, description = "The job")),
    responses(
        (status = 200, description = "The job, cancelled", body = JobView<'static>),
        (status = 400, description = "`invalid_job_id`", body = ProblemBody<'static>,
            content_type = "application/problem+json"),
        (status = 404, description = "`job_not_found`", body = ProblemBody<'static>,
            content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: it has ended otherwise", body = ProblemBody<'static>,
            content_type = "application/problem+json"),
        (status = 503, description = "`storage_unavailable`", body = ProblemBody<'static>,
            content_type = "application/problem+json")
    )
)]
pub(super) async fn cancel(State(api): State<Arc<Api>>, Id(id): Id) -> Result<Response, Problem> {
    let record = api.queue.cancel(id).await?;
    let now = api.queue.now();
    Ok(api.view(&record, now).respond(StatusCode::OK, now))
}

/// Try a failed or cancelled job again
///
/// It goes back into the queue with a fresh count of attempts; its history stays.
#[utoipa::path(
    post, path = "/api/v1/jobs/{id}/retry", tag = "analysis",
    params(("id" = uuid::Uuid, Path, description = "The job")),
    responses(
        (status = 202, description = "The job, queued again", body = JobView<'static>),
        (status = 400, description = "`invalid_job_id`", body = ProblemBody<'static>,
            content_type = "application/problem+json"),
        (status = 404, description = "`job_not_found`", body = ProblemBody<'static>,
            content_type = "application/problem+json"),
        (status = 409, description = "`conflict`: it is pending, or has succeeded", body = ProblemBody<'static>,
            content_type = "application/problem+json"),
        (status = 503, description = "`storage_unavailable`", body = ProblemBody<'static>,
            content_type = "application/problem+json")
    )
)]
pub(super) async fn retry(State(api): State<Arc<Api>>, Id(id): Id) -> Result<Response, Problem> {
    let record = api.queue.requeue(id).await?;
    let now = api.queue.now();
    Ok(api.view(&record, now).respond(StatusCode::ACCEPTED, now))
}
