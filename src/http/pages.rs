//! What all routes that answer page by page share: the parameter `limit`, and the link to the next page.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::FromRequestParts,
    http::{HeaderValue, header, request::Parts, uri::Authority},
    response::{IntoResponse, Response},
};

use super::{
    api::Api,
    extract::{Params, count_up_to},
};
use crate::config::values::Origin;

const DEFAULT_LIMIT: usize = 50;

/// Most entries on a page: each job is read from disk.
const MAX_LIMIT: usize = 200;

pub(super) fn limit(params: &mut Params) -> usize {
    params.last("limit", |value| count_up_to(MAX_LIMIT, value)).unwrap_or(DEFAULT_LIMIT)
}

/// The address of this request, as the client knows it.
pub(super) struct Here {
    path: String,
    query: String,
}

impl FromRequestParts<Arc<Api>> for Here {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Here, Infallible> {
        Ok(Here::new(parts, api.public_url.as_ref()))
    }
}

impl Here {
    fn new(parts: &Parts, public_url: Option<&Origin>) -> Here {
        let text = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let base = public_url.map(ToString::to_string).unwrap_or_else(|| {
            // A wrong value leads nobody astray but the client that sent it.
            let scheme = if text("x-forwarded-proto") == Some("https") { "https" } else { "http" };
            let host = parts.uri.authority().map(Authority::as_str).or(text("host")).unwrap_or("localhost");
            format!("{scheme}://{host}")
        });
        Here { path: format!("{base}{}", parts.uri.path()), query: parts.uri.query().unwrap_or_default().to_owned() }
    }

    /// Adds the address of the next page to a page, if there is one, as `Link` (RFC 8288): the same request with another
    /// cursor.
    pub(super) fn link_next(&self, page: impl IntoResponse, parameter: &str, cursor: Option<String>) -> Response {
        let link = cursor
            .and_then(|cursor| HeaderValue::try_from(format!("<{}>; rel=\"next\"", self.at(parameter, &cursor))).ok());
        (link.map(|link| [(header::LINK, link)]), page).into_response()
    }

    fn at(&self, parameter: &str, cursor: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(form_urlencoded::parse(self.query.as_bytes()).filter(|(name, _)| name != parameter));
        format!("{}?{}", self.path, query.append_pair(parameter, cursor).finish())
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;
    use crate::config::values::origin;

    fn next(host: &str, proto: &str, uri: &str, public_url: Option<&Origin>) -> String {
        let request = Request::get(uri).header("host", host).header("x-forwarded-proto", proto).body(()).unwrap();
        Here::new(&request.into_parts().0, public_url).at("cursor", "AbC")
    }

    #[test]
    fn the_next_page_is_the_same_request_with_its_cursor() {
        let uri = "/api/v1/jobs?status=failed&status=queued&text=a%20%26b&cursor=old";
        let all = "http://localhost:8000/api/v1/jobs?status=failed&status=queued&text=a+%26b&cursor=AbC";
        assert_eq!(next("localhost:8000", "http", uri, None), all);
        assert_eq!(next("ceo.example", "https", "/x", None), "https://ceo.example/x?cursor=AbC");
        assert_eq!(next("ceo.example", "javascript", "/x", None), "http://ceo.example/x?cursor=AbC");
        let public = origin("https://ceo.example").unwrap();
        assert_eq!(next("10.0.0.7:8000", "http", "/x", Some(&public)), "https://ceo.example/x?cursor=AbC");
    }
}
