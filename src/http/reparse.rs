//! `/api/v1/admin/jobs/{id}/reparse`: parses the stored answers of a failed job again, with the current parser.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode, response::Response};

use super::{
    api::Api,
    extract::{Admin, Id},
    jobs::put_on_record,
    problem::Problem,
    view::JobView,
};
use crate::{analysis, job::JobState};

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
        (status = 422, description = "`answer_unreadable`: no stored answer can be parsed; the job stays failed"),
        (status = 503, description = "`storage_unavailable`")
    )
)]
pub(super) async fn reparse(
    admin: Admin,
    State(api): State<Arc<Api>>,
    Id { job: id, .. }: Id,
) -> Result<Response, Problem> {
    let had_failed = api.queue.find(id).await.is_ok_and(|job| matches!(job.state, JobState::Failed { .. }));
    let record =
        api.operations.reparse(id, |text| analysis::read_memo(text).map(|memo| (memo.json, memo.repaired))).await?;
    put_on_record(&api, Some(&admin.actor), "reparse", id, had_failed).await?;
    let now = api.queue.now();
    Ok(api.view(&record, now).respond(StatusCode::OK, now))
}
