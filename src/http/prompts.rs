//! `/api/v1/admin/prompts`: the versions of the prompts, to look at and to read anew while the service runs.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api,
    extract::Admin,
    problem::{INTERNAL, PROMPTS_INVALID, Problem},
};
use crate::{prompts::VersionInfo, queue::audit::Deed};

/// The versions of the prompts.
#[derive(Serialize, ToSchema)]
pub(super) struct PromptList {
    /// By name.
    versions: Vec<VersionInfo>,
}

/// List the versions of the prompts
#[utoipa::path(
    get, path = "/api/v1/admin/prompts", operation_id = "list_prompts", tag = "admin",
    responses(
        (status = 200, description = "The versions", body = PromptList)
    )
)]
pub(super) async fn list(_: Admin, State(api): State<Arc<Api>>) -> Json<PromptList> {
    Json(PromptList { versions: api.prompts.list() })
}

/// Read the prompts anew
///
/// All versions or none: if one is broken, the old ones stay and the answer says why. SIGHUP does the same.
#[utoipa::path(
    post, path = "/api/v1/admin/prompts/reload", operation_id = "reload_prompts", tag = "admin",
    responses(
        (status = 200, description = "The versions, as they are now", body = PromptList),
        (status = 422, description = "`prompts_invalid`, with file and line"),
        (status = 503, description = "`storage_unavailable`: they are read, but that is not on record")
    )
)]
pub(super) async fn reload(admin: Admin, State(api): State<Arc<Api>>) -> Result<Json<PromptList>, Problem> {
    let prompts = api.prompts.clone();
    // Files may be on a slow disk.
    let read = tokio::task::spawn_blocking(move || prompts.reload()).await;
    match read {
        Ok(Ok(())) => {
            api.queue.note(Deed { actor: &admin.actor, action: "prompts_reload", detail: None }, None).await?;
            Ok(Json(PromptList { versions: api.prompts.list() }))
        }
        Ok(Err(error)) => Err(Problem::new(PROMPTS_INVALID, error.to_string())),
        Err(_) => Err(Problem::new(INTERNAL, "the prompts could not be read; the log has the details")),
    }
}
