//! What can go wrong with one call to Claude, and what it means for the job, the queue and the bill.
//!
//! The whole error table of the Messages API stands in [`CallError::class`], and nowhere else. This file
//! decides no delay and retries nothing: the queue does. Its table and the reading of `retry-after` follow
//! the behaviour of Anthropic's official SDKs.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, HeaderValue};

use super::{
    RateLimits,
    wire::{ErrorObject, Usage},
};

/// A `retry-after` longer than this counts as this: one header must not close the gate for a day, and
/// asking again once an hour costs nothing.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Longest message kept of an error answer, in characters: enough for any message of the API, too little for a
/// proxy's HTML page to flood a log line.
const MAX_MESSAGE_CHARS: usize = 500;

/// One call that gave no answer. Never holds the API key.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// What happened.
    pub kind: ErrorKind,
    /// The HTTP status, when there was an answer. 200 for a failure in the middle of a stream.
    pub status: Option<u16>,
    /// What failed, with what, in one line of bounded length.
    pub message: String,
    /// Anthropic's `request-id`, when one came.
    pub request_id: Option<String>,
    /// How long the server asked to wait: more than zero, at most [`MAX_RETRY_AFTER`].
    pub retry_after: Option<Duration>,
    /// The `x-should-retry` header, which overrules the table.
    pub should_retry: Option<bool>,
    /// Tokens reported before the failure, which are billed. Boxed to keep `Result`s small.
    pub usage: Option<Box<Usage>>,
    /// The part of the answer that came before the failure.
    pub text: Option<String>,
    /// The account's limits as the answer's headers tell them. Boxed to keep `Result`s small.
    pub rate_limits: Box<RateLimits>,
    /// Whether the call certainly produced nothing that is billed.
    pub(super) surely_unbilled: bool,
}

/// Every way in which a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// 400 and any other 4xx without a row of its own.
    InvalidRequest,
    /// 401: the key is missing, wrong or revoked.
    Authentication,
    /// 402: the account cannot pay.
    Billing,
    /// 403: the key may not do this.
    Permission,
    /// 404: the model is retired or unknown, or the base URL is wrong.
    NotFound,
    /// 408: the server gave up waiting for the request.
    RequestTimeout,
    /// 409.
    Conflict,
    /// 413: the request is too large.
    TooLarge,
    /// 429: the organization's rate limit.
    RateLimit,
    /// 429 with a spend limit's error code: nothing will be answered before it is raised or the month ends.
    SpendLimit,
    /// 500, 502, 503 and other 5xx.
    ApiError,
    /// 504.
    Timeout,
    /// 529: Claude as a whole is overloaded; it says nothing of our own limits.
    Overloaded,
    /// 3xx: the base URL is not where the API is. Redirects are not followed, as they would carry the key along.
    Redirect,
    /// No connection, so nothing was sent.
    ConnectFailed,
    /// The connection broke after the request was sent.
    ConnectionLost,
    /// No event and no ping for the idle timeout.
    Silent,
    /// The whole call took longer than the request timeout.
    TotalTimeout,
    /// The stream ended properly, but without `message_stop`.
    StreamCut,
    /// Something came that is not what the API promises.
    Malformed,
    /// An `error` event in the middle of the answer, of a type that tells no more than that.
    StreamError,
}

/// What the queue does about a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// Try this job again, after `retry_after` or a backoff.
    Retry,
    /// The organization's limit is reached: every worker waits for `retry_after`; no attempt is spent.
    RateLimited,
    /// Every job would fail alike until a person acts: hold the queue, loudly.
    Hold,
    /// This job will never succeed as it is.
    Terminal,
}

impl CallError {
    /// An error of this kind. `message` is brought to one line of bounded length.
    pub fn new(kind: ErrorKind, message: impl AsRef<str>) -> CallError {
        CallError {
            kind,
            status: None,
            message: one_line(message.as_ref()),
            request_id: None,
            retry_after: None,
            should_retry: None,
            usage: None,
            text: None,
            rate_limits: Box::default(),
            surely_unbilled: kind == ErrorKind::ConnectFailed,
        }
    }

    /// What the queue does about it: the error table, with `x-should-retry` overruling it.
    pub fn class(&self) -> ErrorClass {
        use ErrorClass::{Hold, RateLimited, Retry, Terminal};
        use ErrorKind as K;
        let table = match self.kind {
            K::InvalidRequest | K::TooLarge => Terminal,
            K::Authentication | K::Billing | K::Permission | K::NotFound => Hold,
            K::SpendLimit | K::Redirect => Hold,
            K::RateLimit => RateLimited,
            K::RequestTimeout | K::Conflict => Retry,
            K::ApiError | K::Timeout | K::Overloaded => Retry,
            K::ConnectFailed | K::ConnectionLost | K::Silent | K::TotalTimeout => Retry,
            K::StreamCut | K::StreamError | K::Malformed => Retry,
        };
        match (self.should_retry, table) {
            (Some(true), Terminal | Hold) => Retry,
            (Some(false), Retry | RateLimited) => Terminal,
            _ => table,
        }
    }

    /// Whether the answer says that `model` is what is wrong. Then it is the API's own: a gateway without the route, or
    /// a server at a wrong base URL, would not name the model.
    pub fn is_about(&self, model: &str) -> bool {
        self.message.contains(model)
    }

    /// Whether the call may have been billed although its outcome is unknown: it was sent, and no complete
    /// HTTP error answer of the API came back. A 5xx that is a gateway's own page (502, 504 and the like) counts
    /// as unknown too: the API behind it may have done the work.
    pub fn may_have_been_billed(&self) -> bool {
        !self.surely_unbilled
    }

    /// The error for an HTTP answer that is not a success. `body` need not be what the API would send.
    pub(super) fn of_answer(status: u16, headers: &HeaderMap, body: &[u8], now: SystemTime) -> CallError {
        let envelope = ErrorObject::parse(body);
        let code = envelope.as_ref().and_then(ErrorObject::code);
        let kind = ErrorKind::of_status(status, code);
        let said = match &envelope {
            Some(object) => format!("{}: {}", object.error.kind, object.error.message),
            None if body.is_empty() => "with an empty body".to_owned(),
            None => format!("with a body that is not the API's: {}", String::from_utf8_lossy(body)),
        };
        let advice = kind.advice();
        CallError {
            status: Some(status),
            request_id: envelope.as_ref().and_then(|object| object.request_id.clone()),
            retry_after: retry_after(headers, now),
            should_retry: match headers.get("x-should-retry").map(HeaderValue::as_bytes) {
                Some(b"true") => Some(true),
                Some(b"false") => Some(false),
                _ => None,
            },
            surely_unbilled: envelope.is_some() || !matches!(status, 500..=502 | 504..=528 | 530..),
            message: format!("{}{advice}", one_line(&format!("Claude answered {status} {said}"))),
            ..CallError::new(kind, "")
        }
    }

    /// The error for an `error` event in a stream that began with 200.
    pub(super) fn of_event(object: &ErrorObject) -> CallError {
        let kind = ErrorKind::of_type(&object.error.kind, object.code());
        let said = format!("Claude broke off its answer with {}: {}", object.error.kind, object.error.message);
        CallError { request_id: object.request_id.clone(), ..CallError::new(kind, said) }
    }
}

impl ErrorKind {
    fn of_status(status: u16, error_code: Option<&str>) -> ErrorKind {
        match status {
            300..=399 => ErrorKind::Redirect,
            401 => ErrorKind::Authentication,
            402 => ErrorKind::Billing,
            403 => ErrorKind::Permission,
            404 => ErrorKind::NotFound,
            408 => ErrorKind::RequestTimeout,
            409 => ErrorKind::Conflict,
            413 => ErrorKind::TooLarge,
            429 => ErrorKind::of_limit(error_code),
            400..=499 => ErrorKind::InvalidRequest,
            504 => ErrorKind::Timeout,
            529 => ErrorKind::Overloaded,
            500..=599 => ErrorKind::ApiError,
            _ => ErrorKind::Malformed,
        }
    }

    /// The kind of an `error` event. A type that means the same as an HTTP status is of that status's kind.
    fn of_type(error_type: &str, error_code: Option<&str>) -> ErrorKind {
        match error_type {
            "invalid_request_error" => ErrorKind::InvalidRequest,
            "authentication_error" => ErrorKind::Authentication,
            "billing_error" => ErrorKind::Billing,
            "permission_error" => ErrorKind::Permission,
            "not_found_error" => ErrorKind::NotFound,
            "conflict_error" => ErrorKind::Conflict,
            "request_too_large" => ErrorKind::TooLarge,
            "rate_limit_error" => ErrorKind::of_limit(error_code),
            "timeout_error" => ErrorKind::Timeout,
            "overloaded_error" => ErrorKind::Overloaded,
            // `api_error`; and an error type of tomorrow is the server's trouble until known better: worth another try.
            _ => ErrorKind::StreamError,
        }
    }

    fn of_limit(error_code: Option<&str>) -> ErrorKind {
        match error_code {
            Some("enforced_spend_limit_reached" | "contract_spend_limit_reached") => ErrorKind::SpendLimit,
            _ => ErrorKind::RateLimit,
        }
    }

    /// What a person can do about it, where a person must.
    fn advice(self) -> &'static str {
        match self {
            ErrorKind::Authentication => " (check the API key)",
            ErrorKind::Billing | ErrorKind::SpendLimit => " (check billing and limits in the Claude Console)",
            ErrorKind::Permission => " (check what the API key's workspace may use)",
            ErrorKind::NotFound => " (check the model's name, whether it is retired, and the base URL)",
            ErrorKind::Redirect => " (redirects are not followed: set the base URL to where the API is)",
            _ => "",
        }
    }
}

/// How long the server asks to wait: `retry-after-ms`, else `retry-after` in seconds or as an HTTP date. The
/// first that can be read decides; it counts only if more than zero, and at most [`MAX_RETRY_AFTER`].
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok();
    let number = |name| text(name)?.trim().parse::<f64>().ok();
    let date = || {
        let date = httpdate::parse_http_date(text("retry-after")?.trim()).ok()?;
        Some(date.duration_since(now).unwrap_or_default().as_secs_f64())
    };
    let seconds = number("retry-after-ms").map(|ms| ms / 1000.0).or_else(|| number("retry-after")).or_else(date)?;
    let bounded = seconds.min(MAX_RETRY_AFTER.as_secs_f64());
    Duration::try_from_secs_f64(bounded).ok().filter(|wait| !seconds.is_nan() && !wait.is_zero())
}

/// `text` on one line, cut to [`MAX_MESSAGE_CHARS`]. Control characters cannot forge log lines.
fn one_line(text: &str) -> String {
    let words: Vec<_> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    let mut line = words.join(" ");
    if let Some((end, _)) = line.char_indices().nth(MAX_MESSAGE_CHARS) {
        line.truncate(end);
        line.push('…');
    }
    line
}
