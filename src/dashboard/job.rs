//! `/jobs/{id}`: a pending question, and its memo. The address never changes.

use std::str::FromStr;

use axum::{
    Form,
    extract::Path,
    http::{HeaderMap, HeaderName, Method, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use minijinja::{context, value::Serde};
use serde_json::Value;
use uuid::Uuid;

use super::{
    api::{Answer, request},
    memo::Figures,
    pages::{Mark, Page, Visit},
    templates::memo_labels,
};
use crate::{
    analysis::{document::Document, markdown, memo::Memo},
    job::FailureCode,
};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

pub(super) async fn show(visit: Visit, Path(id): Path<String>) -> Page {
    let job = visit.job(&id).await?;
    if job["status"] != "succeeded" {
        let advice = job["error"]["code"].as_str().map(advice);
        return Ok(visit.page("job.html", context! { job => Serde(job), advice }));
    }
    let Some(memo) = read_memo(&job) else {
        return Ok(visit.page("memo.html", context! { raw => format!("{:#}", job["result"]), job => Serde(job) }));
    };
    let document = Document::new(&memo);
    let shown = context! {
        job => Serde(job),
        figures => Serde(Figures::new(&memo, &document)),
        memo => Serde(document),
        language => memo.analysis.language.as_str(),
        question => memo.analysis.decision_question.as_str(),
        m => memo_labels(memo.labels()),
    };
    Ok(visit.page("memo.html", shown))
}

/// `GET /jobs/{id}/events`: the API's events. A browser can't ask for them itself: it has a session and no credential.
pub(super) async fn events(visit: Visit, Path(id): Path<Uuid>, headers: HeaderMap) -> Response {
    let mut request = request(Method::GET, &format!("/api/v1/jobs/{id}/events"), None);
    request.headers_mut().extend(headers.get(LAST_EVENT_ID).map(|last| (LAST_EVENT_ID, last.clone())));
    visit.api.send(request).await
}

pub(super) async fn json(visit: Visit, Path(id): Path<String>) -> Page {
    let job = visit.job(&id).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], format!("{job:#}\n")).into_response())
}

pub(super) async fn memo_markdown(visit: Visit, Path(id): Path<String>) -> Page {
    let job = visit.job(&id).await?;
    let memo = read_memo(&job).ok_or_else(|| visit.unknown_job())?;
    Ok(([(header::CONTENT_TYPE, "text/markdown; charset=utf-8")], markdown::markdown(&memo)).into_response())
}

/// `POST /jobs/{id}/cancel`, `retry` and `resend-webhook`
pub(super) async fn change(visit: Visit, Path(id): Path<Uuid>, form: Form<Mark>, action: &str) -> Page {
    visit.check_job_mark(&form.mark)?;
    let answer = visit.api.post(&format!("/api/v1/jobs/{id}/{action}"), None).await;
    if !is_conflict(&answer) {
        visit.done(answer)?;
    }
    Ok(Redirect::to(&format!("/jobs/{id}")).into_response())
}

pub(super) async fn delete(visit: Visit, Path(id): Path<Uuid>, form: Form<Mark>) -> Page {
    visit.check_job_mark(&form.mark)?;
    let answer = visit.api.delete(&format!("/api/v1/jobs/{id}")).await;
    if is_conflict(&answer) {
        return Ok(Redirect::to(&format!("/jobs/{id}")).into_response());
    }
    visit.done(answer)?;
    Ok(visit.message(StatusCode::OK, "deleted_title", "deleted_do"))
}

/// The job has changed in the meantime. Its page shows how.
fn is_conflict(answer: &Answer) -> bool {
    answer.status == StatusCode::CONFLICT
}

impl Visit {
    async fn job(&self, id: &str) -> Result<Value, Response> {
        let id = Uuid::from_str(id).map_err(|_| self.unknown_job())?;
        self.done(self.api.get(&format!("/api/v1/jobs/{id}")).await)
    }

    fn unknown_job(&self) -> Response {
        self.message(StatusCode::NOT_FOUND, "unknown_title", "unknown_do")
    }

    /// Without a session there is no name to act in, and `guard` has refused other sites.
    fn check_job_mark(&self, mark: &str) -> Result<(), Response> {
        if self.session.is_some() { self.check_mark(mark) } else { Ok(()) }
    }
}

fn read_memo(job: &Value) -> Option<Memo> {
    serde_json::from_value(job.get("result")?.clone()).ok()
}

/// The key of the text that says what to do about a failure.
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
