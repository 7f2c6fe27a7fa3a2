//! `/jobs/{id}`: a question on its way, and its memo. The address is the job's for good.

use std::{str::FromStr, sync::Arc};

use axum::{
    Form,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, Method, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use minijinja::{context, value::Serde};
use serde_json::Value;
use uuid::Uuid;

use super::{
    memo::Figures,
    pages::{Instead, Mark, Page, Pages},
    reader::Reader,
    templates::memo_labels,
};
use crate::{
    analysis::{document::Document, markdown, memo::Memo},
    job::FailureCode,
};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// `GET /jobs/{id}`
pub(super) async fn show(State(pages): State<Arc<Pages>>, reader: Reader, Path(id): Path<String>) -> Page {
    let job = pages.job(&reader, &id).await?;
    let advice = job["error"]["code"].as_str().map(advice);
    Ok(match job["status"].as_str() {
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
    })
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
pub(super) async fn json(State(pages): State<Arc<Pages>>, reader: Reader, Path(id): Path<String>) -> Page {
    let job = pages.job(&reader, &id).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], format!("{job:#}\n")).into_response())
}

/// `GET /jobs/{id}/memo.md`
pub(super) async fn memo_markdown(State(pages): State<Arc<Pages>>, reader: Reader, Path(id): Path<String>) -> Page {
    let job = pages.job(&reader, &id).await?;
    let Some(memo) = read_memo(&job) else {
        return Ok(pages.message(&reader, StatusCode::NOT_FOUND, "unknown_title", "unknown_do"));
    };
    Ok(([(header::CONTENT_TYPE, "text/markdown; charset=utf-8")], markdown::markdown(&memo)).into_response())
}

/// `POST /jobs/{id}/cancel`
pub(super) async fn cancel(
    State(pages): State<Arc<Pages>>,
    reader: Reader,
    Path(id): Path<Uuid>,
    Form(Mark { mark }): Form<Mark>,
) -> Page {
    pages.change(&reader, id, "cancel", &mark).await
}

/// `POST /jobs/{id}/retry`
pub(super) async fn retry(
    State(pages): State<Arc<Pages>>,
    reader: Reader,
    Path(id): Path<Uuid>,
    Form(Mark { mark }): Form<Mark>,
) -> Page {
    pages.change(&reader, id, "retry", &mark).await
}

/// `POST /jobs/{id}/resend-webhook`
pub(super) async fn resend_webhook(
    State(pages): State<Arc<Pages>>,
    reader: Reader,
    Path(id): Path<Uuid>,
    Form(Mark { mark }): Form<Mark>,
) -> Page {
    pages.change(&reader, id, "resend-webhook", &mark).await
}

/// `POST /jobs/{id}/delete`
pub(super) async fn delete(
    State(pages): State<Arc<Pages>>,
    reader: Reader,
    Path(id): Path<Uuid>,
    Form(Mark { mark }): Form<Mark>,
) -> Page {
    if reader.session.is_some() {
        pages.check_mark(&reader, &mark)?;
    }
    let path = format!("/api/v1/jobs/{id}");
    let answer = pages.api.ask(&reader.caller, Method::DELETE, &path, HeaderMap::new(), None).await;
    if answer.status == StatusCode::CONFLICT {
        return Ok(Redirect::to(&format!("/jobs/{id}")).into_response());
    }
    pages.done(&reader, answer)?;
    Ok(pages.message(&reader, StatusCode::OK, "deleted_title", "deleted_do"))
}

impl Pages {
    async fn job(&self, reader: &Reader, id: &str) -> Result<Value, Instead> {
        let Ok(id) = Uuid::from_str(id) else {
            return Err(self.message(reader, StatusCode::NOT_FOUND, "unknown_title", "unknown_do").into());
        };
        self.done(reader, self.api.get(&reader.caller, &format!("/api/v1/jobs/{id}")).await)
    }

    async fn change(&self, reader: &Reader, id: Uuid, action: &str, mark: &str) -> Page {
        // Without a session there is no name to act in; `guard` has refused other sites.
        if reader.session.is_some() {
            self.check_mark(reader, mark)?;
        }
        let answer = self.api.post(&reader.caller, &format!("/api/v1/jobs/{id}/{action}"), None).await;
        // After a conflict the job has changed meanwhile: its page shows how.
        if answer.status != StatusCode::CONFLICT {
            self.done(reader, answer)?;
        }
        Ok(Redirect::to(&format!("/jobs/{id}")).into_response())
    }
}

fn read_memo(job: &Value) -> Option<Memo> {
    serde_json::from_value(job.get("result")?.clone()).ok()
}

/// What can be done about a failure: the key of the text.
fn advice(code: &str) -> &'static str {
    match FailureCode::from_str(code) {
        Ok(
            FailureCode::Refused
            | FailureCode::AnswerTruncated
            | FailureCode::InvalidRequest
            | FailureCode::RequestTooLarge
            | FailureCode::ContextWindowExceeded
            | FailureCode::Poisoned
            | FailureCode::PromptVersionUnknown,
        ) => "advice_question",
        Ok(
            FailureCode::AuthenticationFailed
            | FailureCode::BillingFailed
            | FailureCode::PermissionDenied
            | FailureCode::ModelNotFound
            | FailureCode::TimeLimit
            | FailureCode::ProxyRefused,
        ) => "advice_operator",
        _ => "advice_retry",
    }
}
