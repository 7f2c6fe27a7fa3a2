//! `/api/v1/admin/stats`, `/queue/pause`, `/queue/resume`, `/audit`: how the service is, holding it, and who did what.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Api,
    extract::{Admin, Params, count_up_to},
    limits::{self, LimitsView},
    problem::{FieldError, Problem},
};
use crate::{
    agent::models::Known,
    clock::Timestamp,
    job::{JobFilter, JobStatus, Listing, Order, StatusCounts},
    metrics::kind,
    queue::{
        Pause,
        audit::{Deed, Entry},
    },
};

/// Audit entries on a page if the client does not say, and at most.
const AUDIT_LIMIT: (usize, usize) = (50, 200);

/// How the service is.
#[derive(Serialize, ToSchema)]
pub(super) struct Stats {
    /// The service's version.
    version: &'static str,
    /// Jobs by status.
    jobs: StatusCounts,
    /// When the oldest job was submitted that waits and could run; null if there is none.
    #[schema(value_type = Option<String>, format = DateTime)]
    oldest_queued_at: Option<Timestamp>,
    /// Who paused the queue, and when; null while it is not paused.
    paused: Option<Pause>,
    /// Attempts under way.
    running_attempts: usize,
    /// Attempts that can be under way at once.
    workers: usize,
    /// How long an attempt takes at the moment, in seconds: a running mean.
    attempt_seconds: f64,
    /// Clients that wait for a job's end.
    waiters: usize,
    /// Since the process started.
    since_start: SinceStart,
    /// The limits on calls to Claude.
    limits: LimitsView,
    /// What is known of each model: what it refused, and whether it is passed over.
    models: Vec<Known>,
    /// Why no question is accepted; empty while they are.
    troubles: Vec<FieldError>,
}

/// Jobs since the process started.
#[derive(Serialize, ToSchema)]
struct SinceStart {
    /// Accepted.
    submitted: u64,
    /// Ended with a memo.
    succeeded: u64,
    /// Ended with an error.
    failed: u64,
    /// Given up.
    cancelled: u64,
}

/// Whether the queue is paused.
#[derive(Serialize, ToSchema)]
pub(super) struct QueueState {
    /// Who paused the queue, and when; null while it is not paused.
    paused: Option<Pause>,
}

/// A page of the audit log.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditPage {
    /// Newest first.
    entries: Vec<Entry>,
    /// Give it as `cursor` for the next page; null on the last one.
    #[schema(value_type = Option<String>, format = Uuid)]
    next_cursor: Option<Uuid>,
}

/// How the service is
#[utoipa::path(
    get, path = "/api/v1/admin/stats", operation_id = "get_stats", tag = "admin",
    responses(
        (status = 200, description = "The state of queue, workers and limits", body = Stats)
    )
)]
pub(super) async fn stats(_: Admin, State(api): State<Arc<Api>>) -> Response {
    let queue = &api.queue;
    let filter = JobFilter { statuses: vec![JobStatus::Queued], ..JobFilter::default() };
    let oldest = queue.list(Listing { filter, order: Order::OldestFirst, cursor: None, limit: 1 }).await;
    let ended = |status| api.metrics.jobs_finished.get_or_create(&kind(status)).get();
    Json(Stats {
        version: env!("CARGO_PKG_VERSION"),
        jobs: queue.counts(),
        oldest_queued_at: oldest.ok().and_then(|page| page.jobs.first().map(|record| record.job.created_at)),
        paused: queue.paused(),
        running_attempts: queue.running_attempts(),
        workers: queue.workers(),
        attempt_seconds: queue.service_time().as_secs_f64(),
        waiters: queue.waiters(),
        since_start: SinceStart {
            submitted: api.metrics.jobs_submitted.get(),
            succeeded: ended("succeeded"),
            failed: ended("failed"),
            cancelled: ended("cancelled"),
        },
        limits: limits::view(&api),
        models: api.models.known(),
        troubles: super::health::troubles(&api),
    })
    .into_response()
}

/// Pause the queue
///
/// No further job is claimed, also after a restart, until it is resumed. Questions are accepted, and attempts under way
/// end as they would. A paused queue stays as it is.
#[utoipa::path(
    post, path = "/api/v1/admin/queue/pause", operation_id = "pause_queue", tag = "admin",
    responses(
        (status = 200, description = "It is paused", body = QueueState),
        (status = 503, description = "`storage_unavailable`")
    )
)]
pub(super) async fn pause(admin: Admin, State(api): State<Arc<Api>>) -> Result<Json<QueueState>, Problem> {
    let pause = api.queue.pause(&admin.actor).await?;
    api.queue.note(Deed { actor: &admin.actor, action: "pause", detail: None }, None).await?;
    Ok(Json(QueueState { paused: Some(pause) }))
}

/// Resume the queue
#[utoipa::path(
    post, path = "/api/v1/admin/queue/resume", operation_id = "resume_queue", tag = "admin",
    responses(
        (status = 200, description = "It is not paused (any more)", body = QueueState),
        (status = 503, description = "`storage_unavailable`")
    )
)]
pub(super) async fn resume(admin: Admin, State(api): State<Arc<Api>>) -> Result<Json<QueueState>, Problem> {
    api.queue.resume(&admin.actor).await?;
    api.queue.note(Deed { actor: &admin.actor, action: "resume", detail: None }, None).await?;
    Ok(Json(QueueState { paused: None }))
}

/// The audit log
///
/// What operators did, newest first: the newest 10,000 entries are kept.
#[utoipa::path(
    get, path = "/api/v1/admin/audit", operation_id = "list_audit", tag = "admin",
    params(
        ("limit" = Option<usize>, Query, description = "Entries on a page: 1 to 200, 50 if absent", minimum = 1,
            maximum = 200),
        ("cursor" = Option<Uuid>, Query, description = "The `next_cursor` of the page before")
    ),
    responses(
        (status = 200, description = "A page of the log", body = AuditPage),
        (status = 503, description = "`storage_unavailable`")
    )
)]
pub(super) async fn audit(_: Admin, State(api): State<Arc<Api>>, params: Params) -> Result<Json<AuditPage>, Problem> {
    let (before, limit) = audit_page(&params)?;
    let mut entries = api.queue.audit(before, limit + 1).await?;
    let is_more = entries.len() > limit;
    entries.truncate(limit);
    let next_cursor = entries.last().filter(|_| is_more).map(|entry| entry.id);
    Ok(Json(AuditPage { entries, next_cursor }))
}

fn audit_page(params: &Params) -> Result<(Option<Uuid>, usize), Problem> {
    let (mut limit, most) = AUDIT_LIMIT;
    let mut before = None;
    params.read("limit and cursor", |name, value| match name {
        "limit" => Some(count_up_to(most, value).map(|given| limit = given)),
        "cursor" => {
            let wrong = |_| "is not a next_cursor of this route; start again without one".to_owned();
            Some(value.parse().map(|id| before = Some(id)).map_err(wrong))
        }
        _ => None,
    })?;
    Ok((before, limit))
}
