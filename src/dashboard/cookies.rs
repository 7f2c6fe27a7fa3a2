//! The cookies of the pages.

use axum::http::{HeaderMap, HeaderValue, header};

const SESSION: &str = "ceoagent_session";

/// The name of the session's cookie by TLS: no other host, such as a subdomain, can set it.
const SESSION_BY_TLS: &str = "__Host-ceoagent_session";

pub(super) fn get<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

pub(super) fn session(headers: &HeaderMap) -> Option<&str> {
    get(headers, if is_by_tls(headers) { SESSION_BY_TLS } else { SESSION })
}

/// `Set-Cookie` for a session. It is `Secure` only where the browser speaks TLS, because it would refuse it elsewhere.
pub(super) fn set_session(headers: &HeaderMap, value: &str, seconds: u64) -> HeaderValue {
    let (name, secure) = if is_by_tls(headers) { (SESSION_BY_TLS, "; Secure") } else { (SESSION, "") };
    let cookie = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::try_from(cookie).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Whether a proxy says that the browser speaks TLS.
fn is_by_tls(headers: &HeaderMap) -> bool {
    headers.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let pairs = ["xlang=en; lang=zh", "theme=dark"].map(|pair| (header::COOKIE, HeaderValue::from_static(pair)));
        let headers = HeaderMap::from_iter(pairs);
        assert_eq!((get(&headers, "lang"), get(&headers, "theme")), (Some("zh"), Some("dark")));
        assert_eq!(get(&headers, "session"), None);
    }

    #[test]
    fn the_cookie_is_kept_from_scripts_and_other_sites() {
        let cookie = set_session(&HeaderMap::new(), "abc", 60);
        assert_eq!(cookie, "ceoagent_session=abc; Path=/; Max-Age=60; HttpOnly; SameSite=Strict");
        let by_tls = HeaderMap::from_iter([(
            header::HeaderName::from_static("x-forwarded-proto"),
            HeaderValue::from_static("https"),
        )]);
        let cookie = set_session(&by_tls, "abc", 60);
        assert!(cookie.to_str().unwrap().starts_with("__Host-ceoagent_session=abc; Path=/;"));
        assert!(cookie.to_str().unwrap().ends_with("; Secure"));
    }
}
