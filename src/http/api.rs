//! What the routes share: the parts of the service that they use, and how they show a job.

use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue};
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::{
    caps::Caps,
    failures::Failures,
    memory::MemoryBudget,
    memos::Memos,
    observe::{self, RefusalLog},
    problem::whole_seconds,
    submission::Bounds,
    view::{Include, JobView},
};
use crate::{
    agent::models::Models,
    audit::AuditLog,
    auth::Auth,
    clock::Timestamp,
    config::values::{Network, Origin},
    digest::Lane,
    job::{Job, JobRecord, callback::Callbacks, caller::Caller},
    limits::Limits,
    metrics::Metrics,
    prompts::Prompts,
    queue::{Allowance, Hold, Kind, Operations, Outlook, Queue, Quota, WaitingFor},
    store::{Ledger, Store},
    webhook::Webhooks,
};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

pub struct Api {
    pub queue: Queue,
    /// Cancelled once the service is to stop: it is not ready. The queue may still accept for a moment.
    pub stopping: CancellationToken,
    pub operations: Operations,
    pub ledger: Arc<dyn Ledger>,
    /// For exports, and for what `/metrics` says of the feed.
    pub store: Arc<dyn Store>,
    pub audit: Arc<AuditLog>,
    pub limits: Limits,
    pub caps: Arc<Caps>,
    pub prompts: Prompts,
    pub metrics: Metrics,
    pub models: Models,
    /// What an operator should know, though the service works.
    pub notes: Arc<dyn Fn() -> Vec<Note> + Send + Sync>,
    /// Since when no node is the dispatcher, if none is.
    pub dispatcher_missing_since: Arc<dyn Fn() -> Option<Timestamp> + Send + Sync>,
    pub auth: Arc<Auth>,
    pub memory: MemoryBudget,
    pub refusals: RefusalLog,
    pub failures: Failures,
    pub trusted_proxies: Arc<[Network]>,
    /// Origins whose web pages may call the API from a browser.
    pub cors_origins: Vec<Origin>,
    /// The address by which browsers reach the service, if it is set.
    pub public_url: Option<Origin>,
    pub callbacks: Callbacks,
    pub webhooks: Webhooks,
    pub max_query_length: usize,
    pub memos: Memos,
}

impl Api {
    /// The job as clients see it now.
    pub(super) fn view<'a>(&self, record: &'a JobRecord) -> JobView<'a> {
        self.view_with(record, Include::ALL)
    }

    /// The jobs of a page, with those of their large parts that `include` names.
    pub(super) fn listed<'a>(&self, records: &'a [JobRecord], include: Include) -> Vec<JobView<'a>> {
        records.iter().map(|record| self.view_with(record, include)).collect()
    }

    fn view_with<'a>(&self, record: &'a JobRecord, include: Include) -> JobView<'a> {
        let outlook = self.outlook(&record.job, &Kind::of(&record.request, record.job.waited_for));
        JobView::new(record, self.queue.now(), include, &self.memos).with_outlook(outlook)
    }

    /// Adds the caller's quota to the response, if submissions are limited.
    pub(super) fn show_quota(&self, by: Caller) {
        let Some(Quota { per_minute, left, full_in }) = self.queue.quota(by) else { return };
        let policy = format!("\"submits\";q={per_minute};w=60");
        let state = format!("\"submits\";r={left};t={}", whole_seconds(full_in));
        for (name, text) in [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, state)] {
            if let Ok(value) = HeaderValue::from_str(&text) {
                observe::add_header(name, value);
            }
        }
    }

    pub(super) fn bounds(&self) -> Bounds<'_> {
        Bounds {
            max_query_length: self.max_query_length,
            callbacks: &self.callbacks,
            prompts: &self.prompts,
            models: &self.models,
        }
    }

    /// Why a job waits, if it does.
    pub(super) fn outlook(&self, job: &Job, kind: &Kind) -> Option<Outlook> {
        self.queue.outlook(job, kind, || allowance(&self.limits, job.model))
    }
}

/// What the limits on calls allow jobs of a lane at the moment.
pub fn allowance(limits: &Limits, lane: Lane) -> Allowance {
    let gate = limits
        .gate(lane)
        .map(|closed| Hold { waiting_for: WaitingFor::Gate, opens_in: closed.opens_in(Instant::now()) });
    let budget = limits
        .budget()
        .filter(|budget| budget.is_reached)
        .map(|budget| Hold { waiting_for: WaitingFor::Budget, opens_in: Some(budget.day_ends_in) });
    Allowance {
        calls_per_second: limits.calls_per_second(lane),
        calls_at_once: limits.calls_at_once(lane),
        is_exhausted: limits.is_exhausted(),
        hold: gate.into_iter().chain(budget).max_by_key(|hold| (hold.opens_in.is_none(), hold.opens_in)),
    }
}

/// Something that an operator should look at, though the service works.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Note {
    /// The part of the service: `prices`, `redis` or `settings`.
    pub field: &'static str,
    /// Stable code, for programs: `price_outdated`, `redis_unavailable`, `settings_differ`.
    pub code: &'static str,
    /// What to do, for people.
    pub message: String,
}
