//! `/api/v1/admin/limits`: shows and changes the limits on calls to Claude while the service runs.

use std::{num::NonZeroU32, ops::RangeInclusive, sync::Arc};

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    api::Api,
    body::{self, JsonBody},
    extract::Admin,
    problem::{FieldError, Problem},
};
use crate::{
    config::values::{REQUESTS_PER_MINUTE, RateCaps, TOKENS_PER_MINUTE},
    limits::{ModelLimits, PerMinute, gate::Closed},
};

/// The limits on calls to Claude.
#[derive(Serialize, ToSchema)]
#[schema(as = Limits)]
pub(super) struct LimitsView {
    /// Your caps: the setting, or the last change; null if unset.
    settings: RateCaps,
    /// The limits in force: the account's, as Claude reports them, or your cap if it is lower.
    in_force: PerMinute,
    /// Most concurrent calls. Lower than the number of workers while Claude is overloaded.
    calls_at_once: usize,
    /// Calls a second that the tightest limit allows for calls of usual size.
    calls_per_second: f64,
    /// Why no calls are made at the moment for jobs that name no model; null while calls are possible.
    gate: Option<Closed>,
    /// Each model that was called since the start: limits, overloads and gates are a model's own.
    models: Vec<ModelLimits>,
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
    responses((status = 200, description = "The limits", body = LimitsView))
)]
pub(super) async fn get(_: Admin, State(api): State<Arc<Api>>) -> Json<LimitsView> {
    Json(view(&api))
}

/// Change the limits
///
/// The new limits apply at once, on all nodes and after a restart, until they are changed again, here or by the setting
/// RATE_LIMITS.
#[utoipa::path(
    patch, path = "/api/v1/admin/limits", operation_id = "change_limits", tag = "admin",
    request_body = LimitsChange,
    responses(
        (status = 200, description = "The new limits", body = LimitsView),
        (status = 503, description = "`storage_unavailable`: the limits may be changed, but the audit log may have no entry")
    )
)]
pub(super) async fn patch(
    admin: Admin,
    State(api): State<Arc<Api>>,
    change: JsonBody<LimitsChange>,
) -> Result<Json<LimitsView>, Problem> {
    let wanted = change.checked(|change| wanted(&change))?;
    let after = api.caps.change(wanted).await?;
    admin.record(&api, "limits", Some(&serde_json::to_string(&after).unwrap_or_default())).await?;
    Ok(Json(view(&api)))
}

fn wanted(change: &LimitsChange) -> Result<RateCaps, Vec<FieldError>> {
    let mut errors = Vec::new();
    let mut within = |field: &str, wanted: Option<i64>, bounds: RangeInclusive<NonZeroU32>| {
        let wanted = wanted?;
        let limit = u32::try_from(wanted).ok().and_then(NonZeroU32::new).filter(|limit| bounds.contains(limit));
        if limit.is_none() {
            let message = format!("must be from {} to {}, not {wanted}", bounds.start(), bounds.end());
            errors.push(FieldError::new(field, message));
        }
        limit
    };
    let requests = within("requests_per_minute", change.requests_per_minute, REQUESTS_PER_MINUTE);
    let input_tokens = within("input_tokens_per_minute", change.input_tokens_per_minute, TOKENS_PER_MINUTE);
    let output_tokens = within("output_tokens_per_minute", change.output_tokens_per_minute, TOKENS_PER_MINUTE);
    if errors.is_empty() { Ok(RateCaps { requests, input_tokens, output_tokens }) } else { Err(errors) }
}

pub(super) fn view(api: &Api) -> LimitsView {
    LimitsView {
        settings: api.limits.caps(),
        in_force: api.limits.per_minute(None),
        calls_at_once: api.limits.calls_at_once(None),
        calls_per_second: api.limits.calls_per_second(None),
        gate: api.limits.gate(None),
        models: api.limits.models(),
    }
}
