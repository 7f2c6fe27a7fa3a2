//! `/api/v1/admin/limits`: shows and changes the limits on calls to Claude while the service runs.

use std::{num::NonZeroU32, ops::RangeInclusive, sync::Arc};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    api::Api,
    body::{self, JsonBody},
    extract::Admin,
    problem::{FieldError, Problem},
};
use crate::{
    audit::AuditAction,
    config::values::{REQUESTS_PER_MINUTE, RateCaps, TOKENS_PER_MINUTE},
    limits::{ModelLimits, PerMinute, gate::Closed},
};

/// The limits on calls to Claude.
#[derive(Serialize, ToSchema)]
#[schema(as = Limits)]
pub(super) struct LimitsView {
    /// Your caps, until the next start; null if unset.
    settings: RateCaps,
    /// The limits in force: the account's, as Claude reports them, or your cap if it is lower.
    in_force: PerMinute,
    /// Most concurrent calls. Lower than the number of workers while Claude is overloaded.
    calls_at_once: usize,
    /// Calls a second that the tightest limit allows for calls of usual size.
    calls_per_second: f64,
    /// Why no calls are made at the moment for jobs that name no model; null while calls are possible.
    gate: Option<GateView>,
    /// Each model that was called since the start: limits, overloads and gates are a model's own.
    models: Vec<ModelLimitsView>,
}

/// The limits on calls of one model.
#[derive(Serialize, ToSchema)]
#[schema(as = ModelLimits)]
struct ModelLimitsView {
    /// Its id.
    model: String,
    in_force: PerMinute,
    calls_at_once: usize,
    /// Why no calls of the model are made; null while calls are possible.
    gate: Option<GateView>,
}

impl From<ModelLimits> for ModelLimitsView {
    fn from(limits: ModelLimits) -> ModelLimitsView {
        ModelLimitsView {
            model: limits.model,
            in_force: limits.per_minute,
            calls_at_once: limits.calls_at_once,
            gate: limits.gate.map(GateView::from),
        }
    }
}

/// The closed gate.
#[derive(Serialize, ToSchema)]
#[schema(as = Gate)]
struct GateView {
    /// Stable code of the reason.
    reason: &'static str,
    /// Claude's message.
    detail: String,
}

impl From<Closed> for GateView {
    fn from(closed: Closed) -> GateView {
        GateView { reason: closed.code.into(), detail: closed.detail }
    }
}

/// New limits. Absent limits do not change.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub(super) struct LimitsChange {
    /// Requests per minute.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 1_000_000)]
    #[serde(default, deserialize_with = "body::whole")]
    requests_per_minute: Option<i64>,
    /// Input tokens per minute.
    #[schema(value_type = Option<u32>, minimum = 1_000, maximum = 1_000_000_000)]
    #[serde(default, deserialize_with = "body::whole")]
    input_tokens_per_minute: Option<i64>,
    /// Output tokens per minute.
    #[schema(value_type = Option<u32>, minimum = 1_000, maximum = 1_000_000_000)]
    #[serde(default, deserialize_with = "body::whole")]
    output_tokens_per_minute: Option<i64>,
}

/// Get the limits
///
/// The limits on calls to Claude: your caps, those in force, and those of each model.
#[utoipa::path(
    get, path = "/api/v1/admin/limits", operation_id = "get_limits", tag = "admin",
    responses(
        (status = 200, description = "The limits", body = LimitsView)
    )
)]
pub(super) async fn get(_: Admin, State(api): State<Arc<Api>>) -> Response {
    Json(view(&api)).into_response()
}

/// Change the limits
///
/// The new limits apply at once, until the process ends. The next start uses the settings again.
#[utoipa::path(
    patch, path = "/api/v1/admin/limits", operation_id = "change_limits", tag = "admin",
    request_body = LimitsChange,
    responses(
        (status = 200, description = "The new limits", body = LimitsView),
        (status = 503, description = "`storage_unavailable`: the limits are changed, but the audit log has no entry")
    )
)]
pub(super) async fn patch(
    admin: Admin,
    State(api): State<Arc<Api>>,
    change: JsonBody<LimitsChange>,
) -> Result<Response, Problem> {
    let after = change.checked(|change| caps(&change, api.limits.caps()))?;
    api.limits.set_caps(after);
    let detail = serde_json::to_string(&after).unwrap_or_default();
    let action = AuditAction { actor: &admin.actor, action: "limits", detail: Some(&detail) };
    api.audit.record(action, None).await?;
    Ok(Json(view(&api)).into_response())
}

/// The caps after a change, or all its errors.
fn caps(change: &LimitsChange, before: RateCaps) -> Result<RateCaps, Vec<FieldError>> {
    let mut errors = Vec::new();
    let mut wanted = |field, wanted, bounds, before| within(field, wanted, bounds, &mut errors).or(before);
    let after = RateCaps {
        requests: wanted("requests_per_minute", change.requests_per_minute, REQUESTS_PER_MINUTE, before.requests),
        input_tokens: wanted(
            "input_tokens_per_minute",
            change.input_tokens_per_minute,
            TOKENS_PER_MINUTE,
            before.input_tokens,
        ),
        output_tokens: wanted(
            "output_tokens_per_minute",
            change.output_tokens_per_minute,
            TOKENS_PER_MINUTE,
            before.output_tokens,
        ),
    };
    if errors.is_empty() { Ok(after) } else { Err(errors) }
}

/// The new limit if it is within the bounds of its setting; otherwise adds an error.
fn within(
    field: &str,
    wanted: Option<i64>,
    bounds: RangeInclusive<NonZeroU32>,
    errors: &mut Vec<FieldError>,
) -> Option<NonZeroU32> {
    let wanted = wanted?;
    let limit = u32::try_from(wanted).ok().and_then(NonZeroU32::new).filter(|limit| bounds.contains(limit));
    if limit.is_none() {
        let message = format!("must be from {} to {}, not {wanted}", bounds.start(), bounds.end());
        errors.push(FieldError::new(field, message));
    }
    limit
}

pub(super) fn view(api: &Api) -> LimitsView {
    LimitsView {
        settings: api.limits.caps(),
        in_force: api.limits.per_minute(None),
        calls_at_once: api.limits.calls_at_once(None),
        calls_per_second: api.limits.calls_per_second(None),
        gate: api.limits.gate(None).map(GateView::from),
        models: api.limits.models().into_iter().map(ModelLimitsView::from).collect(),
    }
}
