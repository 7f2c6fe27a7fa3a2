//! One attempt at a job, told as a story: render the prompt, ask Claude, read the answer.
//!
//! It decides nothing about retries, limits or storage: it tells what happened as an [`AttemptReport`] and a
//! [`Verdict`]. Called by `worker`.
//!
//! - `again`: what the model is told when its answer was of no use

mod again;

use std::{sync::Arc, time::Duration};

use crate::{
    analysis,
    claude::{
        Claude, MessageRequest, RateLimits, Reply, StopReason, Usage,
        error::{CallError, ErrorClass, ErrorKind},
        price::Price,
    },
    clock::Timestamp,
    config::Effort,
    job::{AccountLimits, AtRisk, Attempt, AttemptError, AttemptReport, FailureCode, JobRequest, TokenUsage},
    prompts::{PromptError, Prompts, Question, Rendered},
};

/// What a token takes at least: English has about four bytes a token, Chinese about three.
const LEAST_BYTES_PER_TOKEN: usize = 3;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is a memo in the report.
    Succeeded,
    /// Another attempt may not meet this failure.
    Retryable {
        /// The upstream's own wish.
        retry_after: Option<Duration>,
    },
    /// Every attempt at this job would meet it.
    Terminal,
    /// The account's rate limit: nobody should call before this has passed, or the limits' default.
    RateLimited {
        /// The upstream's own wish.
        retry_after: Option<Duration>,
    },
    /// Every job would meet it until a person mends the cause.
    Hold,
}

/// How Claude is asked.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The model where a job names none.
    pub model: String,
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// How hard Claude thinks about ordinary jobs.
    pub effort: Effort,
    /// How hard it thinks where a client waits.
    pub interactive_effort: Effort,
}

/// What an attempt is to be made at.
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

/// Asks Claude. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Agent {
    claude: Claude,
    prompts: Prompts,
    config: Arc<AgentConfig>,
}

impl Agent {
    /// An agent that asks in this manner.
    pub fn new(claude: Claude, prompts: Prompts, config: AgentConfig) -> Agent {
        Agent { claude, prompts, config: Arc::new(config) }
    }

    /// What a call for `request` may cost at most, as far as that can be told before it is made.
    pub fn at_risk(&self, request: &JobRequest, now: Timestamp) -> AtRisk {
        let model = request.model.as_ref().unwrap_or(&self.config.model);
        let prompt = self.render(request, now).map_or(0, |prompt| prompt.system.len() + prompt.user.len());
        risk(model, prompt, self.config.max_tokens)
    }

    fn render(&self, request: &JobRequest, now: Timestamp) -> Result<Rendered, PromptError> {
        let question = Question {
            query: &request.query,
            context: request.context.as_deref(),
            options: &request.options,
            today: &now.date(),
        };
        self.prompts.render(request.prompt_version.as_deref(), &question)
    }

    /// Makes one attempt: at most one HTTP request, whose text is given to `on_text` as it comes. Dropping the future
    /// aborts it.
    pub async fn attempt(
        &self,
        assignment: Assignment<'_>,
        on_text: &(dyn Fn(&str) + Send + Sync),
    ) -> (Verdict, AttemptReport) {
        let Assignment { request, useless, is_waited_for, now } = assignment;
        let model = request.model.as_ref().unwrap_or(&self.config.model);
        let mut report = AttemptReport {
            model: Some(model.clone()),
            asked_again_after: useless.map(|attempt| attempt.number),
            ..AttemptReport::default()
        };
        let prompt = match self.render(request, now) {
            Ok(prompt) => prompt,
            Err(error) => {
                report.prompt_version.clone_from(&request.prompt_version);
                let code = match error {
                    PromptError::UnknownVersion { .. } => FailureCode::PromptVersionUnknown,
                    PromptError::Unreadable { .. } | PromptError::Invalid { .. } => FailureCode::Internal,
                };
                return failed(report, Verdict::Terminal, code, error.to_string());
            }
        };
        report.prompt_version = Some(prompt.version);
        report.prompt_sha256 = Some(prompt.sha256);
        let (question, again) = match useless {
            Some(attempt) => again::again(prompt.user, attempt, self.config.max_tokens),
            None => (prompt.user, None),
        };
        let effort = if is_waited_for { self.config.interactive_effort } else { self.config.effort };
        let call = MessageRequest {
            model: model.clone(),
            max_tokens: self.config.max_tokens,
            system: prompt.system,
            prompt: question,
            again,
            effort: effort.word(),
            schema: Some(analysis::schema_text()),
        };
        match self.claude.send(&call, on_text).await {
            Ok(reply) => read(report, reply),
            Err(error) => {
                report.http_status = error.status;
                report.account = account(&error.rate_limits);
                report.request_id.clone_from(&error.request_id);
                report.usage = error.usage.as_deref().map(tokens);
                report.may_have_been_billed = error.may_have_been_billed();
                report.at_risk = report.may_have_been_billed.then(|| risk_of(&call));
                report.raw_answer.clone_from(&error.text);
                let verdict = verdict_on(&error);
                failed(report, verdict, code_of(error.kind), error.message)
            }
        }
    }
}

/// What this call costs at most.
fn risk_of(call: &MessageRequest) -> AtRisk {
    let again = call.again.as_ref().map_or(0, |again| again.answer.len() + again.complaint.len());
    risk(&call.model, call.system.len() + call.prompt.len() + again, call.max_tokens)
}

/// What a call with so many bytes of text costs at most.
fn risk(model: &str, text_bytes: usize, max_tokens: u32) -> AtRisk {
    let bytes = text_bytes + analysis::schema_text().get().len();
    let input_tokens = bytes.div_ceil(LEAST_BYTES_PER_TOKEN) as u64;
    let usage = Usage { input_tokens, output_tokens: u64::from(max_tokens), ..Usage::default() };
    let price = Price::of(model);
    AtRisk { input_tokens, output_tokens: usage.output_tokens, nanodollars: price.map(|price| price.cost(&usage)) }
}

/// What a complete answer is worth.
fn read(mut report: AttemptReport, reply: Reply) -> (Verdict, AttemptReport) {
    report.http_status = Some(200);
    report.account = account(&reply.rate_limits);
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
        Err((verdict, code, message)) => failed(report, verdict, code, message),
    }
}

fn failed(mut report: AttemptReport, verdict: Verdict, code: FailureCode, message: String) -> (Verdict, AttemptReport) {
    report.error = Some(AttemptError { code, message });
    (verdict, report)
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
        ErrorKind::RequestTimeout | ErrorKind::Timeout | ErrorKind::Silent | ErrorKind::TotalTimeout => {
            FailureCode::Timeout
        }
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
