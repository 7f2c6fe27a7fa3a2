//! What a reader should know about a memo that the model did not say: computed when it is read, never a reason to fail.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    decision::{Asked, BaseRateSource, DecisionAnalysis, Kind, Origin, Status},
    labels::Labels,
    language,
    ranking::WeightedTotal,
    text::is_blank,
};

/// Something to know about a memo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flag {
    /// What it is.
    pub code: FlagCode,
    /// The top-level field of the memo that the flag is about.
    pub field: String,
    /// The flag in words, in the language of the memo.
    pub message: String,
}

/// The kinds of flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::IntoStaticStr, strum::EnumIter)]
#[strum(serialize_all = "snake_case")]
pub enum FlagCode {
    /// The recommended option does not have the highest total, and the memo does not say why.
    RankContradicts,
    /// The recommended option fails a must.
    RecommendedRuledOut,
    /// The memo is in another language than the question.
    LanguageDiffers,
    /// A reason is blank.
    BlankReason,
    /// An option of the asker is not in the memo.
    OptionDropped,
    /// The memo makes no case against the option that scores best.
    NoCaseAgainst,
    /// The chance of success is outside of the base rate, and the memo does not say why.
    PercentOutsideBaseRate,
    /// An option lacks a score, so it can't be compared.
    NotComparable,
    /// Not exactly one option is the status quo.
    StatusQuoUnclear,
    /// A weight, score or percentage was out of range and counts as the nearest that is within.
    OutOfRange,
    /// Texts named options or criteria by their ids. Names took their place.
    IdsInProse,
}

/// All flags of an analysis. `totals` are its weighted totals, `with_ids` the fields whose texts had ids.
pub(super) fn find(
    analysis: &DecisionAnalysis,
    asked: &Asked<'_>,
    totals: &[WeightedTotal],
    with_ids: &[&'static str],
    labels: Labels,
) -> Vec<Flag> {
    let mut found = Vec::new();
    let mut flag = |code: FlagCode, field: &'static str, what: &str| {
        let message = labels.fill(&format!("flag_{}", <&str>::from(code)), &[("what", what)]);
        found.push(Flag { code, field: field.to_owned(), message });
    };
    if analysis.kind == Kind::Decision {
        check_recommendation(analysis, totals, &mut flag);
        check_reasons(analysis, asked, &mut flag);
        check_options(analysis, asked, totals, &mut flag);
        check_ranges(analysis, &mut flag);
    }
    check_language(analysis, asked, &mut flag);
    with_ids.iter().for_each(|field| flag(FlagCode::IdsInProse, field, field));
    found
}

/// Adds a flag: its code, its field, and what it is about, which is a name of the memo, or figures.
type Report<'a> = dyn FnMut(FlagCode, &'static str, &str) + 'a;

fn check_recommendation(analysis: &DecisionAnalysis, totals: &[WeightedTotal], flag: &mut Report<'_>) {
    let recommendation = &analysis.recommendation;
    if let Some(chosen) = analysis.chosen() {
        let rank = totals.iter().find(|total| total.option_id == chosen.id).map(|total| total.rank);
        let failed: Vec<&str> = analysis.failed_musts(&chosen.id).map(|must| must.name.as_str()).collect();
        if !failed.is_empty() {
            flag(FlagCode::RecommendedRuledOut, "recommendation", &failed.join(", "));
        } else if rank.is_some_and(|rank| rank > 1) && is_blank(&recommendation.overrides_scores_because) {
            let best = totals.first().and_then(|best| analysis.option(&best.option_id));
            flag(FlagCode::RankContradicts, "recommendation", best.map_or("", |best| &best.name));
        }
    }
    let rate = &analysis.base_rate;
    let is_outside = !(rate.low_percent..=rate.high_percent).contains(&recommendation.success_percent);
    if rate.source != BaseRateSource::None && is_outside && is_blank(&rate.adjustment) {
        let what = format!("{} % / {}–{} %", recommendation.success_percent, rate.low_percent, rate.high_percent);
        flag(FlagCode::PercentOutsideBaseRate, "base_rate", &what);
    }
}

fn check_reasons(analysis: &DecisionAnalysis, asked: &Asked<'_>, flag: &mut Report<'_>) {
    let is_finished = analysis.status == Status::Complete;
    if is_finished && is_blank(&analysis.case_against) {
        flag(FlagCode::NoCaseAgainst, "case_against", "");
    }
    let recommendation = &analysis.recommendation;
    if is_blank(&analysis.summary) {
        flag(FlagCode::BlankReason, "summary", "summary");
    }
    if is_blank(&recommendation.rationale) || is_finished && is_blank(&recommendation.basis) {
        flag(FlagCode::BlankReason, "recommendation", "recommendation");
    }
    let has_reason = |why: Option<&str>| why.map_or(asked.is_brief, |why| !is_blank(why));
    if !analysis.scores.iter().flat_map(|scores| &scores.cells).all(|cell| has_reason(cell.why.as_deref())) {
        flag(FlagCode::BlankReason, "scores", "scores");
    }
}

fn check_options(analysis: &DecisionAnalysis, asked: &Asked<'_>, totals: &[WeightedTotal], flag: &mut Report<'_>) {
    for text in dropped(analysis, asked.options) {
        flag(FlagCode::OptionDropped, "options", text);
    }
    if analysis.status != Status::Complete {
        return;
    }
    for option in &analysis.options {
        let is_ranked = totals.iter().any(|total| total.option_id == option.id);
        if !is_ranked && analysis.failed_musts(&option.id).next().is_none() {
            flag(FlagCode::NotComparable, "scores", &option.name);
        }
    }
    let status_quo = analysis.options.iter().filter(|option| option.origin == Origin::StatusQuo).count();
    if status_quo != 1 {
        flag(FlagCode::StatusQuoUnclear, "options", "");
    }
}

/// The asked options that are not among those of the memo. Names may be reworded, so as many at most as are missing by
/// number.
fn dropped<'a>(analysis: &DecisionAnalysis, asked: &'a [String]) -> Vec<&'a str> {
    let there = analysis.options.iter().filter(|option| option.origin != Origin::Added).count();
    let missing = asked.len().saturating_sub(there);
    let is_found = |text: &str| analysis.options.iter().any(|option| are_alike(text, &option.name));
    asked.iter().map(String::as_str).filter(|text| !is_found(text)).take(missing).collect()
}

/// Whether half of the shorter text's words, or in Chinese its characters, are in the other.
fn are_alike(one: &str, other: &str) -> bool {
    let words = |text: &str| -> Vec<String> {
        let text = text.to_lowercase();
        let is_cjk = |c: char| matches!(c, '\u{3040}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}');
        let characters = text.chars().filter(|c| is_cjk(*c)).map(String::from);
        let words = text.split(|c: char| !c.is_alphanumeric() || is_cjk(c)).filter(|word| !word.is_empty());
        words.map(str::to_owned).chain(characters).collect()
    };
    let (one, other) = (words(one), words(other));
    let shared = one.iter().filter(|word| other.contains(word)).count();
    shared > 0 && shared * 2 >= one.len().min(other.len())
}

fn check_ranges(analysis: &DecisionAnalysis, flag: &mut Report<'_>) {
    let is_on_scale = |value: u8| (1..=5).contains(&value);
    if !analysis.criteria.iter().all(|criterion| is_on_scale(criterion.weight)) {
        flag(FlagCode::OutOfRange, "criteria", "criteria");
    }
    if !analysis.scores.iter().flat_map(|scores| &scores.cells).all(|cell| is_on_scale(cell.score)) {
        flag(FlagCode::OutOfRange, "scores", "scores");
    }
    if analysis.recommendation.success_percent > 100 {
        flag(FlagCode::OutOfRange, "recommendation", "recommendation");
    }
}

fn check_language(analysis: &DecisionAnalysis, asked: &Asked<'_>, flag: &mut Report<'_>) {
    let written = format!("{} {} {}", analysis.summary, analysis.decision_question, analysis.recommendation.rationale);
    if let (Some(of_question), Some(of_memo)) = (language::detect(asked.query), language::detect(&written))
        && of_question != of_memo
    {
        flag(FlagCode::LanguageDiffers, "language", &format!("{of_question} / {of_memo}"));
    }
}
