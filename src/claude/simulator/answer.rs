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
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#x27;", "'"), ("&#39;", "'"), ("&#x2f;", "/")];
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;

    fn memo(prompt: &str) -> Value {
        serde_json::from_str(&compose(prompt)).unwrap()
    }

    fn strings<'a>(items: &'a Value, field: &str) -> Vec<&'a str> {
        items.as_array().unwrap().iter().map(|item| item[field].as_str().unwrap()).collect()
    }

    /// Fits the schema, as far as this schema goes: types, required and no other properties, enums.
    fn assert_fits(value: &Value, schema: &Value, root: &Value) {
        let schema = match schema["$ref"].as_str() {
            Some(path) => root.pointer(path.trim_start_matches('#')).unwrap(),
            None => schema,
        };
        match schema["type"].as_str().unwrap() {
            "object" => {
                let members = value.as_object().unwrap();
                let names: HashSet<_> = members.keys().map(String::as_str).collect();
                let required = schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
                assert_eq!(names, required.collect(), "{value}");
                members.iter().for_each(|(name, member)| assert_fits(member, &schema["properties"][name], root));
            }
            "array" => value.as_array().unwrap().iter().for_each(|item| assert_fits(item, &schema["items"], root)),
            "string" => assert!(value.is_string() && schema["enum"].as_array().is_none_or(|e| e.contains(value))),
            "integer" => assert!(value.is_i64()),
            "boolean" => assert!(value.is_boolean()),
            other => panic!("type {other}"),
        }
    }

    fn assert_sound(memo: &Value, options: usize) {
        let schema = serde_json::from_str(include_str!("../../analysis/decision.schema.json")).unwrap();
        assert_fits(memo, &schema, &schema);
        let ids = strings(&memo["options"], "id");
        assert_eq!(ids.len(), options);
        let status_quo = memo["options"].as_array().unwrap().iter().filter(|option| option["is_status_quo"] == true);
        assert_eq!(status_quo.count(), 1);
        let pairs: Vec<_> = strings(&memo["evaluations"], "option_id")
            .into_iter()
            .zip(strings(&memo["evaluations"], "criterion_id"))
            .collect();
        let criteria = strings(&memo["criteria"], "id");
        let all: HashSet<_> = ids.iter().flat_map(|id| criteria.iter().map(|c| (*id, *c))).collect();
        assert_eq!((pairs.len(), pairs.into_iter().collect::<HashSet<_>>()), (all.len(), all));
        let scores = memo["evaluations"].as_array().unwrap().iter().map(|item| item["score"].as_i64().unwrap());
        assert!(scores.into_iter().all(|score| (1..=5).contains(&score)));
        assert!(strings(&memo["risks"], "option_id").iter().all(|id| ids.contains(id)));
        assert!(ids.contains(&memo["recommendation"]["option_id"].as_str().unwrap()));
        assert!(PLACEHOLDERS.iter().all(|placeholder| !memo.to_string().contains(placeholder)));
    }

    #[test]
    fn an_english_memo_is_sound_takes_up_the_question_and_says_that_it_is_simulated() {
        let memo = memo("Weigh this.\n<question>Buy &lt;b&gt; &quot;Acme &amp;amp; Co&quot;?</question>\nNow.");
        assert_sound(&memo, 3);
        assert!(memo["decision_question"].as_str().unwrap().ends_with("Buy <b> \"Acme &amp; Co\"?"));
        assert!(memo["summary"].as_str().unwrap().starts_with("SIMULATED ANSWER"));
        assert!(memo["recommendation"]["confidence_basis"].as_str().unwrap().contains("simulated"));
    }

    #[test]
    fn a_chinese_question_gets_a_chinese_memo() {
        let memo = memo("Answer in the language of the question. <question>我们应该收购Acme吗？</question>");
        assert_sound(&memo, 3);
        assert!(memo["summary"].as_str().unwrap().starts_with("模拟回答"));
        assert!(memo["recommendation"]["confidence_basis"].as_str().unwrap().contains("模拟"));
        assert!(memo["decision_question"].as_str().unwrap().contains("我们应该收购Acme吗？"));
        assert_eq!(strings(&memo["options"], "name"), ["先做小范围试点", "立即全面推进", "维持现状"]);
    }

    #[test]
    fn the_callers_options_are_used_up_to_three_besides_the_status_quo() {
        let prompt = |options: &[&str]| {
            let options: String = options.iter().map(|option| format!("<option>{option}</option>\n")).collect();
            format!("<question>Which office?</question>\n{options}")
        };
        let names = |options: &[&str]| {
            let memo = memo(&prompt(options));
            assert_sound(&memo, memo["options"].as_array().unwrap().len());
            strings(&memo["options"], "name").join(", ")
        };
        assert_eq!(names(&["Oslo"]), "Oslo, Keep things as they are");
        assert_eq!(names(&["Oslo", "Rome", "Do nothing"]), "Oslo, Rome, Do nothing");
        assert_eq!(names(&["Oslo", "Rome", "Bern", "Kyiv", "Lima"]), "Oslo, Rome, Bern, Keep things as they are");
        assert_eq!(names(&["The status quo"]), "Start with a limited pilot, Go ahead in full now, The status quo");
    }

    #[test]
    fn a_message_without_a_marked_question_is_the_question() {
        let memo = memo("Hire or wait? \"{o1}\" \u{7} <question>unclosed");
        assert!(memo["decision_question"].as_str().unwrap().contains("Hire or wait? \"{o1}\""));
    }
}
