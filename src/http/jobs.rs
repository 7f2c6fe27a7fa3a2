//! `/api/v1/jobs`: a caller's jobs; `/api/v1/jobs/{id}`: look at a job, wait for it, give it up, try it again.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api,
    admin::{Listed, listing},
    extract::{Id, Named, Params},
    filter::encode_cursor,
    problem::Problem,
    view::JobView,
    wait::{PREFERENCE_APPLIED, Wait},
};
use crate::{job::JobId, queue::audit::Deed};

/// A page of a caller's jobs.
#[derive(Serialize, ToSchema)]
pub(super) struct OwnJobs<'a> {
    /// The jobs.
    jobs: Vec<JobView<'a>>,
    /// Give it as `cursor`, with the same conditions, for the next page; null on the last one. A page may be short, even
    /// empty, and have a next one: a search leaves off after a while, and goes on from there.
    next_cursor: Option<String>,
    /// Give it as `cursor`, with the same conditions, for the page before; null on the first one.
    prev_cursor: Option<String>,
}

/// List your jobs
///
/// Those of the caller whose key or token it is. A service that is open to everybody knows no callers, and lists nobody's.
#[utoipa::path(
    get, path = "/api/v1/jobs", operation_id = "list_own_jobs", tag = "analysis",
    params(Listed),
    responses(
        (status = 200, description = "A page of jobs", body = OwnJobs<'static>),
        (status = 503, description = "`storage_unavailable`")
    )
)]
pub(super) async fn list(
    Named(caller): Named,
    State(api): State<Arc<Api>>,
    params: Params,
) -> Result<Response, Problem> {
    let page = api.queue.list(listing(&params, Some(caller))?).await?;
    let now = api.queue.now();
    let jobs = OwnJobs {
        jobs: page.jobs.iter().map(|record| api.view(record, now)).collect(),
        next_cursor: page.next.map(encode_cursor),
        prev_cursor: page.prev.map(encode_cursor),
    };
    Ok(Json(jobs).into_response())
}

/// Look at a job
///
/// With `wait` the answer is held until the job has ended, for 30 s at most; it is `200` with the job either way. With
/// `If-None-Match` it is `304` if the job is as the client has it.
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}", operation_id = "get_job", tag = "analysis",
    params(
        ("id" = uuid::Uuid, Path, description = "The job"),
        ("wait" = inline(Option<Wait>), Query, description = "`true`, or so many seconds, at most 30"),
        ("Prefer" = Option<String>, Header, description = "`wait=N` as in RFC 7240; used if `wait` is not given, and \
            then told by `Preference-Applied`"),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of the answer that the client has")
    ),
    responses(
        (status = 200, description = "The job; `Retry-After` while it is pending", body = JobView<'static>, headers(
                ("ETag" = String, description = "Tells whether the job has changed: for `If-None-Match`"),
                ("Retry-After" = u64, description = "So many seconds later there may be news of it"),
                ("Preference-Applied" = String, description = "`wait=N`, where `Prefer` was followed")
            )),
        (status = 304, description = "The job is as `If-None-Match` has it", headers(
                ("ETag" = String, description = "Tells whether the job has changed: for `If-None-Match`"),
                ("Retry-After" = u64, description = "So many seconds later there may be news of it"),
                ("Preference-Applied" = String, description = "`wait=N`, where `Prefer` was followed")
            )),
        (status = 503, description = "`storage_unavailable`")
    )
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Id { job: id, .. }: Id,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wait = params.wait()?;
    let preferred = Wait::preferred(&headers).filter(|_| wait.is_none());
    let record = match wait.or(preferred).and_then(Wait::until) {
        Some(until) => api.queue.wait(id, until).await?,
        None => api.queue.get(id).await?,
    };
    let now = api.queue.now();
    let mut response = api.view(&record, now).respond_if_new(&headers, now);
    if let Some(wait) = preferred {
        response.headers_mut().insert(PREFERENCE_APPLIED, wait.applied());
    }
    Ok(response)
}

/// Give a job up
///
/// A queued job will not run; a running one is aborted, but may have been billed. A cancelled job stays so.
#[utoipa::path(
    post, path = "/api/v1/jobs/{id}/cancel", operation_id = "cancel_job", tag = "analysis",
    params(("id" = uuid::Uuid, Path, description = "The job")),
    responses(
        (status = 200, description = "The job, cancelled", body = JobView<'static>),
        (status = 409, description = "`conflict`: it has ended otherwise"),
        (status = 503, description = "`storage_unavailable`")
    )
)]
pub(super) async fn cancel(State(api): State<Arc<Api>>, Id { job: id, operator }: Id) -> Result<Response, Problem> {
    let was_pending = api.queue.peek(id).is_some_and(|job| !job.state.is_final());
    let record = api.queue.cancel(id).await?;
    put_on_record(&api, operator.as_deref(), "cancel", id, was_pending).await?;
    let now = api.queue.now();
    Ok(api.view(&record, now).respond(StatusCode::OK, now))
}

/// Try a failed or cancelled job again
///
/// It goes back into the queue with a fresh count of attempts; its history stays.
#[utoipa::path(
    post, path = "/api/v1/jobs/{id}/retry", operation_id = "retry_job", tag = "analysis",
    params(("id" = uuid::Uuid, Path, description = "The job")),
    responses(
        (status = 202, description = "The job, queued again", body = JobView<'static>, headers(("Retry-After" = u64, description = "So many seconds later there may be news of it"))),
        (status = 409, description = "`conflict`: it is pending, or has succeeded"),
        (status = 503, description = "`storage_unavailable`")
    )
)]
pub(super) async fn retry(State(api): State<Arc<Api>>, Id { job: id, operator }: Id) -> Result<Response, Problem> {
    let record = api.queue.requeue(id).await?;
    put_on_record(&api, operator.as_deref(), "retry", id, true).await?;
    let now = api.queue.now();
    Ok(api.view(&record, now).respond(StatusCode::ACCEPTED, now))
}

/// Notes what an operator did to a job, and whether that changed it. What callers do to their own is no operator's deed.
pub(super) async fn put_on_record(
    api: &Api,
    operator: Option<&str>,
    action: &str,
    id: JobId,
    changed: bool,
) -> Result<(), Problem> {
    if let Some(actor) = operator {
        let detail = id.to_string();
        api.queue.note(Deed { actor, action, detail: Some(&detail) }, Some(usize::from(changed))).await?;
    }
    Ok(())
}
