//! Which `Host` a request may name.
//!
//! While the service is open, any web page could make its visitor's browser ask it, by a name of its own that it lets
//! point at the service (DNS rebinding). So a browser is answered only where it knows the service by a name that no
//! stranger can own: an address, a name without a dot, or one of CORS_ORIGINS. Programs are not affected.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Version, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    api::Api,
    problem::{FOREIGN_HOST, INVALID_HOST, Problem},
};

/// Headers that browsers send and no page can change.
const FROM_BROWSERS: [HeaderName; 2] = [header::ORIGIN, HeaderName::from_static("sec-fetch-site")];

/// Refuses requests without one valid `Host`, and those of browsers that know an open service by a foreign name.
pub(super) async fn check(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let problem = match host(headers) {
        // HTTP/1.0 has no such header.
        None if request.version() < Version::HTTP_11 && !headers.contains_key(header::HOST) => None,
        None => Some(Problem::new(INVALID_HOST, "the request must have one Host header, such as localhost:8000")),
        Some(host) if api.auth.is_open() && is_of_browser(headers) && !is_own(&host, &api.cors_origins) => {
            let detail = format!(
                "{host} is not known as a name of this service, which needs no key, so a browser may not use it; call \
                 it by its IP address, add http://{host} to CORS_ORIGINS, or set REQUIRE_API_KEY=true"
            );
            Some(Problem::new(FOREIGN_HOST, detail))
        }
        Some(_) => None,
    };
    match problem {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    }
}

/// The `Host`, if there is exactly one that is valid.
fn host(headers: &HeaderMap) -> Option<Authority> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next()?.to_str().ok()?.parse().ok()?;
    hosts.next().is_none().then_some(host)
}

fn is_of_browser(headers: &HeaderMap) -> bool {
    FROM_BROWSERS.iter().any(|name| headers.contains_key(name))
}

/// Whether no stranger can own this name.
fn is_own(host: &Authority, origins: &[HeaderValue]) -> bool {
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    let is_origin = |origin: &HeaderValue| {
        let authority =
            origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
        authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host.as_str()))
    };
    !name.contains('.') && !name.is_empty()
        || name.parse::<IpAddr>().is_ok()
        || name.to_ascii_lowercase().ends_with(".localhost")
        || origins.iter().any(is_origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_names_are_addresses_names_without_a_dot_and_allowed_origins() {
        let origins =
            [HeaderValue::from_static("https://ceo.example"), HeaderValue::from_static("http://lan.example:8000")];
        let is = |host: &str| is_own(&host.parse().unwrap(), &origins);
        for own in ["localhost:8000", "127.0.0.1", "[::1]:8000", "192.168.1.7:80", "server", "a.localhost:1"] {
            assert!(is(own), "{own}");
        }
        assert!(is("ceo.example") && is("LAN.example:8000"));
        for foreign in ["evil.example", "lan.example", "127.0.0.1.evil.example", "localhost.evil.example:8000"] {
            assert!(!is(foreign), "{foreign}");
        }
    }
}
