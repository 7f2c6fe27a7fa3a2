//! `/admin/keys`: the API keys of callers, to make, see and revoke. A new one is shown on the answer to its making, once.

use std::sync::Arc;

use axum::{
    Form,
    extract::State,
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse, Redirect, Response},
};
use minijinja::{context, value::Serde};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Pages, reader::Reader, session::sign_in_first};

const KEYS: &str = "/api/v1/admin/keys";

/// The key that is wanted.
#[derive(Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    mark: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    scope: String,
}

/// The key that is to be revoked.
#[derive(Deserialize)]
pub(super) struct Unwanted {
    #[serde(default)]
    mark: String,
    #[serde(default)]
    name: String,
}

/// `GET /admin/keys`
pub(super) async fn show(State(pages): State<Arc<Pages>>, reader: Reader) -> Response {
    pages.keys(&reader, StatusCode::OK, &Value::Null, &Value::Null).await
}

/// `POST /admin/keys`
pub(super) async fn create(State(pages): State<Arc<Pages>>, reader: Reader, Form(wanted): Form<Wanted>) -> Response {
    if let Err(response) = pages.check_mark(&reader, &wanted.mark) {
        return *response;
    }
    let body = json!({ "name": wanted.name.trim(), "scope": wanted.scope });
    let answer = pages.api.post(&reader.caller, KEYS, Some(&body)).await;
    match answer.status {
        StatusCode::CREATED => pages.keys(&reader, StatusCode::OK, &answer.body, &Value::Null).await,
        StatusCode::UNAUTHORIZED => pages.problem(&reader, &answer),
        status => pages.keys(&reader, status, &Value::Null, &answer.body).await,
    }
}

/// `POST /admin/keys/revoke`
pub(super) async fn revoke(
    State(pages): State<Arc<Pages>>,
    reader: Reader,
    Form(Unwanted { mark, name }): Form<Unwanted>,
) -> Response {
    if let Err(response) = pages.check_mark(&reader, &mark) {
        return *response;
    }
    let name: String = form_urlencoded::byte_serialize(name.as_bytes()).collect();
    let path = format!("{KEYS}/{name}");
    match pages.api.ask(&reader.caller, Method::DELETE, &path, HeaderMap::new(), None).await.ok() {
        Ok(_) => Redirect::to("/admin/keys").into_response(),
        Err(answer) => pages.problem(&reader, &answer),
    }
}

impl Pages {
    /// The keys; above them the one just made, or what is wrong with the one that was wanted.
    async fn keys(&self, reader: &Reader, status: StatusCode, new: &Value, problem: &Value) -> Response {
        if reader.session.is_none() {
            return sign_in_first(&reader.here);
        }
        match self.api.get(&reader.caller, KEYS).await.ok() {
            Ok(list) => {
                let shown = context! { list => Serde(list), new => Serde(new), problem => Serde(problem) };
                self.render(reader, status, "keys.html", shown)
            }
            Err(answer) if answer.status == StatusCode::UNAUTHORIZED => sign_in_first(&reader.here),
            Err(answer) => self.problem(reader, &answer),
        }
    }
}
