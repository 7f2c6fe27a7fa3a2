//! Every text of the pages: `strings.json`, a key to English and Chinese.

use std::{collections::BTreeMap, sync::LazyLock};

use minijinja::{Value, value::Serde};
use strum::{EnumString, IntoStaticStr};

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub(super) enum Lang {
    En,
    Zh,
}

impl Lang {
    /// The first language of `Accept-Language` that the pages have. Browsers put the preferred one first.
    pub(super) fn accepted(header: &str) -> Option<Lang> {
        header.split(',').find_map(|range| range.trim().get(..2)?.to_lowercase().parse().ok())
    }

    pub(super) fn code(self) -> &'static str {
        self.into()
    }

    /// For `<html lang>`, which also chooses the glyphs of Chinese.
    pub(super) fn tag(self) -> &'static str {
        if self == Lang::Zh { "zh-CN" } else { "en" }
    }

    pub(super) fn other(self) -> Lang {
        if self == Lang::Zh { Lang::En } else { Lang::Zh }
    }

    pub(super) fn texts(self) -> Value {
        TEXTS[self as usize].clone()
    }
}

static TEXTS: LazyLock<[Value; 2]> = LazyLock::new(|| {
    let all = all();
    [Lang::En, Lang::Zh].map(|lang| {
        let texts = all.iter().map(|(key, texts)| (key.as_str(), texts[lang as usize].as_str()));
        Value::from(Serde(texts.collect::<BTreeMap<&str, &str>>()))
    })
});

fn all() -> BTreeMap<String, [String; 2]> {
    serde_json::from_str(include_str!("strings.json")).expect("a test reads the texts")
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::{super::templates::TEMPLATES, *};
    use crate::{
        analysis::labels::Labels,
        audit,
        job::{AttemptOutcome, FailureCode, JobStatus},
        queue::WaitingFor,
    };

    /// Keys that are put together of a prefix and a word of the API, in templates and in code.
    const FAMILIES: [&str; 22] = [
        "status_",
        "code_",
        "wait_",
        "outcome_",
        "depth_",
        "priority_",
        "advice_",
        "unit_",
        "order_",
        "bulk_",
        "theme_",
        "error_",
        "unknown_",
        "range_",
        "chart_",
        "scope_",
        "series_",
        "delivery_",
        "filter_",
        "audit_do_",
        "deleted_",
        "no_page_",
    ];

    fn word(value: impl serde::Serialize) -> String {
        serde_json::to_value(value).unwrap().as_str().unwrap().to_owned()
    }

    #[test]
    fn every_key_of_a_template_has_its_text_and_every_text_is_used() {
        let all = all();
        let mut used: Vec<String> = Vec::new();
        for (name, source) in TEMPLATES {
            for rest in source.split(|c: char| c.is_whitespace() || "({[~|,".contains(c)) {
                let Some(key) = rest.strip_prefix("t.") else { continue };
                let key: String = key.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                assert!(all.contains_key(&key), "{name} names {key}, which has no text");
                used.push(key);
            }
            for rest in source.split(|c: char| c.is_whitespace() || "({[~|,".contains(c)) {
                let Some(key) = rest.strip_prefix("m.") else { continue };
                let key: String = key.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                assert!(!Labels::of("en").text(&key).is_empty(), "{name} names {key}, which is no label of a memo");
            }
        }
        let is_of_family = |key: &str| FAMILIES.iter().any(|family| key.starts_with(family));
        let unused: Vec<&String> = all.keys().filter(|key| !used.contains(key) && !is_of_family(key)).collect();
        assert!(unused.is_empty(), "{unused:?}");
    }

    #[test]
    fn both_languages_say_something_with_the_same_blanks() {
        for (key, [en, zh]) in all() {
            assert!(!en.trim().is_empty() && !zh.trim().is_empty(), "{key}");
            let blanks = |text: &str| {
                let mut found: Vec<String> = text
                    .split('{')
                    .skip(1)
                    .filter_map(|rest| rest.split_once('}').map(|(name, _)| name.to_owned()))
                    .collect();
                found.sort();
                found
            };
            assert_eq!(blanks(&en), blanks(&zh), "{key}");
        }
    }

    #[test]
    fn every_word_of_the_api_that_is_shown_has_its_text() {
        let all = all();
        let statuses = JobStatus::iter().map(|status| format!("status_{status}"));
        let codes = FailureCode::iter().map(|code| format!("code_{code}"));
        let waits = WaitingFor::iter().map(|reason| format!("wait_{}", word(reason)));
        let outcomes = [
            AttemptOutcome::Succeeded,
            AttemptOutcome::Failed,
            AttemptOutcome::Released,
            AttemptOutcome::Cancelled,
            AttemptOutcome::OutcomeUnknown,
        ]
        .map(|outcome| format!("outcome_{outcome}"));
        let actions = audit::ACTIONS.into_iter().map(|action| format!("audit_do_{action}"));
        for key in statuses.chain(codes).chain(waits).chain(outcomes).chain(actions) {
            assert!(all.contains_key(&key), "{key} has no text");
        }
    }

    /// A word of the English texts, and the one word for it in the Chinese texts.
    const GLOSSARY: [(&str, &str); 23] = [
        ("admin token", "管理令牌"),
        ("api key", "API 密钥"),
        ("attempt", "尝试"),
        ("audit log", "审计日志"),
        ("budget", "预算"),
        ("caller", "调用者"),
        ("cancel", "取消"),
        ("cost", "费用"),
        ("deadline", "截止时间"),
        ("delete", "删除"),
        ("filter", "筛选"),
        ("job", "任务"),
        ("memo", "备忘录"),
        ("model", "模型"),
        ("operator", "管理员"),
        ("priority", "优先级"),
        ("prompt", "提示词"),
        ("queue", "队列"),
        ("retry", "重试"),
        ("revoke", "吊销"),
        ("tokens per minute", "Token 数"),
        ("tokens", "Token 数"),
        ("workers", "工作线程"),
    ];

    /// Chinese words that the glossary does not use.
    const OTHER_WORDS: [&str; 9] =
        ["作业", "工作者", "工作进程", "令牌数", "词元", "提交者", "密匙", "撤销", "再试一次"];

    /// Texts in which the English word means something else.
    const OTHERWISE: [(&str, &str); 1] = [("login_later", "tokens")];

    #[test]
    fn a_thing_has_one_name_in_chinese() {
        let mut wrong = Vec::new();
        for (key, [en, zh]) in all() {
            let en = en.to_lowercase();
            let has = |word: &str| {
                en.match_indices(word).any(|(at, _)| {
                    let after = en[at + word.len()..].trim_start_matches('s');
                    !en[..at].ends_with(char::is_alphanumeric) && !after.starts_with(char::is_alphanumeric)
                })
            };
            for (word, name) in GLOSSARY {
                if has(word) && !zh.contains(name) && !OTHERWISE.contains(&(key.as_str(), word)) {
                    wrong.push(format!("{key}: {word} is {name}, not in {zh}"));
                }
            }
            wrong.extend(OTHER_WORDS.iter().filter(|word| zh.contains(**word)).map(|word| format!("{key}: {word}")));
        }
        assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    }

    #[test]
    fn the_first_language_that_there_is_counts() {
        assert_eq!(Lang::accepted("zh-CN,zh;q=0.9,en;q=0.8"), Some(Lang::Zh));
        assert_eq!(Lang::accepted("de-DE, EN-gb;q=0.7"), Some(Lang::En));
        assert_eq!(Lang::accepted("fr"), None);
        assert_eq!(Lang::accepted("é"), None);
    }
}
