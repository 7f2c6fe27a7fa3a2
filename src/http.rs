//! The HTTP API. All routes are listed in `routes`; the OpenAPI document is made from the same list.
//!
//! A request goes through `middleware` (id, time limit, panics, access log, metrics), is parsed (`body`, `extract`,
//! `submission`, `wait`), makes one call into the queue, and is answered with a job (`view`) or a problem (`problem`).
//! This module opens no socket (`app` does) and uses neither the store nor Claude directly.

mod actions;
mod analyze;
pub mod api;
mod body;
pub mod caps;
mod document;
mod events;
mod extract;
pub mod failures;
mod filter;
mod headers;
mod health;
mod history;
mod host;
mod jobs;
mod keys;
mod limits;
mod listing;
pub mod memory;
pub mod memos;
mod middleware;
pub mod observe;
mod operate;
mod pages;
mod problem;
mod prompts;
mod submission;
mod transfer;
mod usage;
mod view;
mod wait;
mod webhooks;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    http::{HeaderValue, Method, Uri},
    middleware::from_fn_with_state,
    routing::get,
};
use tower_http::cors::{self, CorsLayer};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{
    api::Api,
    document::Document,
    problem::{METHOD_NOT_ALLOWED, Problem, ROUTE_NOT_FOUND},
};
use crate::config::values::Origin;
const CORS_MAX_AGE: Duration = Duration::from_mins(10);

/// The router of the whole service: the API and the pages. `pages` gets the API's routes to call, without the
/// middleware, because the request for the page went through it already.
pub fn router(api: Api, pages: impl FnOnce(Router) -> Router) -> Router {
    let api = Arc::new(api);
    let (routes, document) = routes().split_for_parts();
    let routes = routes.with_state(Arc::clone(&api));
    let document = Arc::new(document);
    let routes = routes.route("/openapi.json", get(move || std::future::ready(Json(Arc::clone(&document)))));
    // The pages answer what is not found: browsers get a page, programs what the API says.
    let pages = pages(routes.clone().fallback(no_such_route));
    routes
        .merge(pages)
        .method_not_allowed_fallback(wrong_method)
        .layer(cors(&api.cors_origins))
        .layer(from_fn_with_state(Arc::clone(&api), host::check))
        .layer(from_fn_with_state(Arc::clone(&api), middleware::bound))
        .layer(from_fn_with_state(api, middleware::observe))
}

/// Lets web pages of these origins call the API. Without any, browsers refuse all other origins.
fn cors(origins: &[Origin]) -> CorsLayer {
    if origins.is_empty() {
        return CorsLayer::new();
    }
    CorsLayer::new()
        .allow_origin(
            origins.iter().filter_map(|origin| origin.to_string().try_into().ok()).collect::<Vec<HeaderValue>>(),
        )
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers(cors::AllowHeaders::mirror_request())
        .expose_headers(cors::Any)
        .max_age(CORS_MAX_AGE)
}

pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

fn routes() -> OpenApiRouter<Arc<Api>> {
    let mut routes = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(analyze::analyze))
        .routes(routes!(analyze::batch))
        .routes(routes!(listing::list_own))
        .routes(routes!(jobs::get, jobs::delete))
        .routes(routes!(events::events))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::retry))
        .routes(routes!(webhooks::resend))
        .routes(routes!(webhooks::secret))
        .routes(routes!(webhooks::rotate))
        .routes(routes!(webhooks::test))
        .routes(routes!(webhooks::own_failing))
        .routes(routes!(listing::list))
        .routes(routes!(actions::act))
        .routes(routes!(operate::stats))
        .routes(routes!(operate::pause))
        .routes(routes!(operate::resume))
        .routes(routes!(operate::audit))
        .routes(routes!(transfer::export))
        .routes(routes!(transfer::import))
        .routes(routes!(limits::get, limits::patch))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::revoke))
        .routes(routes!(webhooks::callers_secret))
        .routes(routes!(webhooks::rotate_callers))
        .routes(routes!(webhooks::all_failing))
        .routes(routes!(usage::get))
        .routes(routes!(history::get))
        .routes(routes!(prompts::list))
        .routes(routes!(prompts::reload))
        .routes(routes!(jobs::reparse))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics));
    document::complete(routes.get_openapi_mut());
    routes
}

async fn no_such_route(uri: Uri) -> Problem {
    Problem::new(ROUTE_NOT_FOUND, format!("no route {}; /docs lists all routes", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} does not accept {method}; the Allow header lists the allowed methods", uri.path());
    Problem::new(METHOD_NOT_ALLOWED, detail)
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
