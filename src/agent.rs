//! One attempt at a job: plan the call, ask Claude, read the answer.
//!
//! It counts no retries, has no limits and stores nothing. What happened is an [`AttemptReport`], and what becomes of the job
//! a [`Disposition`].
//!
//! - `repair`: the repair prompt for a rejected answer
//! - `gaps`: how long the system prompt is cached
//! - `models`: which model is asked, and which parameters each takes
//! - `plan`: one call, resolved once
//! - `question`: the dedup key of a job
//! - `verdict`: the disposition of a job whose call failed
//! - `warm_up`: compiles the schema of a memo before the first question
//!
//! Only jobs that name no model may be answered by a fallback model. The report says which model answered.

mod gaps;
pub mod models;
pub mod plan;
mod question;
mod repair;
mod verdict;
pub mod warm_up;

use self::{
    plan::{Assignment, Plan, Planner, failed},
    verdict::{after_failure, after_refusal, code_of},
    warm_up::WarmUp,
};
pub use crate::claude::message::Progress;
use crate::{
    analysis,
    claude::{
        Claude,
        error::{CallError, ErrorKind},
        message::{OnProgress, Reply, StopReason, Usage},
    },
    job::{AtRisk, AttemptReport, FailureClass, FailureCode, TokenUsage, disposition::Disposition},
};

/// Makes attempts. Tests of the workers have their own.
pub trait Analyst: Clone + Send + Sync + 'static {
    /// Resolves the call of an attempt. The error is the report of an attempt that can't be made, now or later.
    fn plan(&self, assignment: Assignment<'_>) -> Result<Plan, Box<AttemptReport>>;

    /// Reads again what other nodes may have loaded a moment ago.
    fn refresh(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Makes one HTTP request. Dropping the future aborts it.
    fn attempt(
        &self,
        plan: &Plan,
        on_progress: OnProgress<'_>,
    ) -> impl Future<Output = (Disposition, AttemptReport)> + Send;
}

#[derive(Clone, Debug)]
pub struct Agent {
    pub claude: Claude,
    pub planner: Planner,
}

impl Analyst for Agent {
    fn plan(&self, assignment: Assignment<'_>) -> Result<Plan, Box<AttemptReport>> {
        self.planner.plan(assignment)
    }

    async fn refresh(&self) {
        self.planner.prompts.refresh().await;
    }

    async fn attempt(&self, plan: &Plan, on_progress: OnProgress<'_>) -> (Disposition, AttemptReport) {
        let model = plan.model();
        let mut report = AttemptReport {
            asked_again_after: plan.asked_again_after,
            depth: Some(plan.depth),
            model: Some(model.to_owned()),
            prompt_version: Some(plan.prompt_version.clone()),
            prompt_sha256: Some(plan.prompt_sha256.clone()),
            ..AttemptReport::default()
        };
        self.planner.models.call_begins(model);
        match self.claude.send(&plan.call, on_progress).await {
            Ok(reply) => {
                if plan.call.schema.is_some() {
                    self.planner.models.schema_used(model, plan.made_at);
                }
                self.bill(&mut report, &reply, model, plan.at_risk);
                self.read(plan, report, reply)
            }
            Err(error) => {
                self.bill_failure(&mut report, &error, model, plan.at_risk);
                report.raw_answer.clone_from(&error.text);
                let disposition = after_failure(&self.planner.models, plan, &error);
                let message = match error.kind {
                    ErrorKind::TotalTimeout => cut_by_time(plan),
                    _ => error.message,
                };
                (disposition, failed(report, code_of(error.kind), message))
            }
        }
    }
}

impl Agent {
    /// Makes the call. The report says what it cost; its error, why the schema may not be compiled.
    pub async fn compile(&self, warm_up: &WarmUp) -> AttemptReport {
        let (call, model) = (&warm_up.call, warm_up.model());
        let mut report = AttemptReport { model: Some(model.to_owned()), ..AttemptReport::default() };
        match self.claude.send(call, &|_| {}).await {
            Ok(reply) => {
                self.planner.models.schema_used(model, warm_up.made_at);
                self.bill(&mut report, &reply, model, warm_up.at_risk);
                report.model = Some(reply.model);
                report
            }
            Err(error) => {
                self.bill_failure(&mut report, &error, model, warm_up.at_risk);
                failed(report, code_of(error.kind), error.message)
            }
        }
    }

    /// By the price of the model that answered; of the one that was asked if a gateway has a name of its own for it.
    fn cost(&self, answered: &str, asked: &str, usage: &Usage) -> Option<u64> {
        self.planner.prices.of(answered).or_else(|| self.planner.prices.of(asked)).map(|price| price.cost(usage))
    }

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

    fn bill_failure(&self, report: &mut AttemptReport, error: &CallError, asked: &str, at_risk: AtRisk) {
        report.http_status = error.status;
        report.request_id.clone_from(&error.request_id);
        report.usage = error.usage.as_deref().map(tokens);
        report.nanodollars = error.usage.as_deref().and_then(|usage| self.cost(asked, asked, usage));
        report.may_have_been_billed = error.may_have_been_billed();
        report.at_risk = report.may_have_been_billed.then_some(at_risk);
    }

    /// An answer that repairs another is read, and stored, with the other parts of that one.
    fn read(&self, plan: &Plan, mut report: AttemptReport, reply: Reply) -> (Disposition, AttemptReport) {
        report.http_status = Some(200);
        report.request_id = reply.request_id;
        report.model = Some(reply.model);
        let text = plan.repair.as_ref().map_or_else(|| reply.text.clone(), |repair| repair.apply(&reply.text));
        let outcome = match reply.stop {
            StopReason::Refusal { category, explanation } => {
                // As it was asked for: a gateway may answer with another name, and the model must not be asked again.
                report.model = Some(plan.model().to_owned());
                let why = [category, explanation].into_iter().flatten().collect::<Vec<_>>().join(": ");
                let why = if why.is_empty() { "without a reason".to_owned() } else { why };
                Err((
                    after_refusal(&self.planner.models, plan),
                    FailureCode::Refused,
                    format!("the model declined to answer: {why}"),
                ))
            }
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

fn cut_by_time(plan: &Plan) -> String {
    let (model, limit) = (plan.model(), plan.call.time_limit.as_secs());
    let advice = if plan.is_reduced {
        "the previous attempt was cut off too; raise REQUEST_TIMEOUT, lower EFFORT, or choose a faster model"
    } else {
        "the next attempt asks for a brief memo with less thinking; REQUEST_TIMEOUT sets the limit"
    };
    format!("the answer of {model} was not complete after {limit} s, the time limit of this call: {advice}")
}

fn unreadable(stop: &StopReason, is_complete: bool, error: String) -> (Disposition, FailureCode, String) {
    let (mut code, mut class) = (FailureCode::InvalidOutput, FailureClass::InvalidOutput);
    let message = match stop {
        StopReason::MaxTokens => {
            code = FailureCode::AnswerTruncated;
            "the answer was cut at MAX_TOKENS output tokens; raise the setting".to_owned()
        }
        StopReason::ModelContextWindowExceeded => {
            let message = "question and answer are longer than the model's context window; shorten the context";
            let code = FailureCode::ContextWindowExceeded;
            return (Disposition::Fail { code }, code, message.to_owned());
        }
        _ if !is_complete => {
            (code, class) = (FailureCode::StreamCut, FailureClass::Other);
            format!("Claude's stream ended without message_stop, and {error}")
        }
        StopReason::EndTurn | StopReason::StopSequence | StopReason::Refusal { .. } => error,
        // No tools were offered that it could use or pause for.
        StopReason::ToolUse => format!("{error}, and it wanted to use a tool"),
        StopReason::PauseTurn => format!("{error}, and it paused its turn"),
        StopReason::Other(reason) => format!("{error}, and it stopped for the unknown reason {reason:?}"),
        StopReason::Unstated => format!("{error}, and it has no stop_reason"),
    };
    (Disposition::Retry { code, class, after: None }, code, message)
}

fn tokens(usage: &Usage) -> TokenUsage {
    TokenUsage {
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        cache_creation_input_tokens: usage.cache_creation_input_tokens,
        cache_read_input_tokens: usage.cache_read_input_tokens,
    }
}
