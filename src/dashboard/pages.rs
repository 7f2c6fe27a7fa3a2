//! What every page needs: the visit of a reader, and the answers that all pages give.

use std::sync::Arc;

use axum::{
    Router,
    extract::{FromRequestParts, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{Html, IntoResponse, Redirect, Response},
};
use minijinja::context;
use serde::Deserialize;
use serde_json::Value;
use tracing::error;

use super::{
    api::{Answer, Api, request as api_request},
    assets, cookies, reader,
    session::{SessionView, Sessions},
    strings::Lang,
    templates::{Templates, memo_labels},
};
use crate::analysis::labels::Labels;

/// Only the style sheet, scripts and pictures of this service: no other host, no inline code, no frame around a page.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub(super) struct Pages {
    pub(super) routes: Router,
    pub(super) templates: Templates,
    pub(super) sessions: Sessions,
    pub(super) shown: Shown,
}

#[derive(Clone, Copy, Debug)]
pub struct Shown {
    pub max_query_length: usize,
    pub is_simulated: bool,
    /// Questions need no key.
    pub is_open: bool,
    /// It is open, and listens on more than this machine.
    pub is_exposed: bool,
}

/// The answer of a handler. It stops at the first answer in place of the requested page.
pub(super) type Page = Result<Response, Response>;

#[derive(Deserialize)]
pub(super) struct Mark {
    #[serde(default)]
    pub(super) mark: String,
}

/// One request to a page: who reads it, and the API in their name.
pub(super) struct Visit {
    pub(super) pages: Arc<Pages>,
    pub(super) api: Api,
    pub(super) session: Option<SessionView>,
    lang: Lang,
    theme: &'static str,
    here: String,
}

impl FromRequestParts<Arc<Pages>> for Visit {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, pages: &Arc<Pages>) -> Result<Visit, Response> {
        Visit::new(parts, pages).await
    }
}

impl Visit {
    /// # Errors
    /// The page to show if the sessions can't be read.
    async fn new(parts: &Parts, pages: &Arc<Pages>) -> Result<Visit, Response> {
        let found = match cookies::session(&parts.headers) {
            Some(name) => pages.sessions.find(name).await,
            None => Ok(None),
        };
        let error = found.as_ref().err().cloned();
        let (session, credential) = found.unwrap_or_default().unzip();
        let visit = Visit {
            api: Api::new(pages.routes.clone(), parts, credential),
            session,
            lang: reader::language(&parts.headers),
            theme: reader::theme(&parts.headers),
            here: parts.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
            pages: Arc::clone(pages),
        };
        match error {
            Some(error) => Err(visit.problem(&Answer::unavailable(&error))),
            None => Ok(visit),
        }
    }

    pub(super) fn page(&self, template: &str, shown: minijinja::Value) -> Response {
        self.render(StatusCode::OK, template, shown)
    }

    pub(super) fn render(&self, status: StatusCode, template: &str, shown: minijinja::Value) -> Response {
        match self.pages.templates.fill(template, self.frame(shown)) {
            Ok(page) => (status, [(header::CACHE_CONTROL, "private, no-cache")], Html(page)).into_response(),
            Err(error) => {
                error!(page = template, error = format!("{error:#}"), "failed to render a page");
                (StatusCode::INTERNAL_SERVER_ERROR, "internal error; the service's log has the details").into_response()
            }
        }
    }

    fn frame(&self, shown: minijinja::Value) -> minijinja::Value {
        let labels = shown.get_attr("m").ok().filter(|labels| !labels.is_undefined());
        let lang = self.lang;
        let separator = if self.here.contains('?') { '&' } else { '?' };
        let service = self.pages.shown;
        context! {
            t => lang.texts(),
            // In the language of the memo on the page, else in the reader's language.
            m => labels.unwrap_or_else(|| memo_labels(Labels::of(lang.code()))),
            lang_tag => lang.tag(),
            other_lang => lang.other().code(),
            theme => self.theme,
            here => format!("{}{separator}", self.here),
            version => assets::VERSION.as_str(),
            is_simulated => service.is_simulated,
            is_open => service.is_open,
            is_exposed => service.is_exposed,
            mark => self.session.as_ref().map(|session| session.mark.as_str()),
            is_admin => self.session.as_ref().is_some_and(|session| session.is_admin),
            ..shown
        }
    }

    /// A page with one message; `title` and `text` are keys of texts.
    pub(super) fn message(&self, status: StatusCode, title: &str, text: &str) -> Response {
        self.render(status, "message.html", context! { title, text })
    }

    pub(super) fn problem(&self, answer: &Answer) -> Response {
        match answer.status {
            StatusCode::UNAUTHORIZED if self.session.is_none() => self.sign_in_first(),
            StatusCode::NOT_FOUND => self.message(answer.status, "unknown_title", "unknown_do"),
            status => {
                let shown = context! {
                    title => "error_title",
                    text => "error_do",
                    detail => answer.body["detail"].as_str(),
                    request_id => answer.body["request_id"].as_str(),
                };
                self.render(status, "message.html", shown)
            }
        }
    }

    /// The API's answer at `path`, for a page that needs a session.
    pub(super) async fn read(&self, path: &str) -> Result<Value, Response> {
        if self.session.is_none() {
            return Err(self.sign_in_first());
        }
        match self.api.get(path).await {
            answer if answer.status == StatusCode::UNAUTHORIZED => Err(self.sign_in_first()),
            answer => self.done(answer),
        }
    }

    pub(super) fn done(&self, answer: Answer) -> Result<Value, Response> {
        answer.ok().map_err(|answer| self.problem(&answer))
    }

    /// Checks that a form was made for this session.
    pub(super) fn check_mark(&self, mark: &str) -> Result<(), Response> {
        match &self.session {
            Some(session) if session.made(mark) => Ok(()),
            Some(_) => Err(self.message(StatusCode::FORBIDDEN, "error_title", "error_form_old")),
            None => Err(sign_in("/admin")),
        }
    }

    /// To the sign-in form, and back to this page afterwards.
    pub(super) fn sign_in_first(&self) -> Response {
        sign_in(&self.here)
    }
}

fn sign_in(next: &str) -> Response {
    let next = form_urlencoded::Serializer::new(String::new()).append_pair("next", next).finish();
    Redirect::to(&format!("/admin/login?{next}")).into_response()
}

/// An address without a page: browsers get a page that says so, programs the API's answer.
pub(super) async fn not_found(visit: Visit, request: Request) -> Response {
    let accept = request.headers().get_all(header::ACCEPT).iter();
    if accept.filter_map(|value| value.to_str().ok()).any(|value| value.contains("text/html")) {
        return visit.message(StatusCode::NOT_FOUND, "no_page_title", "no_page_do");
    }
    visit.api.send(api_request(request.method().clone(), &visit.here, None)).await
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
        return match Visit::new(&request.into_parts().0, &pages).await {
            Ok(visit) => visit.message(StatusCode::FORBIDDEN, "error_title", "error_foreign"),
            Err(unavailable) => unavailable,
        };
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
