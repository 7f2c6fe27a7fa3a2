//! `/docs`: the API to read and to try, made of its OpenAPI document.

use std::sync::Arc;

use axum::{
    body::to_bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode},
    response::Response,
};
use minijinja::{Value, context};

use super::{pages::Pages, reader::Reader};

/// Largest document; it has about 200 KB.
const MAX_DOCUMENT_BYTES: usize = 4 << 20;

/// `GET /docs`
pub(super) async fn show(State(pages): State<Arc<Pages>>, reader: Reader) -> Response {
    let answer = pages.api.send(&reader.caller, Method::GET, "/openapi.json", HeaderMap::new(), None).await;
    let document = to_bytes(answer.into_body(), MAX_DOCUMENT_BYTES).await.unwrap_or_default();
    // As a template's value it keeps the order of its fields.
    let document: Value = serde_json::from_slice(&document).unwrap_or_default();
    pages.render(&reader, StatusCode::OK, "docs.html", context! { document })
}
