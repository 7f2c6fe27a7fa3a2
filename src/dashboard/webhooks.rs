//! `/admin/webhooks`: the webhooks that their receivers do not accept, with a button to send each again.

use std::sync::Arc;

use axum::{
    extract::{Query, State},
    http::StatusCode,
};
use minijinja::{context, value::Serde};

use super::{
    filter::{Pairs, encode},
    pages::{Page, Pages},
    reader::Reader,
};

/// Jobs on a page.
const JOBS: usize = 50;

/// `GET /admin/webhooks`
pub(super) async fn show(State(pages): State<Arc<Pages>>, reader: Reader, Query(pairs): Query<Pairs>) -> Page {
    let limit = [("limit".to_owned(), JOBS.to_string())];
    let query = encode(pairs.into_iter().filter(|(name, _)| name == "cursor").chain(limit));
    let answer = pages.read(&reader, &format!("/api/v1/admin/webhooks/failing?{query}")).await?;
    Ok(pages.render(&reader, StatusCode::OK, "webhooks.html", context! { answer => Serde(answer) }))
}
