//! What makes an analysis impossible to show: references that lead nowhere, no option to act on, no scores.
//!
//! Everything else that may be wrong with one is a flag (`flags`), shown with the memo.

use std::collections::HashSet;

use super::{
    decision::{Action, DecisionAnalysis, Kind, Status},
    text::is_blank,
};

/// More options than this can't be shown: they are lettered A to Z.
const MAX_OPTIONS: usize = 26;
/// As many as help to repair an answer. It bounds the error of a nonsensical one.
const MAX_VIOLATIONS: usize = 50;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The top-level field whose repair would be enough; `None` if others depend on it.
    pub part: Option<&'static str>,
    pub message: String,
}

impl Violation {
    fn in_part(part: &'static str, message: impl Into<String>) -> Violation {
        Violation { part: Some(part), message: message.into() }
    }

    fn whole(message: impl Into<String>) -> Violation {
        Violation { part: None, message: message.into() }
    }
}

pub(super) fn violations(analysis: &DecisionAnalysis) -> Vec<Violation> {
    let mut found = Vec::new();
    match analysis.kind {
        Kind::Decision => {
            check_references(analysis, &mut found);
            check_conclusion(analysis, &mut found);
        }
        Kind::NotADecision if is_blank(&analysis.summary) && is_blank(&analysis.suggested_question) => {
            found.push(Violation::whole("suggested_question: is blank, and so is summary"));
        }
        Kind::NotADecision => {}
    }
    found.truncate(MAX_VIOLATIONS);
    found
}

fn check_references(analysis: &DecisionAnalysis, found: &mut Vec<Violation>) {
    let options = unique_ids("options", analysis.options.iter().map(|option| &option.id), found);
    let criteria = unique_ids("criteria", analysis.criteria.iter().map(|criterion| &criterion.id), found);
    let musts = unique_ids("musts", analysis.musts.iter().map(|must| &must.id), found);
    let mut resolve = |part, path: String, id: &str, known: &HashSet<&str>, what| {
        if !known.contains(id) {
            found.push(Violation::in_part(part, format!("{path}: {id:?} is not the id of {what}")));
        }
    };
    for (i, scores) in analysis.scores.iter().enumerate() {
        resolve("scores", format!("scores[{i}].option_id"), &scores.option_id, &options, "an option");
        for (j, id) in scores.failed_musts.iter().enumerate() {
            resolve("scores", format!("scores[{i}].failed_musts[{j}]"), id, &musts, "a must");
        }
        for (j, cell) in scores.cells.iter().enumerate() {
            let path = format!("scores[{i}].cells[{j}].criterion_id");
            resolve("scores", path, &cell.criterion_id, &criteria, "a criterion");
        }
    }
    let assumptions = analysis.assumptions.iter().map(|assumption| &assumption.flips_to);
    let gaps = analysis.gaps.iter().map(|gap| &gap.flips_to);
    let risks = analysis.risks.iter().map(|risk| &risk.option_id);
    let may_be_empty: [(&str, &str, Vec<&String>); 3] = [
        ("assumptions", "flips_to", assumptions.collect()),
        ("gaps", "flips_to", gaps.collect()),
        ("risks", "option_id", risks.collect()),
    ];
    for (part, field, ids) in may_be_empty {
        for (i, id) in ids.into_iter().enumerate().filter(|(_, id)| !id.is_empty()) {
            resolve(part, format!("{part}[{i}].{field}"), id, &options, "an option");
        }
    }
    let chosen = &analysis.recommendation.option_id;
    if !chosen.is_empty() {
        resolve("recommendation", "recommendation.option_id".to_owned(), chosen, &options, "an option");
    }
}

fn check_conclusion(analysis: &DecisionAnalysis, found: &mut Vec<Violation>) {
    let recommendation = &analysis.recommendation;
    if recommendation.option_id.is_empty() && recommendation.action != Action::Wait {
        let message = "recommendation.option_id: is empty, though the action is not wait";
        found.push(Violation::in_part("recommendation", message));
    }
    if analysis.options.len() > MAX_OPTIONS {
        found.push(Violation::whole(format!("options: there are {}, more than 8", analysis.options.len())));
        return;
    }
    found.extend(match analysis.status {
        Status::NeedsInformation if analysis.gaps.is_empty() => {
            Some(Violation::in_part("gaps", "gaps: is empty, though status is needs_information"))
        }
        Status::Complete if analysis.options.is_empty() => Some(Violation::whole("options: is empty")),
        Status::Complete if analysis.criteria.is_empty() => Some(Violation::whole("criteria: is empty")),
        Status::Complete if !analysis.options.iter().any(|option| is_scored(analysis, &option.id)) => {
            Some(Violation::in_part("scores", "scores: no option has a score on every criterion"))
        }
        Status::Complete | Status::NeedsInformation => None,
    });
}

fn is_scored(analysis: &DecisionAnalysis, option_id: &str) -> bool {
    analysis.criteria.iter().all(|criterion| analysis.cell(option_id, &criterion.id).is_some())
}

/// The ids of one list; blank and repeated ones are found.
fn unique_ids<'a>(list: &str, ids: impl Iterator<Item = &'a String>, found: &mut Vec<Violation>) -> HashSet<&'a str> {
    let mut seen = HashSet::new();
    for (i, id) in ids.enumerate() {
        if is_blank(id) {
            found.push(Violation::whole(format!("{list}[{i}].id: is blank")));
        } else if !seen.insert(id.as_str()) {
            found.push(Violation::whole(format!("{list}[{i}].id: {id:?} is used twice")));
        }
    }
    seen
}
