//! Puts names in the place of ids in prose: "o2 beats o1" says nothing to a reader.

use std::collections::BTreeMap;

use super::decision::DecisionAnalysis;

/// Longest name, in characters, that takes the place of an id. Assumptions and gaps are whole sentences.
const MAX_NAME: usize = 60;

/// Replaces every id in the texts of `analysis`. Returns the top-level fields in which there was one, each once.
pub(super) fn put_names(analysis: &mut DecisionAnalysis) -> Vec<&'static str> {
    let names = names(analysis);
    let mut found = Vec::new();
    for (field, text) in analysis.texts_mut() {
        if let Some(named) = with_names(text, &names) {
            *text = named;
            found.push(field);
        }
    }
    found.dedup();
    found
}

/// The name of each id that can't be a word: letters and digits, such as `o2`, or words joined by `_`.
fn names(analysis: &DecisionAnalysis) -> BTreeMap<String, String> {
    let options = analysis.options.iter().map(|option| (&option.id, option.name.clone()));
    let criteria = analysis.criteria.iter().map(|criterion| (&criterion.id, criterion.name.clone()));
    let musts = analysis.musts.iter().map(|must| (&must.id, must.name.clone()));
    let assumptions = analysis.assumptions.iter().map(|it| (&it.id, quoted(&it.statement)));
    let gaps = analysis.gaps.iter().map(|gap| (&gap.id, quoted(&gap.question)));
    let all = gaps.chain(assumptions).chain(musts).chain(criteria).chain(options);
    all.filter(|(id, _)| is_not_a_word(id)).map(|(id, name)| (id.clone(), name)).collect()
}

fn is_not_a_word(id: &str) -> bool {
    let starts_low = id.starts_with(|c: char| c.is_ascii_lowercase());
    let has_mark = id.contains('_') || id.ends_with(|c: char| c.is_ascii_digit());
    starts_low && has_mark && id.bytes().all(is_of_id)
}

fn is_of_id(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn quoted(sentence: &str) -> String {
    let mut start: String = sentence.trim_end_matches(['.', '。', '?', '？']).chars().take(MAX_NAME).collect();
    if start.len() < sentence.len() - 3 {
        start.push('…');
    }
    format!("“{start}”")
}

/// `text` with names in the place of ids; `None` if it has no id.
fn with_names(text: &str, names: &BTreeMap<String, String>) -> Option<String> {
    let mut named = String::new();
    let (mut rest, mut is_changed) = (text, false);
    while let Some(start) = rest.bytes().position(is_of_id) {
        let length = rest[start..].bytes().position(|byte| !is_of_id(byte)).unwrap_or(rest.len() - start);
        let (before, word) = (&rest[..start], &rest[start..start + length]);
        named.push_str(before);
        rest = &rest[start + length..];
        let Some(name) = names.get(word) else {
            named.push_str(word);
            continue;
        };
        is_changed = true;
        // "Build in two stages (o2)" has the name already.
        match named.strip_suffix('(').map(str::trim_end) {
            Some(said) if said.ends_with(name.as_str()) && rest.starts_with(')') => {
                named.truncate(said.len());
                rest = &rest[1..];
            }
            _ => named.push_str(name),
        }
    }
    is_changed.then(|| named + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_become_names_and_words_stay() {
        let names = [("o2", "Build in stages"), ("c1", "Cost"), ("status_quo", "Wait"), ("a1", "“Rates stay”")];
        let names = names.map(|(id, name)| (id.to_owned(), name.to_owned())).into();
        let named = |text| with_names(text, &names).unwrap_or_else(|| "unchanged".to_owned());
        assert_eq!(
            named("o2 beats status_quo on c1; a1 helps."),
            "Build in stages beats Wait on Cost; “Rates stay” helps."
        );
        assert_eq!(named("选择o2，因为c1低。"), "选择Build in stages，因为Cost低。");
        assert_eq!(named("Take Build in stages (o2) first."), "Take Build in stages first.");
        for text in ["CO2 and c12, not O2 or status quo", "", "é"] {
            assert_eq!(named(text), "unchanged", "{text}");
        }
    }

    #[test]
    fn an_id_that_could_be_a_word_is_left_in_the_text() {
        assert!(["o2", "status_quo"].into_iter().all(is_not_a_word));
        assert!(!["lease", "Buy", "", "2", "a b1"].into_iter().any(is_not_a_word));
    }
}
