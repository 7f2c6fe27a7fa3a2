//! `/admin/keys`: the API keys of callers, to make, see and revoke. A new one is shown on the answer to its making, once.

use std::sync::Arc;

use axum::{
    Form,
    extract::State,
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse, Redirect},
};
use minijinja::{context, value::Serde};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    pages::{Page, Pages},
    reader::Reader,
};

const KEYS: &str = "/api/v1/admin/keys";

#[derive(Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    mark: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    scope: String,
}

#[derive(Deserialize)]
pub(super) struct Unwanted {
    #[serde(default)]
    mark: String,
    #[serde(default)]
    name: String,
}

/// `GET /admin/keys`
pub(super) async fn show(State(pages): State<Arc<Pages>>, reader: Reader) -> Page {
    pages.keys(&reader, StatusCode::OK, &Value::Null, &Value::Null).await
}

/// `POST /admin/keys`
pub(super) async fn create(State(pages): State<Arc<Pages>>, reader: Reader, Form(wanted): Form<Wanted>) -> Page {
    pages.check_mark(&reader, &wanted.mark)?;
    let body = json!({ "name": wanted.name.trim(), "scope": wanted.scope });
    let answer = pages.api.post(&reader.caller, KEYS, Some(&body)).await;
    match answer.status {
        StatusCode::CREATED => pages.keys(&reader, StatusCode::OK, &answer.body, &Value::Null).await,
        StatusCode::UNAUTHORIZED => Ok(pages.problem(&reader, &answer)),
        status => pages.keys(&reader, status, &Value::Null, &answer.body).await,
    }
}

/// `POST /admin/keys/revoke`
pub(super) async fn revoke(
    State(pages): State<Arc<Pages>>,
    reader: Reader,
    Form(Unwanted { mark, name }): Form<Unwanted>,
) -> Page {
    pages.check_mark(&reader, &mark)?;
    let name: String = form_urlencoded::byte_serialize(name.as_bytes()).collect();
    let path = format!("{KEYS}/{name}");
    let answer = pages.api.ask(&reader.caller, Method::DELETE, &path, HeaderMap::new(), None).await;
    pages.done(&reader, answer)?;
    Ok(Redirect::to("/admin/keys").into_response())
}

impl Pages {
    /// The keys; above them the one just made, or what is wrong with the one that was wanted.
    async fn keys(&self, reader: &Reader, status: StatusCode, new: &Value, problem: &Value) -> Page {
        let list = self.read(reader, KEYS).await?;
        let shown = context! { list => Serde(list), new => Serde(new), problem => Serde(problem) };
        Ok(self.render(reader, status, "keys.html", shown))
    }
}
