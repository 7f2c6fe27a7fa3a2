//! The HTTP API. All routes are listed in `routes`; the OpenAPI document is made from the same list.
//!
//! A request goes through `observe` (id, time limit, panics, access log, metrics), is parsed (`body`, `extract`,
//! `submission`, `wait`), makes one call into the queue, and is answered with a job (`view`) or a problem (`problem`).
//! This module opens no socket (`app` does) and uses neither the store nor Claude directly.

mod actions;
mod admin;
mod analyze;
mod batch;
mod body;
mod document;
mod etag;
mod events;
mod extract;
pub mod failures;
mod filter;
mod health;
mod history;
mod host;
mod jobs;
mod keys;
mod limits;
pub mod memory;
pub mod observe;
mod operate;
mod pages;
mod problem;
mod prompts;
mod reparse;
mod submission;
mod transfer;
mod usage;
mod view;
mod wait;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    http::{HeaderName, HeaderValue, Method, Uri},
    middleware,
    routing::get,
};
use tokio::time::Instant;
use tower_http::cors::{self, CorsLayer};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use self::health::Note;
use self::{
    document::Document,
    failures::Failures,
    memory::MemoryBudget,
    observe::RefusalLog,
    problem::{METHOD_NOT_ALLOWED, Problem, ROUTE_NOT_FOUND},
    submission::Bounds,
    view::{Include, JobView},
};
use crate::{
    agent::models::Models,
    auth::Auth,
    clock::Timestamp,
    config::values::Network,
    digest::Lane,
    job::{Job, JobRecord, callback::Callbacks, caller::Caller},
    limits::Limits,
    metrics::Metrics,
    prompts::Prompts,
    queue::{Allowance, Hold, Kind, Outlook, Queue, Quota, WaitingFor},
};

/// How long a browser may keep the answer to a CORS preflight.
const CORS_MAX_AGE: Duration = Duration::from_mins(10);

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Everything the routes need.
pub struct Api {
    pub queue: Queue,
    /// The limits on calls. Readiness and metrics show their gate.
    pub limits: Limits,
    /// The prompt versions that a request may name.
    pub prompts: Prompts,
    pub metrics: Metrics,
    /// What is known of each model.
    pub models: Models,
    /// What an operator should know, though the service works.
    pub notes: Arc<dyn Fn() -> Vec<Note> + Send + Sync>,
    pub auth: Arc<Auth>,
    /// The bound on memory for request bodies and answers.
    pub memory: MemoryBudget,
    pub refusals: RefusalLog,
    /// The rate limit of wrong credentials.
    pub failures: Failures,
    /// Proxies whose X-Forwarded-For is believed.
    pub trusted_proxies: Arc<[Network]>,
    /// Origins whose web pages may call the API from a browser.
    pub cors_origins: Vec<HeaderValue>,
    /// Which callback URLs are accepted.
    pub callbacks: Callbacks,
    /// Most characters in a query.
    pub max_query_length: usize,
}

impl Api {
    /// The job as clients see it at `now`.
    fn view<'a>(&self, record: &'a JobRecord, now: Timestamp) -> JobView<'a> {
        self.listed(record, now, Include::ALL)
    }

    /// The job as lists show it, with those of its large parts that `include` names.
    fn listed<'a>(&self, record: &'a JobRecord, now: Timestamp, include: Include) -> JobView<'a> {
        let kind = Kind::of(&record.request, record.job.waited_for);
        JobView::new(record, now, include).with_outlook(self.outlook(&record.job, &kind))
    }

    /// Adds the caller's quota to the response, if submissions are limited.
    fn show_quota(&self, by: Caller) {
        let Some(Quota { per_minute, left, full_in }) = self.queue.quota(by) else { return };
        let policy = format!("\"submits\";q={per_minute};w=60");
        let state = format!("\"submits\";r={left};t={}", whole_seconds(full_in));
        for (name, text) in [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, state)] {
            if let Ok(value) = HeaderValue::from_str(&text) {
                observe::add_header(name, value);
            }
        }
    }

    /// The bounds on submissions.
    fn bounds(&self) -> Bounds<'_> {
        Bounds {
            max_query_length: self.max_query_length,
            callbacks: &self.callbacks,
            prompts: &self.prompts,
            models: &self.models,
        }
    }

    /// Why a job waits, if it does.
    fn outlook(&self, job: &Job, kind: &Kind) -> Option<Outlook> {
        self.queue.outlook(job, kind, || self.allowance(job.model))
    }

    /// What the limits on calls allow jobs of a lane at the moment.
    fn allowance(&self, lane: Lane) -> Allowance {
        allowance(&self.limits, lane)
    }
}

/// The unit of `Retry-After` and `RateLimit`. Rounded up, so that a client does not come too early.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX)
}

/// What the limits on calls allow jobs of a lane at the moment.
pub fn allowance(limits: &Limits, lane: Lane) -> Allowance {
    let gate = limits
        .gate(lane)
        .map(|closed| Hold { waiting_for: WaitingFor::Gate, opens_in: closed.opens_in(Instant::now()) });
    let budget = limits
        .budget()
        .filter(|budget| budget.is_reached)
        .map(|budget| Hold { waiting_for: WaitingFor::Budget, opens_in: Some(budget.day_ends_in) });
    Allowance {
        calls_per_second: limits.calls_per_second(lane),
        calls_at_once: limits.calls_at_once(lane),
        is_exhausted: limits.is_exhausted(),
        hold: gate.into_iter().chain(budget).max_by_key(|hold| (hold.opens_in.is_none(), hold.opens_in)),
    }
}

/// The router of the whole service: the API and the pages. `pages` gets the API's routes to call, without the
/// middleware, because the request for the page went through it already.
pub fn router(api: Api, pages: impl FnOnce(Router) -> Router) -> Router {
    let api = Arc::new(api);
    let (routes, document) = routes().split_for_parts();
    let routes = routes.with_state(Arc::clone(&api));
    let document = Arc::new(document);
    let routes = routes.route("/openapi.json", get(move || std::future::ready(Json(Arc::clone(&document)))));
    let pages = pages(routes.clone());
    routes
        .merge(pages)
        .fallback(no_such_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(cors(api.cors_origins.clone()))
        .layer(middleware::from_fn_with_state(Arc::clone(&api), host::check))
        .layer(middleware::from_fn_with_state(Arc::clone(&api), memory::bound))
        .layer(middleware::from_fn_with_state(api, observe::observe))
}

/// Lets web pages of these origins call the API. Without any, browsers refuse all other origins.
fn cors(origins: Vec<HeaderValue>) -> CorsLayer {
    if origins.is_empty() {
        return CorsLayer::new();
    }
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers(cors::AllowHeaders::mirror_request())
        .expose_headers(cors::Any)
        .max_age(CORS_MAX_AGE)
}

/// The OpenAPI document of the routes.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

fn routes() -> OpenApiRouter<Arc<Api>> {
    let mut routes = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(analyze::analyze))
        .routes(routes!(batch::batch))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::get, jobs::delete))
        .routes(routes!(events::events))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::retry))
        .routes(routes!(admin::list))
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
        .routes(routes!(usage::get))
        .routes(routes!(history::get))
        .routes(routes!(prompts::list))
        .routes(routes!(prompts::reload))
        .routes(routes!(reparse::reparse))
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
