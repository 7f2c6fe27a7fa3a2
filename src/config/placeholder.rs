//! Values that stand in examples where a secret belongs.

use std::collections::HashSet;

/// Texts that no secret has, in small letters. Long enough that no random token has one by chance.
const MARKS: [&str; 12] = [
    "change-me",
    "change_me",
    "changeme",
    "replace-me",
    "replace_me",
    "replaceme",
    "placeholder",
    "your-",
    "your_",
    "xxxxxxxx",
    "more-characters",
    "example",
];

/// With fewer different characters, a key was held down.
const MIN_DIFFERENT: usize = 5;

/// Whether this is the placeholder of an example, such as `replace-me`, `<your-key>` or `sk-ant-...`.
pub fn is_placeholder(text: &str) -> bool {
    let small = text.to_ascii_lowercase();
    MARKS.iter().any(|mark| small.contains(mark))
        || text.ends_with("...")
        || (text.starts_with('<') && text.ends_with('>'))
}

/// Whether anybody would guess this token: a placeholder, or a few characters again and again.
pub fn is_guessable(token: &str) -> bool {
    token.bytes().collect::<HashSet<u8>>().len() < MIN_DIFFERENT || is_placeholder(token)
}

#[cfg(test)]
mod tests {
    use rand::distr::{Alphanumeric, SampleString};

    use super::*;

    #[test]
    fn values_of_examples_are_placeholders() {
        let known = [
            "replace-me",
            "CHANGE_ME_PLEASE_CHANGE_ME",
            "your-api-key",
            "sk-ant-your-key-here",
            "sk-ant-...",
            "<the key of the console>",
            "sixteen-or-more-characters",
            "XXXXXXXXXXXXXXXX",
            "an-example-token-1234",
        ];
        assert!(known.iter().all(|known| is_placeholder(known)));
        assert!(is_guessable("aaaaaaaaaaaaaaaa") && is_guessable("1212121212121212") && is_guessable("changeme"));
    }

    #[test]
    fn random_tokens_are_no_placeholders() {
        for _ in 0..10_000 {
            let token = Alphanumeric.sample_string(&mut rand::rng(), 32);
            assert!(!is_guessable(&token), "{token}");
        }
        assert!(!is_placeholder("sk-ant-api03-AbC"));
    }
}
