//! `/admin/login` and `/admin/logout`. The API checks the credential that signs in.

use axum::{
    Form,
    extract::Query,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use minijinja::context;
use secrecy::SecretString;
use serde::Deserialize;

use super::{
    api::Answer,
    cookies,
    pages::{Mark, Page, Visit},
    reader,
    session::SESSION_HOURS,
};

pub(super) struct SignedIn {
    pub(super) cookie: HeaderValue,
    pub(super) is_admin: bool,
}

#[derive(Deserialize)]
pub(super) struct Next {
    #[serde(default)]
    next: String,
}

#[derive(Deserialize)]
pub(super) struct Credentials {
    token: String,
    #[serde(default)]
    next: String,
}

pub(super) async fn form(visit: Visit, Query(Next { next }): Query<Next>) -> Response {
    visit.page("login.html", context! { next })
}

pub(super) async fn sign_in(
    mut visit: Visit,
    headers: HeaderMap,
    Form(Credentials { token, next }): Form<Credentials>,
) -> Response {
    match visit.sign_in(&headers, token.into()).await {
        Ok(SignedIn { cookie, is_admin }) => {
            let home = if is_admin { "/admin" } else { "/" };
            let is_theirs = !next.is_empty() && (is_admin || !next.starts_with("/admin"));
            let to = Redirect::to(if is_theirs { reader::here(&next) } else { home });
            ([(header::SET_COOKIE, cookie)], to).into_response()
        }
        Err(answer) => match wrong_key(&answer) {
            Some(wrong) => visit.render(answer.status, "login.html", context! { next, wrong }),
            None => visit.problem(&answer),
        },
    }
}

/// Why a credential was not accepted, as templates have it; `None` if the API failed.
pub(super) fn wrong_key(answer: &Answer) -> Option<&'static str> {
    match answer.status {
        StatusCode::UNAUTHORIZED => Some("wrong"),
        StatusCode::TOO_MANY_REQUESTS => Some("later"),
        _ => None,
    }
}

pub(super) async fn sign_out(visit: Visit, headers: HeaderMap, Form(Mark { mark }): Form<Mark>) -> Page {
    visit.check_mark(&mark)?;
    if let Some(name) = cookies::session(&headers) {
        visit.pages.sessions.close(name).await;
    }
    Ok(([(header::SET_COOKIE, cookies::set_session(&headers, "", 0))], Redirect::to("/")).into_response())
}

impl Visit {
    /// Opens a session with this credential, in place of the browser's session. From then on the API is called with it.
    pub(super) async fn sign_in(&mut self, headers: &HeaderMap, credential: SecretString) -> Result<SignedIn, Answer> {
        let mut api = self.api.clone();
        api.credential = Some(credential.clone());
        let answer = api.get("/api/v1/admin/jobs?limit=1").await;
        let is_admin = match answer.status {
            StatusCode::OK => true,
            // Known, but not an operator.
            StatusCode::FORBIDDEN => false,
            _ => return Err(answer),
        };
        if let Some(old) = cookies::session(headers) {
            self.pages.sessions.close(old).await;
        }
        let name =
            self.pages.sessions.open(&credential, is_admin).await.map_err(|error| Answer::unavailable(&error))?;
        self.api = api;
        Ok(SignedIn { cookie: cookies::set_session(headers, &name, SESSION_HOURS * 3_600), is_admin })
    }
}
