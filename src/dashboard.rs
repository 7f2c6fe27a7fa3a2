//! The pages for people: ask, read the memo, run the queue. Served by the binary itself; no other host is asked for
//! anything, which a strict Content-Security-Policy holds browsers to.
//!
//! The pages are a client of the API like any other ([`api`]): they ask it in process, with the credential of whoever
//! signed in, so that validation, rights, limits and the audit log are the API's alone. They see neither the queue nor
//! the store, but that it keeps their sessions. Reading works without script; the script only keeps pages up to date. What came from a user or the model
//! is escaped by the templates, without exception.
//!
//! - `ask`: `/` · `job`: `/jobs/{id}` · `queue`: `/admin` and below · `keys`: `/admin/keys` · `session`: signing in and out
//! - `docs`: `/docs`, the API to read and try
//! - `reader`: who reads: language, colours, session · `page`: templates and answers · `strings`: every text, twice
//! - `memo`, `history`: what of a memo, and of the past, is drawn and not just told · `assets`: the style sheet, the script, the
//!   icon

mod api;
mod ask;
mod assets;
mod docs;
mod history;
mod job;
mod keys;
mod memo;
mod page;
mod queue;
mod reader;
mod session;
mod strings;

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{get, post},
};

use self::{api::Api, page::Templates, session::Sessions};
use crate::queue::Queue;

/// Largest form of a question: the largest that the API takes, in a form's encoding of up to three bytes a byte. What is
/// too large for the API, the API says itself.
const MAX_QUESTION_BYTES: usize = 1 << 20;

/// Largest form of a bulk action, which has every condition of a search.
const MAX_ACTION_BYTES: usize = 64 << 10;

/// Largest other form: a name, a token, a few numbers.
const MAX_FORM_BYTES: usize = 4 << 10;

/// What the pages need.
struct Pages {
    api: Api,
    templates: Templates,
    sessions: Sessions,
    shown: Shown,
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

/// The pages, over `api`; `queue` stores their sessions.
pub fn router(api: Router, queue: Queue, shown: Shown) -> Router {
    let pages =
        Arc::new(Pages { api: Api::new(api), templates: Templates::new(), sessions: Sessions::of(queue), shown });
    Router::new()
        .route("/", get(ask::form).post(ask::submit).layer(DefaultBodyLimit::max(MAX_QUESTION_BYTES)))
        .route("/docs", get(docs::show))
        .route("/jobs/{id}", get(job::show))
        .route("/jobs/{id}/events", get(job::events))
        .route("/jobs/{id}/memo.md", get(job::memo_markdown))
        .route("/jobs/{id}/job.json", get(job::json))
        .route("/jobs/{id}/cancel", post(job::cancel))
        .route("/jobs/{id}/retry", post(job::retry))
        .route("/jobs/{id}/resend-webhook", post(job::resend_webhook))
        .route("/admin", get(queue::show))
        .route("/admin/login", get(session::form).post(session::sign_in))
        .route("/admin/logout", post(session::sign_out))
        .route("/admin/actions", post(queue::act).layer(DefaultBodyLimit::max(MAX_ACTION_BYTES)))
        .route("/admin/pause", post(queue::pause))
        .route("/admin/resume", post(queue::resume))
        .route("/admin/limits", get(queue::limits).post(queue::set_limits))
        .route("/admin/audit", get(queue::audit))
        .route("/admin/keys", get(keys::show).post(keys::create))
        .route("/admin/keys/revoke", post(keys::revoke))
        .route("/admin/webhooks", get(queue::webhooks))
        .layer(middleware::from_fn_with_state(Arc::clone(&pages), reader::guard))
        .route("/assets/{name}", get(assets::get))
        .layer(DefaultBodyLimit::max(MAX_FORM_BYTES))
        .layer(middleware::map_response(page::secure))
        .with_state(pages)
}
