//! The style sheet, the script and the icon: part of the binary, kept by browsers for as long as they don't change.

use std::sync::LazyLock;

use axum::{
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::digest::sha256;

const ASSETS: [(&str, &str, &str); 4] = [
    ("app.css", "text/css; charset=utf-8", include_str!("assets/app.css")),
    ("app.js", "text/javascript; charset=utf-8", include_str!("assets/app.js")),
    ("docs.js", "text/javascript; charset=utf-8", include_str!("assets/docs.js")),
    ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
];

/// Changes with any of them, and goes into their addresses.
pub(super) static VERSION: LazyLock<String> = LazyLock::new(|| {
    let contents = ASSETS.map(|(_, _, content)| content.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(sha256(&contents)).chars().take(10).collect()
});

pub(super) async fn get(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(known, _, _)| *known == name) {
        Some((_, kind, content)) => {
            let headers =
                [(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")];
            (headers, *content).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
