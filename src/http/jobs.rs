//! `/api/v1/jobs/{id}`: gets, awaits, cancels, retries and deletes a job.
//! `/api/v1/admin/jobs/{id}/reparse`: parses the stored answers of a failed job again, with the current parser.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
    response::Response,
};

use super::{
    api::Api,
    extract::{Admin, Id, Params},
    problem::Problem,
    view::JobView,
    wait::{PREFERENCE_APPLIED, Wait},
};
use crate::{analysis, job::JobState};

/// Get a job
///
/// With `wait`, the answer comes when the job has ended, at most after 30 s. It is `200` with the job in both cases. With
/// `If-None-Match` it is `304` if the job has not changed.
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}", operation_id = "get_job", tag = "analysis",
    params(
        ("id" = uuid::Uuid, Path, description = "The job"),
        ("wait" = inline(Option<Wait>), Query, description = "Wait for the end of the job: `true`, or seconds up to 30"),
        ("Prefer" = Option<String>, Header, description = "`wait=N` (RFC 7240). Used when `wait` is not given. \
            `Preference-Applied` is sent when it was honoured"),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer")
    ),
    responses(
        (status = 200, description = "The job, with `Retry-After` while it is pending", body = JobView<'static>,
            headers(("Retry-After" = u64, description = "Seconds to wait before the next poll"))),
        (status = 304, description = "The job has not changed since `If-None-Match`",
            headers(("Retry-After" = u64, description = "Seconds to wait before the next poll")))
    )
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Id { job: id, .. }: Id,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wait = params.last("wait", Wait::parse);
    params.end()?;
    let preferred = Wait::preferred(&headers).filter(|_| wait.is_none());
    let record = match wait.or(preferred).and_then(Wait::until) {
        Some(until) => api.queue.wait(id, until).await?,
        None => api.queue.get(id).await?,
    };
    let mut response = api.view(&record).respond_if_new(&headers);
    if let Some(wait) = preferred {
        response.headers_mut().insert(PREFERENCE_APPLIED, wait.applied());
    }
    Ok(response)
}

/// Cancel a job
///
/// A queued job will not run. A running call is aborted, but may be billed. Cancelling a cancelled job changes nothing.
#[utoipa::path(
    post, path = "/api/v1/jobs/{id}/cancel", operation_id = "cancel_job", tag = "analysis",
    params(("id" = uuid::Uuid, Path, description = "The job")),
    responses(
        (status = 200, description = "The job, cancelled", body = JobView<'static>),
        (status = 409, description = "`conflict`: the job has succeeded or failed")
    )
)]
pub(super) async fn cancel(State(api): State<Arc<Api>>, id: Id) -> Result<Response, Problem> {
    let was_pending = api.queue.find(id.job).await.is_ok_and(|job| !job.state.is_final());
    let record = api.queue.cancel(id.job).await?;
    id.record(&api, "cancel", was_pending).await?;
    Ok(api.view(&record).respond(StatusCode::OK))
}

/// Retry a failed or cancelled job
///
/// The job returns to the queue and gets a new allowance of attempts. Its history stays. A retry counts like a submission.
#[utoipa::path(
    post, path = "/api/v1/jobs/{id}/retry", operation_id = "retry_job", tag = "analysis",
    params(("id" = uuid::Uuid, Path, description = "The job")),
    responses(
        (status = 202, description = "The job, retried: it is queued", body = JobView<'static>, headers(("Retry-After" = u64, description = "Seconds to wait before the next poll"))),
        (status = 409, description = "`conflict`: the job is pending or has succeeded"),
        (status = 429, description = "`rate_limited` or `too_many_pending`, as for a submission"),
        (status = 503, description = "`queue_full`, `storage_low`, `storage_unavailable`")
    )
)]
pub(super) async fn retry(State(api): State<Arc<Api>>, id: Id) -> Result<Response, Problem> {
    let record = api.queue.requeue(id.job, id.by).await;
    api.show_quota(id.by);
    let record = record?;
    id.record(&api, "retry", true).await?;
    Ok(api.view(&record).respond(StatusCode::ACCEPTED))
}

/// Delete a job
///
/// Removes a job that has ended, with its question and memo. It can't be restored. Callers can delete their own jobs.
#[utoipa::path(
    delete, path = "/api/v1/jobs/{id}", operation_id = "delete_job", tag = "analysis",
    params(("id" = uuid::Uuid, Path, description = "The job")),
    responses(
        (status = 204, description = "The job is deleted"),
        (status = 409, description = "`conflict`: the job has not ended; cancel it first")
    )
)]
pub(super) async fn delete(State(api): State<Arc<Api>>, id: Id) -> Result<StatusCode, Problem> {
    api.operations.delete(id.job).await?;
    id.record(&api, "delete", true).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Parse the stored answers of a failed job again
///
/// If an answer can be parsed as a memo now, the job succeeds with the newest such answer. This makes no call to Claude
/// and costs nothing. A job that has succeeded does not change.
#[utoipa::path(
    post, path = "/api/v1/admin/jobs/{id}/reparse", operation_id = "reparse_job", tag = "admin",
    params(("id" = uuid::Uuid, Path, description = "The job")),
    responses(
        (status = 200, description = "The job, succeeded", body = JobView<'static>),
        (status = 409, description = "`conflict`: the job has not failed, or has no stored answer"),
        (status = 422, description = "`answer_unreadable`: no stored answer can be parsed; the job stays failed")
    )
)]
pub(super) async fn reparse(_: Admin, State(api): State<Arc<Api>>, id: Id) -> Result<Response, Problem> {
    let had_failed = api.queue.find(id.job).await.is_ok_and(|job| matches!(job.state, JobState::Failed { .. }));
    let read = |text: &str| analysis::read_memo(text).map(|memo| (memo.json, memo.repaired));
    let record = api.operations.reparse(id.job, read).await?;
    id.record(&api, "reparse", had_failed).await?;
    Ok(api.view(&record).respond(StatusCode::OK))
}
