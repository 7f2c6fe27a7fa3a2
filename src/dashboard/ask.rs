//! `/`: ask a question. The form works without script; the API checks it.

use axum::{
    Form,
    extract::Query,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use minijinja::{context, value::Serde};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{api::request, login::wrong_key, pages::Visit};
use crate::digest::sha256;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Question {
    /// Id of the page with the form. A form sent twice, by a double click or a reload, is one question.
    page: String,
    query: String,
    context: String,
    options: String,
    priority: String,
    depth: String,
    /// API key of a reader who is not signed in. Never shown again.
    #[serde(skip_serializing)]
    key: String,
}

/// `GET /`: the form. Fields in the address are filled in.
pub(super) async fn form(visit: Visit, question: Query<Question>) -> Response {
    visit.form(StatusCode::OK, &question, None, None)
}

pub(super) async fn submit(mut visit: Visit, headers: HeaderMap, Form(question): Form<Question>) -> Response {
    let mut cookie = None;
    if visit.session.is_none() && !question.key.is_empty() {
        match visit.sign_in(&headers, question.key.as_str().into()).await {
            Ok(signed_in) => cookie = Some((header::SET_COOKIE, signed_in.cookie)),
            Err(answer) => match wrong_key(&answer) {
                Some(wrong) => return visit.form(answer.status, &question, None, Some(wrong)),
                None => return visit.problem(&answer),
            },
        }
    }
    let body = question.body();
    let mut request = request(Method::POST, "/api/v1/analyze", Some(&body));
    if let Ok(key) = HeaderValue::try_from(question.idempotency_key(&body)) {
        request.headers_mut().insert(IDEMPOTENCY_KEY, key);
    }
    let answer = visit.api.ask(request).await;
    let mut response = match (answer.status, answer.body["id"].as_str()) {
        (status, Some(id)) if status.is_success() => Redirect::to(&format!("/jobs/{id}")).into_response(),
        (StatusCode::UNAUTHORIZED, _) => visit.form(answer.status, &question, None, Some("missing")),
        (status, _) => visit.form(status, &question, Some(&answer.body), None),
    };
    response.headers_mut().extend(cookie);
    response
}

impl Question {
    fn body(&self) -> Value {
        let text = |text: &str| text.trim().replace("\r\n", "\n");
        let options: Vec<&str> = self.options.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let mut body = json!({ "query": text(&self.query) });
        for (name, value) in [("context", &self.context), ("priority", &self.priority), ("depth", &self.depth)] {
            if !value.trim().is_empty() {
                body[name] = text(value).into();
            }
        }
        if !options.is_empty() {
            body["options"] = options.into();
        }
        body
    }

    /// The same for the same question of the same page, and for nothing else.
    fn idempotency_key(&self, body: &Value) -> String {
        let digest = sha256(&[self.page.as_bytes(), &[0], body.to_string().as_bytes()]);
        format!("page-{}", BASE64_URL_SAFE_NO_PAD.encode(digest))
    }
}

impl Visit {
    fn form(
        &self,
        status: StatusCode,
        question: &Question,
        problem: Option<&Value>,
        wrong_key: Option<&str>,
    ) -> Response {
        let shown = context! {
            page => Uuid::now_v7().to_string(),
            question => Serde(question),
            problem => problem.map(Serde),
            wrong_key,
            needs_key => !self.pages.shown.is_open && self.session.is_none(),
            max_query_length => self.pages.shown.max_query_length,
        };
        self.render(status, "ask.html", shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_becomes_what_the_api_takes() {
        let question = Question {
            query: " Buy\r\nor build? ".to_owned(),
            options: "Buy\r\n\r\n Build \r\n".to_owned(),
            priority: "high".to_owned(),
            ..Question::default()
        };
        assert_eq!(
            question.body(),
            json!({"query": "Buy\nor build?", "options": ["Buy", "Build"], "priority": "high"})
        );
        assert_eq!(Question::default().body(), json!({"query": ""}), "the API says what is missing");
    }

    #[test]
    fn sent_twice_it_is_one_question_and_changed_it_is_another() {
        let question = |page: &str, query: &str| {
            let question = Question { page: page.to_owned(), query: query.to_owned(), ..Question::default() };
            question.idempotency_key(&question.body())
        };
        assert_eq!(question("p", "q"), question("p", " q "));
        assert_ne!(question("p", "q"), question("p", "r"));
        assert_ne!(question("p", "q"), question("o", "q"));
    }
}
