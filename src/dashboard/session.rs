//! Signing in: the credential is checked by the API, then kept here, in memory; the browser gets a random name for it.
//! A restart signs everybody out.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Form,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use minijinja::context;
use rand::distr::{Alphanumeric, SampleString};
use secrecy::SecretString;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    Pages,
    reader::{self, Reader},
};
use crate::clock::{Clock, Timestamp};

/// A working day, and no night: who runs the service signs in again.
const SESSION_HOURS: u64 = 12;

/// Most sessions: the oldest makes room. More browsers than any team of operators has.
const MAX_SESSIONS: usize = 1_000;

/// Characters of a session's name, and of the mark in its forms: 32 of 62 kinds are 190 bits.
const NAME_LENGTH: usize = 32;

/// Tries a minute, over all clients: a token of 190 bits needs no tighter bound, one that was chosen badly does.
const TRIES_PER_MINUTE: u32 = 10;

const COOKIE: &str = "ceoagent_session";

/// The sessions.
pub(super) struct Sessions {
    clock: Clock,
    /// By the digest of their names, so that finding one tells nothing by the time it takes.
    open: Mutex<HashMap<[u8; 32], Session>>,
    tries: DefaultDirectRateLimiter,
}

struct Session {
    credential: SecretString,
    /// What its forms carry.
    mark: String,
    ends_at: Timestamp,
}

/// A session as pages see it.
#[derive(Clone, Debug)]
pub(super) struct SessionView {
    /// What its forms carry, so that no other site can make one up.
    pub(super) mark: String,
}

impl Sessions {
    pub(super) fn new(clock: Clock) -> Sessions {
        let per_minute = const { std::num::NonZeroU32::new(TRIES_PER_MINUTE).unwrap() };
        Sessions { clock, open: Mutex::default(), tries: RateLimiter::direct(Quota::per_minute(per_minute)) }
    }

    /// Opens a session. Gives the name that the browser is to keep.
    fn open(&self, credential: SecretString) -> String {
        let now = self.clock.now();
        let random = || Alphanumeric.sample_string(&mut rand::rng(), NAME_LENGTH);
        let (name, mark) = (random(), random());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, session| session.ends_at > now);
        if open.len() >= MAX_SESSIONS
            && let Some(oldest) = open.iter().min_by_key(|(_, session)| session.ends_at).map(|(key, _)| *key)
        {
            open.remove(&oldest);
        }
        let ends_at = now.plus(Duration::from_hours(SESSION_HOURS));
        open.insert(digest(&name), Session { credential, mark, ends_at });
        name
    }

    /// The session of this name, with its credential.
    pub(super) fn find(&self, name: &str) -> Option<(SessionView, SecretString)> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let session = open.get(&digest(name)).filter(|session| session.ends_at > self.clock.now())?;
        Some((SessionView { mark: session.mark.clone() }, session.credential.clone()))
    }

    fn close(&self, name: &str) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest(name));
    }
}

impl SessionView {
    /// True if a form carries this session's mark.
    pub(super) fn made(&self, mark: &str) -> bool {
        self.mark.as_bytes().ct_eq(mark.as_bytes()).into()
    }
}

fn digest(name: &str) -> [u8; 32] {
    Sha256::digest(name.as_bytes()).into()
}

/// The name of the session that the browser has.
pub(super) fn cookie(headers: &HeaderMap) -> Option<&str> {
    reader::cookie(headers, COOKIE)
}

/// `Secure` only where a proxy says that the browser speaks TLS: without it the browser would not keep the cookie.
fn set_cookie(headers: &HeaderMap, value: &str, seconds: u64) -> HeaderValue {
    let by_tls = headers.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https");
    let secure = if by_tls { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::try_from(cookie).unwrap_or_else(|_| HeaderValue::from_static(""))
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
    axum::extract::Query(Next { next }): axum::extract::Query<Next>,
) -> Response {
    pages.render(&reader, StatusCode::OK, "login.html", context! { next })
}

/// The filled form.
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
    // Right or wrong: nobody signs in ten times a minute.
    if pages.sessions.tries.check().is_err() {
        let page = context! { next, wrong => "later" };
        return pages.render(&reader, StatusCode::TOO_MANY_REQUESTS, "login.html", page);
    }
    let token = SecretString::from(token);
    let caller = reader.caller.clone().with(token.clone());
    let answer = pages.api.get(&caller, "/api/v1/admin/jobs?limit=1").await;
    match answer.status {
        StatusCode::OK => {
            if let Some(old) = cookie(&headers) {
                pages.sessions.close(old);
            }
            let name = pages.sessions.open(token);
            let to = if next.is_empty() { "/admin" } else { reader::here(&next) };
            let mut response = Redirect::to(to).into_response();
            let cookie = set_cookie(&headers, &name, SESSION_HOURS * 3_600);
            response.headers_mut().append(header::SET_COOKIE, cookie);
            response
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let page = context! { next, wrong => "token" };
            pages.render(&reader, StatusCode::UNAUTHORIZED, "login.html", page)
        }
        StatusCode::TOO_MANY_REQUESTS => {
            let page = context! { next, wrong => "later" };
            pages.render(&reader, StatusCode::TOO_MANY_REQUESTS, "login.html", page)
        }
        _ => pages.problem(&reader, &answer),
    }
}

/// A form that says nothing but whose it is.
#[derive(Deserialize)]
pub(super) struct Mark {
    #[serde(default)]
    pub(super) mark: String,
}

/// `POST /admin/logout`
pub(super) async fn sign_out(
    State(pages): State<Arc<Pages>>,
    reader: Reader,
    headers: HeaderMap,
    Form(Mark { mark }): Form<Mark>,
) -> Response {
    if let Err(response) = pages.check_mark(&reader, &mark) {
        return *response;
    }
    if let Some(name) = cookie(&headers) {
        pages.sessions.close(name);
    }
    let mut response = Redirect::to("/").into_response();
    response.headers_mut().append(header::SET_COOKIE, set_cookie(&headers, "", 0));
    response
}

impl Pages {
    /// That a form was made for this session: else the answer that says so.
    pub(super) fn check_mark(&self, reader: &Reader, mark: &str) -> Result<(), Box<Response>> {
        match &reader.session {
            Some(session) if session.made(mark) => Ok(()),
            Some(_) => Err(Box::new(self.message(reader, StatusCode::FORBIDDEN, "error_title", "error_form_old"))),
            None => Err(Box::new(sign_in_first("/admin"))),
        }
    }
}

/// To the form, and back to `here` afterwards.
pub(super) fn sign_in_first(here: &str) -> Response {
    let next = form_urlencoded::Serializer::new(String::new()).append_pair("next", here).finish();
    Redirect::to(&format!("/admin/login?{next}")).into_response()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn sessions() -> (Sessions, Clock) {
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        (Sessions::new(clock.clone()), clock)
    }

    #[test]
    fn a_session_is_found_by_its_name_until_it_ends() {
        let (sessions, clock) = sessions();
        let name = sessions.open("secret".into());
        assert!(!name.contains("secret"));
        let (view, credential) = sessions.find(&name).unwrap();
        assert_eq!(credential.expose_secret(), "secret");
        assert!(view.made(&view.mark.clone()) && !view.made("") && !view.made(&name));
        assert!(sessions.find("another").is_none());
        clock.advance(Duration::from_hours(SESSION_HOURS));
        assert!(sessions.find(&name).is_none());
    }

    #[test]
    fn a_closed_session_is_gone_and_the_oldest_makes_room() {
        let (sessions, clock) = sessions();
        let first = sessions.open("s".into());
        clock.advance(Duration::from_secs(1));
        let second = sessions.open("s".into());
        for _ in 2..MAX_SESSIONS {
            sessions.open("s".into());
        }
        assert!(sessions.find(&first).is_some());
        sessions.open("s".into());
        assert!(sessions.find(&first).is_none() && sessions.find(&second).is_some());
        sessions.close(&second);
        assert!(sessions.find(&second).is_none());
    }

    #[test]
    fn the_cookie_is_kept_from_scripts_and_other_sites() {
        let cookie = set_cookie(&HeaderMap::new(), "abc", 60);
        assert_eq!(cookie, "ceoagent_session=abc; Path=/; Max-Age=60; HttpOnly; SameSite=Strict");
        let by_tls = HeaderMap::from_iter([(
            header::HeaderName::from_static("x-forwarded-proto"),
            HeaderValue::from_static("https"),
        )]);
        assert!(set_cookie(&by_tls, "abc", 60).to_str().unwrap().ends_with("; Secure"));
    }
}
