//! `ETag` and `If-None-Match` (RFC 9110): a client that has the current answer gets `304`.

use std::hash::Hasher;

use axum::http::{HeaderMap, HeaderValue, header};

use super::extract::members;

/// The tag of exactly these bytes. 64 bits of SipHash are enough: a client that forges a tag deceives only itself.
pub(super) fn of(body: &[u8]) -> HeaderValue {
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
        let tag = of(b"a job");
        let known = |value: String| {
            is_known(&HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::try_from(value).unwrap())]), &tag)
        };
        let text = tag.to_str().unwrap();
        assert!(known(text.to_owned()) && known(format!("W/{text}")) && known(format!("\"x\", {text}")));
        assert!(known("*".to_owned()));
        assert!(!known("\"x\"".to_owned()) && !known(text.trim_matches('"').to_owned()) && !known(String::new()));
        assert!(!is_known(&HeaderMap::new(), &tag));
        assert_ne!(tag, of(b"another job"));
    }
}
