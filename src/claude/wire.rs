//! The JSON of the Messages API: the request sent, the events and errors read.
//!
//! Unknown fields, events and block types are ignored, as the API asks its clients to.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Visitor},
};
use serde_json::{Value, json, value::RawValue};

use super::message::{CacheTtl, MessageRequest, StopReason, Usage};

pub(super) const API_VERSION: &str = "2026-10-21";

/// Cumulative counts. A count that can't be read is unknown.
#[derive(Deserialize, Default, Clone, Copy)]
#[serde(from = "Value")]
pub(super) struct Counts {
    pub(super) input: Option<u64>,
    pub(super) output: Option<u64>,
    cache_creation: Option<u64>,
    cache_creation_1h: Option<u64>,
    cache_read: Option<u64>,
    is_us: Option<bool>,
}

impl From<Value> for Counts {
    fn from(usage: Value) -> Counts {
        let count = |pointer: &str| usage.pointer(pointer).and_then(count);
        let [short, long] = ["5m", "1h"].map(|ttl| count(&format!("/cache_creation/ephemeral_{ttl}_input_tokens")));
        let split = short.zip(long).map(|(short, long)| short.saturating_add(long));
        Counts {
            input: count("/input_tokens"),
            output: count("/output_tokens"),
            cache_creation: count("/cache_creation_input_tokens").or(split),
            cache_creation_1h: long,
            cache_read: count("/cache_read_input_tokens"),
            is_us: usage["inference_geo"].as_str().map(|geo| geo == "us"),
        }
    }
}

impl Counts {
    pub(super) fn update(&mut self, update: &Counts) {
        *self = Counts {
            input: update.input.or(self.input),
            output: update.output.or(self.output),
            cache_creation: update.cache_creation.or(self.cache_creation),
            cache_creation_1h: update.cache_creation_1h.or(self.cache_creation_1h),
            cache_read: update.cache_read.or(self.cache_read),
            is_us: update.is_us.or(self.is_us),
        };
    }

    /// One absurd number would use up a day's budget.
    pub(super) fn drop_impossible(&mut self, most_input: u64, most_output: u64) {
        if self.usage().total_input() > most_input {
            *self = Counts { output: self.output, is_us: self.is_us, ..Counts::default() };
        }
        self.output = self.output.filter(|output| *output <= most_output);
    }

    pub(super) fn usage(&self) -> Usage {
        let cache_creation = self.cache_creation.unwrap_or(0);
        Usage {
            input_tokens: self.input.unwrap_or(0),
            output_tokens: self.output.unwrap_or(0),
            cache_creation_input_tokens: cache_creation,
            cache_creation_1h_input_tokens: self.cache_creation_1h.unwrap_or(0).min(cache_creation),
            cache_read_input_tokens: self.cache_read.unwrap_or(0),
            is_us: self.is_us.unwrap_or(false),
        }
    }
}

/// A count, however a gateway writes it: `700`, `700.0` or `"700"`.
fn count(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64().or_else(|| number.as_f64().and_then(whole)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn whole(number: f64) -> Option<u64> {
    // As text, a float has no exponent, and a fraction only if it is not whole.
    number.to_string().parse().ok()
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<Value>,
    messages: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<OutputConfig<'a>>,
}

#[derive(Serialize)]
struct OutputConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    effort: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<Format<'a>>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "json_schema")]
struct Format<'a> {
    /// Sent byte by byte as it is.
    schema: &'a RawValue,
}

pub(super) fn body(request: &MessageRequest) -> Result<Vec<u8>, serde_json::Error> {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let mut messages = vec![turn("user", &request.prompt)];
    if let Some(rejected) = &request.rejected {
        // The last is the user's, as the API takes no prefill.
        messages.extend([turn("assistant", &rejected.answer), turn("user", &rejected.complaint)]);
    }
    serde_json::to_vec(&Body {
        model: &request.model,
        max_tokens: request.max_tokens,
        stream: true,
        // The API rejects an empty text block.
        system: (!request.system.is_empty()).then(|| system(&request.system, request.cache)),
        messages,
        thinking: request.thinking.map(|kind| json!({"type": kind})),
        output_config: (request.effort.is_some() || request.schema.is_some()).then(|| OutputConfig {
            effort: request.effort,
            format: request.schema.as_deref().map(|schema| Format { schema }),
        }),
    })
}

/// Text alone if it is not cached: older gateways take no blocks.
fn system(text: &str, cache: CacheTtl) -> Value {
    let cache_control = match cache {
        CacheTtl::Off => return json!(text),
        CacheTtl::FiveMinutes => json!({"type": "ephemeral"}),
        CacheTtl::OneHour => json!({"type": "ephemeral", "ttl": "1h"}),
    };
    json!([{"type": "text", "text": text, "cache_control": cache_control}])
}

/// A message: the start of it, or all of it from a gateway that can't stream.
#[derive(Deserialize, Default)]
pub(super) struct Message {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) model: String,
    #[serde(default)]
    pub(super) content: Option<Box<RawValue>>,
    #[serde(default)]
    pub(super) usage: Counts,
    #[serde(flatten)]
    pub(super) ending: Ending,
}

pub(super) fn pieces(content: &RawValue) -> Result<Vec<Piece>, serde_json::Error> {
    if content.get().starts_with('"') {
        let text = serde_json::from_str(content.get())?;
        return Ok(vec![Piece { text: Some(text), ..Piece::default() }]);
    }
    serde_json::from_str(content.get())
}

#[derive(Deserialize)]
pub(super) struct MessageStart {
    #[serde(default)]
    pub(super) message: Message,
}

#[derive(Deserialize)]
pub(super) struct BlockEvent {
    #[serde(alias = "delta")]
    pub(super) content_block: Option<Piece>,
}

#[derive(Deserialize, Default)]
pub(super) struct Piece {
    #[serde(rename = "type", default, deserialize_with = "or_default")]
    kind: String,
    text: Option<Wtf8>,
    thinking: Option<Wtf8>,
    partial_json: Option<Wtf8>,
    input: Option<Box<RawValue>>,
}

pub(super) enum Part {
    Text(Wtf8),
    Thinking(Wtf8),
    Input(Wtf8),
    /// A tool begins, perhaps with its whole input.
    Tool(Option<Wtf8>),
}

impl Piece {
    pub(super) fn into_part(self) -> Option<Part> {
        let (text, thinking) = (self.text.map(Part::Text), self.thinking.map(Part::Thinking));
        let input = self.partial_json.map(Part::Input);
        match self.kind.as_str() {
            "" => text.or(input).or(thinking),
            "text" | "text_delta" => text,
            "thinking" | "thinking_delta" => thinking,
            "input_json_delta" => input,
            "tool_use" => {
                let whole = self.input.filter(|input| !matches!(input.get(), "{}" | "null"));
                Some(Part::Tool(whole.map(|input| Wtf8(input.get().as_bytes().to_vec()))))
            }
            _ => None,
        }
    }
}

/// A text that may have half of a surrogate pair, as serde_json's three bytes: the next delta has the other half.
#[derive(Default)]
pub(super) struct Wtf8(pub(super) Vec<u8>);

impl<'de> Deserialize<'de> for Wtf8 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Wtf8, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Wtf8;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Wtf8, E> {
                Ok(Wtf8(bytes.to_owned()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[derive(Default)]
pub(super) struct Joiner {
    half: Option<u16>,
}

impl Joiner {
    /// `text` as far as it is complete. A half without its other half becomes U+FFFD.
    pub(super) fn join(&mut self, text: Wtf8) -> String {
        let text = match String::from_utf8(text.0) {
            Ok(text) if self.half.is_none() || text.is_empty() => return text,
            Ok(text) => text.into_bytes(),
            Err(error) => error.into_bytes(),
        };
        let mut units: Vec<u16> = self.half.take().into_iter().chain(utf16(&text)).collect();
        self.half = units.pop_if(|last| (0xd800..0xdc00).contains(last));
        String::from_utf16_lossy(&units)
    }
}

fn utf16(mut bytes: &[u8]) -> Vec<u16> {
    let mut units = Vec::new();
    while !bytes.is_empty() {
        let is_half = |bytes: &[u8]| bytes[0] == 0xed && bytes[1] >= 0xa0;
        let end = bytes.windows(3).position(is_half).unwrap_or(bytes.len());
        units.extend(String::from_utf8_lossy(&bytes[..end]).encode_utf16());
        bytes = &bytes[end..];
        if let Some(([_, high, low], rest)) = bytes.split_first_chunk() {
            units.push(0xd000 | u16::from(high & 0x3f) << 6 | u16::from(low & 0x3f));
            bytes = rest;
        }
    }
    units
}

#[derive(Deserialize)]
pub(super) struct MessageDelta {
    #[serde(default)]
    pub(super) delta: Ending,
    #[serde(default)]
    pub(super) usage: Counts,
}

#[derive(Deserialize, Default)]
pub(super) struct Ending {
    #[serde(default, deserialize_with = "or_default")]
    stop_reason: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    stop_details: Option<StopDetails>,
}

#[derive(Deserialize)]
struct StopDetails {
    #[serde(default, deserialize_with = "or_default")]
    category: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
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

/// The type that an event's data has, for gateways that drop the names of events.
pub(super) fn event_type(data: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Typed {
        r#type: Option<String>,
    }
    from_json::<Typed>(data).ok()?.r#type
}

/// `NaN` and `Infinity`, which Python writes, count as null.
pub(super) fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_str(text).or_else(|error| match without_nan(text) {
        Some(text) => serde_json::from_str(&text),
        None => Err(error),
    })
}

fn without_nan(text: &str) -> Option<String> {
    let (mut json, mut rest, mut found) = (String::new(), text, false);
    let (mut is_text, mut is_escaped) = (false, false);
    while let Some(c) = rest.chars().next() {
        let number = ["NaN", "-Infinity", "Infinity"].into_iter().find(|number| rest.starts_with(number));
        if let Some(number) = number.filter(|_| !is_text) {
            (rest, found) = (&rest[number.len()..], true);
            json.push_str("null");
            continue;
        }
        is_text ^= c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        json.push(c);
        rest = &rest[c.len_utf8()..];
    }
    found.then_some(json)
}

/// A value of another type, such as null, is the default: gateways send many.
fn or_default<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(deserializer)?).unwrap_or_default())
}

/// The API's error envelope, of an error answer or an `error` event.
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
    /// The error in a JSON object of any gateway.
    pub(super) fn within(data: &str) -> Option<ErrorObject> {
        if let Ok(object) = serde_json::from_str(data) {
            return Some(object);
        }
        let value: Value = from_json(data).ok()?;
        let (error, text) = (&value["error"], |value: &Value| Some(value.as_str()?.to_owned()));
        let message = match error {
            Value::String(message) if !message.is_empty() => message.clone(),
            Value::Object(members) => members.get("message").and_then(text).unwrap_or_else(|| error.to_string()),
            _ if value["type"] == "error" => text(&value["message"]).unwrap_or_else(|| value.to_string()),
            _ => return None,
        };
        let kind = text(&error["type"]).or_else(|| text(&error["code"])).unwrap_or_else(|| "an error".to_owned());
        let details = error.get("details").cloned().unwrap_or_default();
        Some(ErrorObject { error: ErrorBody { kind, message, details }, request_id: text(&value["request_id"]) })
    }

    pub(super) fn code(&self) -> Option<&str> {
        self.error.details.get("error_code")?.as_str()
    }
}
