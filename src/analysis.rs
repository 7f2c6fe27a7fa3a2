//! The decision memo: its types, how an answer is read into it, and the totals the service computes itself.
//!
//! [`parse`] turns an answer's text into a [`DecisionAnalysis`] in two steps: `analysis/answer.rs` finds the JSON in
//! whatever surrounds it, `analysis/consistency.rs` checks what a JSON schema can't say. The shape is that of
//! `analysis/decision.schema.json`, which the API is told to enforce; what arrives is checked all the same, because a
//! proxy or an older model may ignore it. Knows nothing of jobs, prompts or the API.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use serde::de::{Error, IntoDeserializer};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

mod answer;
mod consistency;
mod fit;
mod lenient;

/// A finished memo: what is stored and returned as a job's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Memo {
    /// The model's part.
    #[serde(flatten)]
    pub analysis: DecisionAnalysis,
    /// The service's part, best option first.
    pub weighted_totals: Vec<WeightedTotal>,
}

/// How one option fares over all criteria.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WeightedTotal {
    /// The option.
    pub option_id: String,
    /// Σ weight × score / Σ weight, rounded to 2 places.
    #[schema(minimum = 1, maximum = 5)]
    pub total: f64,
    /// 1 is best; equal totals share a rank.
    pub rank: usize,
}

/// The model's analysis of one decision question. Unknown fields are ignored when it is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DecisionAnalysis {
    /// Whether there is a recommendation to act on.
    #[serde(deserialize_with = "folded")]
    pub status: Status,
    /// The decision restated as one answerable question, with scope and horizon.
    pub decision_question: String,
    /// The bottom line, at most 3 sentences.
    pub summary: String,
    /// How hard the choice is to undo.
    #[serde(deserialize_with = "folded")]
    pub reversibility: Reversibility,
    /// What is not known, and how to find out.
    pub missing_information: Vec<Gap>,
    /// Premises the conclusion rests on.
    pub assumptions: Vec<Assumption>,
    /// What the options are judged by.
    pub criteria: Vec<Criterion>,
    /// The options, one of them the status quo.
    pub options: Vec<DecisionOption>,
    /// One score for each pair of option and criterion.
    pub evaluations: Vec<Evaluation>,
    /// What could go wrong.
    pub risks: Vec<Risk>,
    /// What to do.
    pub recommendation: Recommendation,
    /// The first steps, in order.
    pub next_steps: Vec<NextStep>,
}

/// Whether there is a recommendation to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// There is.
    Complete,
    /// Something decisive is missing: see `missing_information`.
    NeedsInformation,
    /// The question holds no choice to make.
    NotADecision,
}

/// How hard a choice is to undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reversibility {
    /// It can't be undone, or only at ruinous cost.
    OneWayDoor,
    /// It can be undone within weeks at small cost.
    TwoWayDoor,
    /// It lies between.
    PartlyReversible,
}

/// A three-step scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The least.
    Low,
    /// The middle.
    Medium,
    /// The most.
    High,
}

/// Where an assumption comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AssumptionSource {
    /// The asker wrote it.
    StatedByUser,
    /// Concluded from what the asker wrote.
    Inferred,
    /// The model's general knowledge.
    GeneralKnowledge,
}

/// What is recommended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Do it.
    Proceed,
    /// Do it once the conditions hold.
    ProceedWithConditions,
    /// Try it in the small before committing.
    PilotFirst,
    /// Decide later.
    Defer,
    /// Don't do it.
    DoNotProceed,
    /// No recommendation can be made yet.
    InsufficientInformation,
}

/// Something that is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gap {
    /// What to find out.
    pub question: String,
    /// What depends on the answer.
    pub why_it_matters: String,
    /// Whom to ask or what to measure.
    pub how_to_get_it: String,
    /// Whether the decision should wait for the answer.
    pub blocks_decision: bool,
}

/// A premise the conclusion rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Assumption {
    /// Unique among the assumptions.
    pub id: String,
    /// What is taken to be so.
    pub statement: String,
    /// Where it comes from.
    #[serde(deserialize_with = "folded")]
    pub source: AssumptionSource,
    /// What changes if it isn't so.
    pub if_wrong: String,
}

/// One measure the options are judged by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Criterion {
    /// Unique among the criteria.
    pub id: String,
    /// A short name.
    pub name: String,
    /// 1 (minor) to 5 (decisive).
    #[schema(minimum = 1, maximum = 5)]
    pub weight: u8,
    /// Why it bears on the decision.
    pub why_it_matters: String,
}

/// One way to decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DecisionOption {
    /// Unique among the options.
    pub id: String,
    /// A short name.
    pub name: String,
    /// What it means in practice.
    pub description: String,
    /// Whether this is what happens if nothing is decided.
    pub is_status_quo: bool,
    /// What speaks for it.
    pub pros: Vec<String>,
    /// What speaks against it.
    pub cons: Vec<String>,
    /// What it takes.
    pub cost_and_effort: String,
    /// What it forecloses.
    pub opportunity_cost: String,
}

/// How one option does on one criterion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Evaluation {
    /// The option.
    pub option_id: String,
    /// The criterion.
    pub criterion_id: String,
    /// 1 (poor) to 5 (excellent).
    #[schema(minimum = 1, maximum = 5)]
    pub score: u8,
    /// The evidence for the score.
    pub rationale: String,
}

/// Something that could go wrong with an option.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Risk {
    /// The option.
    pub option_id: String,
    /// What could happen.
    pub description: String,
    /// How likely it is.
    #[serde(deserialize_with = "folded")]
    pub likelihood: Level,
    /// How much it would hurt.
    #[serde(deserialize_with = "folded")]
    pub impact: Level,
    /// What can be done against it.
    pub mitigation: String,
    /// What can be seen before the damage is done.
    pub early_warning_sign: String,
}

impl Risk {
    /// How grave it is, 1 to 9.
    pub fn severity(&self) -> u8 {
        severity(self.likelihood, self.impact)
    }

    /// What risks are sorted by, the greatest first: of equally grave ones that comes first which hurts more.
    pub fn gravity(&self) -> (u8, Level) {
        (self.severity(), self.impact)
    }
}

/// How grave a risk of such a likelihood and impact is, 1 to 9.
pub fn severity(likelihood: Level, impact: Level) -> u8 {
    let points = |level| match level {
        Level::Low => 1,
        Level::Medium => 2,
        Level::High => 3,
    };
    points(likelihood) * points(impact)
}

/// What to do, how surely, and on what terms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Recommendation {
    /// What is recommended.
    #[serde(deserialize_with = "folded")]
    pub verdict: Verdict,
    /// The chosen option; empty if none.
    pub option_id: String,
    /// Why.
    pub rationale: String,
    /// What is knowingly given up.
    pub trade_offs_accepted: Vec<String>,
    /// Confidence in words.
    #[serde(deserialize_with = "folded")]
    pub confidence: Level,
    /// The model's probability that this looks right in hindsight, in percent.
    #[schema(minimum = 0, maximum = 100)]
    pub confidence_percent: u8,
    /// What the confidence rests on, and what limits it.
    pub confidence_basis: String,
    /// What must hold for the recommendation to stand.
    pub conditions: Vec<String>,
    /// Facts that would reverse it.
    pub what_would_change_this: Vec<String>,
}

/// One step to take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NextStep {
    /// What to do.
    pub action: String,
    /// The role that owns it.
    pub owner_role: String,
    /// By when.
    pub timeframe: String,
    /// How one can tell that it is done.
    pub success_measure: String,
}

/// Why an answer isn't a memo. The messages speak to the one who wrote the answer, so they can be sent back to the
/// model; they quote ids and values of the answer, never its prose.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum ParseError {
    /// Prose only.
    #[error("the answer holds no JSON object")]
    NoJson,
    /// The JSON stops in the middle: the output limit cut it, as a rule.
    #[error("the answer's JSON ends before it is complete ({0})")]
    Truncated(String),
    /// A syntax error.
    #[error("the answer's JSON can't be read: {0}, counted from its opening brace")]
    InvalidJson(String),
    /// JSON, but not of the memo's shape.
    #[error("the answer's JSON is not a decision memo: {message} (at `{path}`)")]
    WrongShape {
        /// The field, like `options[1].pros`; `.` is the whole object.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// The right shape, but it contradicts itself.
    #[error("the memo is inconsistent: {}", .0.join("; "))]
    Inconsistent(Vec<String>),
}

impl ParseError {
    /// A stable `snake_case` name of the kind: `no_json`, `truncated`, `invalid_json`, `wrong_shape`, `inconsistent`.
    pub fn code(&self) -> &'static str {
        self.into()
    }
}

impl From<DecisionAnalysis> for Memo {
    fn from(analysis: DecisionAnalysis) -> Memo {
        Memo { weighted_totals: weighted_totals(&analysis), analysis }
    }
}

/// Reads an answer: the memo's JSON, alone or inside prose or a code fence.
///
/// Beyond its shape these hold for every memo: the summary isn't blank; ids are unique, not blank, and every reference
/// names one; scores and weights are 1 to 5, the confidence 0 to 100 percent; there are at most 4 options, one status
/// quo and one score for a pair of option and criterion. A `complete` one also has at least 2 options and a criterion,
/// a status quo, and every option scored on every criterion. The other two statuses need not: what can't be known yet
/// can't be scored. `needs_information` must instead name what is missing.
pub fn parse(text: &str) -> Result<DecisionAnalysis, ParseError> {
    find(text).map(|found| found.analysis)
}

fn find(text: &str) -> Result<answer::Found, ParseError> {
    let found = answer::read(text)?;
    match consistency::violations(&found.analysis) {
        violations if violations.is_empty() => Ok(found),
        violations => Err(ParseError::Inconsistent(violations)),
    }
}

/// A memo as it was read.
#[derive(Debug)]
pub struct ReadMemo {
    /// The memo as JSON, with the service's own part.
    pub json: Box<RawValue>,
    /// Slips of the answer that were mended, such as `trailing_comma`.
    pub repaired: Vec<&'static str>,
}

/// The memo in an answer, or what the model did wrong.
pub fn read_memo(text: &str) -> Result<ReadMemo, String> {
    let found = find(text).map_err(|error| error.to_string())?;
    let json = serde_json::value::to_raw_value(&Memo::from(found.analysis)).map_err(|error| error.to_string())?;
    Ok(ReadMemo { json, repaired: found.repairs.into_iter().map(Into::into).collect() })
}

/// The options' weighted totals, best first. Computed here, because models are poor at sums. An option that isn't
/// scored on every criterion has none: its total couldn't be compared.
pub fn weighted_totals(analysis: &DecisionAnalysis) -> Vec<WeightedTotal> {
    let scores: HashMap<_, _> =
        analysis.evaluations.iter().map(|e| ((e.option_id.as_str(), e.criterion_id.as_str()), e.score)).collect();
    let weights: u32 = analysis.criteria.iter().map(|criterion| u32::from(criterion.weight)).sum();
    let hundredths = |option: &DecisionOption| -> Option<u32> {
        let weighted = analysis.criteria.iter().map(|criterion| {
            let score = scores.get(&(option.id.as_str(), criterion.id.as_str()))?;
            Some(u32::from(criterion.weight) * u32::from(*score))
        });
        (weighted.sum::<Option<u32>>()? * 100 + weights / 2).checked_div(weights)
    };
    let mut totals: Vec<_> =
        analysis.options.iter().filter_map(|option| Some((hundredths(option)?, option.id.clone()))).collect();
    totals.sort_by_key(|(total, _)| std::cmp::Reverse(*total));
    let rank = |total| 1 + totals.iter().filter(|(other, _)| *other > total).count();
    let ranked = totals.iter().map(|(total, option_id)| WeightedTotal {
        option_id: option_id.clone(),
        total: f64::from(*total) / 100.0,
        rank: rank(*total),
    });
    ranked.collect()
}

/// The JSON schema of [`DecisionAnalysis`] as the API wants it for structured output: without `$schema`.
pub fn schema() -> &'static serde_json::Value {
    static SCHEMA: LazyLock<serde_json::Value> = LazyLock::new(|| {
        let mut schema: serde_json::Value = serde_json::from_str(include_str!("analysis/decision.schema.json"))
            .expect("the schema is part of the program, and a test reads it");
        if let Some(fields) = schema.as_object_mut() {
            fields.remove("$schema");
        }
        schema
    });
    &SCHEMA
}

/// [`schema`] as JSON, written out once for all calls.
pub fn schema_text() -> Arc<RawValue> {
    static TEXT: LazyLock<Arc<RawValue>> = LazyLock::new(|| {
        Arc::from(serde_json::value::to_raw_value(schema()).expect("a JSON value can be written as JSON"))
    });
    Arc::clone(&TEXT)
}

/// Reads an enum value whatever its case: structured output doesn't guarantee that of the schema.
fn folded<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    let word = String::deserialize(deserializer)?.trim().to_lowercase();
    T::deserialize(IntoDeserializer::<serde::de::value::Error>::into_deserializer(word)).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests;
