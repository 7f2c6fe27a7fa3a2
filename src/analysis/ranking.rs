//! The weighted totals, and how much they can be relied on: what would have to change for another option to win.
//!
//! Pure arithmetic on the scores and weights of an analysis. Options that fail a must, or that lack a score, take no part.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::decision::DecisionAnalysis;

/// Most criteria whose weights are varied together, the weightiest first: 3^8 = 6,561 weightings, below a millisecond.
const MAX_VARIED: usize = 8;
/// Weights at which another option draws level are shown up to this.
const MAX_CRITICAL_WEIGHT: f64 = 10.0;
/// A memo is robust only if the smallest change of one score that makes a tie is at least this.
const ROBUST_SCORE: f64 = 1.5;
/// Below this smallest change of one score a memo is fragile.
const FRAGILE_SCORE: f64 = 0.5;
/// Below this share of the weightings a memo is fragile.
const FRAGILE_SHARE: f64 = 0.9;

/// The weighted total of one option.
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

/// How robust the ranking of the options is against small changes of weights and scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Robustness {
    /// In one word.
    pub label: RobustnessLabel,
    /// The option with the highest total; the recommended one if it shares the first rank.
    pub winner: String,
    /// The next best option.
    pub runner_up: String,
    /// The winner's total minus the total of the next best option, rounded to 2 places.
    pub margin: f64,
    /// In how many weightings the recommended option (without one, the winner) has the highest total. Each weight is
    /// varied by −1, 0 and +1 within 1 to 5.
    pub weightings: Count,
    /// How many of the possible changes of one score by one put another option ahead of the winner.
    pub single_scores: Count,
    /// For each criterion, the nearest weight (0 to 10) at which another option ties with the winner; the smallest
    /// change first.
    pub critical_weights: Vec<CriticalWeight>,
    /// The smallest change of one score, within 1 to 5, that makes a tie; absent if there is no such change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smallest_score_change: Option<ScoreChange>,
    /// Options that another one equals or beats on every criterion.
    pub dominated: Vec<String>,
    /// The option with the highest total if all weights are equal.
    pub winner_with_equal_weights: String,
}

/// How robust a ranking is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RobustnessLabel {
    /// It holds under every weighting tried and every change of one score by one.
    Robust,
    /// It holds, but not by much.
    Sensitive,
    /// A small change reverses it, or the recommended option is not the winner.
    Fragile,
}

/// A number of cases out of all cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Count {
    /// The number of cases.
    pub count: usize,
    /// The number of all cases.
    pub of: usize,
}

/// A weight at which another option ties with the winner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CriticalWeight {
    /// The criterion.
    pub criterion_id: String,
    /// The other option.
    pub option_id: String,
    /// The weight in the memo.
    pub weight: u8,
    /// The weight at which they tie.
    pub level_at: f64,
}

/// A change of one score that makes a tie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ScoreChange {
    /// The option whose score changes: the winner's falls, another's rises.
    pub option_id: String,
    /// The option that it then ties with.
    pub level_with: String,
    /// The criterion.
    pub criterion_id: String,
    /// By how much.
    pub change: f64,
}

/// The scores of the options that can be compared.
pub(super) struct Table<'a> {
    criteria: Vec<&'a str>,
    weights: Vec<i32>,
    rows: Vec<Row<'a>>,
}

struct Row<'a> {
    option_id: &'a str,
    scores: Vec<i32>,
}

impl Row<'_> {
    fn sum(&self, weights: &[i32]) -> i32 {
        self.scores.iter().zip(weights).map(|(score, weight)| score * weight).sum()
    }
}

impl<'a> Table<'a> {
    pub(super) fn new(analysis: &'a DecisionAnalysis) -> Table<'a> {
        let scale = |value: u8| i32::from(value.clamp(1, 5));
        let row = |option_id: &'a str| {
            let scores = analysis.criteria.iter().map(|criterion| analysis.cell(option_id, &criterion.id));
            let scores = scores.map(|cell| Some(scale(cell?.score))).collect::<Option<Vec<_>>>()?;
            let is_ruled_out = analysis.failed_musts(option_id).next().is_some();
            (!is_ruled_out && !scores.is_empty()).then_some(Row { option_id, scores })
        };
        Table {
            criteria: analysis.criteria.iter().map(|criterion| criterion.id.as_str()).collect(),
            weights: analysis.criteria.iter().map(|criterion| scale(criterion.weight)).collect(),
            rows: analysis.options.iter().filter_map(|option| row(&option.id)).collect(),
        }
    }

    /// The weighted totals, best first.
    pub(super) fn totals(&self) -> Vec<WeightedTotal> {
        let weights: i32 = self.weights.iter().sum();
        let mut sums: Vec<_> = self.rows.iter().map(|row| (row.sum(&self.weights), row.option_id)).collect();
        sums.sort_by_key(|(sum, _)| Reverse(*sum));
        let total = |&(sum, option_id): &(i32, &str)| WeightedTotal {
            option_id: option_id.to_owned(),
            total: hundredths(f64::from(sum) / f64::from(weights.max(1))),
            rank: 1 + sums.iter().filter(|(other, _)| *other > sum).count(),
        };
        sums.iter().map(total).collect()
    }

    /// `None` with fewer than two options to rank. `recommended` is the chosen option's id.
    pub(super) fn robustness(&self, recommended: Option<&str>) -> Option<Robustness> {
        let chosen = recommended.and_then(|id| self.rows.iter().position(|row| row.option_id == id));
        let winner = self.best(&self.weights, chosen)?;
        let runner_up = self.rivals(winner).min_by_key(|rival| Reverse(self.sum(*rival)))?;
        let weightings = self.weightings(chosen.unwrap_or(winner));
        let single_scores = self.single_scores(winner);
        let smallest_score_change = self.smallest_score_change(winner);
        let is_contradicted = recommended.is_some() && chosen != Some(winner);
        let weights: i32 = self.weights.iter().sum();
        let dominated = self.rivals(winner).chain([winner]).filter(|place| self.is_dominated(*place));
        Some(Robustness {
            label: label(is_contradicted, weightings, single_scores, smallest_score_change.as_ref()),
            winner: self.id(winner),
            runner_up: self.id(runner_up),
            margin: hundredths(self.gap(winner, runner_up) / f64::from(weights)),
            weightings,
            single_scores,
            critical_weights: self.critical_weights(winner),
            smallest_score_change: smallest_score_change
                .map(|change| ScoreChange { change: hundredths(change.change), ..change }),
            dominated: dominated.map(|place| self.id(place)).collect(),
            winner_with_equal_weights: self.id(self.best(&vec![1; self.weights.len()], Some(winner))?),
        })
    }

    fn id(&self, place: usize) -> String {
        self.rows[place].option_id.to_owned()
    }

    fn sum(&self, place: usize) -> i32 {
        self.rows[place].sum(&self.weights)
    }

    /// How far the sum of one option is ahead of another's.
    fn gap(&self, one: usize, other: usize) -> f64 {
        f64::from(self.sum(one) - self.sum(other))
    }

    fn rivals(&self, winner: usize) -> impl Iterator<Item = usize> {
        (0..self.rows.len()).filter(move |place| *place != winner)
    }

    /// The option with the highest total by these weights; `preferred` if it shares the first rank.
    fn best(&self, weights: &[i32], preferred: Option<usize>) -> Option<usize> {
        let best = self.rows.iter().map(|row| row.sum(weights)).max()?;
        let is_best = |place: usize| self.rows[place].sum(weights) == best;
        preferred.filter(|place| is_best(*place)).or_else(|| (0..self.rows.len()).find(|place| is_best(*place)))
    }

    fn weightings(&self, place: usize) -> Count {
        let mut varied: Vec<usize> = (0..self.weights.len()).collect();
        varied.sort_by_key(|criterion| Reverse(self.weights[*criterion]));
        varied.truncate(MAX_VARIED);
        let of = 3_usize.pow(u32::try_from(varied.len()).unwrap_or_default());
        let mut weights = self.weights.clone();
        let count = (0..of).filter(|number| {
            let mut rest = *number;
            for criterion in &varied {
                let step = [-1, 0, 1][rest % 3];
                rest /= 3;
                weights[*criterion] = (self.weights[*criterion] + step).clamp(1, 5);
            }
            self.best(&weights, Some(place)) == Some(place)
        });
        Count { count: count.count(), of }
    }

    fn single_scores(&self, winner: usize) -> Count {
        let sums: Vec<i32> = (0..self.rows.len()).map(|place| self.sum(place)).collect();
        let mut found = Count { count: 0, of: 0 };
        for (place, row) in self.rows.iter().enumerate() {
            for (score, weight) in row.scores.iter().zip(&self.weights) {
                for step in [-1, 1].into_iter().filter(|step| (1..=5).contains(&(score + step))) {
                    let sum = |other: usize| sums[other] + if other == place { step * weight } else { 0 };
                    found.of += 1;
                    found.count += usize::from((0..sums.len()).any(|other| sum(other) > sum(winner)));
                }
            }
        }
        found
    }

    fn critical_weights(&self, winner: usize) -> Vec<CriticalWeight> {
        let change = |critical: &CriticalWeight| (critical.level_at - f64::from(critical.weight)).abs();
        let critical = |criterion: usize, rival: usize| {
            let lead = self.rows[winner].scores[criterion] - self.rows[rival].scores[criterion];
            let weight = self.weights[criterion];
            let level_at = f64::from(weight) - self.gap(winner, rival) / f64::from(lead);
            (lead != 0 && (0.0..=MAX_CRITICAL_WEIGHT).contains(&level_at)).then(|| CriticalWeight {
                criterion_id: self.criteria[criterion].to_owned(),
                option_id: self.id(rival),
                weight: u8::try_from(weight).unwrap_or_default(),
                level_at,
            })
        };
        let nearest = |criterion| {
            let all = self.rivals(winner).filter_map(|rival| critical(criterion, rival));
            all.min_by(|a, b| change(a).total_cmp(&change(b)))
        };
        let mut found: Vec<_> = (0..self.criteria.len()).filter_map(nearest).collect();
        found.sort_by(|a, b| change(a).total_cmp(&change(b)));
        found.iter_mut().for_each(|critical| critical.level_at = hundredths(critical.level_at));
        found
    }

    fn smallest_score_change(&self, winner: usize) -> Option<ScoreChange> {
        let change = |(rival, criterion): (usize, usize)| {
            let change = self.gap(winner, rival) / f64::from(self.weights[criterion]);
            let score = |place: usize| f64::from(self.rows[place].scores[criterion]);
            let falls = (score(winner) - change >= 1.0).then_some((winner, rival));
            let rises = (score(rival) + change <= 5.0).then_some((rival, winner));
            let (place, other) = falls.or(rises)?;
            Some(ScoreChange {
                option_id: self.id(place),
                level_with: self.id(other),
                criterion_id: self.criteria[criterion].to_owned(),
                change,
            })
        };
        let pairs =
            self.rivals(winner).flat_map(|rival| (0..self.criteria.len()).map(move |criterion| (rival, criterion)));
        pairs.filter_map(change).min_by(|a, b| a.change.total_cmp(&b.change))
    }

    fn is_dominated(&self, place: usize) -> bool {
        let own = &self.rows[place].scores;
        self.rows.iter().any(|other| other.scores != *own && other.scores.iter().zip(own).all(|(a, b)| a >= b))
    }
}

#[expect(clippy::cast_precision_loss, reason = "there are at most thousands")]
fn label(is_contradicted: bool, weightings: Count, single: Count, change: Option<&ScoreChange>) -> RobustnessLabel {
    let share = weightings.count as f64 / weightings.of as f64;
    let change = change.map_or(f64::INFINITY, |change| change.change);
    if is_contradicted || share < FRAGILE_SHARE || change < FRAGILE_SCORE {
        RobustnessLabel::Fragile
    } else if weightings.count == weightings.of && single.count == 0 && change >= ROBUST_SCORE {
        RobustnessLabel::Robust
    } else {
        RobustnessLabel::Sensitive
    }
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
