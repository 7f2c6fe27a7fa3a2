//! `POST /api/v1/admin/jobs/actions`: cancels, retries or deletes many jobs, or estimates the effect in a dry run.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    api::{Api, allowance},
    body::JsonBody,
    extract::Admin,
    filter::{Conditions, cursor, encode_cursor},
    observe,
    problem::{FieldError, INTERNAL, Problem},
};
use crate::{
    audit::AuditAction,
    job::Cursor,
    ledger::dollars,
    queue::bulk::{Action, Bulk, DryRun, Outcome},
};

/// How long one request works. One more step may follow, and the answer must be sent within 30 s.
const WORK_TIME: Duration = Duration::from_secs(25);

/// An action on all jobs that match a filter.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub(super) struct ActionRequest {
    #[schema(required, value_type = Action)]
    action: Option<Action>,
    /// Which jobs. `{}` matches all jobs that the action applies to.
    #[schema(required, value_type = Conditions)]
    filter: Option<Conditions>,
    /// Change nothing and report what would change.
    #[serde(default)]
    dry_run: bool,
    /// The `next_cursor` of the previous answer, if that had `more`.
    #[schema(pattern = "^A[A-Za-f][A-Za-z0-9_-]{10}$")]
    cursor: Option<String>,
}

/// The effect of an action or a dry run.
#[derive(Serialize, ToSchema)]
pub(super) struct ActionReport {
    action: Action,
    /// `true` if nothing was changed.
    dry_run: bool,
    /// Jobs that match the filter and that the action applies to.
    matched: usize,
    /// Jobs that were changed. Others changed their state in the meantime. Absent in a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<usize>,
    /// The time limit was reached. Send the same request with `next_cursor` as `cursor` for the rest.
    more: bool,
    /// Where the rest begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    /// In a dry run of `retry` or `cancel`: what the calls to Claude for these jobs would cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate: Option<Estimate>,
}

/// Tokens, cost and duration of the calls for these jobs, estimated from the first 500 jobs.
#[derive(Serialize, ToSchema)]
struct Estimate {
    /// Estimated from the length of the questions.
    input_tokens: u64,
    /// The most that the calls can need.
    output_tokens: u64,
    /// Cost of both at list prices, in US dollars. Absent if a model has no known price.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_usd: Option<f64>,
    /// Duration with the current workers and limits. Absent if they allow no calls now.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
}

/// Cancel, retry or delete many jobs
///
/// Works on the oldest jobs first, for at most 25 s. `more` says whether jobs are left. Jobs submitted after the start of
/// the request are not changed. The audit log records the action.
#[utoipa::path(
    post, path = "/api/v1/admin/jobs/actions", operation_id = "act_on_jobs", tag = "admin",
    request_body = ActionRequest,
    responses(
        (status = 200, description = "The number of matched and changed jobs", body = ActionReport),
        (status = 429, description = "`too_many_pending`: a retried caller has no room for more; see the audit log for the part that is done"),
        (status = 503, description = "`queue_full`, `storage_low`, `storage_unavailable`: a part may be done, see the audit log")
    )
)]
pub(super) async fn act(
    admin: Admin,
    State(api): State<Arc<Api>>,
    request: JsonBody<ActionRequest>,
) -> Result<Json<ActionReport>, Problem> {
    let (is_dry_run, described, bulk) = request.checked(|request| {
        let described = request.filter.as_ref().map(|filter| serde_json::to_string(filter).unwrap_or_default());
        Ok((request.dry_run, described.unwrap_or_default(), bulk(request)?))
    })?;
    if is_dry_run {
        return Ok(Json(dry_run(&api, &bulk).await?));
    }
    // In its own task, so that the action is finished and logged even if the client disconnects.
    let acting = tokio::spawn(async move { apply(&api, &admin.actor, &described, &bulk).await });
    let failed = |_| Problem::new(INTERNAL, "internal error; the audit log shows how many jobs were changed");
    Ok(Json(acting.await.map_err(failed)??))
}

fn bulk(request: ActionRequest) -> Result<Bulk, Vec<FieldError>> {
    let mut errors = Vec::new();
    let mut wrong = |field: &str, message: String| errors.push(FieldError::new(field, message));
    let cursor = request.cursor.as_deref().map(cursor).transpose().unwrap_or_else(|message| {
        wrong("cursor", message);
        None
    });
    if request.action.is_none() {
        wrong("action", "is required: cancel, retry or delete".to_owned());
    }
    if request.filter.is_none() {
        wrong("filter", "is required; {} matches all jobs that the action applies to".to_owned());
    }
    let filter = request.filter.unwrap_or_default().filter().map_err(|wrong| {
        errors.extend(wrong.into_iter().map(|error| error.within("filter")));
    });
    match (request.action, filter) {
        (Some(action), Ok(filter)) if errors.is_empty() => {
            Ok(Bulk { action, filter, cursor, until: observe::started() + WORK_TIME })
        }
        _ => Err(errors),
    }
}

async fn dry_run(api: &Api, bulk: &Bulk) -> Result<ActionReport, Problem> {
    let dry_run = api.operations.dry_run(bulk, allowance(&api.limits, None)).await?;
    let DryRun { matched, next, at_risk, seconds } = dry_run;
    let estimate = Estimate {
        input_tokens: at_risk.input_tokens,
        output_tokens: at_risk.output_tokens,
        cost_usd: at_risk.nanodollars.map(dollars),
        seconds,
    };
    // A deletion makes no calls.
    let estimate = Some(estimate).filter(|_| bulk.action != Action::Delete);
    Ok(ActionReport { estimate, ..ActionReport::new(bulk.action, matched, None, next) })
}

async fn apply(api: &Api, actor: &str, filter: &str, bulk: &Bulk) -> Result<ActionReport, Problem> {
    let entry = api.audit.record(AuditAction { actor, action: bulk.action.into(), detail: Some(filter) }, None).await?;
    let Outcome { matched, changed, next } = api.operations.apply(bulk, (&api.audit, &entry)).await?;
    Ok(ActionReport::new(bulk.action, matched, Some(changed), next))
}

impl ActionReport {
    /// `changed` is `None` in a dry run.
    fn new(action: Action, matched: usize, changed: Option<usize>, next: Option<Cursor>) -> ActionReport {
        ActionReport {
            action,
            dry_run: changed.is_none(),
            matched,
            changed,
            more: next.is_some(),
            next_cursor: next.map(encode_cursor),
            estimate: None,
        }
    }
}
