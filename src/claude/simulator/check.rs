//! What the simulator checks in a request, as the API would: key, version, fields, model, schema.

use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json, value::RawValue};

use super::fault::ErrorAnswer;
use crate::claude::message::CacheTtl;

/// Over this many `max_tokens` the API wants a request to stream.
const MAX_TOKENS_UNSTREAMED: u64 = 21_333;

const UNSUPPORTED_KEYWORDS: [&str; 7] =
    ["minimum", "maximum", "minLength", "maxLength", "maxItems", "multipleOf", "$schema"];

const EFFORTS: [&str; 5] = ["low", "medium", "high", "xhigh", "max"];

/// As `GET /v1/models` has them, the retired one too.
static MODELS: LazyLock<Vec<Value>> =
    LazyLock::new(|| serde_json::from_str(include_str!("models.json")).expect("the models are part of this program"));

pub(super) struct Asked {
    pub(super) model: String,
    pub(super) max_tokens: u64,
    pub(super) stream: bool,
    pub(super) system: Option<(String, CacheTtl)>,
    /// All messages' text; the last is the user's.
    pub(super) prompt: String,
    pub(super) schema_bytes: usize,
    pub(super) effort: Option<String>,
    pub(super) thinking: Option<String>,
}

/// Every field of the API; others are rejected.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "known fields that make no difference here")]
struct Body<'a> {
    model: Option<String>,
    max_tokens: Option<i64>,
    messages: Option<Vec<Turn>>,
    stream: Option<bool>,
    system: Option<Content>,
    #[serde(borrow)]
    output_config: Option<OutputConfig<'a>>,
    temperature: Option<IgnoredAny>,
    top_p: Option<IgnoredAny>,
    top_k: Option<IgnoredAny>,
    tool_choice: Option<Typed>,
    tools: Option<IgnoredAny>,
    thinking: Option<Typed>,
    metadata: Option<IgnoredAny>,
    service_tier: Option<IgnoredAny>,
    stop_sequences: Option<IgnoredAny>,
    cache_control: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: Content,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Blocks(Vec<Block>),
}

#[derive(Deserialize)]
struct Block {
    #[serde(default)]
    text: String,
    cache_control: Option<CacheControl>,
}

#[derive(Deserialize)]
struct CacheControl {
    ttl: Option<String>,
}

#[derive(Deserialize)]
struct OutputConfig<'a> {
    effort: Option<String>,
    #[serde(borrow)]
    format: Option<Format<'a>>,
}

#[derive(Deserialize)]
struct Format<'a> {
    r#type: String,
    #[serde(borrow)]
    schema: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Typed {
    r#type: String,
}

impl Content {
    fn is_blank(&self) -> bool {
        match self {
            Content::Text(text) => text.trim().is_empty(),
            Content::Blocks(blocks) => blocks.iter().all(|block| block.text.trim().is_empty()),
        }
    }

    fn text(self) -> (String, CacheTtl) {
        match self {
            Content::Text(text) => (text, CacheTtl::Off),
            Content::Blocks(blocks) => {
                let cached = match blocks.iter().find_map(|block| block.cache_control.as_ref()) {
                    None => CacheTtl::Off,
                    Some(control) if control.ttl.as_deref() == Some("1h") => CacheTtl::OneHour,
                    Some(_) => CacheTtl::FiveMinutes,
                };
                (blocks.into_iter().map(|block| block.text).collect::<Vec<_>>().join("\n"), cached)
            }
        }
    }
}

/// The key may come as `x-api-key`, or as a bearer token, as Anthropic's SDKs send it.
pub(super) fn headers(headers: &HeaderMap, key: Option<&SecretString>) -> Result<(), ErrorAnswer> {
    let bearer = || headers.get("authorization")?.as_bytes().strip_prefix(b"Bearer ");
    let given = headers.get("x-api-key").map(HeaderValue::as_bytes).or_else(bearer);
    let unauthorized = |message| ErrorAnswer::status(401).message(message);
    let given = given.ok_or_else(|| unauthorized("x-api-key header is required"))?;
    if key.is_some_and(|key| given != key.expose_secret().as_bytes()) {
        return Err(unauthorized("invalid x-api-key"));
    }
    if !headers.contains_key("anthropic-version") {
        return Err(invalid("anthropic-version: header is required"));
    }
    Ok(())
}

/// `good_schema` is the last good schema: callers send the same one over and over. A request that is only to be counted needs
/// no `max_tokens`.
pub(super) fn body(bytes: &[u8], good_schema: &Mutex<String>, is_to_count: bool) -> Result<Asked, ErrorAnswer> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let body: Body<'_> = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| invalid(format!("{}: {}", error.path(), error.inner())))?;
    let model = body.model.ok_or_else(|| required("model"))?;
    let max_tokens = if is_to_count { Some(1) } else { body.max_tokens };
    let max_tokens = max_tokens.ok_or_else(|| required("max_tokens"))?;
    let messages = body.messages.ok_or_else(|| required("messages"))?;
    let max_tokens = u64::try_from(max_tokens).ok().filter(|max| *max > 0);
    let max_tokens = max_tokens.ok_or_else(|| invalid("max_tokens: Input should be greater than or equal to 1"))?;
    check_messages(&messages)?;
    let sampling = [("temperature", body.temperature), ("top_p", body.top_p), ("top_k", body.top_k)];
    if let Some((name, _)) = sampling.iter().find(|(_, value)| value.is_some()) {
        return Err(invalid(format!("{name}: sampling parameters are not supported on this model")));
    }
    if body.tool_choice.is_some_and(|choice| matches!(choice.r#type.as_str(), "any" | "tool")) {
        return Err(invalid("tool_choice: forced tool use is not supported on this model"));
    }
    let stream = body.stream.unwrap_or(false);
    if !stream && max_tokens > MAX_TOKENS_UNSTREAMED {
        return Err(invalid(format!("max_tokens: over {MAX_TOKENS_UNSTREAMED} a request must stream")));
    }
    let (effort, format) = body.output_config.map_or((None, None), |config| (config.effort, config.format));
    let thinking = body.thinking.map(|thinking| thinking.r#type);
    check_thinking(effort.as_deref(), thinking.as_deref())?;
    let schema_bytes = format.map_or(Ok(0), |format| check_format(&format, good_schema))?;
    self::model(&model).ok().filter(|known| known["lifecycle"] != "retired").ok_or_else(|| no_model(&model))?;
    let prompt: Vec<_> = messages.into_iter().map(|message| message.content.text().0).collect();
    Ok(Asked {
        model,
        max_tokens,
        stream,
        system: body.system.map(Content::text),
        prompt: prompt.join("\n"),
        schema_bytes,
        effort,
        thinking,
    })
}

fn check_messages(messages: &[Turn]) -> Result<(), ErrorAnswer> {
    match messages.last().map(|message| message.role.as_str()) {
        None => return Err(invalid("messages: at least one message is required")),
        Some("assistant") => return Err(invalid("messages: this model does not support assistant message prefill")),
        Some("user") => {}
        Some(role) => return Err(invalid(format!("messages: unexpected role \"{role}\""))),
    }
    if messages.iter().any(|message| message.content.is_blank()) {
        return Err(invalid("messages: text content blocks must be non-empty"));
    }
    Ok(())
}

fn check_thinking(effort: Option<&str>, thinking: Option<&str>) -> Result<(), ErrorAnswer> {
    if effort.is_some_and(|effort| !EFFORTS.contains(&effort)) {
        return Err(invalid(format!("output_config.effort: Input should be one of {}", EFFORTS.join(", "))));
    }
    match (thinking, effort) {
        (Some("disabled"), _) => Err(invalid("thinking.type: 'disabled' is not supported on this model")),
        (Some("between_tools"), Some("xhigh" | "max")) => {
            Err(invalid("thinking.type: 'between_tools' needs an effort of at most high"))
        }
        _ => Ok(()),
    }
}

fn check_format(format: &Format<'_>, good_schema: &Mutex<String>) -> Result<usize, ErrorAnswer> {
    if format.r#type != "json_schema" {
        return Err(invalid("output_config.format.type: Input should be 'json_schema'"));
    }
    let raw = format.schema.ok_or_else(|| required("output_config.format.schema"))?.get();
    let mut good = good_schema.lock();
    if *good != raw {
        check_schema(&serde_json::from_str(raw).map_err(|error| invalid(error.to_string()))?)?;
        raw.clone_into(&mut good);
    }
    Ok(raw.len())
}

pub(super) fn models() -> Value {
    let [first, last] = [MODELS.first(), MODELS.last()].map(|model| model.map(|model| &model["id"]));
    json!({ "data": *MODELS, "has_more": false, "first_id": first, "last_id": last })
}

pub(super) fn model(id: &str) -> Result<Value, ErrorAnswer> {
    MODELS.iter().find(|known| known["id"] == id).cloned().ok_or_else(|| no_model(id))
}

fn no_model(id: &str) -> ErrorAnswer {
    ErrorAnswer::status(404).message(format!("model: {id}"))
}

fn check_schema(schema: &Value) -> Result<(), ErrorAnswer> {
    let wrong = |what: String| Err(invalid(format!("output_config.format.schema: {what}")));
    match schema {
        Value::Object(members) => {
            if let Some(keyword) = UNSUPPORTED_KEYWORDS.iter().find(|keyword| members.contains_key(**keyword)) {
                return wrong(format!("keyword '{keyword}' is not supported"));
            }
            let is_object = members.get("type").is_some_and(|kind| kind == "object");
            if is_object && members.get("additionalProperties") != Some(&Value::Bool(false)) {
                return wrong("for 'object' type, 'additionalProperties' must be explicitly false".to_owned());
            }
            if members.get("minItems").is_some_and(|count| count.as_u64() > Some(1)) {
                return wrong("'minItems' may only be 0 or 1".to_owned());
            }
            members.values().try_for_each(check_schema)
        }
        Value::Array(items) => items.iter().try_for_each(check_schema),
        _ => Ok(()),
    }
}

fn required(field: &str) -> ErrorAnswer {
    invalid(format!("{field}: Field required"))
}

fn invalid(message: impl Into<String>) -> ErrorAnswer {
    ErrorAnswer::status(400).message(message)
}
