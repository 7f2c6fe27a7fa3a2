//! Every error of the API, as `application/problem+json` (RFC 9457). The only place where queue errors and failed jobs
//! are mapped to HTTP. Internal details go to the log, never to a client.
//!
//! - `codes`: the list of all codes, with their description in docs/errors.md

pub(super) mod codes;
mod kinds;

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::value::RawValue;
use tracing::warn;
use utoipa::{
    ToSchema,
    openapi::{ObjectBuilder, OneOfBuilder, Ref, RefOr, Schema, schema::Type},
};

use self::codes::ProblemCode;
pub(super) use self::kinds::*;
use super::observe;
use crate::{
    job::FailureCode,
    queue::{QueueError, Refused},
    registry::Unavailable,
};

/// `Retry-After` of a full queue, in seconds: about the time of one answer.
const FULL_RETRY_AFTER: u64 = 10;

/// `Retry-After` of a full disk, in seconds: a person has to make room.
const STORAGE_LOW_RETRY_AFTER: u64 = 30;

/// `Retry-After` while the store is reopened or the process is replaced, in seconds.
const UNAVAILABLE_RETRY_AFTER: u64 = 5;

#[derive(Debug)]
pub(super) struct Problem {
    kind: Kind,
    detail: String,
    errors: Vec<FieldError>,
    retry_after: Option<u64>,
    job: Option<Box<RawValue>>,
}

/// One invalid field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct FieldError {
    /// The field (`options[2]`), the parameter, or the part of the service.
    pub(super) field: String,
    /// What is wrong, and what is allowed.
    pub(super) message: String,
}

impl FieldError {
    pub(super) fn new(field: impl Into<String>, message: impl Into<String>) -> FieldError {
        FieldError { field: field.into(), message: message.into() }
    }

    pub(super) fn within(self, parent: &str) -> FieldError {
        FieldError { field: format!("{parent}.{}", self.field), ..self }
    }
}

/// An error (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem, example = json!({
    "type": "/docs#problem-validation_failed",
    "title": "The request is not valid",
    "status": 422,
    "detail": "query: must not be blank",
    "code": "validation_failed",
    "request_id": "01a20a05-6ed7-7618-a47d-ce15724b97e5",
    "errors": [{"field": "query", "message": "must not be blank"}]
}))]
pub(super) struct ProblemBody<'a> {
    /// Address of the description of the problem, relative to the service: `/docs#problem-<code>`, or
    /// `/docs#failure-<code>` for a failed job.
    #[schema(format = "uri-reference")]
    r#type: String,
    /// The kind of problem, for people.
    title: &'a str,
    /// The HTTP status.
    status: u16,
    /// What failed and what to do about it.
    detail: &'a str,
    /// Stable code, for programs.
    #[schema(value_type = ProblemCode)]
    code: &'a str,
    /// The id of this request. The log has it too.
    request_id: &'a str,
    /// All invalid fields or parameters, at most 33.
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    errors: &'a [FieldError],
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = a_job)]
    job: Option<&'a RawValue>,
}

fn a_job() -> RefOr<Schema> {
    let what = "The job that failed or was cancelled while the client waited.";
    let job = Ref::builder().ref_location_from_schema_name("Job").description(Some(what)).build();
    OneOfBuilder::new().item(job).item(ObjectBuilder::new().schema_type(Type::Null)).into()
}

impl Problem {
    #[cfg(test)]
    pub(super) fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Problem {
        Problem { kind, detail: detail.into(), errors: Vec::new(), retry_after: None, job: None }
    }

    /// A problem with several field errors; `detail` joins them.
    pub(super) fn listing(kind: Kind, errors: Vec<FieldError>) -> Problem {
        let messages: Vec<String> = errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect();
        Problem { errors, ..Problem::new(kind, messages.join("; ")) }
    }

    pub(super) fn with_job(self, job: &impl Serialize) -> Problem {
        Problem { job: serde_json::value::to_raw_value(job).ok(), ..self }
    }

    fn of_bound(refused: &Refused, detail: String) -> Problem {
        let (kind, seconds) = match refused {
            Refused::Full { .. } | Refused::ScheduledFull { .. } => (QUEUE_FULL, FULL_RETRY_AFTER),
            Refused::CallerFull { .. } => (TOO_MANY_PENDING, FULL_RETRY_AFTER),
            Refused::TooFast { retry_after, .. } => (RATE_LIMITED, whole_seconds(*retry_after)),
            Refused::BatchTooLarge { .. } => (RATE_LIMITED, 60),
            Refused::FolderGone => (STORAGE_UNAVAILABLE, STORAGE_LOW_RETRY_AFTER),
            Refused::StorageLow(_) => (STORAGE_LOW, STORAGE_LOW_RETRY_AFTER),
        };
        Problem::new(kind, detail).retry_after(seconds)
    }

    pub(super) fn retry_after(self, seconds: u64) -> Problem {
        Problem { retry_after: Some(seconds), ..self }
    }
}

/// The problem that a waiting client gets for a failed job.
pub(super) fn kind_of(code: FailureCode) -> Kind {
    let status = match code {
        FailureCode::DeadlineExceeded | FailureCode::Timeout | FailureCode::TimeLimit => StatusCode::GATEWAY_TIMEOUT,
        FailureCode::Refused | FailureCode::ModelUnpriced => StatusCode::UNPROCESSABLE_ENTITY,
        FailureCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        FailureCode::Shutdown | FailureCode::BudgetReached => StatusCode::SERVICE_UNAVAILABLE,
        // docs/errors.md has the status of each code, and a test holds them to it.
        _ => StatusCode::BAD_GATEWAY,
    };
    Kind(status, code.into(), "The analysis failed")
}

impl From<Unavailable> for Problem {
    fn from(error: Unavailable) -> Problem {
        QueueError::from(error).into()
    }
}

impl From<QueueError> for Problem {
    fn from(error: QueueError) -> Problem {
        let detail = error.to_string();
        match error {
            QueueError::NotFound(_) => {
                Problem::new(JOB_NOT_FOUND, format!("{detail}; it may have been deleted after the retention time"))
            }
            QueueError::Conflict(_) => Problem::new(CONFLICT, detail),
            QueueError::Refused(refused) => Problem::of_bound(&refused, detail),
            QueueError::KeyReused => Problem::new(IDEMPOTENCY_KEY_REUSED, detail),
            QueueError::Removed(_) => Problem::new(JOB_REMOVED, detail),
            QueueError::Unreadable(_) => Problem::new(ANSWER_UNREADABLE, detail),
            QueueError::Closing => {
                Problem::new(SHUTTING_DOWN, format!("{detail}; try again soon")).retry_after(UNAVAILABLE_RETRY_AFTER)
            }
            QueueError::Unavailable(_) => {
                warn!(request.id = observe::request_id(), error = detail, "the store failed a request");
                let detail = "the job store is unavailable and is trying to recover; try again soon";
                Problem::new(STORAGE_UNAVAILABLE, detail).retry_after(UNAVAILABLE_RETRY_AFTER)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, code, title) = (self.kind.status(), self.kind.code(), self.kind.title());
        let family = if self.job.is_some() { "failure" } else { "problem" };
        let request_id = observe::request_id();
        let body = ProblemBody {
            r#type: format!("/docs#{family}-{code}"),
            title,
            status: status.as_u16(),
            detail: &self.detail,
            code,
            request_id: &request_id,
            errors: &self.errors,
            job: self.job.as_deref(),
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"ceoagent\""));
        }
        response
    }
}

/// The unit of `Retry-After` and `RateLimit`. Rounded up, so that a client does not come too early.
pub(super) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_of_a_job_is_an_error_with_its_own_code() {
        use strum::IntoEnumIterator;
        for failure in FailureCode::iter() {
            let (status, code) = (kind_of(failure).status(), kind_of(failure).code());
            assert!(status.is_client_error() || status.is_server_error(), "{failure}");
            assert_eq!(code, failure.to_string());
        }
    }

    #[test]
    fn a_store_failure_shows_no_internal_details_to_clients() {
        let problem = Problem::from(QueueError::Unavailable("disk /data/db: No space left".to_owned()));
        assert_eq!((problem.kind, problem.retry_after), (STORAGE_UNAVAILABLE, Some(UNAVAILABLE_RETRY_AFTER)));
        assert!(!problem.detail.contains("/data"), "{}", problem.detail);
    }

    #[test]
    fn a_full_queue_says_when_to_try_again() {
        let response =
            Problem::from(QueueError::Refused(Refused::Full { pending: 7, limit: 7, max: 7 })).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "10");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    }
}
