//! The error table, row by row: every error class of the official SDKs that a Messages call can meet, the codes and
//! messages that say more than their status, and what gateways make of them.

use serde_json::json;

use super::{Concern as C, ErrorKind as K, Parameter as P, *};

/// The error for an answer with this body.
fn answer(status: u16, body: &str, headers: &[(&'static str, &str)]) -> CallError {
    let headers = headers
        .iter()
        .map(|(name, value)| (reqwest::header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
    CallError::from_answer(status, &headers.collect(), body.as_bytes(), SystemTime::UNIX_EPOCH)
}

/// The API's own envelope.
fn envelope(error_type: &str, code: &str, message: &str) -> String {
    let mut body = json!({"type": "error", "error": {"type": error_type, "message": message}, "request_id": "req_1"});
    if !code.is_empty() {
        body["error"]["details"] = json!({ "error_code": code });
    }
    body.to_string()
}

const INVALID: &str = "invalid_request_error";

/// Status, error type, error code, message → kind, whom it concerns.
const ROWS: [(u16, &str, &str, &str, ErrorKind, Concern); 69] = [
    // The classes of the SDK, by status.
    (400, INVALID, "", "messages: at least one message is required", K::InvalidRequest, C::Question),
    (401, "authentication_error", "", "invalid x-api-key", K::Authentication, C::Account),
    (402, "billing_error", "", "payment required", K::Billing, C::Account),
    (403, "permission_error", "", "not allowed", K::Permission, C::Model),
    (404, "not_found_error", "", "model: claude-no-such", K::NotFound, C::Model),
    (408, "timeout_error", "", "timed out", K::Timeout, C::Passing),
    (409, "conflict_error", "", "conflict", K::ApiError, C::Passing),
    (412, INVALID, "", "precondition failed", K::InvalidRequest, C::Question),
    (413, "request_too_large", "", "too large", K::TooLarge, C::Question),
    (413, INVALID, "request_body_too_large_after_decoding", "too large", K::TooLarge, C::Question),
    (422, INVALID, "", "unprocessable", K::InvalidRequest, C::Question),
    (429, "rate_limit_error", "", "slow down", K::RateLimit, C::Limit),
    (431, INVALID, "", "header fields too large", K::InvalidRequest, C::Question),
    (499, INVALID, "", "client closed request", K::InvalidRequest, C::Question),
    (500, "api_error", "", "internal", K::ApiError, C::Passing),
    (501, "api_error", "", "not implemented", K::ApiError, C::Passing),
    (502, "api_error", "", "bad gateway", K::ApiError, C::Passing),
    (503, "api_error", "", "unavailable", K::ApiError, C::Passing),
    (504, "timeout_error", "", "timed out", K::Timeout, C::Passing),
    (529, "overloaded_error", "", "Overloaded", K::Overloaded, C::Passing),
    (302, "api_error", "", "elsewhere", K::Redirect, C::Account),
    (407, "api_error", "", "who are you", K::ProxyAuth, C::Account),
    (999, "api_error", "", "what", K::Malformed, C::Passing),
    // Types that say more than a vague status.
    (400, "billing_error", "", "pay", K::Billing, C::Account),
    (400, "authentication_error", "", "key", K::Authentication, C::Account),
    (400, "permission_error", "", "no", K::Permission, C::Model),
    (400, "not_found_error", "", "none", K::NotFound, C::Model),
    (400, "rate_limit_error", "", "slow", K::RateLimit, C::Limit),
    (400, "request_too_large", "", "big", K::TooLarge, C::Question),
    (500, "overloaded_error", "", "busy", K::Overloaded, C::Passing),
    (500, "timeout_error", "", "late", K::Timeout, C::Passing),
    (500, "error_of_tomorrow", "", "odd", K::ApiError, C::Passing),
    // 400s that are not the question's.
    (400, INVALID, "", "Your credit balance is too low to access the Claude API.", K::Billing, C::Account),
    (
        400,
        INVALID,
        "",
        "You have reached your specified API usage limits. You will regain access on 2026-12-01.",
        K::Billing,
        C::Account,
    ),
    (400, INVALID, "", "You have reached your specified workspace API usage limits.", K::Billing, C::Account),
    (400, INVALID, "organization_on_hold", "on hold", K::OnHold, C::Account),
    (400, INVALID, "cmek_key_disabled", "disabled", K::OnHold, C::Account),
    (400, INVALID, "cmek_key_network_blocked", "blocked", K::OnHold, C::Account),
    (400, INVALID, "", "This organization has been disabled.", K::OnHold, C::Account),
    (403, "permission_error", "organization_on_hold", "on hold", K::OnHold, C::Account),
    (403, "permission_error", "sandbox_egress_restricted", "sandbox", K::OnHold, C::Account),
    (403, "permission_error", "organization_type_not_supported", "type", K::OnHold, C::Account),
    (400, INVALID, "linked_organization_billing_unavailable", "pay", K::Billing, C::Account),
    (400, INVALID, "linked_organization_spend_limit_reached", "pay", K::Billing, C::Account),
    (403, "permission_error", "user_profile_billing_not_authorized", "pay", K::Billing, C::Account),
    (403, "permission_error", "user_profile_not_billable", "pay", K::Billing, C::Account),
    (400, INVALID, "cmek_key_unreachable", "retry", K::ApiError, C::Passing),
    (500, "api_error", "cmek_context_unavailable", "retry", K::ApiError, C::Passing),
    (429, "rate_limit_error", "enforced_spend_limit_reached", "spent", K::Billing, C::Account),
    (429, "rate_limit_error", "contract_spend_limit_reached", "spent", K::Billing, C::Account),
    (429, "rate_limit_error", "ramp_limit_exceeded", "slow", K::RateLimit, C::Limit),
    // The request's own shape.
    (
        400,
        INVALID,
        "",
        "This model does not support the effort parameter.",
        K::Parameter(P::Effort),
        C::Parameter(P::Effort),
    ),
    (
        400,
        INVALID,
        "",
        "output_config.effort: Input should be one of low, high",
        K::Parameter(P::Effort),
        C::Parameter(P::Effort),
    ),
    (
        400,
        INVALID,
        "",
        "output_config: Extra inputs are not permitted",
        K::Parameter(P::OutputConfig),
        C::Parameter(P::OutputConfig),
    ),
    (
        422,
        INVALID,
        "",
        "output_config.format: Extra inputs are not permitted",
        K::Parameter(P::Format),
        C::Parameter(P::Format),
    ),
    (400, INVALID, "", "Schema is too complex for compilation", K::Parameter(P::Format), C::Parameter(P::Format)),
    (400, INVALID, "", "claude-x does not support structured output", K::Parameter(P::Format), C::Parameter(P::Format)),
    (
        400,
        INVALID,
        "",
        "thinking.type: \"between_tools\" is not supported",
        K::Parameter(P::Thinking),
        C::Parameter(P::Thinking),
    ),
    (
        400,
        INVALID,
        "",
        "max_tokens: 16000 > 8192, which is the maximum allowed",
        K::Parameter(P::MaxTokens),
        C::Parameter(P::MaxTokens),
    ),
    (
        400,
        INVALID,
        "",
        "system.0.cache_control: Extra inputs are not permitted",
        K::Parameter(P::CacheControl),
        C::Parameter(P::CacheControl),
    ),
    // The question's own, though they name a parameter.
    (400, INVALID, "", "prompt is too long: 1000001 tokens > 1000000 maximum", K::TooLarge, C::Question),
    (
        400,
        INVALID,
        "",
        "input length and `max_tokens` exceed context limit: 999000 + 16000 > 1000000",
        K::TooLarge,
        C::Question,
    ),
    (400, INVALID, "", "Output blocked by content filtering policy", K::Filtered, C::Declined),
    (400, INVALID, "", "messages.0: the effort of reading this", K::InvalidRequest, C::Question),
    // `error` events of a stream that began with 200.
    (200, "overloaded_error", "", "Overloaded", K::Overloaded, C::Passing),
    (200, "api_error", "", "internal", K::StreamError, C::Passing),
    (200, INVALID, "", "bad", K::InvalidRequest, C::Question),
    (200, "rate_limit_error", "", "slow", K::RateLimit, C::Limit),
    (200, "error_of_tomorrow", "", "odd", K::StreamError, C::Passing),
];

#[test]
fn every_error_has_its_kind_and_whom_it_concerns() {
    for (status, error_type, code, message, kind, concern) in ROWS {
        let body = envelope(error_type, code, message);
        let error = match status {
            200 => CallError::from_event(&serde_json::from_str(&body).unwrap()),
            _ => answer(status, &body, &[]),
        };
        assert_eq!((error.kind, error.concern()), (kind, concern), "{status} {error_type} {code} {message}");
        let told = !code.is_empty() || matches!(kind, K::ProxyAuth);
        assert!(error.is_certain || (error_type == "error_of_tomorrow" && !told), "{status} {error_type} {message}");
    }
}

#[test]
fn a_page_that_is_not_the_apis_is_certain_of_nothing() {
    for status in [302, 400, 401, 403, 404, 406, 418, 422, 429, 451] {
        for body in ["<html>Blocked: your credit balance is too low</html>", "", "{\"message\": \"no\"}", "[1]"] {
            let error = answer(status, body, &[]);
            assert!(!error.is_certain, "{status} {body}");
            assert!(
                !matches!(error.kind, K::Billing | K::Parameter(_)),
                "{status} {body}: a page may repeat the question"
            );
        }
    }
    assert!(answer(407, "<html>Proxy</html>", &[]).is_certain, "no question has a proxy ask for a password");
}

#[test]
fn what_gateways_make_of_the_apis_errors_is_read_all_the_same() {
    let wrapped = r#"{"error": {"message": "BadRequestError: AnthropicException - {\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"message\":\"Your credit balance is too low\"}}", "type": "None", "param": "None", "code": "400"}}"#;
    let error = answer(400, wrapped, &[]);
    assert_eq!((error.kind, error.is_certain), (K::Billing, true));
    for body in [
        r#"{"error": {"message": "output_config: Extra inputs are not permitted", "type": null}}"#,
        r#"{"message": "output_config: Extra inputs are not permitted"}"#,
        r#"{"detail": [{"loc": ["body", "output_config"], "msg": "Extra inputs are not permitted"}]}"#,
    ] {
        assert_eq!(answer(400, body, &[]).kind, K::Parameter(P::OutputConfig), "{body}");
    }
}

#[test]
fn x_should_retry_overrules_the_table_for_the_call_alone() {
    let concern = |status, error_type, should| {
        answer(status, &envelope(error_type, "", "x"), &[("x-should-retry", should)]).concern()
    };
    assert_eq!(concern(400, INVALID, "true"), C::Passing);
    assert_eq!(concern(529, "overloaded_error", "false"), C::Question);
    assert_eq!(concern(429, "rate_limit_error", "false"), C::Question);
    assert_eq!(concern(529, "overloaded_error", "maybe"), C::Passing);
    for should in ["true", "false"] {
        assert_eq!(concern(401, "authentication_error", should), C::Account, "every call fails alike");
    }
}

#[test]
fn the_models_limit_of_output_is_read_from_the_message() {
    let named = |message: &str| answer(400, &envelope(INVALID, "", message), &[]).max_tokens_named(16_000);
    assert_eq!(
        named("max_tokens: 16000 > 8192, which is the maximum allowed number of output tokens for claude-3-5"),
        Some(8_192)
    );
    assert_eq!(
        named("max_tokens is too large: 16000. This model supports at most 4096 completion tokens"),
        Some(4_096)
    );
    assert_eq!(named("max_tokens is too large"), None);
}

#[test]
fn a_limit_without_a_readable_retry_after_waits_for_its_reset() {
    let wait = |headers: &[(&'static str, &str)]| answer(429, "", headers).retry_after;
    let reset = ("anthropic-ratelimit-requests-reset", "1970-01-01T00:00:40Z");
    let empty = ("anthropic-ratelimit-requests-remaining", "0");
    assert_eq!(wait(&[empty, reset]), Some(Duration::from_secs(40)));
    assert_eq!(wait(&[empty, reset, ("retry-after", "7")]), Some(Duration::from_secs(7)));
    assert_eq!(wait(&[("anthropic-ratelimit-requests-remaining", "3"), reset]), None, "that limit has room");
    assert_eq!(wait(&[empty, ("anthropic-ratelimit-requests-reset", "soon")]), None);
    assert_eq!(wait(&[reset]), Some(Duration::from_secs(40)), "how much is left is not told");
    assert_eq!(wait(&[("retry-after", "soon"), empty, reset]), Some(Duration::from_secs(40)));
    assert_eq!(wait(&[empty, ("anthropic-ratelimit-requests-reset", "2026-01-01T00:00:00Z")]), Some(MAX_RETRY_AFTER));
    assert_eq!(answer(500, "", &[empty, reset]).retry_after, None);
}

#[test]
fn a_retry_after_counts_if_it_is_a_time_to_come_in_whatever_form() {
    let wait = |headers: &[(&'static str, &str)]| answer(500, "", headers).retry_after;
    for (text, seconds) in [
        ("7", Some(7.0)),
        (" 7.5 ", Some(7.5)),
        ("0", None),
        ("-7", None),
        ("NaN", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        ("99999999999999999999", Some(3600.0)),
        ("Thu, 01 Jan 1970 00:00:09 GMT", Some(9.0)),
        ("Thursday, 01-Jan-70 00:00:09 GMT", Some(9.0)),
        ("Thu Jan  1 00:00:09 1970", Some(9.0)),
        ("1970-01-01T00:00:09Z", Some(9.0)),
        ("Wed, 31 Dec 1969 23:59:59 GMT", None),
    ] {
        assert_eq!(wait(&[("retry-after", text)]), seconds.map(Duration::from_secs_f64), "{text}");
    }
    assert_eq!(wait(&[("retry-after-ms", "-5"), ("retry-after", "7")]), Some(Duration::from_secs(7)));
    assert_eq!(wait(&[("retry-after-ms", "1500"), ("retry-after", "7")]), Some(Duration::from_millis(1_500)));
    assert_eq!(wait(&[("retry-after-ms", "soon"), ("retry-after", "7")]), Some(Duration::from_secs(7)));
}

#[test]
fn what_gateways_say_of_an_account_or_a_model_does_not_concern_the_question() {
    for (status, message, kind) in [
        (400, "Budget has been exceeded! Current cost: 3.1, Max budget: 3.0", K::Billing),
        (402, "Insufficient credits. Add more using the console", K::Billing),
        (429, "You exceeded your current quota, please check your plan and billing details.", K::Billing),
        (400, "Your account has been disabled.", K::OnHold),
        (400, "This workspace has been archived", K::OnHold),
        (400, "API key not valid. Please pass a valid API key.", K::Authentication),
        (400, "No api key passed in.", K::Authentication),
        (400, "The provided model identifier is invalid.", K::NotFound),
        (400, "Invocation of model ID anthropic.claude-x with on-demand throughput isn't supported", K::NotFound),
        (410, "this model was removed", K::NotFound),
        (425, "too early", K::ApiError),
        (500, "litellm.APIError: Your credit balance is too low", K::Billing),
        (400, "Unknown name \"output_config\": Cannot find field.", K::Parameter(P::OutputConfig)),
        (
            400,
            "litellm.UnsupportedParamsError: bedrock does not support parameters: ['output_config']",
            K::Parameter(P::OutputConfig),
        ),
        (400, "extraneous key [output_config] is not permitted", K::Parameter(P::OutputConfig)),
        (
            400,
            "thinking: Input tag 'between_tools' does not match any of the expected tags: 'disabled'",
            K::Parameter(P::Thinking),
        ),
        (400, "system: Input should be a valid string", K::Parameter(P::CacheControl)),
        (400, "max_tokens: Input should be less than or equal to 8192", K::Parameter(P::MaxTokens)),
    ] {
        for body in [json!({"error": {"message": message, "type": null}}).to_string(), envelope(INVALID, "", message)] {
            assert_eq!(answer(status, &body, &[]).kind, kind, "{status} {body}");
        }
    }
}
