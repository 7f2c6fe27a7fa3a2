//! `/api/v1/admin/prompts`: lists the prompt versions and reloads them from disk.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    api::Api,
    extract::Admin,
    problem::{PROMPTS_INVALID, Problem, STORAGE_UNAVAILABLE},
};
use crate::prompts::{PromptError, VersionInfo};

/// The prompt versions.
#[derive(Serialize, ToSchema)]
pub(super) struct PromptList {
    /// Sorted by name.
    versions: Vec<VersionInfo>,
}

/// List the prompt versions
///
/// A question can name one of them in `prompt_version`.
#[utoipa::path(
    get, path = "/api/v1/admin/prompts", operation_id = "list_prompts", tag = "admin",
    responses((status = 200, description = "The prompt versions", body = PromptList))
)]
pub(super) async fn list(_: Admin, State(api): State<Arc<Api>>) -> Json<PromptList> {
    Json(PromptList { versions: api.prompts.list() })
}

/// Reload the prompts
///
/// Reads all versions from disk. If one is not valid, all old versions stay in use and the error says why. The signal
/// SIGHUP does the same.
#[utoipa::path(
    post, path = "/api/v1/admin/prompts/reload", operation_id = "reload_prompts", tag = "admin",
    responses(
        (status = 200, description = "The new prompt versions", body = PromptList),
        (status = 422, description = "`prompts_invalid`; `detail` names file and line"),
        (status = 503, description = "`storage_unavailable`: the prompts are reloaded, but the audit log has no entry")
    )
)]
pub(super) async fn reload(admin: Admin, State(api): State<Arc<Api>>) -> Result<Json<PromptList>, Problem> {
    match api.prompts.reload().await {
        Ok(()) => {
            admin.record(&api, "prompts_reload", None).await?;
            Ok(Json(PromptList { versions: api.prompts.list() }))
        }
        Err(error @ PromptError::NotShared(_)) => Err(Problem::new(STORAGE_UNAVAILABLE, error.to_string())),
        Err(error) => Err(Problem::new(PROMPTS_INVALID, error.to_string())),
    }
}
