//! One attempt at a job, told as a story: render the prompt, ask Claude, read the answer.
//!
//! It counts no retries, keeps no limits and stores nothing: what happened is an [`AttemptReport`], and what becomes of the
//! job a [`Disposition`]. Called by `worker`.
//!
//! - `again`: what the model is told when its answer was of no use
//! - `models`: which model is asked, and what each takes
//! - `plan`: one call, resolved once
//! - `question`: when two jobs ask the same
//! - `verdict`: what becomes of a job whose call failed
//! - `warm_up`: has the API compile the schema of a memo before the first question
//!
//! A job that names its model is answered by that one or fails; only jobs that leave the choice to the service are asked of
//! the fallback models, and the report says which one answered.

mod again;
mod gaps;
pub mod models;
mod plan;
mod question;
mod verdict;
mod warm_up;

use std::{sync::Arc, time::Duration};

use self::{
    models::{GONE_FOR, Models},
    verdict::code_of,
};
pub use self::{plan::Plan, warm_up::WarmUp};

use crate::{
    analysis,
    claude::{
        Claude, Progress, RateLimits, Reply, StopReason, Usage,
        error::{CallError, ErrorKind},
        price::Prices,
    },
    clock::Timestamp,
    config::Effort,
    job::{
        AccountLimits, AtRisk, Attempt, AttemptError, AttemptReport, FailureClass, FailureCode, JobRequest, TokenUsage,
        disposition::Disposition,
    },
    prompts::Prompts,
};

/// How Claude is asked.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The model where a job names none.
    pub model: String,
    /// Models that a job may name besides the service's own; if there are none, those with a price.
    pub allowed_models: Vec<String>,
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// How hard Claude thinks.
    pub effort: Effort,
    /// How long a call may take where a client waits, unless a time is set for all calls.
    pub interactive_timeout: Duration,
    /// How long any call may take, if that is set.
    pub request_timeout: Option<Duration>,
}

/// What is heard of a call while it is made.
#[derive(Clone, Copy, Debug)]
pub enum News<'a> {
    /// The account's limits, by the head of the answer.
    Account(AccountLimits),
    /// The next piece of the answer's text.
    Text(&'a str),
}

/// What an attempt is made of: what is asked, and in which circumstances.
#[derive(Clone, Copy, Debug)]
pub struct Assignment<'a> {
    /// What is asked.
    pub request: &'a JobRequest,
    /// An attempt before, whose answer was of no use: the model is told what was wrong with it.
    pub useless: Option<&'a Attempt>,
    /// Models that declined to answer: they are not asked again while there is another.
    pub refused_by: &'a [String],
    /// A client waits, so the answer shall be a quick one.
    pub is_waited_for: bool,
    /// When.
    pub now: Timestamp,
}

impl Assignment<'_> {
    /// A first attempt at a request for which nobody waits.
    pub fn of(request: &JobRequest, now: Timestamp) -> Assignment<'_> {
        Assignment { request, useless: None, refused_by: &[], is_waited_for: false, now }
    }
}

/// Asks Claude. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Agent {
    claude: Claude,
    prompts: Prompts,
    config: Arc<AgentConfig>,
    models: Models,
    prices: Prices,
}

impl Agent {
    /// An agent that asks in this manner, and where a job names no model one of `fallbacks` while the configured one is
    /// overloaded or gone.
    pub fn new(claude: Claude, prompts: Prompts, config: AgentConfig, fallbacks: Vec<String>, prices: Prices) -> Agent {
        let allowed: Vec<String> = match config.allowed_models.as_slice() {
            [] => prices.models().map(str::to_owned).collect(),
            set => set.to_vec(),
        };
        let models = Models::new(config.model.clone(), fallbacks, allowed);
        Agent { claude, prompts, config: Arc::new(config), models, prices }
    }

    /// The models for jobs that name none, the preferred one first.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.models.ids()
    }

    /// The model that is asked at the moment for jobs that name none.
    pub fn model_in_use(&self) -> &str {
        self.models.pick(&[])
    }

    /// What is known of each model.
    pub fn known_models(&self) -> &Models {
        &self.models
    }

    /// The first of [`Agent::models`] that has no price.
    pub fn unpriced_model(&self) -> Option<&str> {
        self.models().find(|model| self.prices.of(model).is_none())
    }

    /// Those of [`Agent::models`] whose list price is old, with the date of the price.
    pub fn outdated_prices(&self, today: &str) -> impl Iterator<Item = (&str, jiff::civil::Date)> {
        self.models().filter_map(move |model| Some((model, self.prices.of(model)?.outdated(today)?)))
    }

    /// Takes note that a model is gone. Tells whether another one can be asked instead.
    pub fn model_is_gone(&self, model: &str) -> bool {
        self.models.pass_over(model, GONE_FOR)
    }

    /// Makes one attempt: at most one HTTP request, whose news are given to `on_news` as they come. Dropping the future
    /// aborts it.
    pub async fn attempt(
        &self,
        plan: &Plan,
        on_news: &(dyn Fn(News<'_>) + Send + Sync),
    ) -> (Disposition, AttemptReport) {
        let model = plan.model();
        let mut report = AttemptReport {
            asked_again_after: plan.asked_again_after,
            depth: Some(plan.depth),
            model: Some(model.to_owned()),
            prompt_version: Some(plan.prompt_version.clone()),
            prompt_sha256: Some(plan.prompt_sha256.clone()),
            ..AttemptReport::default()
        };
        let on_progress = |progress: Progress<'_>| match progress {
            Progress::Head(limits) => on_news(News::Account(account(limits))),
            Progress::Text(text) => on_news(News::Text(text)),
            Progress::Thinking(_) => {}
        };
        self.models.call_begins(model);
        match self.claude.send(&plan.call, &on_progress).await {
            Ok(reply) => {
                if plan.call.schema.is_some() {
                    self.models.schema_used(model, plan.made_at);
                }
                self.bill(&mut report, &reply, model, plan.at_risk);
                self.read(plan, report, reply)
            }
            Err(error) => {
                self.bill_failure(&mut report, &error, model, plan.at_risk);
                report.raw_answer.clone_from(&error.text);
                let disposition = self.after_failure(plan, &error);
                let message = match error.kind {
                    ErrorKind::TotalTimeout => cut_by_time(plan),
                    _ => error.message,
                };
                (disposition, failed(report, code_of(error.kind), message))
            }
        }
    }

    /// The model that is asked: the job's own, or the service's of the moment.
    fn model_for<'a>(&'a self, request: &'a JobRequest, refused_by: &[String]) -> &'a str {
        request.model.as_deref().unwrap_or_else(|| self.models.pick(refused_by))
    }

    /// What `usage` costs by the model that answered. A gateway may have names of its own for models: then by the name
    /// that was asked for.
    fn cost(&self, answered: &str, asked: &str, usage: &Usage) -> Option<u64> {
        self.prices.of(answered).or_else(|| self.prices.of(asked)).map(|price| price.cost(usage))
    }

    /// Records what an answer of the model `asked` costs. What it does not report of its tokens is at risk.
    fn bill(&self, report: &mut AttemptReport, reply: &Reply, asked: &str, at_risk: AtRisk) {
        // A refusal before any output is not billed, though its usage is shown.
        if matches!(reply.stop, StopReason::Refusal { .. }) && !reply.has_content {
            return;
        }
        report.usage = Some(reply.usage).filter(|usage| *usage != Usage::default()).as_ref().map(tokens);
        report.nanodollars = report.usage.and_then(|_| self.cost(&reply.model, asked, &reply.usage));
        if !reply.has_whole_usage {
            report.may_have_been_billed = true;
            report.at_risk = Some(at_risk);
        }
    }

    /// Records what a call that failed costs, or may cost.
    fn bill_failure(&self, report: &mut AttemptReport, error: &CallError, asked: &str, at_risk: AtRisk) {
        report.http_status = error.status;
        report.request_id.clone_from(&error.request_id);
        report.usage = error.usage.as_deref().map(tokens);
        report.nanodollars = error.usage.as_deref().and_then(|usage| self.cost(asked, asked, usage));
        report.may_have_been_billed = error.may_have_been_billed();
        report.at_risk = report.may_have_been_billed.then_some(at_risk);
    }

    /// What comes of an answer. One that repairs another is read, and stored, with the other parts of that one.
    fn read(&self, plan: &Plan, mut report: AttemptReport, reply: Reply) -> (Disposition, AttemptReport) {
        report.http_status = Some(200);
        report.request_id = reply.request_id;
        report.model = Some(reply.model);
        let text = plan.repair.as_ref().map_or_else(|| reply.text.clone(), |repair| repair.apply(&reply.text));
        let outcome = match reply.stop {
            StopReason::Refusal { category, explanation } => {
                // By the name that it was asked by, which a gateway may not repeat: it is not asked again.
                report.model = Some(plan.model().to_owned());
                let why = [category, explanation].into_iter().flatten().collect::<Vec<_>>().join(": ");
                let why = if why.is_empty() { "without a reason".to_owned() } else { why };
                Err((self.after_refusal(plan), FailureCode::Refused, format!("the model declined to answer: {why}")))
            }
            // A memo that happens to be whole is one all the same.
            stop => analysis::read_memo(&text).map_err(|error| unreadable(&stop, reply.is_complete, error)),
        };
        report.raw_answer = Some(text);
        match outcome {
            Ok(memo) => {
                report.result = Some(memo.json);
                report.repaired = memo.repaired.into_iter().map(str::to_owned).collect();
                (Disposition::Succeed, report)
            }
            Err((disposition, code, message)) => (disposition, failed(report, code, message)),
        }
    }
}

/// Why a call that its time limit cut has failed, and what to do about it.
fn cut_by_time(plan: &Plan) -> String {
    let (model, limit) = (plan.model(), plan.call.time_limit.as_secs());
    let advice = if plan.is_reduced {
        "the previous attempt was cut off too; raise REQUEST_TIMEOUT, lower EFFORT, or choose a faster model"
    } else {
        "the next attempt asks for a brief memo with less thinking; REQUEST_TIMEOUT sets the limit"
    };
    format!("the answer of {model} was not complete after {limit} s, the time limit of this call: {advice}")
}

/// What follows from an answer that `error` says is no memo.
fn unreadable(stop: &StopReason, is_complete: bool, error: String) -> (Disposition, FailureCode, String) {
    let retry = |code, class, message| (Disposition::Retry { code, class, after: None }, code, message);
    let invalid = |message| retry(FailureCode::InvalidOutput, FailureClass::InvalidOutput, message);
    match stop {
        StopReason::MaxTokens => {
            let message = "the answer was cut at MAX_TOKENS output tokens; raise the setting".to_owned();
            retry(FailureCode::AnswerTruncated, FailureClass::InvalidOutput, message)
        }
        StopReason::ModelContextWindowExceeded => {
            let message =
                "question and answer are longer than the model's context window; shorten the context".to_owned();
            let code = FailureCode::ContextWindowExceeded;
            (Disposition::Fail { code }, code, message)
        }
        _ if !is_complete => {
            let message = format!("Claude's stream ended without message_stop, and {error}");
            retry(FailureCode::StreamCut, FailureClass::Other, message)
        }
        StopReason::EndTurn | StopReason::StopSequence | StopReason::Refusal { .. } => invalid(error),
        // No tools were offered that it could use or pause for.
        StopReason::ToolUse => invalid(format!("{error}, and it wanted to use a tool")),
        StopReason::PauseTurn => invalid(format!("{error}, and it paused its turn")),
        StopReason::Other(reason) => invalid(format!("{error}, and it stopped for the unknown reason {reason:?}")),
        StopReason::Unstated => invalid(format!("{error}, and it has no stop_reason")),
    }
}

fn failed(mut report: AttemptReport, code: FailureCode, message: String) -> AttemptReport {
    report.error = Some(AttemptError { code, message });
    report
}

fn account(told: &RateLimits) -> AccountLimits {
    AccountLimits {
        requests: told.requests.map(|limit| limit.limit),
        input_tokens: told.input_tokens.map(|limit| limit.limit),
        output_tokens: told.output_tokens.map(|limit| limit.limit),
    }
}

fn tokens(usage: &Usage) -> TokenUsage {
    TokenUsage {
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        cache_creation_input_tokens: usage.cache_creation_input_tokens,
        cache_read_input_tokens: usage.cache_read_input_tokens,
    }
}
