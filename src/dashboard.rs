//! The pages for people: ask, read the memo, manage the queue. The binary serves all of it; a strict
//! Content-Security-Policy keeps browsers from asking other hosts.
//!
//! The pages are a client of the API ([`api`]): they call it in process with the credential of the session. So only the
//! API has validation, rights, limits and the audit log. The pages only store their sessions. Reading works without
//! script; the script only keeps pages up to date. Templates escape the texts of users and of the model.
//!
//! - `ask`: `/` · `job`: `/jobs/{id}` · `queue`: `/admin` and below · `keys`: `/admin/keys` · `login`: signing in and out
//! - `docs`: `/docs`, to read and try the API · `schema`: its filters
//! - `filter`: the filter of the queue · `audit`: the details in the audit log
//! - `pages`: what all pages need · `reader`: language, colours, foreign forms · `session`, `cookies`
//! - `templates`: the templates and their filters · `strings`: every text, in two languages
//! - `memo`, `history`: figures for drawings · `assets`: the style sheet, the script, the icon

#![expect(clippy::result_large_err, reason = "an error is an answer, as a success is")]

mod api;
mod ask;
mod assets;
mod audit;
mod cookies;
mod docs;
mod filter;
mod history;
mod job;
mod keys;
mod login;
mod memo;
mod pages;
mod queue;
mod reader;
mod schema;
mod session;
mod strings;
mod templates;

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{get, post},
};

use self::{pages::Pages, templates::Templates};
pub use self::{pages::Shown, session::Sessions};

/// Largest form of a question: the largest that the API takes, with up to three bytes for each byte. The API refuses
/// larger ones itself.
const MAX_QUESTION_BYTES: usize = 1 << 20;

/// A form with all conditions of a filter.
const MAX_ACTION_BYTES: usize = 64 << 10;

const MAX_FORM_BYTES: usize = 4 << 10;

pub fn router(api: Router, sessions: Sessions, shown: Shown) -> Router {
    let pages = Arc::new(Pages { routes: api, templates: Templates::new(), sessions, shown });
    Router::new()
        .route("/", get(ask::form).post(ask::submit).layer(DefaultBodyLimit::max(MAX_QUESTION_BYTES)))
        .route("/docs", get(docs::show))
        .route("/jobs/{id}", get(job::show))
        .route("/jobs/{id}/events", get(job::events))
        .route("/jobs/{id}/memo.md", get(job::memo_markdown))
        .route("/jobs/{id}/job.json", get(job::json))
        .route("/jobs/{id}/cancel", post(|visit, id, form| job::change(visit, id, form, "cancel")))
        .route("/jobs/{id}/retry", post(|visit, id, form| job::change(visit, id, form, "retry")))
        .route("/jobs/{id}/resend-webhook", post(|visit, id, form| job::change(visit, id, form, "resend-webhook")))
        .route("/jobs/{id}/delete", post(job::delete))
        .route("/admin", get(queue::show))
        .route("/admin/login", get(login::form).post(login::sign_in))
        .route("/admin/logout", post(login::sign_out))
        .route("/admin/actions", post(queue::act).layer(DefaultBodyLimit::max(MAX_ACTION_BYTES)))
        .route("/admin/pause", post(|visit, form| queue::switch(visit, form, "pause")))
        .route("/admin/resume", post(|visit, form| queue::switch(visit, form, "resume")))
        .route("/admin/limits", get(queue::limits).post(queue::set_limits))
        .route("/admin/audit", get(|visit, query| queue::listing(visit, query, "/api/v1/admin/audit", "audit.html")))
        .route("/admin/keys", get(keys::show).post(keys::create))
        .route("/admin/keys/revoke", post(keys::revoke))
        .route(
            "/admin/webhooks",
            get(|visit, query| queue::listing(visit, query, "/api/v1/admin/webhooks/failing", "webhooks.html")),
        )
        .layer(middleware::from_fn_with_state(Arc::clone(&pages), pages::guard))
        .route("/assets/{name}", get(assets::get))
        .fallback(pages::not_found)
        .layer(DefaultBodyLimit::max(MAX_FORM_BYTES))
        .layer(middleware::map_response(pages::secure))
        .with_state(pages)
}
