//! What can go wrong with one call to Claude, and whom it concerns.
//!
//! [`TABLE`] finds the kind of an error answer by its status, error type, error code and message. [`ErrorKind::concern`] says
//! whom a kind concerns. Nothing else in the service looks at a status or a message. The table and `retry-after` follow
//! Anthropic's official SDKs.

use std::{
    error::Error,
    ops::RangeInclusive,
    time::{Duration, SystemTime},
};

use Sign::{Code, Message, Status, Type};
use reqwest::header::{HeaderMap, HeaderValue};

use super::{
    message::{LEAST_MAX_TOKENS, Usage},
    wire::ErrorObject,
};
use crate::clock;

/// Longer ones count as this: one header must not close the gate for a day.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Shorter ones count as this: a job must not be tried many times a second.
pub const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

pub const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);

/// In characters: enough for any message of the API, and no flood of a proxy's HTML page.
const MAX_MESSAGE_CHARS: usize = 500;

/// Most bytes read of an error answer's body: a proxy's HTML page need not be read whole.
pub const MAX_ERROR_BODY_BYTES: usize = 64 << 10;

const ANY: RangeInclusive<u16> = 0..=999;

/// Statuses that say less than the error type beside them; 200 is an `error` event.
const VAGUE: [u16; 3] = [200, 400, 500];

enum Sign {
    /// `error.details.error_code`.
    Code(&'static str),
    /// Found anywhere in the message, in small letters.
    Message(RangeInclusive<u16>, &'static str),
    Status(RangeInclusive<u16>),
    /// Where the status is [`VAGUE`].
    Type(&'static str),
}

/// The first row that matches counts. Codes and messages come first, as some faults of the account come with a 400.
const TABLE: [(Sign, ErrorKind); 66] = [
    (Code("organization_on_hold"), ErrorKind::OnHold),
    (Code("cmek_key_disabled"), ErrorKind::OnHold),
    (Code("cmek_key_network_blocked"), ErrorKind::OnHold),
    (Code("sandbox_egress_restricted"), ErrorKind::OnHold),
    (Code("organization_type_not_supported"), ErrorKind::OnHold),
    (Code("cmek_key_unreachable"), ErrorKind::ApiError),
    (Code("cmek_context_unavailable"), ErrorKind::ApiError),
    (Code("enforced_spend_limit_reached"), ErrorKind::Billing),
    (Code("contract_spend_limit_reached"), ErrorKind::Billing),
    (Code("linked_organization_spend_limit_reached"), ErrorKind::Billing),
    (Code("linked_organization_billing_unavailable"), ErrorKind::Billing),
    (Code("user_profile_billing_not_authorized"), ErrorKind::Billing),
    (Code("user_profile_not_billable"), ErrorKind::Billing),
    (Code("ramp_limit_exceeded"), ErrorKind::RateLimit),
    // At any status: gateways wrap them, also in a 500 or in an answer with 200.
    (Message(ANY, "credit balance is too low"), ErrorKind::Billing),
    (Message(ANY, "insufficient credits"), ErrorKind::Billing),
    (Message(ANY, "reached your specified api usage limits"), ErrorKind::Billing),
    (Message(ANY, "workspace api usage limits"), ErrorKind::Billing),
    (Message(ANY, "budget has been exceeded"), ErrorKind::Billing),
    (Message(ANY, "exceeded your current quota"), ErrorKind::Billing),
    (Message(ANY, "organization has been disabled"), ErrorKind::OnHold),
    (Message(ANY, "account has been disabled"), ErrorKind::OnHold),
    (Message(ANY, "workspace has been archived"), ErrorKind::OnHold),
    (Message(400..=422, "api key not valid"), ErrorKind::Authentication),
    (Message(400..=422, "no api key passed"), ErrorKind::Authentication),
    (Message(400..=422, "model identifier is invalid"), ErrorKind::NotFound),
    (Message(400..=422, "on-demand throughput"), ErrorKind::NotFound),
    (Message(400..=422, "blocked by content filtering policy"), ErrorKind::Filtered),
    (Message(400..=422, "prompt is too long"), ErrorKind::TooLarge),
    (Message(400..=422, "exceed context limit"), ErrorKind::TooLarge),
    (Message(400..=422, "maximum context length"), ErrorKind::TooLarge),
    (Status(300..=399), ErrorKind::Redirect),
    (Status(401..=401), ErrorKind::Authentication),
    (Status(402..=402), ErrorKind::Billing),
    (Status(403..=403), ErrorKind::Permission),
    (Status(404..=404), ErrorKind::NotFound),
    (Status(407..=407), ErrorKind::ProxyAuth),
    (Status(408..=408), ErrorKind::Timeout),
    (Status(409..=409), ErrorKind::ApiError),
    (Status(410..=410), ErrorKind::NotFound),
    (Status(413..=413), ErrorKind::TooLarge),
    (Status(425..=425), ErrorKind::ApiError),
    (Status(429..=429), ErrorKind::RateLimit),
    (Status(504..=504), ErrorKind::Timeout),
    (Status(529..=529), ErrorKind::Overloaded),
    (Type("authentication_error"), ErrorKind::Authentication),
    (Type("billing_error"), ErrorKind::Billing),
    (Type("permission_error"), ErrorKind::Permission),
    (Type("not_found_error"), ErrorKind::NotFound),
    (Type("conflict_error"), ErrorKind::ApiError),
    (Type("request_too_large"), ErrorKind::TooLarge),
    (Type("rate_limit_error"), ErrorKind::RateLimit),
    (Type("timeout_error"), ErrorKind::Timeout),
    (Type("overloaded_error"), ErrorKind::Overloaded),
    (Message(400..=422, "effort"), ErrorKind::Parameter(Parameter::Effort)),
    (Message(400..=422, "output_config.format"), ErrorKind::Parameter(Parameter::Format)),
    (Message(400..=422, "schema"), ErrorKind::Parameter(Parameter::Format)),
    (Message(400..=422, "structured output"), ErrorKind::Parameter(Parameter::Format)),
    (Message(400..=422, "output_config"), ErrorKind::Parameter(Parameter::OutputConfig)),
    (Message(400..=422, "cache_control"), ErrorKind::Parameter(Parameter::CacheControl)),
    (Message(400..=422, "system: input should be a valid string"), ErrorKind::Parameter(Parameter::CacheControl)),
    (Message(400..=422, "thinking"), ErrorKind::Parameter(Parameter::Thinking)),
    (Message(400..=422, "max_tokens"), ErrorKind::Parameter(Parameter::MaxTokens)),
    (Status(400..=499), ErrorKind::InvalidRequest),
    (Status(500..=599), ErrorKind::ApiError),
    (Type("invalid_request_error"), ErrorKind::InvalidRequest),
];

/// An answer with one of these is the API's own, and not the page of a firewall or gateway.
const OWN_TYPES: &str = "invalid_request_error authentication_error billing_error permission_error not_found_error \
    request_too_large rate_limit_error timeout_error api_error overloaded_error conflict_error \
    memory_precondition_failed_error memory_path_conflict_error";

/// A message refuses the parameter that it names only if it has one of these.
const REFUSING: &str = "support|permitted|allowed|invalid|unknown|unexpected|unrecognized|not recognised|input should be|\
    maximum|too complex|too large|must be|cannot|can't|disabled|greater than|does not match";

/// A failed call. Never holds the API key.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    pub kind: ErrorKind,
    /// The HTTP status, when there was an answer. 200 for a failure in the middle of a stream.
    pub status: Option<u16>,
    pub message: String,
    pub request_id: Option<String>,
    /// How long the server asked to wait: from [`MIN_RETRY_AFTER`] to [`MAX_RETRY_AFTER`].
    pub retry_after: Option<Duration>,
    /// The `x-should-retry` header, which overrules the table.
    pub should_retry: Option<bool>,
    /// Tokens reported before the failure, which are billed. Boxed to keep `Result`s small.
    pub usage: Option<Box<Usage>>,
    pub text: Option<String>,
    /// The API's own error. Otherwise it may be a firewall's or gateway's page, which may concern one question or all.
    pub is_certain: bool,
    /// Whether the call certainly produced nothing that is billed.
    pub(super) surely_unbilled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// 400 and any other 4xx without a row of its own.
    InvalidRequest,
    Parameter(Parameter),
    Filtered,
    Authentication,
    /// 402, 400 without credit, or a spend limit: nothing is answered until it is raised or the month ends.
    Billing,
    OnHold,
    Permission,
    /// 404: the model is retired or unknown, or the base URL is wrong.
    NotFound,
    ProxyAuth,
    TooLarge,
    RateLimit,
    ApiError,
    Timeout,
    /// 529: Claude as a whole is overloaded; it says nothing of our own limits.
    Overloaded,
    /// 3xx: the base URL is not where the API is. Redirects are not followed, as they would carry the key along.
    Redirect,
    /// No connection, so nothing was sent.
    ConnectFailed,
    ConnectionLost,
    Silent,
    TotalTimeout,
    StreamCut,
    Malformed,
    /// A web page or other text came with 200: the base URL is wrong, or a firewall blocked the question.
    Page,
    /// An `error` event in the middle of the answer, of a type that tells no more than that.
    StreamError,
}

/// A parameter of a call that no question asks for: the service adds it, so it can leave it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::Display, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Parameter {
    Effort,
    /// `output_config.format`: structured output.
    Format,
    /// `output_config` as a whole.
    OutputConfig,
    Thinking,
    MaxTokens,
    CacheControl,
}

/// Whom a failed call concerns, and so which other calls would fail alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Concern {
    /// Nobody: it passes, and another try may be answered.
    Passing,
    /// The account's limit for the model, for a while.
    Limit,
    /// Every call, until a person acts: the key, the account, the base URL, the proxy.
    Account,
    Model,
    Parameter(Parameter),
    /// The question, of this model: another may answer.
    Declined,
    Question,
}

impl CallError {
    pub fn new(kind: ErrorKind, message: impl AsRef<str>) -> CallError {
        CallError {
            kind,
            status: None,
            message: one_line(message.as_ref(), MAX_MESSAGE_CHARS),
            request_id: None,
            retry_after: None,
            should_retry: None,
            usage: None,
            text: None,
            is_certain: kind == ErrorKind::ProxyAuth,
            surely_unbilled: matches!(kind, ErrorKind::ConnectFailed | ErrorKind::ProxyAuth | ErrorKind::Page),
        }
    }

    /// Whom it concerns; `x-should-retry` overrules the table where it speaks of the call alone.
    pub fn concern(&self) -> Concern {
        match (self.should_retry, self.kind.concern()) {
            (Some(true), Concern::Question | Concern::Declined) => Concern::Passing,
            (Some(false), Concern::Passing | Concern::Limit) => Concern::Question,
            (_, concern) => concern,
        }
    }

    /// The largest `max_tokens` below `sent` that the message names: the model's limit.
    pub fn max_tokens_named(&self, sent: u32) -> Option<u32> {
        let numbers = self.message.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok());
        numbers.filter(|number| (LEAST_MAX_TOKENS..sent).contains(number)).max()
    }

    /// Whether the message names `model`. A gateway without the route, or a server at a wrong base URL, would not.
    pub fn is_about(&self, model: &str) -> bool {
        self.message.contains(model)
    }

    /// It was sent, and no error of the API came back. Behind a gateway's own 5xx page the API may have done the work.
    pub fn may_have_been_billed(&self) -> bool {
        !self.surely_unbilled
    }

    pub(super) fn from_answer(status: u16, headers: &HeaderMap, body: &[u8], now: SystemTime) -> CallError {
        let envelope: Option<ErrorObject> = serde_json::from_slice(body).ok();
        let (kind, is_certain) = classify(status, envelope.as_ref(), body);
        let said = match &envelope {
            Some(object) => format!("{}: {}", object.error.kind, object.error.message),
            None if body.is_empty() => "with an empty body".to_owned(),
            None => format!("with a body that is not the API's: {}", String::from_utf8_lossy(body)),
        };
        let advice = kind.advice();
        let wait = retry_after(headers, now).or_else(|| reset_after(headers, now).filter(|_| status == 429));
        CallError {
            status: Some(status),
            request_id: envelope.as_ref().and_then(|object| object.request_id.clone()),
            retry_after: wait.map(|wait| wait.clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER)),
            should_retry: match headers.get("x-should-retry").map(HeaderValue::as_bytes) {
                Some(value) if value.eq_ignore_ascii_case(b"true") => Some(true),
                Some(value) if value.eq_ignore_ascii_case(b"false") => Some(false),
                _ => None,
            },
            surely_unbilled: envelope.is_some() || !matches!(status, 500..=502 | 504..=528 | 530..),
            message: format!("{}{advice}", one_line(&format!("Claude answered {status} {said}"), MAX_MESSAGE_CHARS)),
            is_certain,
            ..CallError::new(kind, "")
        }
    }

    pub(super) fn from_event(object: &ErrorObject) -> CallError {
        let (kind, is_certain) = classify(200, Some(object), &[]);
        let said = format!("Claude broke off its answer with {}: {}", object.error.kind, object.error.message);
        CallError { request_id: object.request_id.clone(), is_certain, ..CallError::new(kind, said) }
    }
}

/// The kind by the table, and whether it is certain.
fn classify(status: u16, envelope: Option<&ErrorObject>, body: &[u8]) -> (ErrorKind, bool) {
    let error_type = envelope.map_or("", |object| object.error.kind.as_str());
    let code = envelope.and_then(ErrorObject::code);
    let message = match envelope {
        Some(object) => object.error.message.to_lowercase(),
        // Other JSON, as of a gateway, is searched as a whole. A page is not, as it may repeat the question.
        None if body.first() == Some(&b'{') => String::from_utf8_lossy(body).to_lowercase(),
        None => String::new(),
    };
    let refuses = || REFUSING.split('|').any(|words| message.contains(words));
    let is_met = |(sign, kind): &&(Sign, ErrorKind)| match sign {
        Code(known) => code == Some(*known),
        Message(statuses, words) => {
            let is_parameter = matches!(kind, ErrorKind::Parameter(_));
            statuses.contains(&status) && message.contains(words) && (!is_parameter || refuses())
        }
        Status(statuses) => statuses.contains(&status),
        Type(known) => error_type == *known && VAGUE.contains(&status),
    };
    let is_own = OWN_TYPES.split(' ').any(|own| own == error_type);
    match TABLE.iter().find(is_met) {
        Some((sign, kind)) => {
            let is_named = matches!(sign, Code(_) | Message(..)) || *kind == ErrorKind::ProxyAuth;
            (*kind, is_own || is_named)
        }
        None if status == 200 => (ErrorKind::StreamError, is_own),
        None => (ErrorKind::Malformed, is_own),
    }
}

impl ErrorKind {
    pub fn concern(self) -> Concern {
        match self {
            ErrorKind::InvalidRequest | ErrorKind::TooLarge => Concern::Question,
            ErrorKind::Filtered => Concern::Declined,
            ErrorKind::Parameter(parameter) => Concern::Parameter(parameter),
            ErrorKind::Permission | ErrorKind::NotFound => Concern::Model,
            ErrorKind::Authentication
            | ErrorKind::Billing
            | ErrorKind::OnHold
            | ErrorKind::ProxyAuth
            | ErrorKind::Redirect
            | ErrorKind::Page => Concern::Account,
            ErrorKind::RateLimit => Concern::Limit,
            ErrorKind::ApiError
            | ErrorKind::Timeout
            | ErrorKind::Overloaded
            | ErrorKind::ConnectFailed
            | ErrorKind::ConnectionLost
            | ErrorKind::Silent
            | ErrorKind::TotalTimeout
            | ErrorKind::StreamCut
            | ErrorKind::StreamError
            | ErrorKind::Malformed => Concern::Passing,
        }
    }

    fn advice(self) -> &'static str {
        match self {
            ErrorKind::Authentication => " (check the API key)",
            ErrorKind::Billing => " (check billing and limits in the Claude Console)",
            ErrorKind::OnHold => " (check the organization's status in the Claude Console)",
            ErrorKind::Permission => " (check what the API key's workspace may use)",
            ErrorKind::NotFound => " (check the model's name, whether it is retired, and the base URL)",
            ErrorKind::ProxyAuth => " (put the proxy's user name and password into HTTPS_PROXY or HTTP_PROXY)",
            ErrorKind::Redirect => " (redirects are not followed: set the base URL to where the API is)",
            _ => "",
        }
    }
}

/// `retry-after-ms`, else `retry-after` in seconds or as a date: the first that can be read and is more than zero.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let wait = |name| clock::retry_after(headers.get(name)?.to_str().ok()?, now).filter(|wait| !wait.is_zero());
    wait("retry-after-ms").map(|wait| wait / 1_000).or_else(|| wait("retry-after"))
}

/// How long until the limits that are used up have room again, by the `anthropic-ratelimit-*` headers.
fn reset_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str, what| headers.get(format!("anthropic-ratelimit-{name}-{what}"))?.to_str().ok();
    let resets = ["requests", "tokens", "input-tokens", "output-tokens"].into_iter().filter_map(|name| {
        let has_room = text(name, "remaining").is_some_and(|count| count.parse::<u64>().is_ok_and(|count| count > 0));
        let at: SystemTime = text(name, "reset").filter(|_| !has_room)?.parse::<jiff::Timestamp>().ok()?.into();
        at.duration_since(now).ok()
    });
    resets.max().filter(|wait| !wait.is_zero())
}

/// The error and its causes, the outermost first.
pub(super) fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The root of a failure in words, without the URLs of the outer errors.
pub(super) fn cause(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

/// `text` on one line, cut after `limit` characters. Control characters can't forge log lines.
pub(super) fn one_line(text: &str, limit: usize) -> String {
    let words: Vec<_> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    let mut line = words.join(" ");
    if let Some((end, _)) = line.char_indices().nth(limit) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests;
