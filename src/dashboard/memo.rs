//! What of a memo is drawn and not just told: letters for its options, the chart's bars, the table of scores, the matrix
//! of risks. Places and widths only; the templates draw.

use std::cmp::Reverse;

use serde::Serialize;

use crate::analysis::{Level, Memo, Risk, severity};

/// Best score, and with it best total, there can be.
const MAX_SCORE: f64 = 5.0;

/// Colours that the criteria take turns in.
const COLOURS: usize = 6;

/// Likelihoods and impacts as the matrix has them, from its upper left corner.
const LEVELS: [Level; 3] = [Level::High, Level::Medium, Level::Low];

/// What is drawn of a memo.
#[derive(Serialize)]
pub(super) struct Figures {
    /// In the memo's order.
    options: Vec<OptionFigure>,
    /// A row for each criterion.
    scores: Vec<ScoreRow>,
    /// From high impact to low, each from low likelihood to high.
    matrix: Vec<MatrixRow>,
    /// The recommended option; none if there is none.
    recommended: Option<usize>,
    /// Another option has a higher total than the recommended one.
    is_not_highest: bool,
}

#[derive(Serialize)]
struct OptionFigure {
    id: String,
    letter: char,
    name: String,
    is_recommended: bool,
    is_status_quo: bool,
    total: Option<f64>,
    /// What each criterion adds to the total.
    bars: Vec<Bar>,
}

/// A piece of a bar, in percent of the widest there can be.
#[derive(Serialize)]
struct Bar {
    x: f64,
    width: f64,
    colour: usize,
}

#[derive(Serialize)]
struct ScoreRow {
    name: String,
    weight: u8,
    why: String,
    colour: usize,
    cells: Vec<Option<Score>>,
}

#[derive(Serialize)]
struct Score {
    score: u8,
    rationale: String,
}

#[derive(Serialize)]
struct MatrixRow {
    impact: Level,
    cells: Vec<MatrixCell>,
}

#[derive(Serialize)]
struct MatrixCell {
    likelihood: Level,
    /// 1 to 9.
    severity: u8,
    /// Numbers of the risks there, as the list has them.
    risks: Vec<usize>,
}

/// The memo with its gravest risks and its blocking gaps first.
pub(super) fn in_reading_order(mut memo: Memo) -> Memo {
    memo.analysis.risks.sort_by_key(|risk| Reverse(risk.gravity()));
    memo.analysis.missing_information.sort_by_key(|gap| !gap.blocks_decision);
    memo
}

impl Figures {
    /// The figures of a memo in reading order.
    pub(super) fn of(memo: &Memo) -> Figures {
        let recommended_id = &memo.analysis.recommendation.option_id;
        let recommended = memo.analysis.options.iter().position(|option| option.id == *recommended_id);
        let rank = memo.weighted_totals.iter().find(|total| total.option_id == *recommended_id).map(|total| total.rank);
        Figures {
            options: options(memo),
            scores: scores(memo),
            matrix: matrix(&memo.analysis.risks),
            recommended,
            is_not_highest: rank.is_some_and(|rank| rank > 1),
        }
    }
}

fn options(memo: &Memo) -> Vec<OptionFigure> {
    let analysis = &memo.analysis;
    let lettered = ('A'..='Z').zip(&analysis.options);
    lettered
        .map(|(letter, option)| OptionFigure {
            id: option.id.clone(),
            letter,
            name: option.name.clone(),
            is_recommended: option.id == analysis.recommendation.option_id,
            is_status_quo: option.is_status_quo,
            total: memo.weighted_totals.iter().find(|total| total.option_id == option.id).map(|total| total.total),
            bars: bars(memo, &option.id),
        })
        .collect()
}

fn bars(memo: &Memo, option_id: &str) -> Vec<Bar> {
    let weights: f64 = memo.analysis.criteria.iter().map(|criterion| f64::from(criterion.weight)).sum();
    let mut x = 0.0;
    let bars = memo.analysis.criteria.iter().enumerate().filter_map(|(place, criterion)| {
        let score = score_of(memo, option_id, &criterion.id)?.score;
        let share = f64::from(criterion.weight) * f64::from(score) / weights.max(1.0) / MAX_SCORE * 100.0;
        let bar = Bar { x: round(x), width: round(share), colour: place % COLOURS };
        x += share;
        Some(bar)
    });
    bars.collect()
}

fn scores(memo: &Memo) -> Vec<ScoreRow> {
    let rows = memo.analysis.criteria.iter().enumerate().map(|(place, criterion)| ScoreRow {
        name: criterion.name.clone(),
        weight: criterion.weight,
        why: criterion.why_it_matters.clone(),
        colour: place % COLOURS,
        cells: memo.analysis.options.iter().map(|option| score_of(memo, &option.id, &criterion.id)).collect(),
    });
    rows.collect()
}

fn score_of(memo: &Memo, option_id: &str, criterion_id: &str) -> Option<Score> {
    let mut evaluations = memo.analysis.evaluations.iter();
    let found = evaluations.find(|found| found.option_id == option_id && found.criterion_id == criterion_id)?;
    Some(Score { score: found.score, rationale: found.rationale.clone() })
}

fn matrix(risks: &[Risk]) -> Vec<MatrixRow> {
    let cell = |impact, likelihood| MatrixCell {
        likelihood,
        severity: severity(likelihood, impact),
        risks: (1..)
            .zip(risks)
            .filter(|(_, r)| (r.impact, r.likelihood) == (impact, likelihood))
            .map(|(n, _)| n)
            .collect(),
    };
    let row = |impact| MatrixRow { impact, cells: LEVELS.into_iter().rev().map(|level| cell(impact, level)).collect() };
    LEVELS.into_iter().map(row).collect()
}

/// To two places: more is not seen.
fn round(share: f64) -> f64 {
    (share * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis;

    fn english() -> Memo {
        in_reading_order(analysis::parse(include_str!("../analysis/samples/english.json")).unwrap().into())
    }

    #[test]
    fn a_bar_is_as_long_as_its_total() {
        let figures = Figures::of(&english());
        for option in &figures.options {
            let last = option.bars.last().unwrap();
            let end = (last.x + last.width) / 100.0 * MAX_SCORE;
            assert!((end - option.total.unwrap()).abs() < 0.01, "{}: {end}", option.letter);
        }
        assert_eq!((figures.recommended, figures.is_not_highest), (Some(1), false));
    }

    #[test]
    fn a_risk_lies_where_its_likelihood_and_impact_meet_and_the_gravest_is_the_first() {
        let figures = Figures::of(&english());
        let high = &figures.matrix[0].cells;
        assert_eq!((&*high[0].risks, &*high[1].risks, high[1].severity), (&[3][..], &[1][..], 6));
        assert_eq!(figures.matrix[1].cells[1].risks, [2]);
        assert_eq!(figures.matrix.iter().flat_map(|row| &row.cells).map(|cell| cell.risks.len()).sum::<usize>(), 3);
    }

    #[test]
    fn a_memo_without_scores_has_no_bars_and_no_panic() {
        let mut memo = english();
        memo.analysis.evaluations.clear();
        memo.analysis.criteria.clear();
        memo.weighted_totals.clear();
        memo.analysis.recommendation.option_id = String::new();
        let figures = Figures::of(&memo);
        assert!(figures.options.iter().all(|option| option.bars.is_empty() && option.total.is_none()));
        assert_eq!(figures.recommended, None);
    }
}
