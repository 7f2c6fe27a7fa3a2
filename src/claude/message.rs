//! A question for Claude and its answer, as the rest of the service sees them.

use std::{sync::Arc, time::Duration};

use serde_json::value::RawValue;

/// Longest time in which the API compiles a schema at its first use: silence before the answer begins.
pub const SCHEMA_COMPILE_TIME: Duration = Duration::from_secs(180);

pub const SCHEMA_COMPILED_FOR: Duration = Duration::from_hours(24);

/// No model allows fewer output tokens.
pub const LEAST_MAX_TOKENS: u32 = 1_024;

#[derive(Debug, Clone, Default)]
pub struct MessageRequest {
    pub model: String,
    /// Most output tokens, thinking included.
    pub max_tokens: u32,
    pub system: String,
    pub prompt: String,
    pub rejected: Option<Rejected>,
    /// `None` leaves it to the API.
    pub effort: Option<&'static str>,
    /// `None` leaves it to the API.
    pub thinking: Option<&'static str>,
    /// A JSON schema of the answer (structured output). The API knows no `$schema`.
    pub schema: Option<Arc<RawValue>>,
    pub time_limit: Duration,
    /// Allowed silence beyond that of other calls: [`SCHEMA_COMPILE_TIME`] at the first use of a schema.
    pub extra_silence: Duration,
    pub cache: CacheTtl,
}

/// How long a prompt stays in the prompt cache after its last use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, strum::IntoStaticStr)]
pub enum CacheTtl {
    #[default]
    #[strum(serialize = "5m")]
    FiveMinutes,
    #[strum(serialize = "1h")]
    OneHour,
    #[strum(serialize = "none")]
    Off,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The API takes no blank one.
    pub answer: String,
    pub complaint: String,
}

#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// The head of an answer or error, with the limits a minute that it names: requests, input tokens, output tokens.
    Head([Option<u64>; 3]),
    Text(&'a str),
}

pub type OnProgress<'a> = &'a (dyn Fn(Progress<'_>) + Send + Sync);

/// A complete answer. Look at `stop` before you trust `text`.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The text blocks and after them the inputs of tools, joined. Thinking is left out.
    pub text: String,
    /// The model that answered; the one asked if the answer does not say.
    pub model: String,
    pub stop: StopReason,
    /// False if the stream ended after its stop reason, without its last event.
    pub is_complete: bool,
    pub has_content: bool,
    /// What is billed. Output that was not reported is estimated.
    pub usage: Usage,
    pub has_whole_usage: bool,
    pub request_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    EndTurn,
    MaxTokens,
    StopSequence,
    ToolUse,
    PauseTurn,
    /// It declined; billed, and the same question will be declined again.
    Refusal {
        category: Option<String>,
        explanation: Option<String>,
    },
    /// Prompt and answer together outgrew the model's context window.
    ModelContextWindowExceeded,
    Other(String),
    /// None is given, as by some gateways.
    Unstated,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub input_tokens: u64,
    /// Thinking included.
    pub output_tokens: u64,
    pub cache_creation_input_tokens: u64,
    pub cache_creation_1h_input_tokens: u64,
    /// Input tokens read from the prompt cache. They do not count to the input rate limit.
    pub cache_read_input_tokens: u64,
    /// The call was answered in the United States only, which costs more.
    pub is_us: bool,
}

impl Usage {
    pub fn total_input(&self) -> u64 {
        // Saturating, as the counts come from the network.
        self.input_tokens.saturating_add(self.cache_creation_input_tokens).saturating_add(self.cache_read_input_tokens)
    }
}
