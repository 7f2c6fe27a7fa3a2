//! `/admin/keys`: the API keys of callers. The page that answers the creation of a key shows it, once.

use axum::{
    Form,
    http::StatusCode,
    response::{IntoResponse, Redirect},
};
use minijinja::{context, value::Serde};
use serde::Deserialize;
use serde_json::{Value, json};

use super::pages::{Page, Visit};

const KEYS: &str = "/api/v1/admin/keys";

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct KeyForm {
    mark: String,
    name: String,
    scope: String,
}

pub(super) async fn show(visit: Visit) -> Page {
    visit.keys(StatusCode::OK, &Value::Null, &Value::Null).await
}

pub(super) async fn create(visit: Visit, Form(form): Form<KeyForm>) -> Page {
    visit.check_mark(&form.mark)?;
    let body = json!({ "name": form.name.trim(), "scope": form.scope });
    let answer = visit.api.post(KEYS, Some(&body)).await;
    match answer.status {
        StatusCode::CREATED => visit.keys(StatusCode::OK, &answer.body, &Value::Null).await,
        StatusCode::UNAUTHORIZED => Ok(visit.problem(&answer)),
        status => visit.keys(status, &Value::Null, &answer.body).await,
    }
}

pub(super) async fn revoke(visit: Visit, Form(form): Form<KeyForm>) -> Page {
    visit.check_mark(&form.mark)?;
    let name: String = form_urlencoded::byte_serialize(form.name.as_bytes()).collect();
    visit.done(visit.api.delete(&format!("{KEYS}/{name}")).await)?;
    Ok(Redirect::to("/admin/keys").into_response())
}

impl Visit {
    /// The list of keys; above it the key just created, or the problem of the attempt.
    async fn keys(&self, status: StatusCode, new: &Value, problem: &Value) -> Page {
        let list = self.read(KEYS).await?;
        let shown = context! { list => Serde(list), new => Serde(new), problem => Serde(problem) };
        Ok(self.render(status, "keys.html", shown))
    }
}
