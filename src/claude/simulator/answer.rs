//! The text of a simulated answer: a fixed memo for each language and depth, into which the words of the question are put.
//!
//! It has the schema and the length of a real memo, and says that it is simulated. It always recommends the first option.

use std::sync::LazyLock;

use crate::analysis::decision::{Criterion, DecisionAnalysis, DecisionOption, Origin};
use crate::claude::error::one_line;

const MAX_OPTIONS: usize = 8;

/// Longest part of the question, in characters, restated in full; options are cut likewise.
const MAX_QUESTION_CHARS: usize = 400;

const MAX_TOPIC_CHARS: usize = 60;

/// The id of the option that changes nothing, the last of each template.
const STATUS_QUO: &str = "status_quo";

/// Asks for a brief memo in the shipped prompts.
const BRIEF: &str = "Write a brief decision memo";

struct Language {
    template: DecisionAnalysis,
    status_quo: &'static str,
    usual_options: [&'static str; 4],
    status_quo_words: &'static [&'static str],
}

static ENGLISH: LazyLock<Language> = LazyLock::new(|| Language {
    template: template(include_str!("answer.en.json")),
    status_quo: "Keep things as they are",
    usual_options: [
        "Start with a limited pilot",
        "Go ahead in full now",
        "Spread it over two years",
        "Do it with a partner",
    ],
    status_quo_words: &["status quo", "do nothing", "keep things", "as they are", "as it is", "no change"],
});

static CHINESE: LazyLock<Language> = LazyLock::new(|| Language {
    template: template(include_str!("answer.zh.json")),
    status_quo: "维持现状",
    usual_options: ["先做小范围试点", "立即全面推进", "分两年推进", "与伙伴合作"],
    status_quo_words: &["维持现状", "保持现状", "不做", "不变"],
});

fn template(json: &str) -> DecisionAnalysis {
    serde_json::from_str(json).expect("the memo is part of this program")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// A brief memo: some 800 tokens.
    Brief,
    /// A full one: some 1,400 tokens for 0 to some 3,500 for 2.
    Full(usize),
}

impl Size {
    /// As the message asks for. A full memo has one of three sizes, always the same for the same message.
    pub(super) fn of(prompt: &str) -> Size {
        if prompt.contains(BRIEF) {
            return Size::Brief;
        }
        let sum: u32 = prompt.bytes().map(u32::from).sum();
        Size::Full(sum as usize % 3)
    }

    fn pick(self, brief: usize, full: [usize; 3]) -> usize {
        match self {
            Size::Brief => brief,
            Size::Full(step) => full[step.min(2)],
        }
    }
}

pub(super) fn compose(prompt: &str) -> String {
    write(prompt, Size::of(prompt))
}

pub(super) fn write(prompt: &str, size: Size) -> String {
    let question = question(prompt);
    let language = if question.chars().any(is_cjk) { &CHINESE } else { &ENGLISH };
    let mut memo = language.template.clone();
    let names = options(prompt, language, size);
    shorten(&mut memo, size);
    let asked_by_name = !elements(prompt, "option").is_empty();
    put_options(&mut memo, &names, asked_by_name);
    let (restated, topic) = (one_line(&question, MAX_QUESTION_CHARS), one_line(&question, MAX_TOPIC_CHARS));
    let blanks = [("{question}", restated.as_str()), ("{topic}", &topic), ("{o1}", &names[0])];
    memo.texts_mut().for_each(|(_, text)| *text = filled(text, &blanks));
    memo.material.iter_mut().for_each(|item| item.quote = filled(&item.quote, &blanks));
    serde_json::to_string(&memo).expect("a memo can be written as JSON")
}

pub(super) fn question(prompt: &str) -> String {
    elements(prompt, "question").pop().unwrap_or_else(|| prompt.to_owned())
}

fn options(prompt: &str, language: &Language, size: Size) -> Vec<String> {
    let (status_quo, mut names): (Vec<_>, Vec<_>) = elements(prompt, "option").into_iter().partition(|option| {
        let option = option.to_lowercase();
        language.status_quo_words.iter().any(|words| option.contains(words))
    });
    if names.is_empty() {
        let usual = size.pick(2, [2, 3, 4]);
        names = language.usual_options.iter().take(usual).map(|name| (*name).to_owned()).collect();
    }
    names.truncate(MAX_OPTIONS - 1);
    names.push(status_quo.into_iter().next().unwrap_or_else(|| language.status_quo.to_owned()));
    names.iter().map(|name| one_line(name, MAX_QUESTION_CHARS)).collect()
}

fn shorten(memo: &mut DecisionAnalysis, size: Size) {
    memo.material.truncate(size.pick(0, [1, 1, 2]));
    memo.assumptions.truncate(size.pick(0, [1, 3, 5]));
    memo.gaps.truncate(size.pick(1, [1, 3, 4]));
    memo.criteria.truncate(size.pick(3, [3, 4, 6]));
    let is_known = |criteria: &[Criterion], id: &str| criteria.iter().any(|criterion| criterion.id == id);
    for scores in &mut memo.scores {
        scores.cells.retain(|cell| is_known(&memo.criteria, &cell.criterion_id));
    }
    memo.premortem.truncate(size.pick(0, [1, 2, 3]));
    memo.risks.truncate(size.pick(1, [2, 4, 6]));
    memo.next_steps.truncate(size.pick(2, [3, 4, 5]));
    memo.recommendation.conditions.truncate(size.pick(1, [1, 2, 3]));
    memo.recommendation.trade_offs.truncate(size.pick(1, [2, 2, 2]));
    memo.recommendation.kill_criteria.truncate(size.pick(1, [1, 2, 2]));
    if size == Size::Brief {
        memo.scores.iter_mut().flat_map(|scores| &mut scores.cells).for_each(|cell| cell.why = None);
        memo.criteria.iter_mut().for_each(|criterion| criterion.why.clear());
        for option in &mut memo.options {
            (option.pros, option.cons) = (Vec::new(), Vec::new());
            option.forecloses.clear();
        }
        memo.base_rate.adjustment.clear();
        memo.case_against = first_sentence(&memo.case_against);
    }
}

fn put_options(memo: &mut DecisionAnalysis, names: &[String], asked_by_name: bool) {
    let (templates, status_quo) = memo.options.split_at(memo.options.len() - 1);
    let place = |number: usize| number.min(templates.len() - 1);
    let last = names.len() - 1;
    let named = |option: &DecisionOption, id: String, name: &String| DecisionOption {
        id,
        name: name.clone(),
        origin: if asked_by_name && option.origin == Origin::Added { Origin::Asked } else { option.origin },
        ..option.clone()
    };
    let added = names[..last].iter().enumerate();
    let options = added.map(|(number, name)| named(&templates[place(number)], format!("o{}", number + 1), name));
    let options: Vec<_> = options.chain([named(&status_quo[0], STATUS_QUO.to_owned(), &names[last])]).collect();
    let scores = options.iter().enumerate().map(|(number, option)| {
        let from = if number == last { memo.scores.len() - 1 } else { place(number) };
        let mut scores = memo.scores[from].clone();
        scores.option_id.clone_from(&option.id);
        scores
    });
    memo.scores = scores.collect();
    memo.options = options;
    let is_known = |id: &str| id.is_empty() || memo.options.iter().any(|option| option.id == id);
    memo.risks.retain(|risk| is_known(&risk.option_id));
    memo.assumptions.iter_mut().filter(|it| !is_known(&it.flips_to)).for_each(|it| it.flips_to.clear());
    memo.gaps.iter_mut().filter(|it| !is_known(&it.flips_to)).for_each(|it| it.flips_to.clear());
}

/// `text` with its blanks filled. What fills them is not searched for blanks.
fn filled(text: &str, blanks: &[(&str, &str)]) -> String {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('{') {
        let (before, from) = rest.split_at(start);
        done.push_str(before);
        match blanks.iter().find_map(|(blank, value)| Some((from.strip_prefix(blank)?, value))) {
            Some((after, value)) => {
                done.push_str(value);
                rest = after;
            }
            None => {
                done.push('{');
                rest = &from[1..];
            }
        }
    }
    done + rest
}

fn first_sentence(text: &str) -> String {
    let end = text.find([':', '：', '。']).unwrap_or(text.len());
    format!("{}.", &text[..end])
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

fn is_cjk(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::{self, decision::Asked, memo::Memo};

    fn memo(prompt: &str) -> Memo {
        let analysis = analysis::parse(&compose(prompt)).unwrap();
        let memo = Memo::new(analysis, &Asked { query: "", options: &[], is_brief: Size::of(prompt) == Size::Brief });
        assert_eq!(memo.flags, []);
        memo
    }

    fn names(memo: &Memo) -> Vec<&str> {
        memo.analysis.options.iter().map(|option| option.name.as_str()).collect()
    }

    #[test]
    fn an_english_memo_takes_up_the_question_and_says_that_it_is_simulated() {
        let memo =
            memo("Weigh this.\n<question>Buy &lt;b&gt; &quot;Acme &amp;amp; Co&quot;?</question>\nNow.").analysis;
        assert!(memo.decision_question.ends_with("Buy <b> \"Acme &amp; Co\"?"));
        assert!(memo.summary.starts_with("SIMULATED ANSWER"));
        assert!(memo.recommendation.basis.contains("simulated"));
    }

    #[test]
    fn a_chinese_question_gets_a_chinese_memo_in_either_depth() {
        for depth in ["", BRIEF] {
            let memo = memo(&format!("<question>我们应该收购Acme吗？</question> {depth}"));
            assert!(memo.analysis.summary.starts_with("模拟回答"));
            assert!(memo.analysis.recommendation.basis.contains("模拟"));
            assert!(memo.analysis.decision_question.contains("我们应该收购Acme吗？"));
            assert_eq!(names(&memo)[0], "先做小范围试点");
            assert_eq!(names(&memo).last(), Some(&"维持现状"));
        }
    }

    #[test]
    fn the_callers_options_are_used_up_to_seven_besides_the_status_quo() {
        let memo_of = |options: &[&str]| {
            let options: String = options.iter().map(|option| format!("<option>{option}</option>\n")).collect();
            memo(&format!("<question>Which office?</question>\n{options}{BRIEF}"))
        };
        let named = |options: &[&str]| names(&memo_of(options)).join(", ");
        assert_eq!(named(&["Oslo"]), "Oslo, Keep things as they are");
        assert_eq!(named(&["Oslo", "Rome", "Do nothing"]), "Oslo, Rome, Do nothing");
        assert_eq!(named(&["The status quo"]), "Start with a limited pilot, Go ahead in full now, The status quo");
        let many = ["Oslo", "Rome", "Bern", "Kyiv", "Lima", "Cairo", "Quito", "Tokyo"];
        assert_eq!(named(&many), "Oslo, Rome, Bern, Kyiv, Lima, Cairo, Quito, Keep things as they are");
    }

    #[test]
    fn the_question_is_found_in_the_prompt() {
        assert_eq!(question("Today.\n<question>\nBuy?\n</question>\nAnswer."), "Buy?");
        assert_eq!(question("Buy?"), "Buy?");
    }

    #[test]
    fn a_message_without_a_marked_question_is_the_question() {
        let memo = analysis::parse(&compose("Hire or wait? \"{o1}\" \u{7} <question>unclosed")).unwrap();
        assert!(memo.decision_question.contains("Hire or wait? \"{o1}\""));
    }

    #[test]
    fn memos_are_as_long_as_real_ones() {
        let bounds_of = |question: &str, bounds: [std::ops::Range<u64>; 4]| {
            for (size, bound) in [Size::Brief, Size::Full(0), Size::Full(1), Size::Full(2)].into_iter().zip(bounds) {
                let tokens = super::super::tokens(&write(&format!("<question>{question}</question>"), size));
                assert!(bound.contains(&tokens), "{question} {size:?}: {tokens}");
            }
        };
        bounds_of("Should we move?", [700..950, 1_300..1_900, 1_900..2_800, 2_800..3_700]);
        bounds_of("我们应该搬迁吗？", [800..1_400, 1_500..2_800, 2_000..4_000, 3_000..5_500]);
    }
}
