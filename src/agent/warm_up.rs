//! A call that makes the API compile the schema of a memo before the first question.
//!
//! Only a billed call is known to compile it. This is the smallest one: one output token, no system prompt, about half a
//! cent with the default model.

use std::time::Duration;

use super::plan::{Planner, least_thinking};
use crate::{
    analysis,
    claude::message::{CacheTtl, MessageRequest},
    clock::Timestamp,
    config::Effort,
    job::AtRisk,
};

/// The API takes no empty message.
const PROMPT: &str = "Reply with one word.";

const TIME_LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct WarmUp {
    pub(super) call: MessageRequest,
    pub(super) made_at: Timestamp,
    pub at_risk: AtRisk,
}

impl WarmUp {
    pub fn model(&self) -> &str {
        &self.call.model
    }

    pub fn input_bytes(&self) -> usize {
        PROMPT.len() + analysis::schema::text().get().len()
    }
}

impl Planner {
    /// The warm-up of the model in use; `None` if its schema is compiled, or it takes none.
    pub fn warm_up(&self, now: Timestamp) -> Option<WarmUp> {
        let model = self.models.pick(&[]);
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
}
