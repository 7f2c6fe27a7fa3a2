//! `/docs`: a page to read and try the API, made of its OpenAPI document.

use axum::{body::to_bytes, http::Method, response::Response};
use minijinja::{Value, context};

use super::{api::request, pages::Visit};

/// It has about 200 KB.
const MAX_DOCUMENT_BYTES: usize = 4 << 20;

pub(super) async fn show(visit: Visit) -> Response {
    let answer = visit.api.send(request(Method::GET, "/openapi.json", None)).await;
    let document = to_bytes(answer.into_body(), MAX_DOCUMENT_BYTES).await.unwrap_or_default();
    // As a template's value it keeps the order of its fields.
    let document: Value = serde_json::from_slice(&document).unwrap_or_default();
    visit.page("docs.html", context! { document })
}
