//! Which `Host` a request may name.
//!
//! While the service is open, any web page could make its visitor's browser ask it, by a name of its own that it lets
//! point at the service (DNS rebinding). So a browser is answered only where it knows the service by a name that no
//! stranger can own: an address, a name without a dot, or the one of PUBLIC_URL. Programs are not affected.

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
use crate::config::values::Origin;

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Headers that browsers send and no page can change.
const FROM_BROWSERS: [HeaderName; 2] = [header::ORIGIN, HeaderName::from_static("sec-fetch-site")];

/// Refuses requests without one valid `Host`, and those of browsers that know an open service by a foreign name.
pub(super) async fn check(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    let is_from_browser = FROM_BROWSERS.iter().any(|name| headers.contains_key(name));
    let problem = match host(headers) {
        // HTTP/1.0 has no such header.
        None if request.version() < Version::HTTP_11 && !headers.contains_key(header::HOST) => None,
        None => Some(Problem::new(INVALID_HOST, "the request must have one Host header, such as localhost:8000")),
        Some(host) if api.auth.is_open() && is_from_browser && !is_own(&host, api.public_url.as_ref()) => {
            let detail = format!(
                "{host} is not known as a name of this service, which needs no key, so a browser may not use it; call \
                 it by its IP address, set PUBLIC_URL=http://{host}, or set REQUIRE_API_KEY=true"
            );
            Some(Problem::new(FOREIGN_HOST, detail))
        }
        Some(_) => None,
    };
    if let Some(problem) = problem {
        return problem.into_response();
    }
    if let Some(url) = &api.public_url {
        let scheme = if url.is_https() { "https" } else { "http" };
        request.headers_mut().insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    next.run(request).await
}

fn host(headers: &HeaderMap) -> Option<Authority> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next()?.to_str().ok()?.parse().ok()?;
    hosts.next().is_none().then_some(host)
}

/// Whether no stranger can own this name.
fn is_own(host: &Authority, public: Option<&Origin>) -> bool {
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    !name.contains('.') && !name.is_empty()
        || name.parse::<IpAddr>().is_ok()
        || name.to_ascii_lowercase().ends_with(".localhost")
        || public.is_some_and(|public| public.host().eq_ignore_ascii_case(host.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::origin;

    #[test]
    fn own_names_are_addresses_names_without_a_dot_and_the_public_url() {
        let public = origin("http://lan.example:8000/").unwrap();
        let is = |host: &str| is_own(&host.parse().unwrap(), Some(&public));
        for own in ["localhost:8000", "127.0.0.1", "[::1]:8000", "192.168.1.7:80", "server", "a.localhost:1"] {
            assert!(is(own), "{own}");
        }
        assert!(is("LAN.example:8000") && !is_own(&"lan.example:8000".parse().unwrap(), None));
        for foreign in ["evil.example", "lan.example", "127.0.0.1.evil.example", "localhost.evil.example:8000"] {
            assert!(!is(foreign), "{foreign}");
        }
    }
}
