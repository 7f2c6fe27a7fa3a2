//! `/api/v1/admin/limits`: how fast Claude may be called, to look at and to change while the service runs.

use std::{num::NonZeroU32, sync::Arc};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Api,
    body::JsonBody,
    extract::Admin,
    problem::{Problem, ProblemBody},
};
use crate::{limits::PerMinute, queue::audit::Deed};

/// The limits on calls to Claude.
#[derive(Serialize, ToSchema)]
pub(super) struct LimitsView {
    /// As they are set, until the next start.
    settings: PerMinute,
    /// As they count: what Claude told of the account, where that is less.
    in_force: PerMinute,
    /// Most calls at once; fewer than there are workers while Claude is overloaded.
    calls_at_once: usize,
    /// Calls a second that the narrowest limit allows, by what a call usually needs.
    calls_per_second: f64,
    /// Why no call is made at the moment; null while calls can be made.
    gate: Option<GateView>,
}

/// The gate, closed.
#[derive(Serialize, ToSchema)]
struct GateView {
    /// A stable word: what for.
    reason: &'static str,
    /// What Claude said.
    detail: String,
}

/// Limits to change; what is absent stays as it is.
#[derive(Deserialize, ToSchema)]
pub(super) struct LimitsChange {
    /// Calls a minute.
    #[schema(value_type = Option<u32>, minimum = 1)]
    requests: Option<NonZeroU32>,
    /// Input tokens a minute.
    #[schema(value_type = Option<u32>, minimum = 1)]
    input_tokens: Option<NonZeroU32>,
    /// Output tokens a minute.
    #[schema(value_type = Option<u32>, minimum = 1)]
    output_tokens: Option<NonZeroU32>,
}

/// Look at the limits
#[utoipa::path(
    get, path = "/api/v1/admin/limits", tag = "admin",
    security(("admin_token" = [])),
    responses(
        (status = 200, description = "The limits", body = LimitsView),
        (status = 401, description = "`unauthorized`", body = ProblemBody<'static>,
            content_type = "application/problem+json")
    )
)]
pub(super) async fn get(_: Admin, State(api): State<Arc<Api>>) -> Response {
    Json(view(&api)).into_response()
}

/// Change the limits
///
/// They hold from this moment to the end of the process; the settings of the next start are what they were.
#[utoipa::path(
    patch, path = "/api/v1/admin/limits", tag = "admin",
    security(("admin_token" = [])),
    request_body = LimitsChange,
    responses(
        (status = 200, description = "The limits, changed", body = LimitsView),
        (status = 400, description = "`invalid_json`, `invalid_body`", body = ProblemBody<'static>,
            content_type = "application/problem+json"),
        (status = 401, description = "`unauthorized`", body = ProblemBody<'static>,
            content_type = "application/problem+json"),
        (status = 413, description = "`body_too_large`", body = ProblemBody<'static>,
            content_type = "application/problem+json"),
        (status = 415, description = "`unsupported_media_type`", body = ProblemBody<'static>,
            content_type = "application/problem+json"),
        (status = 422, description = "`validation_failed`", body = ProblemBody<'static>,
            content_type = "application/problem+json"),
        (status = 503, description = "`storage_unavailable`: they are changed, but that is not on record",
            body = ProblemBody<'static>, content_type = "application/problem+json")
    )
)]
pub(super) async fn patch(
    admin: Admin,
    State(api): State<Arc<Api>>,
    JsonBody(change): JsonBody<LimitsChange>,
) -> Result<Response, Problem> {
    let before = api.limits.settings();
    let after = PerMinute {
        requests: change.requests.unwrap_or(before.requests),
        input_tokens: change.input_tokens.unwrap_or(before.input_tokens),
        output_tokens: change.output_tokens.unwrap_or(before.output_tokens),
    };
    api.limits.set(after);
    let detail = serde_json::to_string(&after).unwrap_or_default();
    let deed = Deed { actor: &admin.actor, action: "limits", detail: Some(&detail) };
    api.queue.note(deed, None).await?;
    Ok(Json(view(&api)).into_response())
}

/// The limits as they are.
pub(super) fn view(api: &Api) -> LimitsView {
    LimitsView {
        settings: api.limits.settings(),
        in_force: api.limits.per_minute(),
        calls_at_once: api.limits.calls_at_once(),
        calls_per_second: api.limits.calls_per_second(),
        gate: api.limits.gate().map(|closed| GateView { reason: closed.reason, detail: closed.detail }),
    }
}
