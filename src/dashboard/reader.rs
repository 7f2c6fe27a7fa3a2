//! Who reads a page: their language and colours (cookies that the switches set, else what the browser asks for). And
//! what keeps other sites from acting in their name.

use axum::{
    http::{HeaderMap, HeaderValue, Uri, header},
    response::{IntoResponse, Redirect, Response},
};

use super::{cookies, strings::Lang};

const PREFERENCE_SECONDS: u32 = 31_536_000;

pub(super) fn language(headers: &HeaderMap) -> Lang {
    let accepted = || Lang::accepted(headers.get(header::ACCEPT_LANGUAGE)?.to_str().ok()?);
    cookies::get(headers, "lang").and_then(|code| code.parse().ok()).or_else(accepted).unwrap_or(Lang::En)
}

/// `auto`, `light` or `dark`.
pub(super) fn theme(headers: &HeaderMap) -> &'static str {
    known_theme(cookies::get(headers, "theme").unwrap_or_default())
}

fn known_theme(name: &str) -> &'static str {
    ["light", "dark"].into_iter().find(|known| *known == name).unwrap_or("auto")
}

/// The answer to an address with `?lang=` or `?theme=`: a cookie with the choice, and the same page without it.
pub(super) fn switch(uri: &Uri) -> Option<Response> {
    let (mut chosen, mut rest) = (None, Vec::new());
    for pair in uri.query()?.split('&') {
        match pair.split_once('=') {
            Some(("lang", code)) => chosen = Some(("lang", code.parse().unwrap_or(Lang::En).code())),
            Some(("theme", name)) => chosen = Some(("theme", known_theme(name))),
            _ => rest.push(pair),
        }
    }
    let (name, value) = chosen?;
    let query = if rest.is_empty() { String::new() } else { format!("?{}", rest.join("&")) };
    let mut response = Redirect::to(&format!("{}{query}", here(uri.path()))).into_response();
    let cookie = format!("{name}={value}; Path=/; Max-Age={PREFERENCE_SECONDS}; SameSite=Lax");
    if let Ok(cookie) = HeaderValue::try_from(cookie) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Some(response)
}

/// `path` if it leads to a page of this service, else the first page: `//host` would lead elsewhere.
pub(super) fn here(path: &str) -> &str {
    let is_ours = path.starts_with('/') && !path.starts_with("//") && !path.contains(['\\', '\r', '\n', '\t']);
    if is_ours { path } else { "/" }
}

/// True if a browser says that another site made it send this. A client that says nothing is not a current browser, and
/// sends no cookie with SameSite=Strict from another site either.
pub(super) fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    match (text("sec-fetch-site"), text("origin"), text("host")) {
        (Some(site), _, _) => site != "same-origin" && site != "none",
        (None, Some(origin), Some(host)) => origin.split_once("://").map(|(_, name)| name) != Some(host),
        (None, Some(_), None) => true,
        (None, None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|&(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_form_of_another_site_is_foreign() {
        assert!(is_foreign(&headers(&[("sec-fetch-site", "cross-site")])));
        assert!(is_foreign(&headers(&[("sec-fetch-site", "same-site")])));
        assert!(is_foreign(&headers(&[("origin", "https://evil.example"), ("host", "ours.example")])));
        assert!(is_foreign(&headers(&[("origin", "null"), ("host", "ours.example")])));
        assert!(!is_foreign(&headers(&[("sec-fetch-site", "same-origin"), ("origin", "null")])));
        assert!(!is_foreign(&headers(&[("origin", "http://ours.example:80"), ("host", "ours.example:80")])));
        assert!(!is_foreign(&headers(&[])), "curl");
    }

    #[test]
    fn a_switch_leads_back_to_the_same_page_and_nowhere_else() {
        let location = |uri: &str| {
            let response = switch(&uri.parse().unwrap())?;
            Some(response.headers()[header::LOCATION].to_str().unwrap().to_owned())
        };
        assert_eq!(location("/jobs/1?lang=zh").as_deref(), Some("/jobs/1"));
        assert_eq!(
            location("/admin?text=a%26b&theme=dark&order=oldest").as_deref(),
            Some("/admin?text=a%26b&order=oldest")
        );
        assert_eq!(location("//evil.example?lang=zh").as_deref(), Some("/"));
        assert_eq!(location("/admin?text=lang"), None);
        assert_eq!(here("/admin?x=1"), "/admin?x=1");
        assert_eq!((here("//evil.example"), here("https://evil.example"), here("/\\evil")), ("/", "/", "/"));
    }
}
