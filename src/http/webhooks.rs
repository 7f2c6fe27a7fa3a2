//! `/api/v1/webhooks`: the secrets that sign webhooks, test messages, and the webhooks that fail. And
//! `/api/v1/jobs/{id}/resend-webhook`.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State, http::StatusCode, response::Response};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    api::Api,
    body,
    body::JsonBody,
    extract::{Admin, Id, Named, Params, SecretOwner, Submitter},
    filter::{cursor, encode_cursor},
    pages::{self, Here},
    problem::{CONFLICT, FieldError, Problem, SERVER_BUSY},
    view::{Include, JobView},
};
use crate::{
    audit::AuditAction,
    clock::Timestamp,
    job::{JobFilter, JobPage, Listing},
    webhook::{
        Tested,
        secrets::{CallerSecrets, RotationError},
    },
};

/// How long a replaced secret signs by default, and at most: receivers are changed by hand, in a day or in a week.
const OVERLAP_HOURS: (i64, i64) = (24, 168);

const MAX_CALLER: usize = 500;

const TEST_RETRY_AFTER: u64 = 5;

/// The secret that signs a caller's webhooks.
#[derive(Serialize, ToSchema)]
pub(super) struct WebhookSecret {
    /// The caller. Absent for callers without a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<String>,
    /// The current secret, for the receivers.
    #[schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    secret: String,
    /// The secrets that were replaced and sign too, newest first.
    previous: Vec<PreviousSecret>,
}

/// A secret that was replaced and still signs.
#[derive(Serialize, ToSchema)]
struct PreviousSecret {
    /// Until when it signs. Absent for secrets of the setting WEBHOOK_SECRET.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
}

impl WebhookSecret {
    fn new(caller: Option<String>, secrets: &CallerSecrets) -> WebhookSecret {
        WebhookSecret {
            caller,
            secret: secrets.current.expose_secret().to_owned(),
            previous: secrets.previous.iter().map(|&(_, expires_at)| PreviousSecret { expires_at }).collect(),
        }
    }
}

/// How to replace a webhook secret.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub(super) struct RotationRequest {
    /// For how many hours the replaced secret signs too. Default 24. 0 ends all replaced secrets now, for a secret that
    /// has leaked.
    #[schema(minimum = 0, maximum = 168)]
    #[serde(default, deserialize_with = "body::whole")]
    overlap_hours: Option<i64>,
}

impl RotationRequest {
    fn overlap(self) -> Result<Duration, Vec<FieldError>> {
        let (usual, most) = OVERLAP_HOURS;
        let hours = self.overlap_hours.unwrap_or(usual);
        if !(0..=most).contains(&hours) {
            return Err(vec![FieldError::new("overlap_hours", format!("must be from 0 to {most}, not {hours}"))]);
        }
        Ok(Duration::from_hours(hours.unsigned_abs()))
    }
}

/// Where to send a test message.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub(super) struct WebhookTestRequest {
    /// The receiver, as for a job.
    #[schema(required, value_type = String, max_length = 2_048, example = "https://example.com/hook")]
    callback_url: Option<String>,
}

/// A page of jobs whose webhook fails.
#[derive(Serialize, ToSchema)]
pub(super) struct FailingWebhooks<'a> {
    /// Newest job first. `delivery` has the tries, and the time of the next one.
    jobs: Vec<JobView<'a>>,
    /// The `cursor` of the next page; null on the last page.
    next_cursor: Option<String>,
}

/// Get your webhook secret
///
/// The secret that signs the webhooks of your jobs. Each caller has its own, unless the setting WEBHOOK_SECRET is set. Not
/// available without an API key or a token.
#[utoipa::path(
    get, path = "/api/v1/webhooks/secret", operation_id = "get_webhook_secret", tag = "analysis",
    responses(
        (status = 200, description = "The secret", body = WebhookSecret),
        (status = 409, description = "`conflict`: the setting WEBHOOK_SECRET signs all webhooks; ask the operator for it")
    )
)]
pub(super) async fn secret(owner: SecretOwner, State(api): State<Arc<Api>>) -> Result<Json<WebhookSecret>, Problem> {
    let secrets = api.webhooks.secrets();
    if secrets.is_shared() && owner.operator.is_none() {
        let detail =
            "the setting WEBHOOK_SECRET signs the webhooks of all callers; ask the operator of the service for it";
        return Err(Problem::new(CONFLICT, detail));
    }
    let found = secrets.of(owner.name.as_deref()).await?;
    Ok(Json(WebhookSecret::new(owner.name, &found)))
}

/// Replace your webhook secret
///
/// The new secret signs at once. The old one signs too for `overlap_hours`: each message has a signature of both, so that
/// receivers can change at any time meanwhile.
#[utoipa::path(
    post, path = "/api/v1/webhooks/secret/rotate", operation_id = "rotate_webhook_secret", tag = "analysis",
    request_body = RotationRequest,
    responses(
        (status = 200, description = "The new secret", body = WebhookSecret),
        (status = 409, description = "`conflict`: too many replaced secrets still sign, or the setting WEBHOOK_SECRET signs all webhooks")
    )
)]
pub(super) async fn rotate(
    owner: SecretOwner,
    State(api): State<Arc<Api>>,
    request: JsonBody<RotationRequest>,
) -> Result<Json<WebhookSecret>, Problem> {
    replace(&api, owner.name, owner.operator.as_deref(), request).await
}

/// Send a test webhook
///
/// Sends a message of type `webhook.test` to the URL, signed like the webhooks of your jobs, and waits up to 15 s for the
/// receiver's answer. It is not repeated. It counts like a submission.
#[utoipa::path(
    post, path = "/api/v1/webhooks/test", operation_id = "test_webhook", tag = "analysis",
    request_body = WebhookTestRequest,
    responses(
        (status = 200, description = "What the receiver did, also if it did not answer", body = Tested),
        (status = 429, description = "`rate_limited`, as for a submission"),
        (status = 503, description = "`server_busy`: too many test messages are being sent")
    )
)]
pub(super) async fn test(
    Submitter { name, by }: Submitter,
    State(api): State<Arc<Api>>,
    request: JsonBody<WebhookTestRequest>,
) -> Result<Json<Tested>, Problem> {
    let url = request.checked(|WebhookTestRequest { callback_url }| {
        let wrong = |why: String| vec![FieldError::new("callback_url", why)];
        let url = callback_url.ok_or_else(|| wrong("is required: the URL of the receiver".to_owned()))?;
        api.callbacks.check(&url).map_err(wrong)?;
        Ok(url)
    })?;
    let charged = api.operations.charge(by).await;
    api.show_quota(by);
    charged?;
    let busy = || Problem::new(SERVER_BUSY, "too many test webhooks are being sent; try again soon");
    let tested = api.webhooks.test(name.as_deref(), &url).await?;
    tested.map(Json).ok_or_else(|| busy().retry_after(TEST_RETRY_AFTER))
}

/// List your failing webhooks
///
/// Your jobs whose webhook was tried and not accepted yet: it is `pending` and will be tried again, or it was `given_up` or
/// `disabled`. Not available without an API key or a token.
#[utoipa::path(
    get, path = "/api/v1/webhooks/failing", operation_id = "list_own_failing_webhooks", tag = "analysis",
    params(
        ("limit" = Option<usize>, Query, description = "Jobs on a page: 1 to 200, default 50", minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the previous page",
            pattern = "^A[A-Za-f][A-Za-z0-9_-]{10}$")
    ),
    responses((status = 200, description = "A page of jobs", body = FailingWebhooks<'static>))
)]
pub(super) async fn own_failing(
    Named(caller): Named,
    State(api): State<Arc<Api>>,
    params: Params,
    here: Here,
) -> Result<Response, Problem> {
    failing(api, params, here, Some(caller)).await
}

/// List failing webhooks
///
/// The jobs whose webhook was tried and not accepted yet: it is `pending` and will be tried again, or it was `given_up` or
/// `disabled`.
#[utoipa::path(
    get, path = "/api/v1/admin/webhooks/failing", operation_id = "list_failing_webhooks", tag = "admin",
    params(
        ("limit" = Option<usize>, Query, description = "Jobs on a page: 1 to 200, default 50", minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the previous page",
            pattern = "^A[A-Za-f][A-Za-z0-9_-]{10}$"),
        ("caller" = Option<String>, Query, min_length = 1, max_length = 500,
            description = "Jobs submitted with this API key's name or token's subject")
    ),
    responses((status = 200, description = "A page of jobs", body = FailingWebhooks<'static>))
)]
pub(super) async fn all_failing(
    _: Admin,
    State(api): State<Arc<Api>>,
    params: Params,
    here: Here,
) -> Result<Response, Problem> {
    failing(api, params, here, None).await
}

/// The failing webhooks of one caller, or those of the caller in the parameters, or all.
async fn failing(api: Arc<Api>, mut params: Params, here: Here, own: Option<String>) -> Result<Response, Problem> {
    let caller = own.or_else(|| params.last("caller", caller_name));
    let limit = pages::limit(&mut params);
    let cursor = params.last("cursor", cursor);
    params.end()?;
    let filter = JobFilter { caller, ..JobFilter::default() };
    let listing = Listing { filter, limit, cursor, ..Listing::default() };
    let (operations, memory) = (api.operations.clone(), api.memory.clone());
    let read = async move { Ok(operations.failing_webhooks(listing).await?) };
    let make = move |page: JobPage| {
        let list = FailingWebhooks {
            jobs: api.listed(&page.jobs, Include::default()),
            next_cursor: page.next.map(encode_cursor),
        };
        here.link_next(Json(list), "cursor", page.next.map(encode_cursor))
    };
    memory.list(read, make).await
}

fn caller_name(value: &str) -> Result<String, String> {
    let is_fit = (1..=MAX_CALLER).contains(&value.chars().count());
    if is_fit { Ok(value.to_owned()) } else { Err(format!("must have 1 to {MAX_CALLER} characters")) }
}

/// Get the webhook secret of a caller
///
/// What signs the messages of the jobs that this caller submitted.
#[utoipa::path(
    get, path = "/api/v1/admin/webhooks/secret", operation_id = "get_callers_webhook_secret", tag = "admin",
    params(
        ("caller" = Option<String>, Query, min_length = 1, max_length = 500,
            description = "The caller's name. Without it, the secret of callers without a name")
    ),
    responses((status = 200, description = "The secret", body = WebhookSecret))
)]
pub(super) async fn callers_secret(
    _: Admin,
    State(api): State<Arc<Api>>,
    mut params: Params,
) -> Result<Json<WebhookSecret>, Problem> {
    let caller = params.last("caller", caller_name);
    params.end()?;
    let secrets = api.webhooks.secrets().of(caller.as_deref()).await?;
    Ok(Json(WebhookSecret::new(caller, &secrets)))
}

/// Replace the webhook secret of a caller
///
/// As `POST /api/v1/webhooks/secret/rotate`, for any caller.
#[utoipa::path(
    post, path = "/api/v1/admin/webhooks/secret/rotate", operation_id = "rotate_callers_webhook_secret", tag = "admin",
    params(
        ("caller" = Option<String>, Query, min_length = 1, max_length = 500,
            description = "The caller's name. Without it, the secret of callers without a name")
    ),
    request_body = RotationRequest,
    responses(
        (status = 200, description = "The new secret", body = WebhookSecret),
        (status = 409, description = "`conflict`: too many replaced secrets still sign, or the setting WEBHOOK_SECRET signs all webhooks")
    )
)]
pub(super) async fn rotate_callers(
    admin: Admin,
    State(api): State<Arc<Api>>,
    mut params: Params,
    request: JsonBody<RotationRequest>,
) -> Result<Json<WebhookSecret>, Problem> {
    let caller = params.last("caller", caller_name);
    params.end()?;
    replace(&api, caller, Some(&admin.actor), request).await
}

/// Replaces a caller's secret. `operator` is the name for the audit log.
async fn replace(
    api: &Api,
    caller: Option<String>,
    operator: Option<&str>,
    request: JsonBody<RotationRequest>,
) -> Result<Json<WebhookSecret>, Problem> {
    let overlap = request.checked(RotationRequest::overlap)?;
    let rotated = api.webhooks.secrets().rotate(caller.as_deref(), overlap).await?;
    if let Some(actor) = operator {
        let detail = Some(caller.as_deref().unwrap_or("callers without a name"));
        api.audit.record(AuditAction { actor, action: "webhook_secret_rotate", detail }, None).await?;
    }
    Ok(Json(WebhookSecret::new(caller, &rotated)))
}

/// Resend the webhook of a job
///
/// Sends the newest message of an ended job again, at once and under the same `webhook-id`, also if it was delivered, given
/// up or disabled. If the receiver does not accept it, it is repeated for a day. It counts like a submission.
#[utoipa::path(
    post, path = "/api/v1/jobs/{id}/resend-webhook", operation_id = "resend_webhook", tag = "analysis",
    params(("id" = uuid::Uuid, Path, description = "The job")),
    responses(
        (status = 202, description = "The job, with the webhook due", body = JobView<'static>),
        (status = 409, description = "`conflict`: the job has not ended, or has no `callback_url`"),
        (status = 429, description = "`rate_limited`, as for a submission")
    )
)]
pub(super) async fn resend(State(api): State<Arc<Api>>, id: Id) -> Result<Response, Problem> {
    let record = api.operations.resend_webhook(id.job, id.by).await;
    api.show_quota(id.by);
    let record = record?;
    id.record(&api, "webhook_resend", true).await?;
    Ok(api.view(&record).respond(StatusCode::ACCEPTED))
}

impl From<RotationError> for Problem {
    fn from(error: RotationError) -> Problem {
        let detail = error.to_string();
        match error {
            RotationError::OfSetting | RotationError::TooMany { .. } => Problem::new(CONFLICT, detail),
            RotationError::Unavailable(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_secret_signs_for_a_day_by_default_and_for_a_week_at_most() {
        let overlap = |hours| RotationRequest { overlap_hours: hours }.overlap();
        assert_eq!(overlap(None).unwrap(), Duration::from_hours(24));
        assert_eq!(overlap(Some(0)).unwrap(), Duration::ZERO);
        assert_eq!(overlap(Some(168)).unwrap(), Duration::from_hours(168));
        for hours in [-1, 169] {
            let message = format!("must be from 0 to 168, not {hours}");
            assert_eq!(overlap(Some(hours)), Err(vec![FieldError::new("overlap_hours", message)]));
        }
    }
}
