//! Resolves a call once: its model, depth, effort, thinking and bounds, what it may cost, and what is sent.

use std::{sync::Arc, time::Duration};

use super::{models::Models, repair::repair_prompt};
use crate::{
    analysis::{self, RepairRequest},
    claude::{
        message::{CacheTtl, MessageRequest, SCHEMA_COMPILE_TIME},
        price::Prices,
    },
    clock::Timestamp,
    config::Effort,
    digest::ModelKey,
    job::{AtRisk, Attempt, AttemptError, AttemptReport, Depth, FailureCode, JobRequest},
    prompts::{self, PromptError, Prompts, Question, Rendered},
};

/// English has about four bytes a token, Chinese about three.
const LEAST_BYTES_PER_TOKEN: usize = 3;

/// A brief text has 900 tokens; the rest is for thinking.
const BRIEF_MAX_TOKENS: u32 = 8_000;

const SLOW_TOKENS_PER_SECOND: f64 = 40.0;

const SLOW_START: Duration = Duration::from_secs(30);

/// Models that take `thinking: between_tools`, their least thinking. Others may answer 400 to it.
const THINKING_BETWEEN_TOOLS: [&str; 2] = ["sonnet-5-5", "haiku-5-5"];

#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// For jobs that name none.
    pub model: String,
    /// Models that a job may name besides the service's own; if empty, those with a price.
    pub allowed_models: Vec<String>,
    pub max_tokens: u32,
    pub effort: Effort,
    /// The time limit of a call if a client waits, unless `request_timeout` is set.
    pub interactive_timeout: Duration,
    pub request_timeout: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
pub struct Assignment<'a> {
    pub request: &'a JobRequest,
    /// The last attempt, if its answer was rejected: the repair prompt says why.
    pub rejected: Option<&'a Attempt>,
    /// Models that declined to answer: they are not asked again while there is another.
    pub refused_by: &'a [String],
    pub is_waited_for: bool,
    /// The model to ask, if the limits have room for a call of no other.
    pub asks: Option<ModelKey>,
    pub now: Timestamp,
}

impl Assignment<'_> {
    pub fn of(request: &JobRequest, now: Timestamp) -> Assignment<'_> {
        Assignment { request, rejected: None, refused_by: &[], is_waited_for: false, asks: None, now }
    }
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub call: MessageRequest,
    pub depth: Depth,
    /// The time limit cut the last attempt, so this one asks for less.
    pub is_reduced: bool,
    pub names_model: bool,
    /// The call asks only for the broken parts of this answer.
    pub repair: Option<RepairRequest>,
    pub prompt_version: String,
    pub prompt_sha256: String,
    /// The service would not ask this model by itself.
    pub is_of_caller: bool,
    pub refused_by: Vec<String>,
    pub asked_again_after: Option<u32>,
    /// Bytes of all texts that are sent, without the schema.
    pub text_bytes: usize,
    /// Bytes of the question with its context and options, the rejected answer if there is one, and the schema.
    pub input_bytes: usize,
    pub at_risk: AtRisk,
    pub made_at: Timestamp,
}

impl Plan {
    pub fn model(&self) -> &str {
        &self.call.model
    }

    /// The plan of an analyst that stands in for the agent.
    #[cfg(test)]
    pub(crate) fn stand_in(call: MessageRequest, at_risk: AtRisk, made_at: Timestamp) -> Plan {
        Plan {
            call,
            depth: Depth::Full,
            is_reduced: false,
            names_model: false,
            repair: None,
            is_of_caller: false,
            refused_by: Vec::new(),
            prompt_version: String::new(),
            prompt_sha256: String::new(),
            asked_again_after: None,
            text_bytes: 1,
            input_bytes: 1,
            at_risk,
            made_at,
        }
    }
}

/// Plans calls. Clones share what is known of the models.
#[derive(Clone, Debug)]
pub struct Planner {
    pub models: Models,
    pub(super) prompts: Prompts,
    pub(super) config: Arc<AgentConfig>,
    pub(super) prices: Prices,
}

impl Planner {
    /// `fallbacks` are asked while the configured model is overloaded or gone, for jobs that name none.
    pub fn new(prompts: Prompts, config: AgentConfig, fallbacks: Vec<String>, prices: Prices) -> Planner {
        let allowed: Vec<String> = match config.allowed_models.as_slice() {
            [] => prices.models().map(str::to_owned).collect(),
            set => set.to_vec(),
        };
        let models = Models::new(config.model.clone(), fallbacks, allowed);
        Planner { models, prompts, config: Arc::new(config), prices }
    }

    pub fn unpriced_model(&self) -> Option<&str> {
        self.models.ids().find(|model| self.prices.of(model).is_none())
    }

    /// Those of the service's models whose list price is old, with the date of the price.
    pub fn outdated_prices(&self, today: &str) -> impl Iterator<Item = (&str, jiff::civil::Date)> {
        self.models.ids().filter_map(move |model| Some((model, self.prices.of(model)?.outdated(today)?)))
    }

    pub(super) fn model_for<'a>(&'a self, request: &'a JobRequest, refused_by: &[String]) -> &'a str {
        request.model.as_deref().unwrap_or_else(|| self.models.pick(refused_by))
    }

    /// The error is the report of an attempt that can't be made, now or later.
    pub fn plan(&self, assignment: Assignment<'_>) -> Result<Plan, Box<AttemptReport>> {
        let Assignment { request, rejected, refused_by, is_waited_for, asks, now } = assignment;
        let is_reduced = rejected.is_some_and(was_cut_by_time);
        let depth = if is_reduced { Depth::Brief } else { request.depth.resolved(is_waited_for) };
        let prompt = self.render(assignment, depth).map_err(|error| Box::new(self.unrendered(request, &error)))?;
        let asked = asks.and_then(|asks| self.models.ids().find(|id| ModelKey::of(id) == asks));
        let model = asked.unwrap_or_else(|| self.model_for(request, refused_by)).to_owned();
        let max_tokens = self.models.max_tokens(&model, self.max_tokens(depth));
        let mut question = prompt.user;
        let (sent_back, repair) = match rejected {
            Some(attempt) if !is_reduced => repair_prompt(&mut question, attempt, max_tokens),
            _ => (None, None),
        };
        let sent_back_bytes = sent_back.as_ref().map_or(0, |it| it.answer.len() + it.complaint.len());
        let options: usize = request.options.iter().map(String::len).sum();
        let own_bytes =
            request.query.len() + request.context.as_ref().map_or(0, String::len) + options + sent_back_bytes;
        let text_bytes = prompt.system.len() + question.len() + sent_back_bytes;
        let effort = self.effort(is_waited_for, is_reduced);
        let mut call = MessageRequest {
            thinking: least_thinking(&model, effort).filter(|_| is_waited_for || is_reduced),
            model,
            max_tokens,
            system: prompt.system,
            prompt: question,
            rejected: sent_back,
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
            at_risk: self.risk(Some(&call.model), text_bytes, max_tokens),
            depth,
            is_reduced,
            is_of_caller: request.model.is_some() && !self.models.has(&call.model),
            names_model: request.model.is_some(),
            prompt_version: prompt.version,
            prompt_sha256: prompt.sha256,
            asked_again_after: rejected.map(|attempt| attempt.number),
            text_bytes,
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

    /// What a call may cost at most, whichever of the service's models answers.
    pub fn at_risk(&self, assignment: Assignment<'_>) -> AtRisk {
        let text_bytes = self.plan(assignment).map_or(0, |plan| plan.text_bytes);
        let depth = assignment.request.depth.resolved(assignment.is_waited_for);
        self.risk(assignment.request.model.as_deref(), text_bytes, self.max_tokens(depth))
    }

    /// Without a `model`, by the most expensive of the service's models.
    pub(super) fn risk(&self, model: Option<&str>, text_bytes: usize, max_tokens: u32) -> AtRisk {
        let bytes = text_bytes + analysis::schema::text().get().len();
        let input_tokens = bytes.div_ceil(LEAST_BYTES_PER_TOKEN) as u64;
        let output_tokens = u64::from(max_tokens);
        let cost = |model: &str| self.prices.of(model).map(|price| price.most(input_tokens, output_tokens));
        let nanodollars = match model {
            Some(model) => cost(model),
            None => self.models.ids().map(cost).try_fold(0, |most, cost| Some(cost?.max(most))),
        };
        AtRisk { input_tokens, output_tokens, nanodollars }
    }

    fn max_tokens(&self, depth: Depth) -> u32 {
        match depth {
            Depth::Brief => self.config.max_tokens.min(BRIEF_MAX_TOKENS),
            Depth::Auto | Depth::Full => self.config.max_tokens,
        }
    }

    pub(super) fn effort(&self, is_waited_for: bool, is_reduced: bool) -> Effort {
        match self.config.effort.resolved(is_waited_for) {
            Effort::None => Effort::None,
            _ if is_reduced => Effort::Low,
            effort => effort,
        }
    }

    /// REQUEST_TIMEOUT; else a fixed time if a client waits; else the time that a slow model needs for the most tokens.
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

    fn unrendered(&self, request: &JobRequest, error: &PromptError) -> AttemptReport {
        let report = AttemptReport {
            model: Some(self.model_for(request, &[]).to_owned()),
            prompt_version: request.prompt_version.clone(),
            ..AttemptReport::default()
        };
        let is_unknown = matches!(error, PromptError::UnknownVersion { .. });
        let code = if is_unknown { FailureCode::PromptVersionUnknown } else { FailureCode::Internal };
        failed(report, code, error.to_string())
    }
}

/// The API's word for the least thinking of a model; `None` if it takes none at this effort.
pub(super) fn least_thinking(model: &str, effort: Effort) -> Option<&'static str> {
    let is_known = THINKING_BETWEEN_TOOLS.iter().any(|known| model.contains(known));
    (is_known && matches!(effort, Effort::Low | Effort::Medium | Effort::High)).then_some("between_tools")
}

fn was_cut_by_time(attempt: &Attempt) -> bool {
    attempt.report.error.as_ref().is_some_and(|error| error.code == FailureCode::TimeLimit)
}

pub(super) fn failed(mut report: AttemptReport, code: FailureCode, message: String) -> AttemptReport {
    report.error = Some(AttemptError { code, message });
    report
}
