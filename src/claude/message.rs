//! A question for Claude and its answer, as the rest of the service sees them.

use std::{sync::Arc, time::Duration};

use serde_json::value::RawValue;

/// Longest time in which the API compiles a schema at its first use: silence before the answer begins.
pub const SCHEMA_COMPILE_TIME: Duration = Duration::from_secs(180);

/// How long the API keeps a compiled schema after its last use.
pub const SCHEMA_COMPILED_FOR: Duration = Duration::from_hours(24);

/// No model allows fewer output tokens.
pub const LEAST_MAX_TOKENS: u32 = 1_024;

/// One system prompt, one user message.
#[derive(Debug, Clone, Default)]
pub struct MessageRequest {
    pub model: String,
    /// Most output tokens, thinking included.
    pub max_tokens: u32,
    /// May be empty.
    pub system: String,
    /// The user message.
    pub prompt: String,
    /// The rejected answer, in a repair prompt.
    pub rejected: Option<Rejected>,
    /// `None` leaves it to the API.
    pub effort: Option<&'static str>,
    /// `None` leaves it to the API.
    pub thinking: Option<&'static str>,
    /// A JSON schema of the answer (structured output). The API knows no `$schema`.
    pub schema: Option<Arc<RawValue>>,
    /// Longest time for the whole call.
    pub time_limit: Duration,
    /// Allowed silence beyond that of other calls: [`SCHEMA_COMPILE_TIME`] at the first use of a schema.
    pub extra_silence: Duration,
    /// For the system prompt.
    pub cache: CacheTtl,
}

/// How long a prompt stays in the prompt cache after its last use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, strum::IntoStaticStr)]
pub enum CacheTtl {
    /// The API's default.
    #[default]
    #[strum(serialize = "5m")]
    FiveMinutes,
    /// Writing costs more than for five minutes.
    #[strum(serialize = "1h")]
    OneHour,
    /// It is not cached.
    #[strum(serialize = "none")]
    Off,
}

/// A rejected answer, which the model can repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The API takes no blank one.
    pub answer: String,
    /// What was wrong with it and what to do.
    pub complaint: String,
}

/// What a call reports before it ends.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// The head of the answer came, also of an error, with the account's limits a minute as far as it names them: requests,
    /// input tokens without cache reads, output tokens.
    Head([Option<u64>; 3]),
    /// The next piece of the answer's text.
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
    /// Whether any content came, thinking included.
    pub has_content: bool,
    /// What is billed. Output that was not reported is estimated.
    pub usage: Usage,
    /// Whether input and output tokens were both reported.
    pub has_whole_usage: bool,
    /// Anthropic's id of this call, for their support.
    pub request_id: Option<String>,
}

/// Why Claude stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The answer is complete.
    EndTurn,
    /// Cut off at `max_tokens`.
    MaxTokens,
    StopSequence,
    ToolUse,
    /// It paused a long turn.
    PauseTurn,
    /// It declined; billed, and the same question will be declined again.
    Refusal {
        category: Option<String>,
        explanation: Option<String>,
    },
    /// Prompt and answer together outgrew the model's context window.
    ModelContextWindowExceeded,
    /// A reason newer than this program.
    Other(String),
    /// None is given, as by some gateways.
    Unstated,
}

/// Tokens of one call, as Claude counted them: what is billed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Input tokens neither written to nor read from the prompt cache.
    pub input_tokens: u64,
    /// Thinking included.
    pub output_tokens: u64,
    /// Input tokens written to the prompt cache.
    pub cache_creation_input_tokens: u64,
    /// Those of them that were written for an hour.
    pub cache_creation_1h_input_tokens: u64,
    /// Input tokens read from the prompt cache. They do not count to the input rate limit.
    pub cache_read_input_tokens: u64,
    /// The call was answered in the United States only, which costs more.
    pub is_us: bool,
}

impl Usage {
    /// All input tokens: fresh, written to the cache and read from it.
    pub fn total_input(&self) -> u64 {
        // Saturating, as the counts come from the network.
        self.input_tokens.saturating_add(self.cache_creation_input_tokens).saturating_add(self.cache_read_input_tokens)
    }
}
