//! Headers that several routes read or send: lists, `Cache-Control`, `Idempotency-Key`, and `ETag` with `If-None-Match`
//! (RFC 9110): a client that has the current answer gets `304`.

use std::hash::Hasher;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::problem::{FieldError, INVALID_PARAMETER, Problem};

/// Longest idempotency key: UUIDs and the like with room to spare.
const MAX_IDEMPOTENCY_KEY: usize = 255;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Marks an answer with an existing job of the same Idempotency-Key.
pub(super) const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The members of a header whose value is a list.
pub(super) fn members(headers: &HeaderMap, name: HeaderName) -> impl DoubleEndedIterator<Item = &str> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// Whether `Cache-Control` (RFC 9111) asks for a call of its own instead of a cached or shared answer.
pub(super) fn wants_its_own(headers: &HeaderMap) -> bool {
    members(headers, header::CACHE_CONTROL)
        .any(|directive| ["no-cache", "no-store"].iter().any(|own| directive.eq_ignore_ascii_case(own)))
}

/// The Idempotency-Key: an RFC 8941 string, with or without quotes.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = given.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    let quoted = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let key = quoted.map_or_else(|| text.to_owned(), |inner| inner.replace("\\\"", "\"").replace("\\\\", "\\"));
    if given.next().is_some() || !(1..=MAX_IDEMPOTENCY_KEY).contains(&key.len()) {
        let message = format!("must be given once and have 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters");
        return Err(Problem::listing(INVALID_PARAMETER, vec![FieldError::new("Idempotency-Key", message)]));
    }
    Ok(Some(key))
}

/// The tag of exactly these bytes. 64 bits of SipHash are enough: a client that forges a tag deceives only itself.
pub(super) fn etag(body: &[u8]) -> HeaderValue {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(body);
    let tag = format!("\"{:016x}\"", hasher.finish());
    HeaderValue::try_from(tag).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// Whether the client has the answer with this tag. Weak tags count too, because compressing proxies make tags weak.
pub(super) fn is_known(asked: &HeaderMap, tag: &HeaderValue) -> bool {
    let Ok(tag) = tag.to_str() else { return false };
    members(asked, header::IF_NONE_MATCH).any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_matches_alone_in_a_list_or_weak() {
        let tag = etag(b"a job");
        let known = |value: String| {
            is_known(&HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::try_from(value).unwrap())]), &tag)
        };
        let text = tag.to_str().unwrap();
        assert!(known(text.to_owned()) && known(format!("W/{text}")) && known(format!("\"x\", {text}")));
        assert!(known("*".to_owned()));
        assert!(!known("\"x\"".to_owned()) && !known(text.trim_matches('"').to_owned()) && !known(String::new()));
        assert!(!is_known(&HeaderMap::new(), &tag));
        assert_ne!(tag, etag(b"another job"));
    }
}
