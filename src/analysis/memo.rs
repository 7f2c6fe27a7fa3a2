//! The memo that readers get: the model's analysis, and what the service computes from it each time it is read.
//!
//! Only the analysis is stored. API, page, Markdown, terminal and webhooks all read it through [`Memo::new`], so totals,
//! robustness and flags are the same everywhere, and a better computation also applies to old memos.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    decision::{Asked, DecisionAnalysis, Kind},
    flags::{self, Flag},
    labels::Labels,
    names,
    ranking::{Robustness, RobustnessLabel, Table, WeightedTotal},
};

/// A decision memo: `DecisionAnalysis`, the model's part, and what the service computes from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Memo {
    /// The model's part, with names in the place of ids in its texts.
    #[serde(flatten)]
    pub analysis: DecisionAnalysis,
    /// The recommendation in a line: the action and the option.
    pub headline: String,
    /// The options that can be ranked, best first. Options that fail a must and options without all scores are missing.
    pub weighted_totals: Vec<WeightedTotal>,
    /// How robust that ranking is; absent with fewer than two ranked options.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub robustness: Option<Robustness>,
    /// The robustness in a sentence, in the language of the memo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub robustness_text: Option<String>,
    /// Warnings and notes for the reader.
    pub flags: Vec<Flag>,
}

impl Memo {
    /// The memo of an analysis that answers what was `asked`.
    pub fn new(mut analysis: DecisionAnalysis, asked: &Asked<'_>) -> Memo {
        let with_ids = names::put_names(&mut analysis);
        let labels = Labels::of(&analysis.language);
        let table = Table::new(&analysis);
        let weighted_totals = table.totals();
        let chosen = Some(analysis.recommendation.option_id.as_str()).filter(|id| !id.is_empty());
        let robustness = table.robustness(chosen);
        Memo {
            headline: headline(&analysis, labels),
            flags: flags::find(&analysis, asked, &weighted_totals, &with_ids, labels),
            robustness_text: robustness.as_ref().map(|robustness| sentence(robustness, &analysis, labels)),
            weighted_totals,
            robustness,
            analysis,
        }
    }

    pub fn labels(&self) -> Labels {
        Labels::of(&self.analysis.language)
    }

    pub fn total(&self, option_id: &str) -> Option<&WeightedTotal> {
        self.weighted_totals.iter().find(|total| total.option_id == option_id)
    }
}

/// A stored answer as readers get it: a memo, or else the answer itself.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Shown<'a> {
    Memo(Box<Memo>),
    Other(&'a RawValue),
}

impl<'a> Shown<'a> {
    pub fn new(stored: &'a RawValue, asked: &Asked<'_>) -> Shown<'a> {
        match serde_json::from_str(stored.get()) {
            Ok(analysis) => Shown::Memo(Box::new(Memo::new(analysis, asked))),
            Err(_) => Shown::Other(stored),
        }
    }
}

/// The action and the option: "Do, on conditions: Build in two stages".
fn headline(analysis: &DecisionAnalysis, labels: Labels) -> String {
    if analysis.kind == Kind::NotADecision {
        return labels.text("not_a_decision").to_owned();
    }
    let action = labels.word("action", analysis.recommendation.action);
    match analysis.chosen() {
        Some(option) => labels.fill("headline", &[("action", action), ("option", &option.name)]),
        None => action.to_owned(),
    }
}

/// What would have to change for another option to win.
fn sentence(robustness: &Robustness, analysis: &DecisionAnalysis, labels: Labels) -> String {
    let option = |id: &str| analysis.option(id).map_or("", |option| option.name.as_str());
    let criterion = |id: &str| analysis.criteria.iter().find(|it| it.id == id).map_or("", |it| it.name.as_str());
    let chosen = analysis.recommendation.option_id.as_str();
    let [won, of] = [robustness.weightings.count, robustness.weightings.of].map(|number| number.to_string());
    let winner = option(&robustness.winner);
    if !chosen.is_empty() && chosen != robustness.winner {
        let blanks = [("winner", winner), ("option", option(chosen)), ("won", &won), ("of", &of)];
        return labels.fill("robustness_not_highest", &blanks);
    }
    if robustness.label == RobustnessLabel::Robust {
        return labels.fill("robustness_robust", &[("winner", winner), ("of", &of)]);
    }
    let critical = robustness.critical_weights.first();
    if let Some(critical) = critical.filter(|critical| (1.0..=5.0).contains(&critical.level_at)) {
        let blanks = [
            ("criterion", criterion(&critical.criterion_id)),
            ("level_at", &number(critical.level_at)),
            ("weight", &critical.weight.to_string()),
            ("option", option(&critical.option_id)),
        ];
        return labels.fill("robustness_weight", &blanks);
    }
    let Some(change) = &robustness.smallest_score_change else {
        return labels.fill("robustness_share", &[("winner", winner), ("won", &won), ("of", &of)]);
    };
    let falls = change.option_id == robustness.winner;
    let blanks = [
        ("option", option(&change.option_id)),
        ("other", option(&change.level_with)),
        ("criterion", criterion(&change.criterion_id)),
        ("change", &number(change.change)),
    ];
    labels.fill(if falls { "robustness_score_falls" } else { "robustness_score_rises" }, &blanks)
}

fn number(value: f64) -> String {
    format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned()
}
