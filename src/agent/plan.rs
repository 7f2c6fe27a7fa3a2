//! One call, resolved once: its model, depth, effort, thinking and bounds. The same plan tells what the call may cost and
//! how large it is, and is what is sent.

use std::time::Duration;

use super::{
    Agent, Assignment,
    again::{self, AskedAgain},
    failed,
};
use crate::{
    analysis::{self, RepairRequest},
    claude::{CacheTtl, MessageRequest, SCHEMA_COMPILE_TIME},
    clock::Timestamp,
    config::Effort,
    job::{AtRisk, Attempt, AttemptReport, Depth, FailureCode, JobRequest},
    prompts::{self, PromptError, Question, Rendered},
};

/// Bytes of a token, at least: English has about four bytes a token, Chinese about three.
const LEAST_BYTES_PER_TOKEN: usize = 3;

/// Most tokens of a brief answer, unless MAX_TOKENS is lower: its text has 900, the rest is for thinking.
const BRIEF_MAX_TOKENS: u32 = 8_000;

/// Output tokens a second of a slow model under load.
const SLOW_TOKENS_PER_SECOND: f64 = 40.0;

/// Time until a slow model writes its first token.
const SLOW_START: Duration = Duration::from_secs(30);

/// Models that take `thinking: between_tools`, their least thinking. Others may answer 400 to it and think less by a low
/// effort alone.
const THINKING_BETWEEN_TOOLS: [&str; 2] = ["sonnet-5-5", "haiku-5-5"];

/// A call to Claude.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is sent.
    pub call: MessageRequest,
    /// How much the memo says.
    pub depth: Depth,
    /// A client waits for it.
    pub is_waited_for: bool,
    /// An attempt before was cut by its time limit, so this one asks for less.
    pub is_reduced: bool,
    /// The request names the model, so no other model may answer.
    pub names_model: bool,
    /// The call asks for the broken part of an answer only: what it repairs.
    pub repair: Option<RepairRequest>,
    /// The prompts that the call is made of.
    pub prompt_version: String,
    /// Their digest.
    pub prompt_sha256: String,
    /// The service would not ask this model by itself.
    pub is_of_caller: bool,
    /// Models that declined to answer.
    pub refused_by: Vec<String>,
    /// The attempt whose answer the model is told about.
    pub asked_again_after: Option<u32>,
    /// Bytes of the question with its context and options, the rejected answer if there is one, and the schema.
    pub input_bytes: usize,
    /// What the call may cost at most.
    pub at_risk: AtRisk,
    /// When it was made.
    pub made_at: Timestamp,
}

impl Plan {
    /// The model that is asked.
    pub fn model(&self) -> &str {
        &self.call.model
    }
}

impl Agent {
    /// The call for an assignment.
    ///
    /// # Errors
    /// The report of an attempt that can't be made, now or later.
    pub fn plan(&self, assignment: Assignment<'_>) -> Result<Plan, Box<AttemptReport>> {
        let Assignment { request, useless, refused_by, is_waited_for, now } = assignment;
        let is_reduced = useless.is_some_and(was_cut_by_time);
        let depth = if is_reduced { Depth::Brief } else { request.depth.resolved(is_waited_for) };
        let prompt = self.render(assignment, depth).map_err(|error| Box::new(self.unrendered(request, &error)))?;
        let model = self.model_for(request, refused_by).to_owned();
        let max_tokens = self.models.max_tokens(&model, self.max_tokens(depth));
        let AskedAgain { question, again, repair } = match useless {
            Some(attempt) if !is_reduced => again::again(prompt.user, attempt, max_tokens),
            _ => AskedAgain { question: prompt.user, again: None, repair: None },
        };
        let again_bytes = again.as_ref().map_or(0, |again| again.answer.len() + again.complaint.len());
        let options: usize = request.options.iter().map(String::len).sum();
        let own_bytes = request.query.len() + request.context.as_ref().map_or(0, String::len) + options + again_bytes;
        let text_bytes = prompt.system.len() + question.len() + again_bytes;
        let effort = self.effort(is_waited_for, is_reduced);
        let mut call = MessageRequest {
            thinking: least_thinking(&model, effort).filter(|_| is_waited_for || is_reduced),
            model: model.clone(),
            max_tokens,
            system: prompt.system,
            prompt: question,
            again,
            effort: effort.word(),
            // A part of a memo does not have the schema of a whole one.
            schema: repair.is_none().then(analysis::schema::text),
            time_limit: self.time_limit(is_waited_for),
            extra_silence: Duration::ZERO,
            cache: CacheTtl::default(),
        };
        self.models.fit(&mut call);
        self.allow_for_compiling(&mut call, now);
        Ok(Plan {
            at_risk: self.risk(Some(&model), text_bytes, max_tokens),
            depth,
            is_waited_for,
            is_reduced,
            is_of_caller: request.model.is_some() && !self.models.has(&model),
            names_model: request.model.is_some(),
            prompt_version: prompt.version,
            prompt_sha256: prompt.sha256,
            asked_again_after: useless.map(|attempt| attempt.number),
            input_bytes: own_bytes + analysis::schema::text().get().len(),
            refused_by: refused_by.to_vec(),
            made_at: now,
            call,
            repair,
        })
    }

    /// Gives a call more time if the API may have to compile its schema first. A limit that the operator set holds.
    pub(super) fn allow_for_compiling(&self, call: &mut MessageRequest, now: Timestamp) {
        let must_compile = call.schema.is_some() && !self.models.is_schema_compiled(&call.model, now);
        if must_compile && self.config.request_timeout.is_none() {
            call.extra_silence = SCHEMA_COMPILE_TIME;
            call.time_limit += SCHEMA_COMPILE_TIME;
        }
    }

    /// What a call for a request may cost at most, whichever of the service's models answers.
    pub fn at_risk(&self, assignment: Assignment<'_>) -> AtRisk {
        let text = self.plan(assignment).map_or(0, |plan| {
            let again = plan.call.again.as_ref().map_or(0, |again| again.answer.len() + again.complaint.len());
            plan.call.system.len() + plan.call.prompt.len() + again
        });
        let depth = assignment.request.depth.resolved(assignment.is_waited_for);
        self.risk(assignment.request.model.as_deref(), text, self.max_tokens(depth))
    }

    /// What a call with so many bytes of text costs at most; without a `model`, by the dearest of the service's.
    pub(super) fn risk(&self, model: Option<&str>, text_bytes: usize, max_tokens: u32) -> AtRisk {
        let bytes = text_bytes + analysis::schema::text().get().len();
        let input_tokens = bytes.div_ceil(LEAST_BYTES_PER_TOKEN) as u64;
        let output_tokens = u64::from(max_tokens);
        let cost = |model: &str| self.prices.of(model).map(|price| price.most(input_tokens, output_tokens));
        let nanodollars = match model {
            Some(model) => cost(model),
            None => self.models().map(cost).try_fold(0, |most, cost| Some(cost?.max(most))),
        };
        AtRisk { input_tokens, output_tokens, nanodollars }
    }

    /// Most tokens of an answer of this depth, thinking included.
    fn max_tokens(&self, depth: Depth) -> u32 {
        match depth {
            Depth::Brief => self.config.max_tokens.min(BRIEF_MAX_TOKENS),
            Depth::Auto | Depth::Full => self.config.max_tokens,
        }
    }

    /// How hard Claude thinks.
    pub(super) fn effort(&self, is_waited_for: bool, is_reduced: bool) -> Effort {
        match self.config.effort.resolved(is_waited_for) {
            Effort::None => Effort::None,
            _ if is_reduced => Effort::Low,
            effort => effort,
        }
    }

    /// How long a call may take: what is set for all calls; else a fixed time where a client waits, and for other calls
    /// what their most tokens need of a slow model.
    fn time_limit(&self, is_waited_for: bool) -> Duration {
        let by_tokens = Duration::from_secs_f64(f64::from(self.config.max_tokens) / SLOW_TOKENS_PER_SECOND);
        match self.config.request_timeout {
            Some(limit) => limit,
            None if is_waited_for => self.config.interactive_timeout,
            None => SLOW_START + by_tokens,
        }
    }

    fn render(&self, Assignment { request, now, .. }: Assignment<'_>, depth: Depth) -> Result<Rendered, PromptError> {
        let question = Question {
            query: &request.query,
            context: request.context.as_deref(),
            options: &request.options,
            depth: if depth == Depth::Brief { prompts::BRIEF } else { prompts::FULL },
            today: &now.date(),
        };
        self.prompts.render(request.prompt_version.as_deref(), &question)
    }

    /// The report of an attempt whose prompt can't be rendered.
    fn unrendered(&self, request: &JobRequest, error: &PromptError) -> AttemptReport {
        let report = AttemptReport {
            model: Some(self.model_for(request, &[]).to_owned()),
            prompt_version: request.prompt_version.clone(),
            ..AttemptReport::default()
        };
        let code = match error {
            PromptError::UnknownVersion { .. } => FailureCode::PromptVersionUnknown,
            PromptError::NoVersion { .. } | PromptError::Unreadable { .. } | PromptError::Invalid { .. } => {
                FailureCode::Internal
            }
        };
        failed(report, code, error.to_string())
    }
}

/// The API's word for the least thinking of a model; none where it takes none at this effort.
pub(super) fn least_thinking(model: &str, effort: Effort) -> Option<&'static str> {
    let is_known = THINKING_BETWEEN_TOOLS.iter().any(|known| model.contains(known));
    (is_known && matches!(effort, Effort::Low | Effort::Medium | Effort::High)).then_some("between_tools")
}

/// Whether a call took longer than it may: the same call would again.
fn was_cut_by_time(attempt: &Attempt) -> bool {
    attempt.report.error.as_ref().is_some_and(|error| error.code == FailureCode::TimeLimit)
}
