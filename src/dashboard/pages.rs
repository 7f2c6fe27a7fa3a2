//! What every page needs, and the answers that all of them give.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{Html, IntoResponse, Redirect, Response},
};
use minijinja::context;
use serde::Deserialize;
use serde_json::Value;
use tracing::error;

use super::{
    api::{Answer, Api},
    assets,
    reader::{self, Reader},
    session::Sessions,
    templates::{Templates, memo_labels},
};
use crate::analysis::labels::Labels;

/// Nothing but our own style sheet, script and pictures; no other host, no inline code, no frame around it.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub(super) struct Pages {
    pub(super) api: Api,
    pub(super) templates: Templates,
    pub(super) sessions: Sessions,
    pub(super) shown: Shown,
}

/// What the pages show of the service.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// Longest question, in characters.
    pub max_query_length: usize,
    /// Claude is simulated: nothing is spent, and no answer is real.
    pub is_simulated: bool,
    /// Questions need no key.
    pub is_open: bool,
    /// It is open, and listens on more than this machine.
    pub is_exposed: bool,
}

/// The answer of a handler that stops at the first [`Instead`].
pub(super) type Page = Result<Response, Instead>;

/// An answer in the place of the page that was asked for.
pub(super) struct Instead(Box<Response>);

impl From<Response> for Instead {
    fn from(response: Response) -> Instead {
        Instead(Box::new(response))
    }
}

impl IntoResponse for Instead {
    fn into_response(self) -> Response {
        *self.0
    }
}

/// A form of one button.
#[derive(Deserialize)]
pub(super) struct Mark {
    #[serde(default)]
    pub(super) mark: String,
}

impl FromRequestParts<Arc<Pages>> for Reader {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, pages: &Arc<Pages>) -> Result<Reader, Infallible> {
        Ok(Reader::new(parts, &pages.sessions))
    }
}

impl Pages {
    /// A page: the template, with what it shows, for this reader.
    pub(super) fn render(
        &self,
        reader: &Reader,
        status: StatusCode,
        template: &str,
        shown: minijinja::Value,
    ) -> Response {
        match self.templates.fill(template, frame(reader, self.shown, shown)) {
            Ok(page) => (status, [(header::CACHE_CONTROL, "private, no-cache")], Html(page)).into_response(),
            Err(error) => {
                error!(page = template, error = format!("{error:#}"), "failed to render a page");
                (StatusCode::INTERNAL_SERVER_ERROR, "internal error; the service's log has the details").into_response()
            }
        }
    }

    /// A page that says one thing, by the keys of its title and text.
    pub(super) fn message(&self, reader: &Reader, status: StatusCode, title: &str, text: &str) -> Response {
        self.render(reader, status, "message.html", context! { title, text })
    }

    /// The page of an answer that is an error.
    pub(super) fn problem(&self, reader: &Reader, answer: &Answer) -> Response {
        match answer.status {
            StatusCode::UNAUTHORIZED if reader.session.is_none() => sign_in_first(&reader.here),
            StatusCode::NOT_FOUND => self.message(reader, answer.status, "unknown_title", "unknown_do"),
            status => {
                let shown = context! {
                    title => "error_title",
                    text => "error_do",
                    detail => answer.body["detail"].as_str(),
                    request_id => answer.body["request_id"].as_str(),
                };
                self.render(reader, status, "message.html", shown)
            }
        }
    }

    /// What the API has at `path`, for a page that needs a session.
    pub(super) async fn read(&self, reader: &Reader, path: &str) -> Result<Value, Instead> {
        if reader.session.is_none() {
            return Err(sign_in_first(&reader.here).into());
        }
        self.api.get(&reader.caller, path).await.ok().map_err(|answer| match answer.status {
            StatusCode::UNAUTHORIZED => sign_in_first(&reader.here).into(),
            _ => self.problem(reader, &answer).into(),
        })
    }

    /// What the API answered to a change, or the page of its error.
    pub(super) fn done(&self, reader: &Reader, answer: Answer) -> Result<Value, Instead> {
        answer.ok().map_err(|answer| self.problem(reader, &answer).into())
    }

    /// Checks that a form was made for this session.
    pub(super) fn check_mark(&self, reader: &Reader, mark: &str) -> Result<(), Instead> {
        match &reader.session {
            Some(session) if session.made(mark) => Ok(()),
            Some(_) => Err(self.message(reader, StatusCode::FORBIDDEN, "error_title", "error_form_old").into()),
            None => Err(sign_in_first("/admin").into()),
        }
    }
}

/// An address without a page: browsers get a page that says so, programs the API's answer.
pub(super) async fn not_found(State(pages): State<Arc<Pages>>, reader: Reader, request: Request) -> Response {
    let accept = request.headers().get_all(header::ACCEPT).iter();
    if accept.filter_map(|value| value.to_str().ok()).any(|value| value.contains("text/html")) {
        return pages.message(&reader, StatusCode::NOT_FOUND, "no_page_title", "no_page_do");
    }
    let method = request.method().clone();
    pages.api.send(&reader.caller, method, &reader.here, HeaderMap::new(), None).await
}

/// What every template gets besides what its page shows.
fn frame(reader: &Reader, service: Shown, shown: minijinja::Value) -> minijinja::Value {
    let labels = shown.get_attr("m").ok().filter(|labels| !labels.is_undefined());
    let separator = if reader.here.contains('?') { '&' } else { '?' };
    context! {
        t => reader.lang.texts(),
        // Of the memo that is shown, else in the reader's language.
        m => labels.unwrap_or_else(|| memo_labels(Labels::of(reader.lang.code()))),
        lang => reader.lang.code(),
        lang_tag => reader.lang.tag(),
        other_lang => reader.lang.other().code(),
        theme => reader.theme,
        here => format!("{}{separator}", reader.here),
        version => assets::VERSION.as_str(),
        is_simulated => service.is_simulated,
        is_open => service.is_open,
        is_exposed => service.is_exposed,
        mark => reader.session.as_ref().map(|session| session.mark.as_str()),
        is_admin => reader.session.as_ref().is_some_and(|session| session.is_admin),
        ..shown
    }
}

/// To the form, and back to `here` afterwards.
pub(super) fn sign_in_first(here: &str) -> Response {
    let next = form_urlencoded::Serializer::new(String::new()).append_pair("next", here).finish();
    Redirect::to(&format!("/admin/login?{next}")).into_response()
}

/// Follows the switches of language and colours, and refuses forms of other sites.
pub(super) async fn guard(State(pages): State<Arc<Pages>>, request: Request, next: Next) -> Response {
    let method = request.method();
    if method == Method::GET
        && let Some(response) = reader::switch(request.uri())
    {
        return response;
    }
    if method != Method::GET && method != Method::HEAD && reader::is_foreign(request.headers()) {
        let (parts, _) = request.into_parts();
        let reader = Reader::new(&parts, &pages.sessions);
        return pages.message(&reader, StatusCode::FORBIDDEN, "error_title", "error_foreign");
    }
    next.run(request).await
}

/// Headers that keep a browser from doing more than these pages need.
pub(super) async fn secure(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
