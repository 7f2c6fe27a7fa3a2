//! `/jobs/{id}`: a question on its way, and its memo. The address is the job's for good.

use std::{str::FromStr, sync::Arc};

use axum::{
    Form,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use minijinja::{context, value::Serde};
use serde_json::Value;
use uuid::Uuid;

use super::{Pages, memo::Figures, page::memo_labels, reader::Reader, session::Mark};
use crate::{
    analysis::{document::Document, markdown, memo::Memo},
    job::FailureCode,
};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// `GET /jobs/{id}`
pub(super) async fn show(State(pages): State<Arc<Pages>>, reader: Reader, Path(id): Path<String>) -> Response {
    let job = match pages.job(&reader, &id).await {
        Ok(job) => job,
        Err(response) => return *response,
    };
    let advice = job["error"]["code"].as_str().map(advice);
    match job["status"].as_str() {
        Some("succeeded") => {
            let shown = match read_memo(&job) {
                Some(memo) => {
                    let document = Document::new(&memo);
                    let figures = Serde(Figures::new(&memo, &document));
                    let (language, question) = (&memo.analysis.language, &memo.analysis.decision_question);
                    let m = memo_labels(memo.labels());
                    context! { job => Serde(job), memo => Serde(document), figures, language, question, m }
                }
                None => context! { raw => format!("{:#}", job["result"]), job => Serde(job) },
            };
            pages.render(&reader, StatusCode::OK, "memo.html", shown)
        }
        _ => pages.render(&reader, StatusCode::OK, "job.html", context! { job => Serde(job), advice }),
    }
}

/// `GET /jobs/{id}/events`: the API's events. A browser can't ask for them itself: it has a session and no credential.
pub(super) async fn events(
    State(pages): State<Arc<Pages>>,
    reader: Reader,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
) -> Response {
    let mut given = HeaderMap::new();
    given.extend(headers.get(LAST_EVENT_ID).map(|last| (LAST_EVENT_ID, last.clone())));
    pages.api.send(&reader.caller, Method::GET, &format!("/api/v1/jobs/{id}/events"), given, None).await
}

/// `GET /jobs/{id}/job.json`: the job as the API gives it, laid out for reading.
pub(super) async fn json(State(pages): State<Arc<Pages>>, reader: Reader, Path(id): Path<String>) -> Response {
    match pages.job(&reader, &id).await {
        Ok(job) => ([(header::CONTENT_TYPE, "application/json")], format!("{job:#}\n")).into_response(),
        Err(response) => *response,
    }
}

/// `GET /jobs/{id}/memo.md`
pub(super) async fn memo_markdown(State(pages): State<Arc<Pages>>, reader: Reader, Path(id): Path<String>) -> Response {
    let job = match pages.job(&reader, &id).await {
        Ok(job) => job,
        Err(response) => return *response,
    };
    let Some(memo) = read_memo(&job) else {
        return pages.message(&reader, StatusCode::NOT_FOUND, "unknown_title", "unknown_do");
    };
    let kind = HeaderValue::from_static("text/markdown; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], markdown::markdown(&memo)).into_response()
}

/// `POST /jobs/{id}/cancel`
pub(super) async fn cancel(
    State(pages): State<Arc<Pages>>,
    reader: Reader,
    Path(id): Path<Uuid>,
    Form(Mark { mark }): Form<Mark>,
) -> Response {
    pages.change(&reader, id, "cancel", &mark).await
}

/// `POST /jobs/{id}/retry`
pub(super) async fn retry(
    State(pages): State<Arc<Pages>>,
    reader: Reader,
    Path(id): Path<Uuid>,
    Form(Mark { mark }): Form<Mark>,
) -> Response {
    pages.change(&reader, id, "retry", &mark).await
}

/// `POST /jobs/{id}/resend-webhook`
pub(super) async fn resend_webhook(
    State(pages): State<Arc<Pages>>,
    reader: Reader,
    Path(id): Path<Uuid>,
    Form(Mark { mark }): Form<Mark>,
) -> Response {
    pages.change(&reader, id, "resend-webhook", &mark).await
}

impl Pages {
    /// The job, or the page that says why there is none.
    async fn job(&self, reader: &Reader, id: &str) -> Result<Value, Box<Response>> {
        let Ok(id) = Uuid::from_str(id) else {
            return Err(Box::new(self.message(reader, StatusCode::NOT_FOUND, "unknown_title", "unknown_do")));
        };
        let answer = self.api.get(&reader.caller, &format!("/api/v1/jobs/{id}")).await;
        answer.ok().map_err(|answer| Box::new(self.problem(reader, &answer)))
    }

    async fn change(&self, reader: &Reader, id: Uuid, action: &str, mark: &str) -> Response {
        // Who is not signed in acts in nobody's name; the guard has turned other sites away.
        if reader.session.is_some()
            && let Err(response) = self.check_mark(reader, mark)
        {
            return *response;
        }
        let answer = self.api.post(&reader.caller, &format!("/api/v1/jobs/{id}/{action}"), None).await;
        match answer.status {
            // A conflict means that the job has moved on meanwhile: its page tells where to.
            status if status.is_success() || status == StatusCode::CONFLICT => {
                Redirect::to(&format!("/jobs/{id}")).into_response()
            }
            _ => self.problem(reader, &answer),
        }
    }
}

fn read_memo(job: &Value) -> Option<Memo> {
    serde_json::from_value(job.get("result")?.clone()).ok()
}

/// What can be done about a failure: the key of the text.
fn advice(code: &str) -> &'static str {
    let word = |code: FailureCode| <&str>::from(code);
    let is_among = |codes: &[FailureCode]| codes.iter().any(|known| word(*known) == code);
    if is_among(&[
        FailureCode::Refused,
        FailureCode::AnswerTruncated,
        FailureCode::InvalidRequest,
        FailureCode::RequestTooLarge,
        FailureCode::ContextWindowExceeded,
        FailureCode::Poisoned,
        FailureCode::PromptVersionUnknown,
    ]) {
        "advice_question"
    } else if is_among(&[
        FailureCode::AuthenticationFailed,
        FailureCode::BillingFailed,
        FailureCode::PermissionDenied,
        FailureCode::ModelNotFound,
        FailureCode::TimeLimit,
        FailureCode::ProxyRefused,
    ]) {
        "advice_operator"
    } else {
        "advice_retry"
    }
}
