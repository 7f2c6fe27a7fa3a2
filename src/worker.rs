//! A claimed job's attempt: permission to call → the call → settle. Where the dispatcher has another node make the call, the
//! permission comes before the claim ([`Worker::admit`]), and that node begins with the call ([`Worker::assigned`]).
//!
//! A cancelled job, one that another attempt owns and the time limit stop the attempt at once. A panic fails the attempt and
//! nothing else. On shutdown a job whose call has not begun is released; the caller decides how long the others may take.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    agent::{
        Agent, Analyst, Progress,
        plan::{Assignment, Plan},
    },
    digest::ModelKey,
    job::{Attempt, AttemptReport, FailureClass, FailureCode, Job, JobRequest, disposition::Disposition},
    limits::{self, Limits, Seen, Tokens, budget::Room, gate::Ruling},
    metrics::{Metrics, kind},
    queue::{Claim, Preview, WorkQueue, retry::failure_report},
    telemetry::Span,
};

/// How much later than the client of Claude a worker gives an attempt up: the client knows what the answer cost.
const ATTEMPT_GRACE: Duration = Duration::from_secs(2);

/// How much later than the next probe the job that closed the gate is tried again: the probe takes another job.
const AFTER_PROBE: Duration = Duration::from_millis(250);

#[derive(Clone)]
pub struct Worker<A = Agent> {
    pub queue: WorkQueue,
    pub limits: Limits,
    pub agent: A,
    pub metrics: Metrics,
    /// Cancelled: claim no more.
    pub closing: CancellationToken,
}

enum Permission {
    Call,
    Release(FailureCode, &'static str),
    /// The job belongs to another attempt.
    Lost,
}

impl<A: Analyst> Worker<A> {
    /// Makes the attempt once its call may be made, or releases the job. Returns how long the call took, if one was made to
    /// its end.
    pub async fn attempt(&self, claim: &Claim, mut permit: limits::Permit) -> Option<Duration> {
        match self.permission(claim, &mut permit).await {
            Permission::Call => return self.call(claim, permit).await,
            Permission::Release(code, why) => {
                self.queue.settle(&claim.job, &Disposition::released(code), failure_report(code, why.to_owned())).await;
            }
            Permission::Lost => {
                info!(job.id = %claim.job.id, "no call was made: the job is not the attempt's any more");
            }
        }
        None
    }

    async fn permission(&self, claim: &Claim, permit: &mut limits::Permit) -> Permission {
        tokio::select! {
            biased;
            () = self.closing.cancelled() => Permission::Release(FailureCode::Shutdown, "the service stopped before the call"),
            () = claim.lost.cancelled() => Permission::Lost,
            is_allowed = permit.ready() => {
                if !is_allowed {
                    let code = self.limits.gate(claim.job.model).map_or(FailureCode::Overloaded, |closed| closed.code);
                    Permission::Release(code, "the queue was blocked before the call")
                } else if self.queue.is_store_down() {
                    Permission::Release(FailureCode::Shutdown, "the store was unavailable before the call")
                } else if self.queue.is_paused() {
                    Permission::Release(FailureCode::Shutdown, "an operator paused the queue before the call")
                } else {
                    Permission::Call
                }
            }
        }
    }

    async fn call(&self, claim: &Claim, mut permit: limits::Permit) -> Option<Duration> {
        let plan = self.plan(claim).await?;
        if let Some((disposition, report)) = forbidden(&plan, &mut permit) {
            // Released before the permit is dropped: the next claim is to find the job in the queue.
            self.queue.settle(&claim.job, &disposition, report).await;
            return None;
        }
        // Until the ledger has what the call cost.
        let _share = permit.budget_share();
        if let Err(not_now) = permit.expect(plan.model(), plan.input_bytes) {
            let code = not_now.code.unwrap_or(FailureCode::RateLimited);
            let message = format!("the limits of {} allow no call at the moment", plan.model());
            let disposition = Disposition::Release { code, after: not_now.after, is_demoted: false };
            self.queue.settle(&claim.job, &disposition, failure_report(code, message)).await;
            return None;
        }
        let took = self.ask(claim, &plan, Some(permit)).await;
        if took.is_none() {
            // The attempt was stopped. Until its job shows that, the ledger lacks what the call may have cost.
            claim.stopped();
            self.closing.run_until_cancelled(self.queue.until_over(claim.job.id, claim.job.attempt)).await;
        }
        took
    }

    async fn plan(&self, claim: &Claim) -> Option<Plan> {
        let Claim { job, request, rejected, refused_by, .. } = claim;
        let assignment = self.assignment(job, request, rejected.as_deref(), refused_by);
        let mut plan = self.agent.plan(assignment);
        let code = plan.as_ref().err().and_then(|report| report.error.as_ref()).map(|error| error.code);
        if code == Some(FailureCode::PromptVersionUnknown) {
            self.agent.refresh().await;
            plan = self.agent.plan(assignment);
        }
        match plan {
            Ok(plan) => Some(plan),
            Err(report) => {
                let code = report.error.as_ref().map_or(FailureCode::Internal, |error| error.code);
                self.queue.settle(job, &Disposition::Fail { code }, *report).await;
                None
            }
        }
    }

    fn assignment<'a>(
        &self,
        job: &Job,
        request: &'a JobRequest,
        rejected: Option<&'a Attempt>,
        refused_by: &'a [String],
    ) -> Assignment<'a> {
        let (is_waited_for, asks, now) = (job.waited_for, job.asks, self.queue.now());
        Assignment { request, rejected, refused_by, is_waited_for, asks, now }
    }

    /// The model that a call for this job asks, if it may be made now. The permit is for this call then.
    pub fn admit(&self, preview: &Preview, permit: &mut limits::Permit) -> Option<ModelKey> {
        if self.queue.is_store_down() || self.queue.is_paused() {
            return None;
        }
        let Preview { job, request, rejected, refused_by } = preview;
        let assignment = self.assignment(job, request, rejected.as_deref(), refused_by);
        let plan = self.agent.plan(assignment).ok().filter(|plan| forbidden(plan, permit).is_none())?;
        permit.expect(plan.model(), plan.input_bytes).ok()?;
        Some(ModelKey::of(plan.model()))
    }

    /// Makes the attempt that the dispatcher on another node has permitted.
    pub async fn assigned(&self, claim: &Claim) {
        let why = match claim.job.asks {
            _ if self.closing.is_cancelled() => "the service stopped before the call",
            None => "this node did not know that its claim was stored",
            Some(asks) => match self.plan(claim).await {
                Some(plan) if asks == ModelKey::of(plan.model()) => {
                    self.ask(claim, &plan, None).await;
                    return;
                }
                Some(_) => {
                    "this node does not have the model that the dispatcher chose: give all nodes the same settings"
                }
                None => return,
            },
        };
        let (code, report) = (FailureCode::Shutdown, failure_report(FailureCode::Shutdown, why.to_owned()));
        self.queue.settle(&claim.job, &Disposition::released(code), report).await;
    }

    async fn ask(&self, claim: &Claim, plan: &Plan, permit: Option<limits::Permit>) -> Option<Duration> {
        let span = Span::consumer("analyze", claim.request.traceparent.as_deref());
        span.note("job.id", claim.job.id.to_string());
        span.note("job.attempt", i64::from(claim.job.attempt));
        span.scope(self.ask_within(claim, plan, permit, &span)).await
    }

    async fn ask_within(
        &self,
        claim: &Claim,
        plan: &Plan,
        permit: Option<limits::Permit>,
        span: &Span,
    ) -> Option<Duration> {
        let Claim { job, lost, draft, .. } = claim;
        if lost.is_cancelled() {
            permit.into_iter().for_each(limits::Permit::return_unused);
            info!(job.id = %job.id, attempt = job.attempt, "no call was made: the job is not the attempt's any more");
            return None;
        }
        let started = Instant::now();
        let call = span.client(|| "chat".to_owned());
        let is_probe = permit.as_ref().is_some_and(limits::Permit::is_probe);
        let noted = limits::Call { model: plan.model(), question: question(&claim.request), begun: started };
        let is_answered = AtomicBool::new(false);
        let on_progress = |progress: Progress<'_>| match progress {
            // From the head: the calls of other workers need not wait for the end of this one.
            Progress::Head(limits) => drop(self.limits.saw(noted, Seen::Limits(limits))),
            Progress::Text(piece) => {
                // From the first piece: an answer may take a minute, and a closed gate need not wait for its end.
                if !is_answered.swap(true, Ordering::Relaxed) {
                    self.reached(noted);
                }
                draft.push(piece);
            }
        };
        let attempt =
            async { timeout(plan.call.time_limit + ATTEMPT_GRACE, self.agent.attempt(plan, &on_progress)).await };
        let ended = tokio::select! {
            biased;
            ended = AssertUnwindSafe(attempt).catch_unwind() => Some(ended),
            () = lost.cancelled() => None,
        };
        let (disposition, report) = match ended {
            None => {
                if let Some(permit) = permit {
                    settle_permit(permit, started.elapsed(), None);
                }
                info!(job.id = %job.id, attempt = job.attempt, "attempt stopped: the job is not its own any more");
                return None;
            }
            Some(Ok(Ok((disposition, report)))) => {
                // First, as a failure in mid-stream comes with a 200 of its own.
                self.heed(noted, &report);
                (self.decide(noted, disposition, &report), report)
            }
            Some(Err(_)) => {
                self.metrics.panics.inc();
                error!(job.id = %job.id, attempt = job.attempt, "the attempt panicked");
                unknown_end(plan, FailureCode::Internal, "the attempt panicked; the log has the details".to_owned())
            }
            Some(Ok(Err(_))) => {
                let limit = plan.call.time_limit.as_secs();
                let message = format!("the attempt did not end after its time limit of {limit} s");
                unknown_end(plan, FailureCode::Timeout, message)
            }
        };
        let took = started.elapsed();
        describe(&call, &report);
        drop(call);
        if let Some(permit) = permit {
            settle_permit(permit, took, Some(&report));
        }
        self.log(claim, &report, took, is_probe);
        self.queue.settle(job, &disposition, report).await;
        Some(took)
    }

    /// Records what the attempt shows of Claude's state.
    fn heed(&self, call: limits::Call<'_>, report: &AttemptReport) {
        let code = report.error.as_ref().map(|error| error.code);
        // A page that comes with 200 is not an answer of Claude's.
        let is_page = code == Some(FailureCode::MalformedResponse);
        if code.is_none() || report.http_status == Some(200) && !is_page {
            self.reached(call);
        }
        let is_lost = |code| matches!(code, FailureCode::ConnectFailed | FailureCode::ConnectionLost);
        if let Some(error) = report.error.as_ref().filter(|error| is_lost(error.code)) {
            let seen = Seen::Unconnected { code: error.code, detail: error.message.clone() };
            if self.limits.saw(call, seen) {
                error!(detail = error.message, "Claude can't be reached: jobs are tried again until it can");
            }
        } else if report.http_status.is_some() && self.limits.saw(call, Seen::Connected) {
            info!("Claude can be reached again");
        }
        match code {
            Some(FailureCode::Overloaded) => self.limits.saw(call, Seen::Overloaded),
            None => self.limits.saw(call, Seen::Answered),
            Some(_) => false,
        };
    }

    fn reached(&self, call: limits::Call<'_>) {
        if self.limits.saw(call, Seen::Reached) {
            info!("Claude answers again: the queue continues");
        }
    }

    /// What becomes of the job, once the gate has decided whether a failure concerns all.
    fn decide(&self, call: limits::Call<'_>, disposition: Disposition, report: &AttemptReport) -> Disposition {
        let Disposition::Block { failure, alone } = disposition else { return disposition };
        let code = failure.code;
        let detail = report.error.as_ref().map_or("", |error| error.message.as_str());
        match self.limits.saw_block(call, &failure, detail) {
            Ruling::Alone => *alone,
            Ruling::Closed { is_news, probe_in } => {
                let needs_person = failure.opens_after.is_none();
                if is_news && needs_person {
                    error!(reason = %code, detail, "Claude refuses every call: the queue is blocked until a call succeeds");
                }
                Disposition::Release { code, after: probe_in + AFTER_PROBE, is_demoted: needs_person }
            }
        }
    }

    fn log(&self, claim: &Claim, report: &AttemptReport, took: Duration, is_probe: bool) {
        if report.asked_again_after.is_some() {
            self.metrics.asked_again.inc();
        }
        let usage = report.usage.unwrap_or_default();
        for (name, tokens) in [
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("cache_write", usage.cache_creation_input_tokens),
            ("cache_read", usage.cache_read_input_tokens),
        ] {
            self.metrics.tokens.get_or_create(&kind(name)).inc_by(tokens);
        }
        self.metrics.attempt_seconds.observe(took.as_secs_f64());
        if let Some(error) = &report.error {
            self.metrics.attempt_errors.get_or_create(&kind(error.code.into())).inc();
        }
        let job = &claim.job;
        let request_id = report.request_id.as_deref();
        match &report.error {
            None => info!(
                job.id = %job.id, attempt = job.attempt, duration_ms = took.as_secs_f64() * 1e3,
                claude.request_id = request_id, tokens.input = usage.input_tokens,
                tokens.output = usage.output_tokens, "Claude called"
            ),
            Some(error) if is_probe => debug!(
                job.id = %job.id, attempt = job.attempt, error.code = %error.code, "the queue is still blocked"
            ),
            Some(error) => warn!(
                job.id = %job.id, attempt = job.attempt, duration_ms = took.as_secs_f64() * 1e3,
                claude.request_id = request_id, error.code = %error.code, error.message = error.message,
                "attempt failed"
            ),
        }
    }
}

fn forbidden(plan: &Plan, permit: &mut limits::Permit) -> Option<(Disposition, AttemptReport)> {
    let room = permit.make_room(plan.at_risk);
    let (disposition, code, message) = match room {
        Room::Yes => return None,
        Room::NotNow | Room::TooLarge => {
            let (code, is_demoted) = (FailureCode::BudgetReached, room == Room::TooLarge);
            let disposition = Disposition::Release { code, after: Duration::ZERO, is_demoted };
            (disposition, code, "the rest of the daily budget may be too small for this call")
        }
        Room::NoPrice => {
            let message = "no call was made: the price of its model is not known, so DAILY_BUDGET can't be applied; \
                choose another model, or have the operator set MODEL_PRICES";
            let code = FailureCode::ModelUnpriced;
            (Disposition::Fail { code }, code, message)
        }
    };
    Some((disposition, failure_report(code, message.to_owned())))
}

fn unknown_end(plan: &Plan, code: FailureCode, message: String) -> (Disposition, AttemptReport) {
    let report = failure_report(code, message);
    let report = AttemptReport { may_have_been_billed: true, at_risk: Some(plan.at_risk), ..report };
    (Disposition::Retry { code, class: FailureClass::Other, after: None }, report)
}

fn question(request: &JobRequest) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&request.query, &request.context, &request.options).hash(&mut hasher);
    hasher.finish()
}

/// Describes the call in the job's trace, by the conventions for generative AI:
/// <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/>.
fn describe(call: &Span, report: &AttemptReport) {
    call.note("gen_ai.operation.name", "chat");
    call.note("gen_ai.provider.name", "anthropic");
    if let Some(model) = &report.model {
        call.note("gen_ai.request.model", model.clone());
    }
    if let Some(usage) = report.usage {
        call.note("gen_ai.usage.input_tokens", i64::try_from(usage.input_tokens).unwrap_or(i64::MAX));
        call.note("gen_ai.usage.output_tokens", i64::try_from(usage.output_tokens).unwrap_or(i64::MAX));
    }
    if let Some(error) = &report.error {
        call.note("error.type", error.code.to_string());
        call.fail(&error.message);
    }
}

/// Without a report the attempt was stopped.
pub fn settle_permit(permit: limits::Permit, took: Duration, report: Option<&AttemptReport>) {
    let code = report.and_then(|report| report.error.as_ref()).map(|error| error.code);
    if code == Some(FailureCode::ConnectFailed) {
        // Nothing was sent, so the permit is dropped unused.
        return;
    }
    let used = report.and_then(|report| report.usage).map(Tokens::from);
    let was_refused = report.is_some_and(|report| report.http_status.is_some_and(|status| status != 200));
    let used = used.or_else(|| was_refused.then(Tokens::default));
    if report.is_some() && code.is_none() { permit.settle(took, used) } else { permit.settle_failed(used) }
}

#[cfg(test)]
mod tests;
