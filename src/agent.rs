//! One attempt at a job, told as a story: render the prompt, ask Claude, read the answer.
//!
//! It decides nothing about retries, limits or storage: it tells what happened as an [`AttemptReport`] and a
//! [`Verdict`]. Called by `worker`.
//!
//! - `again`: what the model is told when its answer was of no use
//! - `models`: which model is asked
//! - `plan`: one call, resolved once
//! - `question`: when two jobs ask the same
//!
//! A job that names its model is answered by that one or fails; only jobs that leave the choice to the service are asked of
//! the fallback models, and the report says which one answered.

mod again;
mod models;
mod plan;
mod question;

use std::{sync::Arc, time::Duration};

use self::models::{GONE_FOR, Models, OVERLOADED_FOR};
pub use self::plan::Plan;

use crate::{
    analysis,
    claude::{
        Claude, Progress, RateLimits, Reply, StopReason, Usage,
        error::{CallError, ErrorClass, ErrorKind},
        price::Prices,
    },
    clock::Timestamp,
    config::Effort,
    job::{AccountLimits, Attempt, AttemptError, AttemptReport, FailureCode, JobRequest, TokenUsage},
    prompts::Prompts,
};

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is a memo in the report.
    Succeeded,
    /// Another attempt may succeed.
    Retryable {
        /// How long the upstream asked to wait, if it did.
        retry_after: Option<Duration>,
    },
    /// Every attempt at this job would fail alike.
    Terminal,
    /// It cost nothing and is not counted as spent: the next attempt follows at once and asks another model.
    AnotherModel,
    /// The account's rate limit: nobody should call before this time has passed.
    RateLimited {
        /// How long the upstream asked to wait; without it, the default of `limits` holds.
        retry_after: Option<Duration>,
    },
    /// Every job would fail alike until a person mends the cause.
    Hold,
}

/// How Claude is asked.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The model where a job names none.
    pub model: String,
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
    /// A client waits, so the answer shall be a quick one.
    pub is_waited_for: bool,
    /// When.
    pub now: Timestamp,
}

impl Assignment<'_> {
    /// A first attempt at a request for which nobody waits.
    pub fn of(request: &JobRequest, now: Timestamp) -> Assignment<'_> {
        Assignment { request, useless: None, is_waited_for: false, now }
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
        let models = Models::new(config.model.clone(), fallbacks);
        Agent { claude, prompts, config: Arc::new(config), models, prices }
    }

    /// The models for jobs that name none, the preferred one first.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.models.ids()
    }

    /// The model that is asked at the moment for jobs that name none.
    pub fn model_in_use(&self) -> &str {
        self.models.pick()
    }

    /// The first of [`Agent::models`] that has no price.
    pub fn unpriced_model(&self) -> Option<&str> {
        self.models().find(|model| self.prices.of(model).is_none())
    }

    /// Takes note that a model is gone. Tells whether another one can be asked instead.
    pub fn model_is_gone(&self, model: &str) -> bool {
        self.models.pass_over(model, GONE_FOR)
    }

    /// Makes one attempt: at most one HTTP request, whose news are given to `on_news` as they come. Dropping the future
    /// aborts it.
    pub async fn attempt(&self, plan: &Plan, on_news: &(dyn Fn(News<'_>) + Send + Sync)) -> (Verdict, AttemptReport) {
        let model = plan.model();
        let mut report = AttemptReport {
            asked_again_after: plan.asked_again_after,
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
        match self.claude.send(&plan.call, &on_progress).await {
            Ok(reply) => {
                report.nanodollars = self.cost(&reply.model, model, &reply.usage);
                read(report, reply)
            }
            Err(error) => {
                report.http_status = error.status;
                report.request_id.clone_from(&error.request_id);
                report.usage = error.usage.as_deref().map(tokens);
                report.nanodollars = error.usage.as_deref().and_then(|usage| self.cost(model, model, usage));
                report.may_have_been_billed = error.may_have_been_billed();
                report.at_risk = report.may_have_been_billed.then_some(plan.at_risk);
                report.raw_answer.clone_from(&error.text);
                let verdict = match plan.names_model {
                    _ if error.kind == ErrorKind::TotalTimeout && plan.is_reduced => Verdict::Terminal,
                    true => verdict_on_its_own_model(&error, model),
                    false => self.verdict_on_ours(&error, model),
                };
                let message = match error.kind {
                    ErrorKind::TotalTimeout => cut_by_time(plan),
                    _ => error.message,
                };
                (verdict, failed(report, code_of(error.kind), message))
            }
        }
    }

    /// The model that is asked: the job's own, or the service's of the moment.
    fn model_for<'a>(&'a self, request: &'a JobRequest) -> &'a str {
        request.model.as_deref().unwrap_or_else(|| self.models.pick())
    }

    /// What `usage` costs by the model that answered. A gateway may have names of its own for models: then by the name
    /// that was asked for.
    fn cost(&self, answered: &str, asked: &str, usage: &Usage) -> Option<u64> {
        self.prices.of(answered).or_else(|| self.prices.of(asked)).map(|price| price.cost(usage))
    }

    /// What a failure of one of the service's own models means.
    fn verdict_on_ours(&self, error: &CallError, model: &str) -> Verdict {
        match error.kind {
            ErrorKind::NotFound if error.is_about(model) && self.model_is_gone(model) => Verdict::AnotherModel,
            ErrorKind::Overloaded if !error.may_have_been_billed() && self.models.pass_over(model, OVERLOADED_FOR) => {
                Verdict::Retryable { retry_after: Some(Duration::ZERO) }
            }
            _ => verdict_on(error),
        }
    }
}

/// Why a call that its time limit cut has failed, and what to do about it.
fn cut_by_time(plan: &Plan) -> String {
    let (model, limit) = (plan.model(), plan.call.time_limit.as_secs());
    let advice = if plan.is_reduced {
        "the attempt before asked for more and was cut too; raise REQUEST_TIMEOUT, lower EFFORT and INTERACTIVE_EFFORT, or \
         choose a faster model"
    } else {
        "the next attempt asks for a brief memo with less thinking; REQUEST_TIMEOUT sets the limit"
    };
    format!("the answer of {model} was not complete after {limit} s, the time limit of this call: {advice}")
}

/// What a failure of a model means that the job itself named: where the fault is that name, it is the job's alone, and no
/// reason to hold all others.
fn verdict_on_its_own_model(error: &CallError, model: &str) -> Verdict {
    match error.kind {
        ErrorKind::NotFound | ErrorKind::Permission if error.is_about(model) => Verdict::Terminal,
        _ => verdict_on(error),
    }
}

/// What comes of a complete answer.
fn read(mut report: AttemptReport, reply: Reply) -> (Verdict, AttemptReport) {
    report.http_status = Some(200);
    report.request_id = reply.request_id;
    report.model = Some(reply.model);
    report.usage = Some(tokens(&reply.usage));
    let text = reply.text;
    let unreadable = |message| (Verdict::Retryable { retry_after: None }, FailureCode::InvalidOutput, message);
    let outcome = match reply.stop {
        StopReason::Refusal { category, explanation } => {
            let why = [category, explanation].into_iter().flatten().collect::<Vec<_>>().join(": ");
            let why = if why.is_empty() { "without a reason".to_owned() } else { why };
            Err((Verdict::Terminal, FailureCode::Refused, format!("the model declined to answer: {why}")))
        }
        // A memo that happens to be whole is one all the same.
        StopReason::MaxTokens => analysis::read_memo(&text).map_err(|_| {
            let message = "the answer was cut at MAX_TOKENS output tokens; raise the setting".to_owned();
            (Verdict::Retryable { retry_after: None }, FailureCode::AnswerTruncated, message)
        }),
        StopReason::ModelContextWindowExceeded => analysis::read_memo(&text).map_err(|_| {
            let message = "question and answer outgrew the model's context window; shorten the context".to_owned();
            (Verdict::Terminal, FailureCode::ContextWindowExceeded, message)
        }),
        StopReason::EndTurn | StopReason::StopSequence => analysis::read_memo(&text).map_err(unreadable),
        // No tools were offered that it could use or pause for: what counts is whether the memo is there.
        StopReason::ToolUse => {
            analysis::read_memo(&text).map_err(|error| unreadable(format!("{error}, and it wanted to use a tool")))
        }
        StopReason::PauseTurn => {
            analysis::read_memo(&text).map_err(|error| unreadable(format!("{error}, and it paused its turn")))
        }
        StopReason::Other(reason) => analysis::read_memo(&text)
            .map_err(|error| unreadable(format!("{error}, and it stopped for the unknown reason {reason:?}"))),
    };
    report.raw_answer = Some(text);
    match outcome {
        Ok(memo) => {
            report.result = Some(memo);
            (Verdict::Succeeded, report)
        }
        Err((verdict, code, message)) => (verdict, failed(report, code, message)),
    }
}

fn failed(mut report: AttemptReport, code: FailureCode, message: String) -> AttemptReport {
    report.error = Some(AttemptError { code, message });
    report
}

fn verdict_on(error: &CallError) -> Verdict {
    let retry_after = error.retry_after;
    match error.class() {
        ErrorClass::Retry => Verdict::Retryable { retry_after },
        ErrorClass::RateLimited => Verdict::RateLimited { retry_after },
        ErrorClass::Hold => Verdict::Hold,
        ErrorClass::Terminal => Verdict::Terminal,
    }
}

fn code_of(kind: ErrorKind) -> FailureCode {
    match kind {
        ErrorKind::InvalidRequest => FailureCode::InvalidRequest,
        ErrorKind::TooLarge => FailureCode::RequestTooLarge,
        ErrorKind::Authentication => FailureCode::AuthenticationFailed,
        ErrorKind::Billing | ErrorKind::SpendLimit => FailureCode::BillingFailed,
        ErrorKind::Permission => FailureCode::PermissionDenied,
        ErrorKind::NotFound | ErrorKind::Redirect => FailureCode::ModelNotFound,
        ErrorKind::RateLimit => FailureCode::RateLimited,
        ErrorKind::Overloaded => FailureCode::Overloaded,
        ErrorKind::ApiError | ErrorKind::Conflict => FailureCode::UpstreamError,
        ErrorKind::ConnectFailed => FailureCode::ConnectFailed,
        ErrorKind::ConnectionLost => FailureCode::ConnectionLost,
        ErrorKind::StreamCut => FailureCode::StreamCut,
        ErrorKind::StreamError => FailureCode::StreamError,
        ErrorKind::RequestTimeout | ErrorKind::Timeout | ErrorKind::Silent => FailureCode::Timeout,
        ErrorKind::TotalTimeout => FailureCode::TimeLimit,
        ErrorKind::Malformed => FailureCode::MalformedResponse,
    }
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
