//! The kinds of problems of a request. docs/errors.md describes each.

use axum::http::StatusCode;

/// A kind of problem: its status, its stable code, and its title.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct Kind(pub(super) StatusCode, pub(super) &'static str, pub(super) &'static str);

impl Kind {
    pub(in crate::http) fn status(self) -> StatusCode {
        self.0
    }

    pub(in crate::http) fn code(self) -> &'static str {
        self.1
    }

    pub(super) fn title(self) -> &'static str {
        self.2
    }
}

macro_rules! kinds {
    ($($name:ident = $kind:expr;)*) => {
        $(pub(in crate::http) const $name: Kind = $kind;)*

        pub(super) const KINDS: &[Kind] = &[$($name),*];
    };
}

kinds! {
    INVALID_JSON = Kind(StatusCode::BAD_REQUEST, "invalid_json", "The body is not valid JSON");
    INVALID_BODY = Kind(StatusCode::BAD_REQUEST, "invalid_body", "The body could not be read");
    INVALID_PARAMETER = Kind(StatusCode::BAD_REQUEST, "invalid_parameter", "A query parameter is not valid");
    INVALID_JOB_ID = Kind(StatusCode::BAD_REQUEST, "invalid_job_id", "The job id is not a UUID");
    UNAUTHORIZED = Kind(StatusCode::UNAUTHORIZED, "unauthorized", "Authentication required");
    FORBIDDEN = Kind(StatusCode::FORBIDDEN, "forbidden", "The key or token has too small a scope");
    INVALID_HOST = Kind(StatusCode::BAD_REQUEST, "invalid_host", "The Host header is not valid");
    FOREIGN_HOST = Kind(StatusCode::FORBIDDEN, "foreign_host", "This name is not one of the service");
    RATE_LIMITED = Kind(StatusCode::TOO_MANY_REQUESTS, "rate_limited", "Too many jobs submitted in a minute");
    TOO_MANY_FAILURES = Kind(StatusCode::TOO_MANY_REQUESTS, "too_many_failures", "Too many wrong credentials");
    ROUTE_NOT_FOUND = Kind(StatusCode::NOT_FOUND, "not_found", "Route not found");
    KEY_NOT_FOUND = Kind(StatusCode::NOT_FOUND, "key_not_found", "API key not found");
    JOB_NOT_FOUND = Kind(StatusCode::NOT_FOUND, "job_not_found", "Job not found");
    METHOD_NOT_ALLOWED = Kind(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Method not allowed");
    CONFLICT = Kind(StatusCode::CONFLICT, "conflict", "Conflict with the current state");
    CANCELLED = Kind(StatusCode::CONFLICT, "cancelled", "The job was cancelled");
    BODY_TIMEOUT = Kind(StatusCode::REQUEST_TIMEOUT, "body_timeout", "The body took too long to arrive");
    BODY_TOO_LARGE = Kind(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large");
    UNSUPPORTED_MEDIA_TYPE =
        Kind(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "The body must be JSON");
    VALIDATION_FAILED = Kind(StatusCode::UNPROCESSABLE_ENTITY, "validation_failed", "The request is not valid");
    INTERNAL = Kind(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error");
    QUEUE_FULL = Kind(StatusCode::SERVICE_UNAVAILABLE, "queue_full", "The queue is full");
    TOO_MANY_PENDING = Kind(StatusCode::TOO_MANY_REQUESTS, "too_many_pending", "You have too many pending jobs");
    IDEMPOTENCY_KEY_REUSED = Kind(
        StatusCode::UNPROCESSABLE_ENTITY,
        "idempotency_key_reused",
        "The Idempotency-Key belongs to another request",
    );
    JOB_REMOVED = Kind(StatusCode::GONE, "job_removed", "The job was removed");
    ANSWER_UNREADABLE =
        Kind(StatusCode::UNPROCESSABLE_ENTITY, "answer_unreadable", "The stored answer can't be parsed");
    PROMPTS_INVALID = Kind(
        StatusCode::UNPROCESSABLE_ENTITY,
        "prompts_invalid",
        "The new prompts are not valid; the old ones stay in use",
    );
    STORAGE_LOW = Kind(StatusCode::SERVICE_UNAVAILABLE, "storage_low", "The disk is almost full");
    SHUTTING_DOWN = Kind(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "The service is shutting down");
    STORAGE_UNAVAILABLE = Kind(StatusCode::SERVICE_UNAVAILABLE, "storage_unavailable", "The job store is unavailable");
    NOT_READY = Kind(StatusCode::SERVICE_UNAVAILABLE, "not_ready", "The service is not ready");
    SERVER_BUSY = Kind(StatusCode::SERVICE_UNAVAILABLE, "server_busy", "Too many requests at once");
    TIMEOUT = Kind(StatusCode::SERVICE_UNAVAILABLE, "timeout", "The service took too long to answer");
}
