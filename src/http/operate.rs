//! `/api/v1/admin/stats`, `/queue/pause`, `/queue/resume`, `/audit`: the state of the service, pausing it, and the audit
//! log.

use std::sync::Arc;

use axum::{Json, extract::State, response::Response};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    api::{Api, Note},
    extract::{Admin, Params},
    limits::{self, LimitsView},
    pages::{self, Here},
    problem::{FieldError, Problem},
};
use crate::{
    agent::models::Known,
    audit::Entry,
    clock::Timestamp,
    job::{JobFilter, JobStatus, Listing, Order, StatusCounts},
    metrics::kind,
    queue::Pause,
};

/// State of the service.
#[derive(Serialize, ToSchema)]
pub(super) struct Stats {
    /// The service's version.
    version: &'static str,
    /// Number of jobs by status.
    jobs: StatusCounts,
    /// Submission time of the oldest queued job; null if no job is queued.
    oldest_queued_at: Option<Timestamp>,
    /// Who paused the queue and when; null while it is not paused.
    paused: Option<Pause>,
    /// Since when no node hands out calls to Claude; null while one does.
    no_dispatcher_since: Option<Timestamp>,
    /// Number of running attempts.
    running_attempts: usize,
    /// Most attempts that can run at once.
    workers: usize,
    /// Moving average of the duration of an attempt.
    attempt_seconds: f64,
    /// Number of clients of this node that wait for a job.
    waiters: usize,
    /// Jobs of this node since its process started.
    since_start: SinceStart,
    limits: LimitsView,
    /// Each model, with the parameters that it refused.
    models: Vec<Known>,
    /// Why no jobs are accepted; empty while they are accepted.
    troubles: Vec<FieldError>,
    /// What to look at, though the service works.
    notes: Vec<Note>,
}

/// Jobs of this node since its process started.
#[derive(Serialize, ToSchema)]
struct SinceStart {
    submitted: u64,
    succeeded: u64,
    failed: u64,
    cancelled: u64,
}

/// Whether the queue is paused.
#[derive(Serialize, ToSchema)]
pub(super) struct QueueState {
    /// Who paused the queue and when; null while it is not paused.
    paused: Option<Pause>,
}

/// A page of the audit log.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditPage {
    /// Newest first.
    entries: Vec<Entry>,
    /// The `cursor` of the next page; null on the last page.
    next_cursor: Option<Uuid>,
}

/// Get the state of the service
///
/// Numbers of jobs, workers, limits, and what needs an operator.
#[utoipa::path(
    get, path = "/api/v1/admin/stats", operation_id = "get_stats", tag = "admin",
    responses((status = 200, description = "The state of queue, workers and limits", body = Stats))
)]
pub(super) async fn stats(_: Admin, State(api): State<Arc<Api>>) -> Json<Stats> {
    let (queue, operations) = (&api.queue, &api.operations);
    let filter = JobFilter { statuses: vec![JobStatus::Queued], ..JobFilter::default() };
    let oldest = queue.list(Listing { filter, order: Order::OldestFirst, cursor: None, limit: 1 }).await;
    let ended = |status| api.metrics.jobs_finished.get_or_create(&kind(status)).get();
    Json(Stats {
        version: env!("CARGO_PKG_VERSION"),
        jobs: queue.counts(),
        oldest_queued_at: oldest.ok().and_then(|page| page.jobs.first().map(|record| record.job.created_at)),
        paused: operations.paused(),
        no_dispatcher_since: (api.dispatcher_missing_since)(),
        running_attempts: operations.running_attempts(),
        workers: operations.workers(),
        attempt_seconds: operations.service_time().as_secs_f64(),
        waiters: operations.waiters(),
        since_start: SinceStart {
            submitted: api.metrics.jobs_submitted.get(),
            succeeded: ended("succeeded"),
            failed: ended("failed"),
            cancelled: ended("cancelled"),
        },
        limits: limits::view(&api),
        models: api.models.known(),
        troubles: super::health::troubles(&api),
        notes: (api.notes)(),
    })
}

/// Pause the queue
///
/// No job starts until the queue is resumed, also after a restart. Jobs are still accepted, and running attempts finish.
/// Pausing a paused queue changes nothing.
#[utoipa::path(
    post, path = "/api/v1/admin/queue/pause", operation_id = "pause_queue", tag = "admin",
    responses((status = 200, description = "The queue is paused", body = QueueState))
)]
pub(super) async fn pause(admin: Admin, State(api): State<Arc<Api>>) -> Result<Json<QueueState>, Problem> {
    let pause = api.operations.pause(&admin.actor).await?;
    admin.record(&api, "pause", None).await?;
    Ok(Json(QueueState { paused: Some(pause) }))
}

/// Resume the queue
///
/// Jobs start again. Resuming a queue that is not paused changes nothing.
#[utoipa::path(
    post, path = "/api/v1/admin/queue/resume", operation_id = "resume_queue", tag = "admin",
    responses((status = 200, description = "The queue is not paused", body = QueueState))
)]
pub(super) async fn resume(admin: Admin, State(api): State<Arc<Api>>) -> Result<Json<QueueState>, Problem> {
    api.operations.resume().await?;
    admin.record(&api, "resume", None).await?;
    Ok(Json(QueueState { paused: None }))
}

/// Read the audit log
///
/// Actions of operators, newest first, stored for 400 days. The same action of the same operator, repeated within ten
/// minutes, is one entry with a count.
#[utoipa::path(
    get, path = "/api/v1/admin/audit", operation_id = "list_audit", tag = "admin",
    params(
        ("limit" = Option<usize>, Query, description = "Entries on a page: 1 to 200, default 50", minimum = 1,
            maximum = 200),
        ("cursor" = Option<Uuid>, Query, description = "The `next_cursor` of the previous page")
    ),
    responses((status = 200, description = "A page of the audit log", body = AuditPage))
)]
pub(super) async fn audit(
    _: Admin,
    State(api): State<Arc<Api>>,
    mut params: Params,
    here: Here,
) -> Result<Response, Problem> {
    let limit = pages::limit(&mut params);
    let wrong = |_| "is not a next_cursor of this route; start without a cursor".to_owned();
    let before = params.last("cursor", |value| value.parse().map_err(wrong));
    params.end()?;
    let mut entries = api.audit.read(before, limit + 1).await?;
    let is_more = entries.len() > limit;
    entries.truncate(limit);
    let next_cursor = entries.last().filter(|_| is_more).map(|entry| entry.id);
    let page = Json(AuditPage { entries, next_cursor });
    Ok(here.link_next(page, "cursor", next_cursor.map(|id| id.to_string())))
}
