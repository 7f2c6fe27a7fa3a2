//! `/api/v1/admin/jobs/{id}/reparse`: an answer that was paid for and could not be read, read again by today's parser.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode, response::Response};

use super::{
    Api,
    extract::{Admin, Id},
    jobs::put_on_record,
    problem::Problem,
    view::JobView,
};
use crate::{analysis, job::JobState};

/// Read the answers that were kept of a failed job again
///
/// The newest one that can be read now makes the job a success. Nothing is sent to Claude and nothing billed. A job that
/// has succeeded keeps its memo as it is.
#[utoipa::path(
    post, path = "/api/v1/admin/jobs/{id}/reparse", operation_id = "reparse_job", tag = "admin",
    params(("id" = uuid::Uuid, Path, description = "The job")),
    responses(
        (status = 200, description = "The job, succeeded", body = JobView<'static>),
        (status = 409, description = "`conflict`: it has not failed, or no answer was kept"),
        (status = 422, description = "`answer_unreadable`: still; nothing has changed"),
        (status = 503, description = "`storage_unavailable`")
    )
)]
pub(super) async fn reparse(
    admin: Admin,
    State(api): State<Arc<Api>>,
    Id { job: id, .. }: Id,
) -> Result<Response, Problem> {
    let had_failed = api.queue.peek(id).is_some_and(|job| matches!(job.state, JobState::Failed { .. }));
    let record = api.queue.reparse(id, |text| analysis::read_memo(text).map(|memo| (memo.json, memo.repaired))).await?;
    put_on_record(&api, Some(&admin.actor), "reparse", id, had_failed).await?;
    let now = api.queue.now();
    Ok(api.view(&record, now).respond(StatusCode::OK, now))
}
