//! The text of a simulated answer: a fixed memo per language, into which the words of the question are put.
//!
//! It fits the memo's schema, is consistent in itself, and says that it is simulated. No thought goes into it: the
//! first option is always the one recommended.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Most options in a memo, the status quo included.
const MAX_OPTIONS: usize = 4;

/// Longest part of the question, in characters, restated in full; options are cut likewise.
const MAX_QUESTION_CHARS: usize = 400;

/// Longest part of the question, in characters, that is woven into sentences.
const MAX_TOPIC_CHARS: usize = 60;

/// A language an answer can be in.
struct Language {
    /// The memo for 2, 3 and 4 options, cut at its placeholders.
    memos: [Memo; 3],
    status_quo: &'static str,
    /// Used when the caller names no options.
    usual_options: [&'static str; 2],
    /// What makes an option the status quo.
    status_quo_words: &'static [&'static str],
}

/// Text and placeholders in turn.
type Memo = Vec<Part>;

enum Part {
    Text(String),
    Placeholder(usize),
}

/// In the order in which [`compose`] gives their values.
const PLACEHOLDERS: [&str; 6] = ["{question}", "{topic}", "{status_quo}", "{o1}", "{o2}", "{o3}"];

static ENGLISH: LazyLock<Language> = LazyLock::new(|| Language {
    memos: memos(include_str!("answer.en.json")),
    status_quo: "Keep things as they are",
    usual_options: ["Start with a limited pilot", "Go ahead in full now"],
    status_quo_words: &["status quo", "do nothing", "keep things", "as they are", "as it is", "no change"],
});

static CHINESE: LazyLock<Language> = LazyLock::new(|| Language {
    memos: memos(include_str!("answer.zh.json")),
    status_quo: "维持现状",
    usual_options: ["先做小范围试点", "立即全面推进"],
    status_quo_words: &["维持现状", "保持现状", "不做", "不变"],
});

/// Answers the user message `prompt`, with a memo in JSON.
pub(super) fn compose(prompt: &str) -> String {
    let question = elements(prompt, "question").pop().unwrap_or_else(|| prompt.to_owned());
    let language = if question.chars().any(is_cjk) { &CHINESE } else { &ENGLISH };
    let (status_quo, mut options): (Vec<_>, Vec<_>) = elements(prompt, "option").into_iter().partition(|option| {
        let option = option.to_lowercase();
        language.status_quo_words.iter().any(|words| option.contains(words))
    });
    if options.is_empty() {
        options = language.usual_options.map(str::to_owned).to_vec();
    }
    options.truncate(MAX_OPTIONS - 1);
    let status_quo = status_quo.into_iter().next().unwrap_or_else(|| language.status_quo.to_owned());
    let values: Vec<String> = [(question.as_str(), MAX_QUESTION_CHARS), (&question, MAX_TOPIC_CHARS)]
        .into_iter()
        .chain([&status_quo].into_iter().chain(&options).map(|option| (option.as_str(), MAX_QUESTION_CHARS)))
        .map(|(text, limit)| in_json(&shortened(text, limit)))
        .collect();
    language.memos[options.len() - 1]
        .iter()
        .map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Placeholder(number) => values[*number].as_str(),
        })
        .collect()
}

/// A memo as its file has it, read just far enough to take options out.
#[derive(Deserialize, Serialize)]
struct Source<'a> {
    #[serde(borrow)]
    status: &'a RawValue,
    decision_question: &'a RawValue,
    summary: &'a RawValue,
    reversibility: &'a RawValue,
    missing_information: &'a RawValue,
    assumptions: &'a RawValue,
    criteria: &'a RawValue,
    options: Vec<&'a RawValue>,
    evaluations: Vec<&'a RawValue>,
    risks: Vec<&'a RawValue>,
    recommendation: &'a RawValue,
    next_steps: &'a RawValue,
}

#[derive(Deserialize)]
struct OfOption {
    #[serde(alias = "id")]
    option_id: String,
}

/// The memo for one, two and three options besides the status quo.
fn memos(source: &'static str) -> [Memo; 3] {
    ["o1", "o2", "o3"].map(|last| {
        let mut memo: Source<'_> = serde_json::from_str(source).expect("the memo is part of this program");
        for list in [&mut memo.options, &mut memo.evaluations, &mut memo.risks] {
            list.retain(|item| {
                let of = serde_json::from_str::<OfOption>(item.get()).expect("the memo is part of this program");
                of.option_id == "status_quo" || of.option_id.as_str() <= last
            });
        }
        cut(&serde_json::to_string(&memo).expect("what was read as JSON can be written"))
    })
}

fn cut(mut rest: &str) -> Memo {
    let mut parts = Vec::new();
    let next = |text: &str| {
        let found = PLACEHOLDERS.iter().enumerate().filter_map(|(n, name)| Some((text.find(name)?, n)));
        found.min()
    };
    while let Some((at, number)) = next(rest) {
        parts.extend([Part::Text(rest[..at].to_owned()), Part::Placeholder(number)]);
        rest = &rest[at + PLACEHOLDERS[number].len()..];
    }
    parts.push(Part::Text(rest.to_owned()));
    parts
}

/// The contents of all `<name>…</name>` in `text`, unescaped; empty ones left out.
fn elements(text: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut closed: Vec<_> = text.split(close.as_str()).collect();
    closed.pop();
    closed
        .into_iter()
        .filter_map(|before| Some(before.rsplit_once(open.as_str())?.1.trim()))
        .filter(|content| !content.is_empty())
        .map(unescaped)
        .collect()
}

fn unescaped(text: &str) -> String {
    let entities =
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#x27;", "'"), ("&#39;", "'"), ("&#x2f;", "/")];
    if !text.contains('&') {
        return text.to_owned();
    }
    // `&amp;` last, or `&amp;lt;` would be unescaped twice.
    entities.into_iter().chain([("&amp;", "&")]).fold(text.to_owned(), |text, (entity, c)| text.replace(entity, c))
}

/// `text` on one line and at most `limit` characters long.
fn shortened(text: &str, limit: usize) -> String {
    let mut line = text.split_whitespace().take(limit).collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(limit) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// `text` as it stands between the quotes of a JSON string.
fn in_json(text: &str) -> String {
    let quoted = serde_json::to_string(text).expect("a string can always be written as JSON");
    quoted[1..quoted.len() - 1].to_owned()
}

fn is_cjk(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}')
}
