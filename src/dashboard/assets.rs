//! The style sheet, the script and the icon: part of the binary, kept by browsers for as long as they don't change.

use std::sync::LazyLock;

use axum::{
    extract::{Path, Query},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;

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

#[derive(Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    v: String,
}

pub(super) async fn get(Path(name): Path<String>, Query(Wanted { v }): Query<Wanted>) -> Response {
    // During an upgrade a page of another node may ask for other contents. Those here must not stay under their address.
    let cache = if v == *VERSION { "public, max-age=31536000, immutable" } else { "no-store" };
    match ASSETS.iter().find(|(known, _, _)| *known == name) {
        Some((_, kind, content)) => {
            ([(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, cache)], *content).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_contents_that_a_page_means_stay_in_caches() {
        let cache = async |v: &str| {
            let answer = get(Path("app.css".to_owned()), Query(Wanted { v: v.to_owned() })).await;
            answer.headers()[header::CACHE_CONTROL].clone()
        };
        assert!(cache(&VERSION).await.to_str().unwrap().ends_with("immutable"));
        assert_eq!(
            (cache("of-another-node").await, cache("").await),
            ("no-store".parse().unwrap(), "no-store".parse().unwrap())
        );
    }
}
