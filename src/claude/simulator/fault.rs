//! What goes wrong with a call on purpose.

use std::time::Duration;

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::claude::message::Usage;

#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// A usual answer: takes this place in the script.
    Normal,
    Error(ErrorAnswer),
    /// The stream ends properly after so many events.
    CutAfter(usize),
    CutBeforeLast,
    CutBeforeStop,
    /// One JSON message comes instead of a stream, as from a gateway that can't stream.
    Unstreamed,
    DropAfter(usize),
    StallAfter(usize),
    /// The whole stream comes in pieces of so many bytes, with a pause after each.
    SlowBytes {
        bytes: usize,
        pause: Duration,
    },
    Malformed,
    ErrorEvent(String),
    /// The model declines before any output, which is not billed though its usage is shown.
    Refusal,
    MaxTokens,
    Stop(String),
    StopAtHalf(String),
    ThinkingFirst,
    Answer(String),
    Usage(Usage),
    Takes(Duration),
    /// The connection is closed with no answer at all; nothing is billed.
    CloseBeforeAnswer,
    /// The call is parked until [`release`](super::Simulator::release), then answered as usual.
    Hold,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct ErrorAnswer {
    pub(super) status: u16,
    error_type: &'static str,
    message: String,
    error_code: Option<String>,
    headers: Vec<(String, String)>,
    html: Option<String>,
}

impl ErrorAnswer {
    pub fn status(status: u16) -> ErrorAnswer {
        let error_type = match status {
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            409 => "conflict_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            408 | 504 => "timeout_error",
            529 => "overloaded_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        ErrorAnswer {
            status,
            error_type,
            message: format!("simulated {status}"),
            error_code: None,
            headers: Vec::new(),
            html: None,
        }
    }

    pub fn message(self, message: impl Into<String>) -> ErrorAnswer {
        ErrorAnswer { message: message.into(), ..self }
    }

    pub fn error_code(self, code: impl Into<String>) -> ErrorAnswer {
        ErrorAnswer { error_code: Some(code.into()), ..self }
    }

    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> ErrorAnswer {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn html(self, page: impl Into<String>) -> ErrorAnswer {
        ErrorAnswer { html: Some(page.into()), ..self }
    }

    pub(super) fn response(self, request_id: &str) -> Response {
        let (content_type, body) = match self.html {
            Some(page) => ("text/html", page),
            None => {
                let code = self.error_code.as_deref();
                ("application/json", error_body(self.error_type, &self.message, code, request_id).to_string())
            }
        };
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = [("content-type", content_type), ("request-id", request_id)];
        let mut response = (status, headers, body).into_response();
        for (name, value) in &self.headers {
            put(response.headers_mut(), name, value);
        }
        response
    }
}

impl From<ErrorAnswer> for Fault {
    fn from(answer: ErrorAnswer) -> Fault {
        Fault::Error(answer)
    }
}

pub(super) fn error_body(error_type: &str, message: &str, error_code: Option<&str>, request_id: &str) -> Value {
    let mut body = json!({
        "type": "error", "request_id": request_id, "error": {"type": error_type, "message": message},
    });
    if let Some(code) = error_code {
        body["error"]["details"] = json!({"error_code": code});
    }
    body
}

pub(super) fn put(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
        headers.insert(name, value);
    }
}
