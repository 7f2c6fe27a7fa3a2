//! What a JSON schema can't say of a memo: references, ranges, completeness. The rules are told at [`super::parse`].

use std::collections::{HashMap, HashSet};

use super::{DecisionAnalysis, Status};

/// More options than this don't help to decide.
const MAX_OPTIONS: usize = 4;
/// Fewer are no choice.
const MIN_OPTIONS: usize = 2;
/// As many as help to mend an answer; it keeps the error of a nonsensical one short.
const MAX_VIOLATIONS: usize = 50;

/// All that is wrong with `analysis`, at most [`MAX_VIOLATIONS`], each with the field's path.
pub(super) fn violations(analysis: &DecisionAnalysis) -> Vec<String> {
    let mut found = Vec::new();
    if analysis.summary.trim().is_empty() {
        found.push("summary: is blank".to_owned());
    }
    check_references(analysis, &mut found);
    check_ranges(analysis, &mut found);
    check_completeness(analysis, &mut found);
    found.truncate(MAX_VIOLATIONS);
    found
}

fn check_references(analysis: &DecisionAnalysis, found: &mut Vec<String>) {
    let options = unique_ids("options", analysis.options.iter().map(|option| &option.id), found);
    let criteria = unique_ids("criteria", analysis.criteria.iter().map(|criterion| &criterion.id), found);
    unique_ids("assumptions", analysis.assumptions.iter().map(|assumption| &assumption.id), found);
    let mut resolve = |path: String, id: &str, known: &HashSet<&str>, what| {
        if !known.contains(id) {
            found.push(format!("{path}: {id:?} is the id of no {what}"));
        }
    };
    for (i, evaluation) in analysis.evaluations.iter().enumerate() {
        resolve(format!("evaluations[{i}].option_id"), &evaluation.option_id, &options, "option");
        resolve(format!("evaluations[{i}].criterion_id"), &evaluation.criterion_id, &criteria, "criterion");
    }
    for (i, risk) in analysis.risks.iter().enumerate() {
        resolve(format!("risks[{i}].option_id"), &risk.option_id, &options, "option");
    }
    let chosen = &analysis.recommendation.option_id;
    if !chosen.is_empty() {
        resolve("recommendation.option_id".to_owned(), chosen, &options, "option");
    }
}

fn check_ranges(analysis: &DecisionAnalysis, found: &mut Vec<String>) {
    let weights = analysis.criteria.iter().enumerate().map(|(i, c)| (format!("criteria[{i}].weight"), c.weight));
    let scores = analysis.evaluations.iter().enumerate().map(|(i, e)| (format!("evaluations[{i}].score"), e.score));
    let outside = weights.chain(scores).filter(|(_, value)| !(1..=5).contains(value));
    found.extend(outside.map(|(path, value)| format!("{path}: {value} is not within 1 to 5")));
    let percent = analysis.recommendation.confidence_percent;
    if percent > 100 {
        found.push(format!("recommendation.confidence_percent: {percent} is not within 0 to 100"));
    }
}

fn check_completeness(analysis: &DecisionAnalysis, found: &mut Vec<String>) {
    let complete = analysis.status == Status::Complete;
    if analysis.status == Status::NeedsInformation && analysis.missing_information.is_empty() {
        found.push("missing_information: is empty, though status is needs_information".to_owned());
    }
    if complete && analysis.criteria.is_empty() {
        found.push("criteria: is empty".to_owned());
    }
    let options = analysis.options.len();
    if options > MAX_OPTIONS || complete && options < MIN_OPTIONS {
        found.push(format!("options: there are {options}, not {MIN_OPTIONS} to {MAX_OPTIONS}"));
    }
    let status_quo = analysis.options.iter().filter(|option| option.is_status_quo).count();
    if status_quo > 1 || complete && status_quo == 0 {
        found.push(format!("options: {status_quo} have is_status_quo true, not exactly one"));
    }
    let mut scored = HashMap::new();
    for evaluation in &analysis.evaluations {
        *scored.entry((evaluation.option_id.as_str(), evaluation.criterion_id.as_str())).or_insert(0) += 1;
    }
    let pairs = analysis.options.iter().flat_map(|o| analysis.criteria.iter().map(|c| (o.id.as_str(), c.id.as_str())));
    let wrong = pairs.filter_map(|pair @ (option, criterion)| match scored.get(&pair) {
        None if complete => Some(format!("evaluations: option {option:?} has no score on criterion {criterion:?}")),
        Some(times @ 2..) => {
            Some(format!("evaluations: option {option:?} has {times} scores on criterion {criterion:?}, not one"))
        }
        _ => None,
    });
    // Lazily, as a nonsensical answer can have millions of pairs of option and criterion.
    found.extend(wrong.take(MAX_VIOLATIONS));
}

/// The ids of one list, complaining of blank and repeated ones.
fn unique_ids<'a>(list: &str, ids: impl Iterator<Item = &'a String>, found: &mut Vec<String>) -> HashSet<&'a str> {
    let mut seen = HashSet::new();
    for (i, id) in ids.enumerate() {
        if id.trim().is_empty() {
            found.push(format!("{list}[{i}].id: is blank"));
        } else if !seen.insert(id.as_str()) {
            found.push(format!("{list}[{i}].id: {id:?} is taken already"));
        }
    }
    seen
}
