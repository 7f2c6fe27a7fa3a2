//! `/admin/login` and `/admin/logout`. The API checks the credential that signs in.

use std::sync::Arc;

use axum::{
    Form,
    extract::{Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use minijinja::context;
use secrecy::SecretString;
use serde::Deserialize;

use super::{
    api::{Answer, Caller},
    cookies,
    pages::{Mark, Page, Pages},
    reader::{self, Reader},
    session::SESSION_HOURS,
};

/// What a browser gets that has signed in.
pub(super) struct SignedIn {
    pub(super) cookie: HeaderValue,
    pub(super) is_admin: bool,
    /// Asks the API in its name.
    pub(super) caller: Caller,
}

pub(super) enum NotSignedIn {
    /// The credential is not known.
    Wrong,
    /// There were too many tries.
    Later,
    /// The API failed.
    Unknown(Answer),
}

/// The address to go to after signing in.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Next {
    next: String,
}

/// `GET /admin/login`
pub(super) async fn form(
    State(pages): State<Arc<Pages>>,
    reader: Reader,
    Query(Next { next }): Query<Next>,
) -> Response {
    pages.render(&reader, StatusCode::OK, "login.html", context! { next })
}

#[derive(Deserialize)]
pub(super) struct Credentials {
    token: String,
    #[serde(default)]
    next: String,
}

/// `POST /admin/login`
pub(super) async fn sign_in(
    State(pages): State<Arc<Pages>>,
    reader: Reader,
    headers: HeaderMap,
    Form(Credentials { token, next }): Form<Credentials>,
) -> Response {
    let (status, wrong) = match pages.sign_in(&reader, &headers, token.into()).await {
        Ok(SignedIn { cookie, is_admin, .. }) => {
            let home = if is_admin { "/admin" } else { "/" };
            let is_theirs = !next.is_empty() && (is_admin || !next.starts_with("/admin"));
            let to = Redirect::to(if is_theirs { reader::here(&next) } else { home });
            return ([(header::SET_COOKIE, cookie)], to).into_response();
        }
        Err(NotSignedIn::Wrong) => (StatusCode::UNAUTHORIZED, "token"),
        Err(NotSignedIn::Later) => (StatusCode::TOO_MANY_REQUESTS, "later"),
        Err(NotSignedIn::Unknown(answer)) => return pages.problem(&reader, &answer),
    };
    pages.render(&reader, status, "login.html", context! { next, wrong })
}

/// `POST /admin/logout`
pub(super) async fn sign_out(
    State(pages): State<Arc<Pages>>,
    reader: Reader,
    headers: HeaderMap,
    Form(Mark { mark }): Form<Mark>,
) -> Page {
    pages.check_mark(&reader, &mark)?;
    if let Some(name) = cookies::session(&headers) {
        pages.sessions.close(name).await;
    }
    Ok(([(header::SET_COOKIE, cookies::set_session(&headers, "", 0))], Redirect::to("/")).into_response())
}

impl Pages {
    /// Opens a session with this credential, in the place of the browser's session.
    pub(super) async fn sign_in(
        &self,
        reader: &Reader,
        headers: &HeaderMap,
        credential: SecretString,
    ) -> Result<SignedIn, NotSignedIn> {
        let caller = reader.caller.clone().with(credential.clone());
        let answer = self.api.get(&caller, "/api/v1/admin/jobs?limit=1").await;
        let is_admin = match answer.status {
            StatusCode::OK => true,
            // Known, but not an operator.
            StatusCode::FORBIDDEN => false,
            StatusCode::UNAUTHORIZED => return Err(NotSignedIn::Wrong),
            StatusCode::TOO_MANY_REQUESTS => return Err(NotSignedIn::Later),
            _ => return Err(NotSignedIn::Unknown(answer)),
        };
        if let Some(old) = cookies::session(headers) {
            self.sessions.close(old).await;
        }
        let name = self.sessions.open(&credential, is_admin).await;
        let cookie = cookies::set_session(headers, &name, SESSION_HOURS * 3_600);
        Ok(SignedIn { cookie, is_admin, caller })
    }
}
