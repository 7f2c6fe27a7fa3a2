//! The fixed words of a memo, in English and Chinese: `labels.json`, a key to both. A memo in any other language has
//! English ones.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Serialize;

#[derive(Clone, Copy, Debug)]
pub struct Labels(&'static BTreeMap<String, String>);

static ALL: LazyLock<[BTreeMap<String, String>; 2]> = LazyLock::new(|| {
    let both: BTreeMap<String, [String; 2]> = serde_json::from_str(include_str!("labels.json"))
        .expect("the labels are part of the program, and a test reads them");
    [0, 1].map(|place| both.iter().map(|(key, texts)| (key.clone(), texts[place].clone())).collect())
});

impl Labels {
    /// For a memo in this language, a BCP 47 tag.
    pub fn of(language: &str) -> Labels {
        let primary = language.split(['-', '_']).next().unwrap_or_default();
        Labels(&ALL[usize::from(primary.eq_ignore_ascii_case("zh"))])
    }

    pub fn all(self) -> &'static BTreeMap<String, String> {
        self.0
    }

    pub fn text(self, key: &str) -> &'static str {
        self.0.get(key).map_or("", String::as_str)
    }

    /// The text of a word of the schema, whose key is `family_word`.
    pub fn word(self, family: &str, word: impl Serialize) -> &'static str {
        let word = serde_json::to_value(word).unwrap_or_default();
        self.text(&format!("{family}_{}", word.as_str().unwrap_or_default()))
    }

    /// A text with its blanks filled.
    pub fn fill(self, key: &str, blanks: &[(&str, &str)]) -> String {
        let mut rest = self.text(key);
        let mut filled = String::new();
        while let Some((before, after)) = rest.split_once('{') {
            let Some((name, after)) = after.split_once('}') else { break };
            filled.push_str(before);
            filled.push_str(blanks.iter().find(|(blank, _)| *blank == name).map_or("", |(_, value)| value));
            rest = after;
        }
        filled + rest
    }
}
