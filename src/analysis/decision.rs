//! The model's answer: one decision question analysed, its fields in the order of thinking, the conclusion last.
//!
//! `decision.schema.json` is the same shape for the API. Structured output writes the fields in the schema's order, so the
//! order decides what the model knows when it writes each of them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The analysis of one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DecisionAnalysis {
    /// Language of every text, as a BCP 47 tag such as `en` or `zh-CN`.
    pub language: String,
    /// Whether the question asks for a decision. If not, only `suggested_question` and `summary` are filled.
    pub kind: Kind,
    /// The decision restated as one answerable question, with scope and horizon.
    pub decision_question: String,
    /// A decision to ask about instead; empty unless `kind` is `not_a_decision`.
    pub suggested_question: String,
    /// What is wrong with the input.
    pub material: Vec<Material>,
    /// How often decisions of this kind succeed.
    pub base_rate: BaseRate,
    /// Premises of the conclusion.
    pub assumptions: Vec<Assumption>,
    /// What is not known, and how to find out.
    pub gaps: Vec<Gap>,
    /// Conditions that every option has to meet. An option that fails one is ruled out, whatever its scores.
    pub musts: Vec<Must>,
    /// What the options are scored on.
    pub criteria: Vec<Criterion>,
    /// 2 to 8 options, every option of the asker among them.
    pub options: Vec<DecisionOption>,
    /// The scores of each option.
    pub scores: Vec<OptionScores>,
    /// The strongest case against the option that scores best.
    pub case_against: String,
    /// Ways in which the recommended option may have failed, seen from a year later; empty in a brief memo.
    pub premortem: Vec<Failure>,
    /// What could go wrong.
    pub risks: Vec<Risk>,
    /// What to do.
    pub recommendation: Recommendation,
    /// The first steps, in order.
    pub next_steps: Vec<NextStep>,
    /// The bottom line, at most 3 sentences.
    pub summary: String,
    /// Whether the recommendation can be acted on.
    pub status: Status,
}

/// What an analysis answers.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub query: &'a str,
    /// Options that the asker wants compared.
    pub options: &'a [String],
    /// A brief memo was asked for, which gives no reasons for single scores.
    pub is_brief: bool,
}

/// Whether a question asks for a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = QuestionKind)]
pub enum Kind {
    /// It does.
    Decision,
    /// A request for facts, a chat, a garbled text.
    NotADecision,
}

/// Whether a recommendation can be acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = MemoStatus)]
pub enum Status {
    /// It can.
    Complete,
    /// Something decisive is missing: see the `gaps` with `wait`.
    NeedsInformation,
}

/// A passage of the question or its context that the analysis does not take at face value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Material {
    /// What is wrong with the passage.
    pub kind: MaterialKind,
    /// The passage, in the asker's words.
    pub quote: String,
    /// What follows for the analysis.
    pub consequence: String,
}

/// What is wrong with a passage of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MaterialKind {
    /// It contradicts another passage.
    Contradiction,
    /// It pushes towards one answer.
    Slant,
    /// It tries to instruct the analyst. It was not followed.
    Instruction,
    /// It is out of date.
    Outdated,
}

/// How often decisions of a kind succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BaseRate {
    /// The kind of decision; empty if there is no useful base rate.
    pub reference_class: String,
    /// Lower end of the share that succeeds, in percent.
    pub low_percent: u8,
    /// Upper end of it.
    pub high_percent: u8,
    /// Where the figures come from.
    pub source: BaseRateSource,
    /// Why this case is likelier or less likely to succeed than the class.
    pub adjustment: String,
}

/// Where a base rate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BaseRateSource {
    /// From the asker.
    Stated,
    /// From the model's general knowledge.
    GeneralKnowledge,
    /// There is no useful base rate.
    None,
}

/// A premise of the conclusion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Assumption {
    /// Unique among the assumptions.
    pub id: String,
    /// What is assumed.
    pub statement: String,
    /// Where it comes from.
    pub source: AssumptionSource,
    /// What changes if it is wrong.
    pub if_wrong: String,
    /// The option to choose then; empty if the choice stays.
    pub flips_to: String,
}

/// Where an assumption comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AssumptionSource {
    /// The asker wrote it.
    StatedByUser,
    /// Concluded from what the asker wrote.
    Inferred,
    /// The model's general knowledge.
    GeneralKnowledge,
}

/// Something that is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gap {
    /// Unique among the gaps.
    pub id: String,
    /// What to find out.
    pub question: String,
    /// What depends on the answer.
    pub why: String,
    /// Whom to ask or what to measure.
    pub how: String,
    /// How many days the answer takes.
    pub days: u32,
    /// The option that the answer may lead to; empty if the choice stays.
    pub flips_to: String,
    /// Whether to wait for the answer before the decision.
    pub wait: bool,
}

/// A condition that every option has to meet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Must {
    /// Unique among the musts.
    pub id: String,
    /// A short name.
    pub name: String,
}

/// A criterion that the options are scored on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Criterion {
    /// Unique among the criteria.
    pub id: String,
    /// A short name.
    pub name: String,
    /// 1 (minor) to 5 (decisive).
    #[schema(minimum = 1, maximum = 5)]
    pub weight: u8,
    /// Why it matters to this decision.
    pub why: String,
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
    /// Where it comes from.
    pub origin: Origin,
    /// How hard it is to undo.
    pub reversibility: Reversibility,
    /// What speaks for it; empty in a brief memo.
    pub pros: Vec<String>,
    /// What speaks against it; empty in a brief memo.
    pub cons: Vec<String>,
    /// Money, people and time that it takes.
    pub cost: String,
    /// The best other use of the same money, people and attention.
    pub forecloses: String,
}

/// Where an option comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The asker named it.
    Asked,
    /// The model added it.
    Added,
    /// What happens if nothing is decided.
    StatusQuo,
}

/// How hard a choice is to undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reversibility {
    /// It can't be undone, or only at ruinous cost.
    OneWayDoor,
    /// It can be undone within weeks at small cost.
    TwoWayDoor,
    /// It can be undone in part, at a cost.
    PartlyReversible,
}

/// The scores of one option.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OptionScores {
    /// The option.
    pub option_id: String,
    /// Ids of the musts that the option fails.
    pub failed_musts: Vec<String>,
    /// One score for each criterion.
    pub cells: Vec<Cell>,
}

/// The score of one option on one criterion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cell {
    /// The criterion.
    pub criterion_id: String,
    /// 1 (poor) to 5 (excellent).
    #[schema(minimum = 1, maximum = 5)]
    pub score: u8,
    /// The evidence; absent in a brief memo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// One way in which the recommended option may have failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// What happened.
    pub story: String,
    /// What could have been seen first.
    pub first_sign: String,
}

/// Something that could go wrong with an option.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Risk {
    /// The option.
    pub option_id: String,
    /// What could happen.
    pub description: String,
    /// How likely it is.
    pub likelihood: Level,
    /// How much it would hurt.
    pub impact: Level,
    /// What can be done against it.
    pub mitigation: String,
    /// What can be seen before the damage is done.
    pub early_warning_sign: String,
}

/// A scale of three steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The least.
    Low,
    /// The middle.
    Medium,
    /// The most.
    High,
}

/// What to do, with which option, and on which conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Recommendation {
    /// The chosen option; to refuse is to choose the status quo. Empty only if `action` is `wait`.
    pub option_id: String,
    /// What to do with it.
    pub action: Action,
    /// Why the recommended option is not the one with the highest total; empty if it is.
    pub overrides_scores_because: String,
    /// Why.
    pub rationale: String,
    /// What is knowingly given up.
    pub trade_offs: Vec<String>,
    /// What must hold.
    pub conditions: Vec<Condition>,
    /// When to stop.
    pub kill_criteria: Vec<KillCriterion>,
    /// The model's probability that this looks right in hindsight, in percent.
    #[schema(minimum = 0, maximum = 100)]
    pub success_percent: u8,
    /// Evidence for that number, and what limits it.
    pub basis: String,
}

/// What to do with the chosen option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
// `Action` is what the document calls an action on jobs.
#[schema(as = RecommendedAction)]
pub enum Action {
    /// Do it.
    Do,
    /// Do it once the conditions hold.
    DoIf,
    /// Try it on a small scale first.
    Pilot,
    /// Decide later.
    Wait,
}

/// Something that must hold for the recommendation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Condition {
    /// What must hold, in a form that can be checked.
    pub text: String,
    /// By when; may be empty.
    pub by: String,
}

/// A sign that means: stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KillCriterion {
    /// What can be observed.
    pub sign: String,
    /// By when; may be empty.
    pub by: String,
}

/// One step to take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NextStep {
    /// What to do.
    pub action: String,
    /// The role that owns it.
    pub owner_role: String,
    /// Within how many days.
    pub due_days: u32,
    /// How a third party can see that it is done.
    pub measure: String,
}

impl DecisionAnalysis {
    pub fn option(&self, id: &str) -> Option<&DecisionOption> {
        self.options.iter().find(|option| option.id == id)
    }

    pub fn chosen(&self) -> Option<&DecisionOption> {
        self.option(&self.recommendation.option_id)
    }

    /// How this option does on this criterion.
    pub fn cell(&self, option_id: &str, criterion_id: &str) -> Option<&Cell> {
        let scores = self.scores.iter().find(|scores| scores.option_id == option_id)?;
        scores.cells.iter().find(|cell| cell.criterion_id == criterion_id)
    }

    /// The musts that this option fails.
    pub fn failed_musts<'a>(&'a self, option_id: &str) -> impl Iterator<Item = &'a Must> {
        let failed = self.scores.iter().find(|scores| scores.option_id == option_id);
        let ids = failed.into_iter().flat_map(|scores| &scores.failed_musts);
        ids.filter_map(|id| self.musts.iter().find(|must| must.id == *id))
    }

    /// Every text that people read, with the top-level field that it is in.
    pub fn texts_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut String)> {
        let recommendation = &mut self.recommendation;
        let conditions = recommendation.conditions.iter_mut().flat_map(|it| [&mut it.text, &mut it.by]);
        let kill_criteria = recommendation.kill_criteria.iter_mut().flat_map(|it| [&mut it.sign, &mut it.by]);
        let options = self.options.iter_mut().flat_map(|it| {
            let own = [&mut it.description, &mut it.cost, &mut it.forecloses];
            own.into_iter().chain(&mut it.pros).chain(&mut it.cons)
        });
        let cells = self.scores.iter_mut().flat_map(|scores| &mut scores.cells);
        let risks = &mut self.risks;
        let risks =
            risks.iter_mut().flat_map(|it| [&mut it.description, &mut it.mitigation, &mut it.early_warning_sign]);
        let steps = self.next_steps.iter_mut().flat_map(|it| [&mut it.action, &mut it.owner_role, &mut it.measure]);
        let rate = &mut self.base_rate;
        named("decision_question", [&mut self.decision_question])
            .chain(named("material", self.material.iter_mut().map(|it| &mut it.consequence)))
            .chain(named("base_rate", [&mut rate.reference_class, &mut rate.adjustment]))
            .chain(named(
                "assumptions",
                self.assumptions.iter_mut().flat_map(|it| [&mut it.statement, &mut it.if_wrong]),
            ))
            .chain(named("gaps", self.gaps.iter_mut().flat_map(|it| [&mut it.question, &mut it.why, &mut it.how])))
            .chain(named("criteria", self.criteria.iter_mut().map(|it| &mut it.why)))
            .chain(named("options", options))
            .chain(named("scores", cells.filter_map(|cell| cell.why.as_mut())))
            .chain(named("case_against", [&mut self.case_against]))
            .chain(named("premortem", self.premortem.iter_mut().flat_map(|it| [&mut it.story, &mut it.first_sign])))
            .chain(named("risks", risks))
            .chain(named("recommendation", [&mut recommendation.overrides_scores_because]))
            .chain(named("recommendation", [&mut recommendation.rationale, &mut recommendation.basis]))
            .chain(named("recommendation", &mut recommendation.trade_offs))
            .chain(named("recommendation", conditions))
            .chain(named("recommendation", kill_criteria))
            .chain(named("next_steps", steps))
            .chain(named("summary", [&mut self.summary]))
    }
}

fn named<'a>(
    field: &'static str,
    texts: impl IntoIterator<Item = &'a mut String>,
) -> impl Iterator<Item = (&'static str, &'a mut String)> {
    texts.into_iter().map(move |text| (field, text))
}

impl Risk {
    /// How grave it is, 1 to 9.
    pub fn severity(&self) -> u8 {
        severity(self.likelihood, self.impact)
    }

    /// The sort key of risks: by severity, then by impact.
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
