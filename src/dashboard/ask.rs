//! `/`: ask a question. The form works without script; whatever is wrong with it, the API says.

use std::sync::Arc;

use axum::{
    Form,
    extract::{Query, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use minijinja::{context, value::Serde};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    login::{NotSignedIn, SignedIn},
    pages::Pages,
    reader::Reader,
};
use crate::digest::sha256;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The filled form.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Question {
    /// Of the page that the form is on: sent twice, by a double click or a reload, it is one question.
    page: String,
    query: String,
    context: String,
    /// One a line.
    options: String,
    priority: String,
    depth: String,
    /// Of whoever is not signed in where that is needed. Never shown again.
    #[serde(skip_serializing)]
    key: String,
}

/// `GET /`, with whatever of the form is given in the query already filled in.
pub(super) async fn form(State(pages): State<Arc<Pages>>, reader: Reader, question: Query<Question>) -> Response {
    pages.form(&reader, StatusCode::OK, &question, Wrong::Nothing)
}

/// `POST /`
pub(super) async fn submit(
    State(pages): State<Arc<Pages>>,
    mut reader: Reader,
    headers: HeaderMap,
    Form(question): Form<Question>,
) -> Response {
    let mut cookie = None;
    if reader.session.is_none() && !question.key.is_empty() {
        match pages.sign_in(&reader, &headers, question.key.as_str().into()).await {
            Ok(SignedIn { cookie: session, caller, .. }) => (cookie, reader.caller) = (Some(session), caller),
            Err(NotSignedIn::Wrong) => {
                return pages.form(&reader, StatusCode::UNAUTHORIZED, &question, Wrong::Key("wrong"));
            }
            Err(NotSignedIn::Later) => {
                return pages.form(&reader, StatusCode::TOO_MANY_REQUESTS, &question, Wrong::Key("later"));
            }
            Err(NotSignedIn::Unknown(answer)) => return pages.problem(&reader, &answer),
        }
    }
    let body = question.body();
    let mut headers = HeaderMap::new();
    if let Ok(key) = HeaderValue::try_from(question.key(&body)) {
        headers.insert(IDEMPOTENCY_KEY, key);
    }
    let answer = pages.api.ask(&reader.caller, Method::POST, "/api/v1/analyze", headers, Some(&body)).await;
    let mut response = match (answer.status.is_success(), answer.body["id"].as_str()) {
        (true, Some(id)) => Redirect::to(&format!("/jobs/{id}")).into_response(),
        // The page keeps the question, and asks for the key with it.
        _ if answer.status == StatusCode::UNAUTHORIZED => {
            pages.form(&reader, answer.status, &question, Wrong::Key("missing"))
        }
        _ => pages.form(&reader, answer.status, &question, Wrong::Problem(&answer.body)),
    };
    response.headers_mut().extend(cookie.map(|cookie| (header::SET_COOKIE, cookie)));
    response
}

/// What is wrong with a filled form.
#[derive(Clone, Copy)]
enum Wrong<'a> {
    Nothing,
    /// As the API says.
    Problem(&'a Value),
    /// The API key, and how.
    Key(&'static str),
}

impl Question {
    /// As the API takes it; what is left empty is left out.
    fn body(&self) -> Value {
        let given = |text: &str| Some(text.trim().replace("\r\n", "\n")).filter(|text| !text.is_empty());
        let options: Vec<&str> = self.options.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let mut body = json!({ "query": self.query.trim().replace("\r\n", "\n") });
        for (name, value) in [
            ("context", given(&self.context).map(Value::from)),
            ("options", (!options.is_empty()).then(|| Value::from(options))),
            ("priority", given(&self.priority).map(Value::from)),
            ("depth", given(&self.depth).map(Value::from)),
        ] {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        body
    }

    /// The same for the same question of the same page, and for nothing else.
    fn key(&self, body: &Value) -> String {
        let digest = sha256(&[self.page.as_bytes(), &[0], body.to_string().as_bytes()]);
        format!("page-{}", BASE64_URL_SAFE_NO_PAD.encode(digest))
    }
}

impl Pages {
    fn form(&self, reader: &Reader, status: StatusCode, question: &Question, wrong: Wrong<'_>) -> Response {
        let (problem, wrong_key) = match wrong {
            Wrong::Nothing => (None, None),
            Wrong::Problem(problem) => (Some(Serde(problem)), None),
            Wrong::Key(how) => (None, Some(how)),
        };
        let shown = context! {
            page => Uuid::now_v7().to_string(),
            question => Serde(question),
            problem,
            wrong_key,
            needs_key => !self.shown.is_open && reader.session.is_none(),
            max_query_length => self.shown.max_query_length,
        };
        self.render(reader, status, "ask.html", shown)
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
            question.key(&question.body())
        };
        assert_eq!(question("p", "q"), question("p", " q "));
        assert_ne!(question("p", "q"), question("p", "r"));
        assert_ne!(question("p", "q"), question("o", "q"));
    }
}
