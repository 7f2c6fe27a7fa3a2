//! `POST /api/v1/admin/jobs/actions`: cancel, retry or delete many jobs at once, or be told what that would mean.

use std::{sync::Arc, time::Duration};

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
    filter::{Conditions, WRONG_CURSOR, decode_cursor, encode_cursor},
    observe,
    problem::{FieldError, INTERNAL, Problem, VALIDATION_FAILED},
};
use crate::{
    ledger::dollars,
    queue::{
        audit::Deed,
        bulk::{Action, Bulk, Outcome, Trial},
    },
};

/// How long a request is worked on. One step more may follow, and the answer has to be out before 30 s are over.
const WORK_TIME: Duration = Duration::from_secs(25);

/// What to do to which jobs.
#[derive(Deserialize, ToSchema)]
pub(super) struct ActionRequest {
    /// What to do.
    #[schema(required, value_type = Action)]
    action: Option<Action>,
    /// To which jobs; `{}` means all that the action can be done to.
    #[schema(required, value_type = Conditions)]
    filter: Option<Conditions>,
    /// Change nothing, and tell what would be changed.
    #[serde(default)]
    dry_run: bool,
    /// The `next_cursor` of the answer before, if that had `more`.
    #[schema(pattern = "^A[A-Za-f][A-Za-z0-9_-]{10}$")]
    cursor: Option<String>,
}

/// What was done, or would be.
#[derive(Serialize, ToSchema)]
pub(super) struct ActionReport {
    /// What.
    action: Action,
    /// Nothing was changed.
    dry_run: bool,
    /// Jobs that meet the conditions and that the action can be done to.
    matched: usize,
    /// Jobs that it was done to; others moved on meanwhile. Absent in a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<usize>,
    /// The time was over: send the same request again with `next_cursor` as `cursor` for the rest.
    more: bool,
    /// Where the rest begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    /// In a dry run: what calls to Claude for these jobs take; what a retry costs, or a cancellation saves.
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate: Option<Estimate>,
}

/// What calls for jobs take, estimated from the first 500 of them.
#[derive(Serialize, ToSchema)]
struct Estimate {
    /// Input tokens, by the length of the questions.
    input_tokens: u64,
    /// Output tokens at most.
    output_tokens: u64,
    /// Both at list prices, in US dollars; absent if a model has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_usd: Option<f64>,
    /// At what the workers and limits allow now; absent if they allow nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
}

/// Cancel, retry or delete many jobs
///
/// The oldest come first. It is worked on for 25 s at most; `more` tells whether there is something left. Only jobs that
/// were there when it began are changed. On record in the audit log.
#[utoipa::path(
    post, path = "/api/v1/admin/jobs/actions", operation_id = "act_on_jobs", tag = "admin",
    request_body = ActionRequest,
    responses(
        (status = 200, description = "What was done, or would be", body = ActionReport),
        (status = 503, description = "`storage_unavailable`: a part may be done, as the audit log tells")
    )
)]
pub(super) async fn act(
    admin: Admin,
    State(api): State<Arc<Api>>,
    JsonBody(request): JsonBody<ActionRequest>,
) -> Result<Response, Problem> {
    let is_trial = request.dry_run;
    let described = request.filter.as_ref().map(|filter| serde_json::to_string(filter).unwrap_or_default());
    let bulk = bulk(request).map_err(|errors| Problem::listing(VALIDATION_FAILED, errors))?;
    let report = if is_trial {
        try_out(&api, &bulk).await?
    } else {
        // In a task of its own: what was begun must be put on record even if the client hangs up.
        let acting =
            tokio::spawn(async move { act_on_record(&api, &admin.actor, &described.unwrap_or_default(), &bulk).await });
        let failed = |_| Problem::new(INTERNAL, "a fault of ours; the audit log tells how far it came");
        acting.await.map_err(failed)??
    };
    Ok(Json(report).into_response())
}

/// What is wanted, or everything that is wrong with it.
fn bulk(request: ActionRequest) -> Result<Bulk, Vec<FieldError>> {
    let mut errors = Vec::new();
    let cursor = match request.cursor.as_deref().map(decode_cursor) {
        None => None,
        Some(Some(cursor)) => Some(cursor),
        Some(None) => {
            errors.push(FieldError::new("cursor", WRONG_CURSOR));
            None
        }
    };
    if request.action.is_none() {
        errors.push(FieldError::new("action", "is required: cancel, retry or delete"));
    }
    let filter = match request.filter.map(Conditions::filter) {
        None => {
            errors.push(FieldError::new("filter", "is required; {} means all jobs that the action can be done to"));
            None
        }
        Some(Ok(filter)) => Some(filter),
        Some(Err(wrong)) => {
            let within = |error: FieldError| FieldError::new(format!("filter.{}", error.field), error.message);
            errors.extend(wrong.into_iter().map(within));
            None
        }
    };
    match (request.action, filter) {
        (Some(action), Some(filter)) if errors.is_empty() => {
            Ok(Bulk { action, filter, cursor, until: observe::started() + WORK_TIME })
        }
        _ => Err(errors),
    }
}

async fn try_out(api: &Api, bulk: &Bulk) -> Result<ActionReport, Problem> {
    let Trial { matched, next, at_risk, seconds } = api.queue.try_out(bulk, api.allowance()).await?;
    let estimate = Estimate {
        input_tokens: at_risk.input_tokens,
        output_tokens: at_risk.output_tokens,
        cost_usd: at_risk.nanodollars.map(dollars),
        seconds,
    };
    Ok(ActionReport {
        action: bulk.action,
        dry_run: true,
        matched,
        changed: None,
        more: next.is_some(),
        next_cursor: next.map(encode_cursor),
        // A deletion calls nobody.
        estimate: (bulk.action != Action::Delete).then_some(estimate),
    })
}

async fn act_on_record(api: &Api, actor: &str, filter: &str, bulk: &Bulk) -> Result<ActionReport, Problem> {
    let mut entry = api.queue.note(Deed { actor, action: bulk.action.into(), detail: Some(filter) }, None).await?;
    let Outcome { matched, changed, next } = api.queue.act(bulk, &mut entry).await?;
    Ok(ActionReport {
        action: bulk.action,
        dry_run: false,
        matched,
        changed: Some(changed),
        more: next.is_some(),
        next_cursor: next.map(encode_cursor),
        estimate: None,
    })
}
