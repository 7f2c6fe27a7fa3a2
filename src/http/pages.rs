//! The links between the pages of a list.

use std::convert::Infallible;

use axum::{
    extract::FromRequestParts,
    http::{HeaderValue, header, request::Parts, uri::Authority},
};

use super::observe;

/// The address of this request, as the client knows it.
pub(super) struct Here {
    /// With scheme and host.
    path: String,
    query: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Here {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Here, Infallible> {
        let text = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        // A wrong value leads nobody astray but the client that sent it.
        let is_by_tls = text("x-forwarded-proto") == Some("https");
        let host = parts.uri.authority().map(Authority::as_str).or(text("host")).unwrap_or("localhost");
        let path = format!("{}://{host}{}", if is_by_tls { "https" } else { "http" }, parts.uri.path());
        Ok(Here { path, query: parts.uri.query().unwrap_or_default().to_owned() })
    }
}

impl Here {
    /// Adds the address of the next page to the answer, if there is one, as `Link` (RFC 8288): the same request with another
    /// cursor.
    pub(super) fn link_next(&self, parameter: &str, cursor: Option<String>) {
        let Some(cursor) = cursor else { return };
        let link = format!("<{}>; rel=\"next\"", self.at(parameter, &cursor));
        if let Ok(link) = HeaderValue::try_from(link) {
            observe::add_header(header::LINK, link);
        }
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

    async fn next(host: &str, proto: &str, uri: &str) -> String {
        let request = Request::get(uri).header("host", host).header("x-forwarded-proto", proto).body(()).unwrap();
        let Ok(here) = Here::from_request_parts(&mut request.into_parts().0, &()).await;
        here.at("cursor", "AbC")
    }

    #[tokio::test]
    async fn the_next_page_is_the_same_request_with_its_cursor() {
        let uri = "/api/v1/jobs?status=failed&status=queued&text=a%20%26b&cursor=old";
        let all = "http://localhost:8000/api/v1/jobs?status=failed&status=queued&text=a+%26b&cursor=AbC";
        assert_eq!(next("localhost:8000", "http", uri).await, all);
        assert_eq!(next("ceo.example", "https", "/x").await, "https://ceo.example/x?cursor=AbC");
        assert_eq!(next("ceo.example", "javascript", "/x").await, "http://ceo.example/x?cursor=AbC");
    }
}
