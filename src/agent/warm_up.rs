//! Has the API compile the schema of a memo before the first question.
//!
//! The API compiles a schema at its first use, for up to three minutes, and keeps it for 24 hours after the last use. Only a
//! billed call is known to compile it: the documentation does not say so of a count of tokens. This is the smallest one, with one
//! output token and no system prompt. It costs about half a cent with the default model.

use std::time::Duration;

use super::{Agent, failed, plan::least_thinking, verdict::code_of};
use crate::{
    analysis,
    claude::{CacheTtl, MessageRequest},
    clock::Timestamp,
    config::Effort,
    job::{AtRisk, AttemptReport},
};

/// The API takes no empty message.
const PROMPT: &str = "Reply with one word.";

/// How long the call may take beyond the time to compile the schema.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A call that only has the schema compiled.
#[derive(Clone, Debug)]
pub struct WarmUp {
    call: MessageRequest,
    made_at: Timestamp,
    /// What it costs at most.
    pub at_risk: AtRisk,
}

impl WarmUp {
    /// The model that is asked.
    pub fn model(&self) -> &str {
        &self.call.model
    }

    /// Bytes that are sent.
    pub fn input_bytes(&self) -> usize {
        PROMPT.len() + analysis::schema::text().get().len()
    }
}

impl Agent {
    /// The warm-up of the model in use; `None` if its schema is compiled, or it takes none.
    pub fn warm_up(&self, now: Timestamp) -> Option<WarmUp> {
        let model = self.model_in_use();
        if self.models.is_schema_compiled(model, now) {
            return None;
        }
        let effort = if self.config.effort == Effort::None { Effort::None } else { Effort::Low };
        let mut call = MessageRequest {
            model: model.to_owned(),
            max_tokens: 1,
            prompt: PROMPT.to_owned(),
            effort: effort.word(),
            thinking: least_thinking(model, effort),
            schema: Some(analysis::schema::text()),
            time_limit: TIME_LIMIT,
            cache: CacheTtl::Off,
            ..MessageRequest::default()
        };
        self.models.fit(&mut call);
        call.schema.as_ref()?;
        self.allow_for_compiling(&mut call, now);
        let at_risk = self.risk(Some(model), PROMPT.len(), call.max_tokens);
        Some(WarmUp { call, made_at: now, at_risk })
    }

    /// Makes the call. The report says what it cost; its error, why the schema may not be compiled.
    pub async fn compile(&self, warm_up: &WarmUp) -> AttemptReport {
        let (call, model) = (&warm_up.call, warm_up.model());
        let mut report = AttemptReport { model: Some(model.to_owned()), ..AttemptReport::default() };
        match self.claude.send(call, &|_| {}).await {
            Ok(reply) => {
                self.models.schema_used(model, warm_up.made_at);
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
}
