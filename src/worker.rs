//! The pool of workers. Each: wait for a job → permit → claim → attempt → settle.
//!
//! While an attempt runs, its worker extends the lease; a lost lease, a cancelled job and the time limit stop the
//! attempt at once. A panic fails the attempt, not the worker. On shutdown a worker claims no more and finishes what
//! it has; whoever runs the pool decides how long it may.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};

use crate::{
    agent::{Agent, Verdict},
    clock::Timestamp,
    job::{AtRisk, AttemptReport, FailureCode, JobRequest},
    limits::{DEFAULT_RETRY_AFTER, HOLD, Limits},
    metrics::{Metrics, kind},
    queue::{
        Claim, Next, Permit, Queue,
        retry::{Settlement, failure_report},
    },
};

/// Heartbeats in the time of a lease: two may be lost before the lease is.
const HEARTBEATS_PER_LEASE: u32 = 3;

/// Pause after a claim that failed because the store is unavailable.
const CLAIM_RETRY: Duration = Duration::from_millis(500);

/// Who makes an attempt. There is one, the [`Agent`]; tests have others.
pub trait Analyst: Clone + Send + Sync + 'static {
    /// Makes one attempt. Dropping the future aborts it.
    fn attempt(&self, request: &JobRequest, now: Timestamp) -> impl Future<Output = (Verdict, AttemptReport)> + Send;

    /// What an attempt may cost at most.
    fn at_risk(&self, request: &JobRequest, now: Timestamp) -> AtRisk;
}

impl Analyst for Agent {
    async fn attempt(&self, request: &JobRequest, now: Timestamp) -> (Verdict, AttemptReport) {
        Agent::attempt(self, request, now).await
    }

    fn at_risk(&self, request: &JobRequest, now: Timestamp) -> AtRisk {
        Agent::at_risk(self, request, now)
    }
}

/// What a worker works with.
#[derive(Clone)]
pub struct Worker<A = Agent> {
    /// Where jobs come from and go to.
    pub queue: Queue,
    /// Who may call when.
    pub limits: Arc<Limits>,
    /// Who makes the attempt.
    pub agent: A,
    /// Longest time of an attempt, whatever the upstream does.
    pub attempt_timeout: Duration,
    /// Where attempts are counted.
    pub metrics: Metrics,
    /// Cancelled: claim no more.
    pub closing: CancellationToken,
}

impl<A: Analyst> Worker<A> {
    /// Starts `count` workers, which `tracker` follows to their end.
    pub fn start_pool(&self, count: usize, tracker: &TaskTracker) {
        for _ in 0..count {
            tracker.spawn(self.clone().run());
        }
    }

    async fn run(self) {
        let permit: Permit = {
            let limits = Arc::clone(&self.limits);
            Arc::new(move || limits.try_permit())
        };
        while let Some(next) = self.next(&permit).await {
            let intent = match next {
                Next::Claimed(claim) => {
                    self.attempt(&claim).await;
                    continue;
                }
                Next::Ready(intent) => intent,
            };
            // Never dropped half-way: a claim that the store has made durable must reach its worker.
            match self.queue.claim(intent).await {
                Ok(Some(claim)) => self.attempt(&claim).await,
                Ok(None) => {}
                Err(error) => {
                    debug!(%error, "nothing can be claimed");
                    tokio::time::sleep(CLAIM_RETRY).await;
                }
            }
        }
    }

    /// Waits until there is a job, and a permit to call Claude for it; none once the service stops.
    async fn next(&self, permit: &Permit) -> Option<Next> {
        let next = self.queue.next(permit).await?;
        if let Next::Ready(_) = next {
            self.closing.run_until_cancelled(self.limits.permit()).await?;
        }
        Some(next)
    }

    /// Makes the attempt, or gives it back if the service is stopping.
    async fn attempt(&self, claim: &Claim) {
        if self.closing.is_cancelled() {
            let report = failure_report(FailureCode::Shutdown, "the service stopped before the call".to_owned());
            self.queue.settle(&claim.job, &Settlement::given_back(FailureCode::Shutdown), report).await;
        } else {
            self.work(claim).await;
        }
        self.queue.end(&claim.job);
    }

    /// One attempt from claim to settle.
    async fn work(&self, claim: &Claim) {
        let Claim { job, request, lost } = claim;
        let started = tokio::time::Instant::now();
        let started_at = self.queue.now();
        let attempt = AssertUnwindSafe(self.agent.attempt(request, started_at)).catch_unwind();
        let ended = tokio::select! {
            ended = timeout(self.attempt_timeout, attempt) => Some(ended),
            () = lost.cancelled() => None,
            () = self.heartbeat(claim) => None,
        };
        let (settlement, report) = match ended {
            None => {
                info!(job.id = %job.id, attempt = job.attempt, "attempt stopped: the job is no longer ours");
                return;
            }
            Some(Ok(Ok((verdict, report)))) => (self.settlement(verdict, &report), report),
            Some(Ok(Err(_))) => {
                self.metrics.panics.inc();
                error!(job.id = %job.id, attempt = job.attempt, "the attempt panicked");
                let report = AttemptReport {
                    may_have_been_billed: true,
                    at_risk: Some(self.agent.at_risk(request, started_at)),
                    ..failure_report(FailureCode::Internal, "the attempt panicked; the log has the details".to_owned())
                };
                (Settlement::Retryable { code: FailureCode::Internal, retry_after: None }, report)
            }
            Some(Err(_)) => {
                let limit = self.attempt_timeout.as_secs();
                let message = format!("no answer within {limit} s (REQUEST_TIMEOUT)");
                let report = AttemptReport {
                    may_have_been_billed: true,
                    at_risk: Some(self.agent.at_risk(request, started_at)),
                    ..failure_report(FailureCode::Timeout, message)
                };
                (Settlement::Retryable { code: FailureCode::Timeout, retry_after: None }, report)
            }
        };
        self.log(claim, &report, started.elapsed());
        self.queue.settle(job, &settlement, report).await;
    }

    /// Keeps the lease; returns when it is lost.
    async fn heartbeat(&self, claim: &Claim) {
        let mut beat = tokio::time::interval(self.queue.lease() / HEARTBEATS_PER_LEASE);
        beat.tick().await;
        loop {
            beat.tick().await;
            match self.queue.extend(&claim.job).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => warn!(job.id = %claim.job.id, %error, "the lease can't be extended yet"),
            }
        }
    }

    /// What the queue is told, and the limits with it.
    fn settlement(&self, verdict: Verdict, report: &AttemptReport) -> Settlement {
        let (code, detail) = match &report.error {
            Some(error) => (error.code, error.message.as_str()),
            None => (FailureCode::Internal, ""),
        };
        match verdict {
            Verdict::Succeeded => Settlement::Succeeded,
            Verdict::Retryable { retry_after } => Settlement::Retryable { code, retry_after },
            Verdict::Terminal => Settlement::Terminal { code },
            Verdict::RateLimited { retry_after } => {
                self.limits.close_gate(retry_after.unwrap_or(DEFAULT_RETRY_AFTER), code.into(), detail);
                Settlement::given_back(code)
            }
            Verdict::Hold => {
                error!(reason = %code, detail, "Claude refuses every call: the queue is held until this is mended");
                self.limits.close_gate(HOLD, code.into(), detail);
                Settlement::given_back(code)
            }
        }
    }

    fn log(&self, claim: &Claim, report: &AttemptReport, took: Duration) {
        let usage = report.usage.unwrap_or_default();
        for (name, tokens) in [
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("cache_write", usage.cache_creation_input_tokens),
            ("cache_read", usage.cache_read_input_tokens),
        ] {
            self.metrics.tokens.get_or_create(&kind(name)).inc_by(tokens);
        }
        let job = &claim.job;
        let request_id = report.request_id.as_deref().unwrap_or("");
        match &report.error {
            None => info!(
                job.id = %job.id, attempt = job.attempt, duration_ms = took.as_millis(),
                claude.request_id = request_id, tokens.input = usage.input_tokens,
                tokens.output = usage.output_tokens, "Claude called"
            ),
            Some(error) => warn!(
                job.id = %job.id, attempt = job.attempt, duration_ms = took.as_millis(),
                claude.request_id = request_id, error.code = %error.code, error.message = error.message,
                "attempt failed"
            ),
        }
    }
}

#[cfg(test)]
mod tests;
