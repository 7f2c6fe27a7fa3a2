//! Settings of the queue, and the questions that it asks those who know of calls.

use std::{
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
    time::Duration,
};

use super::{outlook::Allowance, rates::SharedRates, relay::TextRelay, retry::RetryBounds};
use crate::{
    clock::Timestamp,
    digest::Lane,
    job::{AtRisk, JobRequest},
    store::Nodes,
};

/// What a call for a request may cost, at most.
pub(super) type EstimateRisk = Arc<dyn Fn(&JobRequest) -> AtRisk + Send + Sync>;

/// A digest of all that makes the answer to a request, which may be waited for, at a moment; and of who asks, as callers
/// share no answers. None if the request wants one of its own.
pub(super) type Identify = Arc<dyn Fn(&JobRequest, bool, Timestamp) -> Option<NonZeroU64> + Send + Sync>;

/// What the limits on calls allow jobs of a lane at the moment of the question.
pub(super) type Allowances = Arc<dyn Fn(Lane) -> Allowance + Send + Sync>;

/// Settings of the queue.
#[derive(Clone)]
pub struct Policy {
    /// The name of this node, which no other live node has.
    pub node: String,
    /// The nodes that can make attempts.
    pub nodes: Arc<dyn Nodes>,
    /// Most attempts under way at once, whatever the limits allow.
    pub workers: usize,
    /// Jobs whose clients wait go first, by deadline; else all go in the order of submission.
    pub deadlines_first: bool,
    /// Most pending jobs.
    pub max_pending: usize,
    /// Most of them that are for later.
    pub max_scheduled: usize,
    /// Most pending jobs of one caller, by name or by network.
    pub max_pending_per_caller: usize,
    /// Most submissions and retries a minute of one caller; `None` is no limit.
    pub submits_per_minute: Option<NonZeroU32>,
    /// Where several nodes count them together.
    pub shared_rates: Option<Arc<dyn SharedRates>>,
    /// How the text of running attempts comes to other nodes.
    pub text_relay: Option<Arc<dyn TextRelay>>,
    /// One in so many claims goes to jobs whose clients did not ask to wait, even while other clients wait.
    pub background_share: u32,
    /// How often a job is tried again.
    pub retries: RetryBounds,
    /// Estimates what an attempt of unknown outcome may have cost.
    pub estimate_risk: EstimateRisk,
    /// What the limits on calls allow at the moment.
    pub allowance: Allowances,
    /// Tells which jobs ask the same: of those only one is asked at a time, and its answer is that of all.
    pub dedup_key: Identify,
    /// For how long an answer is reused for the same question. Zero turns this off.
    pub cache_for: Duration,
    /// How long an idempotency key is in force.
    pub idempotency_window: Duration,
    /// An attempt of this node that nobody makes ends so long after its claim.
    pub lease: Duration,
    /// Whether a job whose attempt ended with an unknown outcome is tried again; else it fails.
    pub retry_unknown_outcome: bool,
    /// How long a finished job stays.
    pub keep_finished_for: Duration,
    /// How many finished jobs stay at most.
    pub max_finished: usize,
}

#[cfg(test)]
impl Policy {
    /// One that tries nothing again and keeps everything.
    pub(crate) fn plain() -> Policy {
        use crate::{job::Owner, store::Alone};
        Policy {
            node: "node".to_owned(),
            nodes: Arc::new(Alone::new(Owner::ANY)),
            workers: 1,
            deadlines_first: true,
            max_pending: usize::MAX,
            max_scheduled: usize::MAX,
            max_pending_per_caller: usize::MAX,
            submits_per_minute: None,
            shared_rates: None,
            text_relay: None,
            background_share: 5,
            retries: RetryBounds {
                other: 0,
                connect: 0,
                overload: 0,
                invalid_output: 0,
                give_back_for: Duration::from_hours(1_000_000),
            },
            estimate_risk: Arc::new(|_| AtRisk { input_tokens: 1, output_tokens: 1, nanodollars: Some(1) }),
            allowance: Arc::new(|_| Allowance {
                calls_per_second: 1e6,
                calls_at_once: 1_000,
                is_exhausted: false,
                hold: None,
            }),
            dedup_key: Arc::new(|_, _, _| None),
            cache_for: Duration::ZERO,
            idempotency_window: Duration::from_hours(1),
            lease: Duration::from_secs(30),
            retry_unknown_outcome: false,
            keep_finished_for: Duration::from_hours(1_000_000),
            max_finished: usize::MAX,
        }
    }
}
