//! The address of the API and the credentials.

use std::net::IpAddr;

use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use secrecy::{ExposeSecret, SecretString};

use super::wire;

/// Shorter values of custom headers are flags or names, and blanking them would spoil messages.
const MIN_SECRET_CHARS: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The base URL cannot be used. It is not repeated here, as it might hold a password.
    #[error("the base URL of the Claude API {0}")]
    BaseUrl(&'static str),
    #[error("the Claude API key is empty or has a character that is not allowed, such as a space or a line break")]
    ApiKey,
    #[error("ANTHROPIC_CUSTOM_HEADERS must be lines of `name: value`, such as `x-team: ops`")]
    CustomHeaders,
    #[error("the HTTPS client for Claude could not be set up (are CA certificates installed?): {0}")]
    Http(String),
}

/// The address of the messages endpoint under `base`, which may end in a slash, `/v1` or `/v1/messages` or in neither.
pub(super) fn messages_url(base: &str) -> Result<Url, ClientError> {
    let mut url =
        Url::parse(base.trim()).map_err(|_| ClientError::BaseUrl("is not a URL, such as https://api.anthropic.com"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(ClientError::BaseUrl("must begin with https:// (or http:// for a local gateway)"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ClientError::BaseUrl("must not hold a user name or password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(ClientError::BaseUrl("must not hold a `?` or `#` part"));
    }
    let path = url.path().trim_end_matches('/');
    let path = path.strip_suffix("/messages").filter(|path| path.ends_with("/v1")).unwrap_or(path);
    let path = format!("{}/v1/messages", path.strip_suffix("/v1").unwrap_or(path));
    url.set_path(&path);
    Ok(url)
}

pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

pub(super) fn headers(
    api_key: Option<SecretString>,
    auth_token: Option<SecretString>,
    custom: Option<SecretString>,
) -> Result<(HeaderMap, Vec<SecretString>), ClientError> {
    let mut headers = HeaderMap::new();
    let mut secrets = Vec::new();
    headers.insert("anthropic-version", HeaderValue::from_static(wire::API_VERSION));
    for (name, scheme, secret) in [("x-api-key", "", api_key), ("authorization", "Bearer ", auth_token)] {
        if let Some(secret) = secret {
            headers.insert(name, credential(scheme, &secret)?);
            secrets.push(secret);
        }
    }
    let custom = custom.map_or(Ok(Vec::new()), |custom| custom_headers(custom.expose_secret()))?;
    for (name, value) in custom {
        secrets.extend(value.to_str().ok().filter(|value| value.len() >= MIN_SECRET_CHARS).map(SecretString::from));
        headers.insert(name, value);
    }
    Ok((headers, secrets))
}

fn credential(scheme: &str, secret: &SecretString) -> Result<HeaderValue, ClientError> {
    let secret = secret.expose_secret();
    let is_clean = !secret.is_empty() && secret.bytes().all(|byte| byte.is_ascii_graphic());
    let value = HeaderValue::from_str(&format!("{scheme}{secret}")).ok().filter(|_| is_clean);
    let mut value = value.ok_or(ClientError::ApiKey)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Headers as lines of `name: value`, or on one line with commas between. A comma that no name follows belongs to a
/// value.
fn custom_headers(text: &str) -> Result<Vec<(HeaderName, HeaderValue)>, ClientError> {
    let mut entries: Vec<String> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        for (place, part) in line.split(',').enumerate() {
            match entries.last_mut().filter(|_| place > 0 && name_and_value(part).is_none()) {
                Some(entry) => entry.extend([",", part]),
                None => entries.push(part.to_owned()),
            }
        }
    }
    entries.iter().map(|entry| header(entry).ok_or(ClientError::CustomHeaders)).collect()
}

fn name_and_value(text: &str) -> Option<(HeaderName, &str)> {
    let (name, value) = text.split_once(':')?;
    Some((name.trim().parse().ok()?, value.trim()))
}

fn header(entry: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = name_and_value(entry)?;
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_may_carry_a_path_and_end_in_a_slash_or_in_what_is_added_to_it() {
        for end in ["", "/", "/v1", "/v1/", "/v1/messages", "/v1/messages/"] {
            let url = |base: &str| messages_url(&format!("{base}{end}")).unwrap().to_string();
            assert_eq!(url("https://api.anthropic.com"), "https://api.anthropic.com/v1/messages");
            assert_eq!(url("http://gateway:8080/a/b"), "http://gateway:8080/a/b/v1/messages");
        }
        assert_eq!(messages_url("http://h/messages").unwrap().path(), "/messages/v1/messages");
        assert_eq!(messages_url("http://h/apiv1").unwrap().path(), "/apiv1/v1/messages");
    }

    #[test]
    fn only_a_base_url_on_this_machine_goes_past_the_proxy() {
        let local = |base| is_loopback(&messages_url(base).unwrap());
        assert!(["http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1"].into_iter().all(local));
        assert!(!["https://api.anthropic.com", "http://10.0.0.1"].into_iter().any(local));
    }

    #[test]
    fn custom_headers_come_on_lines_or_between_commas() {
        let read = |text: &str| -> Vec<String> {
            let headers = custom_headers(text).unwrap();
            headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect()
        };
        assert_eq!(read("X-Team: ops\r\n\nanthropic-beta: a,b\n"), ["x-team=ops", "anthropic-beta=a,b"]);
        assert_eq!(read("x-team: ops, x-url: http://a:1, x-empty:"), ["x-team=ops", "x-url=http://a:1", "x-empty="]);
        assert_eq!(read(""), [""; 0]);
        for bad in ["x-team", "x team: ops", ": ops", "x-team: a\u{7f}b"] {
            assert!(matches!(custom_headers(bad), Err(ClientError::CustomHeaders)), "{bad}");
        }
    }
}
