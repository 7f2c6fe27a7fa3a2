//! The shapes of the Messages API on the wire: the request sent, the events and errors read.
//!
//! Only the fields in use are named; unknown fields, events and block types are ignored, as the API asks its
//! clients to. No I/O here.

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::{MessageRequest, StopReason};

/// The version of the API this client is written against, sent with every request.
pub(super) const API_VERSION: &str = "2026-10-21";

/// Tokens of one call, as Claude counted them: what is billed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Input tokens neither written to nor read from the prompt cache.
    pub input_tokens: u64,
    /// Output tokens, thinking included.
    pub output_tokens: u64,
    /// Input tokens written to the prompt cache.
    #[serde(default)]
    pub cache_creation_input_tokens: u64,
    /// Input tokens read from the prompt cache. They do not count to the input rate limit.
    #[serde(default)]
    pub cache_read_input_tokens: u64,
}

impl Usage {
    /// All input tokens: fresh, written to the cache and read from it.
    pub fn total_input(&self) -> u64 {
        // Saturating, as the counts come from the network.
        self.input_tokens.saturating_add(self.cache_creation_input_tokens).saturating_add(self.cache_read_input_tokens)
    }

    /// Takes over what `update` knows. Its counts are cumulative, so they replace and never add.
    pub(super) fn update(&mut self, update: &UsageUpdate) {
        let pairs = [
            (&mut self.input_tokens, update.input_tokens),
            (&mut self.output_tokens, update.output_tokens),
            (&mut self.cache_creation_input_tokens, update.cache_creation_input_tokens),
            (&mut self.cache_read_input_tokens, update.cache_read_input_tokens),
        ];
        for (count, known) in pairs {
            *count = known.unwrap_or(*count);
        }
    }
}

/// The body of `POST /v1/messages`.
#[derive(Serialize)]
pub(super) struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<[SystemBlock<'a>; 1]>,
    messages: Vec<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<Thinking>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<OutputConfig<'a>>,
}

#[derive(Serialize)]
struct Thinking {
    r#type: &'static str,
}

#[derive(Serialize)]
struct SystemBlock<'a> {
    r#type: &'static str,
    text: &'a str,
    cache_control: CacheControl,
}

#[derive(Serialize)]
struct CacheControl {
    r#type: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
struct OutputConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    effort: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<Format<'a>>,
}

#[derive(Serialize)]
struct Format<'a> {
    r#type: &'static str,
    schema: &'a RawValue,
}

impl<'a> Body<'a> {
    pub(super) fn new(request: &'a MessageRequest) -> Body<'a> {
        Body {
            model: &request.model,
            max_tokens: request.max_tokens,
            stream: true,
            // The API rejects an empty text block.
            system: (!request.system.is_empty()).then(|| {
                [SystemBlock {
                    r#type: "text",
                    text: &request.system,
                    cache_control: CacheControl { r#type: "ephemeral" },
                }]
            }),
            messages: messages(request),
            thinking: request.thinking.map(|r#type| Thinking { r#type }),
            output_config: (request.effort.is_some() || request.schema.is_some()).then(|| OutputConfig {
                effort: request.effort,
                format: request.schema.as_deref().map(|schema| Format { r#type: "json_schema", schema }),
            }),
        }
    }
}

/// The question; and where it is asked again, the answer that was of no use and what was wrong with it. The last is
/// always the user's, as the API takes no prefill.
fn messages(request: &MessageRequest) -> Vec<Message<'_>> {
    let mut messages = vec![Message { role: "user", content: &request.prompt }];
    if let Some(again) = &request.again {
        messages.extend([
            Message { role: "assistant", content: &again.answer },
            Message { role: "user", content: &again.complaint },
        ]);
    }
    messages
}

/// A message that came whole although a stream was asked for: some gateways can't stream.
#[derive(Deserialize)]
pub(super) struct WholeMessage {
    #[serde(default)]
    pub(super) model: String,
    pub(super) content: Vec<Piece>,
    #[serde(default)]
    pub(super) usage: UsageUpdate,
    #[serde(flatten)]
    pub(super) ending: Ending,
}

/// `message_start`: the first event of a stream.
#[derive(Deserialize)]
pub(super) struct MessageStart {
    pub(super) message: StartedMessage,
}

#[derive(Deserialize)]
pub(super) struct StartedMessage {
    #[serde(default)]
    pub(super) model: String,
    #[serde(default)]
    pub(super) usage: UsageUpdate,
}

/// `content_block_start`.
#[derive(Deserialize)]
pub(super) struct BlockStart {
    pub(super) content_block: Piece,
}

/// `content_block_delta`.
#[derive(Deserialize)]
pub(super) struct BlockDelta {
    pub(super) delta: Piece,
}

/// A piece of a content block; of tools and whatever else comes, only the type is read.
#[derive(Deserialize)]
pub(super) struct Piece {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    thinking: Option<String>,
}

impl Piece {
    /// The model's thinking in it, if it is of a thinking block. The API may leave it blank.
    pub(super) fn thinking(&self) -> Option<&str> {
        matches!(self.kind.as_str(), "thinking" | "thinking_delta").then(|| self.thinking.as_deref()).flatten()
    }

    /// The answer's text in it, if it is of a text block.
    pub(super) fn text(&self) -> Option<&str> {
        matches!(self.kind.as_str(), "text" | "text_delta").then(|| self.text.as_deref()).flatten()
    }
}

/// `message_delta`: why the message ended, and the tokens so far.
#[derive(Deserialize)]
pub(super) struct MessageDelta {
    pub(super) delta: Ending,
    #[serde(default)]
    pub(super) usage: UsageUpdate,
}

#[derive(Deserialize)]
pub(super) struct Ending {
    stop_reason: Option<String>,
    stop_details: Option<StopDetails>,
}

#[derive(Deserialize)]
struct StopDetails {
    category: Option<String>,
    explanation: Option<String>,
}

impl Ending {
    pub(super) fn into_stop_reason(self) -> Option<StopReason> {
        Some(match self.stop_reason?.as_str() {
            "end_turn" => StopReason::EndTurn,
            "max_tokens" => StopReason::MaxTokens,
            "stop_sequence" => StopReason::StopSequence,
            "tool_use" => StopReason::ToolUse,
            "pause_turn" => StopReason::PauseTurn,
            "model_context_window_exceeded" => StopReason::ModelContextWindowExceeded,
            "refusal" => {
                let details = self.stop_details;
                let (category, explanation) = details.map_or((None, None), |d| (d.category, d.explanation));
                StopReason::Refusal { category, explanation }
            }
            other => StopReason::Other(other.to_owned()),
        })
    }
}

/// Counts as the stream reports them: cumulative, any may be missing or null.
#[derive(Deserialize, Default)]
pub(super) struct UsageUpdate {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
}

/// The API's error envelope, in an error answer and in an `error` event alike.
#[derive(Deserialize)]
pub(super) struct ErrorObject {
    pub(super) error: ErrorBody,
    pub(super) request_id: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct ErrorBody {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    details: Value,
}

impl ErrorObject {
    /// Reads an envelope; `None` when `body` is anything else.
    pub(super) fn parse(body: &[u8]) -> Option<ErrorObject> {
        serde_json::from_slice(body).ok()
    }

    /// `error.details.error_code`: tells a spend limit from a rate limit.
    pub(super) fn code(&self) -> Option<&str> {
        self.error.details.get("error_code")?.as_str()
    }
}
