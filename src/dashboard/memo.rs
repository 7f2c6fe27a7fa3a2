//! What of a memo is drawn on its page: letters for its options, the chart's bars, the table of scores, the matrix of
//! risks. Places and widths only; the template draws.

use serde::Serialize;

use crate::analysis::{
    decision::{DecisionOption, Level, Origin, Reversibility, Status, severity},
    document::{Tone, gravest_first, lettered, tone_of},
    memo::Memo,
    ranking::RobustnessLabel,
};

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
    /// How hard the chosen option is to undo.
    reversibility: Option<Reversibility>,
    /// The class of the headline: `good` or `warn`.
    tone: &'static str,
    robustness: Option<RobustnessLabel>,
    /// There are gaps besides those that a memo without a decision asks about first.
    has_other_gaps: bool,
}

#[derive(Serialize)]
struct OptionFigure {
    id: String,
    letter: char,
    name: String,
    is_recommended: bool,
    is_status_quo: bool,
    /// The musts that it fails, by name; empty if it passes.
    failed_musts: String,
    total: Option<f64>,
    /// What each criterion adds to the total; empty for an option without one.
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
    why: Option<String>,
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

/// The memo with its gravest risks and its decisive gaps first.
pub(super) fn in_reading_order(mut memo: Memo) -> Memo {
    memo.analysis.risks = gravest_first(&memo.analysis).into_iter().cloned().collect();
    memo.analysis.gaps.sort_by_key(|gap| !gap.wait);
    memo
}

impl Figures {
    /// The figures of a memo in reading order.
    pub(super) fn of(memo: &Memo) -> Figures {
        let asks_first = memo.analysis.status == Status::NeedsInformation;
        Figures {
            options: options(memo),
            scores: scores(memo),
            matrix: matrix(memo),
            reversibility: memo.analysis.chosen().map(|option| option.reversibility),
            tone: if tone_of(memo.analysis.recommendation.action) == Tone::Good { "good" } else { "warn" },
            robustness: memo.robustness.as_ref().map(|robustness| robustness.label),
            has_other_gaps: memo.analysis.gaps.iter().any(|gap| !(gap.wait && asks_first)),
        }
    }
}

fn options(memo: &Memo) -> Vec<OptionFigure> {
    let analysis = &memo.analysis;
    let figure = |(letter, option): (char, &DecisionOption)| {
        let total = memo.total(&option.id).map(|total| total.total);
        let failed: Vec<&str> = analysis.failed_musts(&option.id).map(|must| must.name.as_str()).collect();
        OptionFigure {
            id: option.id.clone(),
            letter,
            name: option.name.clone(),
            is_recommended: option.id == analysis.recommendation.option_id,
            is_status_quo: option.origin == Origin::StatusQuo,
            failed_musts: failed.join(", "),
            total,
            bars: total.map(|_| bars(memo, &option.id)).unwrap_or_default(),
        }
    };
    lettered(analysis).map(figure).collect()
}

fn bars(memo: &Memo, option_id: &str) -> Vec<Bar> {
    let weights: f64 = memo.analysis.criteria.iter().map(|criterion| scale(criterion.weight)).sum();
    let mut x = 0.0;
    let bars = memo.analysis.criteria.iter().enumerate().filter_map(|(place, criterion)| {
        let score = memo.analysis.cell(option_id, &criterion.id)?.score;
        let share = scale(criterion.weight) * scale(score) / weights.max(1.0) / MAX_SCORE * 100.0;
        let bar = Bar { x: round(x), width: round(share), colour: place % COLOURS };
        x += share;
        Some(bar)
    });
    bars.collect()
}

/// A weight or score as the totals take it.
fn scale(value: u8) -> f64 {
    f64::from(value.clamp(1, 5))
}

fn scores(memo: &Memo) -> Vec<ScoreRow> {
    let rows = memo.analysis.criteria.iter().enumerate().map(|(place, criterion)| {
        let cells = memo.analysis.options.iter().map(|option| memo.analysis.cell(&option.id, &criterion.id));
        ScoreRow {
            name: criterion.name.clone(),
            weight: criterion.weight,
            why: criterion.why.clone(),
            colour: place % COLOURS,
            cells: cells.map(|cell| cell.map(|cell| Score { score: cell.score, why: cell.why.clone() })).collect(),
        }
    });
    rows.collect()
}

fn matrix(memo: &Memo) -> Vec<MatrixRow> {
    let cell = |impact, likelihood| MatrixCell {
        likelihood,
        severity: severity(likelihood, impact),
        risks: (1..)
            .zip(&memo.analysis.risks)
            .filter(|(_, risk)| (risk.impact, risk.likelihood) == (impact, likelihood))
            .map(|(number, _)| number)
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
    use crate::analysis::{self, Asked};

    fn memo(sample: &str) -> Memo {
        let analysis = analysis::parse(sample).unwrap();
        in_reading_order(Memo::new(analysis, &Asked { query: "", options: &[], is_brief: false }))
    }

    fn english() -> Memo {
        memo(include_str!("../analysis/samples/english.json"))
    }

    #[test]
    fn a_bar_is_as_long_as_its_total() {
        let figures = Figures::of(&english());
        for option in &figures.options {
            let last = option.bars.last().unwrap();
            let end = (last.x + last.width) / 100.0 * MAX_SCORE;
            assert!((end - option.total.unwrap()).abs() < 0.01, "{}: {end}", option.letter);
        }
        assert!(figures.options[1].is_recommended && figures.reversibility == Some(Reversibility::PartlyReversible));
    }

    #[test]
    fn an_option_that_fails_a_must_has_no_bar_and_names_the_must() {
        let figures = Figures::of(&memo(include_str!("../analysis/samples/legal.json")));
        let ruled_out = &figures.options[0];
        assert!(ruled_out.bars.is_empty() && ruled_out.total.is_none());
        assert_eq!(ruled_out.failed_musts, "Lawful");
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
    fn a_memo_without_a_decision_has_nothing_to_draw_and_does_not_panic() {
        let figures = Figures::of(&memo(include_str!("../analysis/samples/weather.json")));
        assert!(figures.options.is_empty() && figures.scores.is_empty() && figures.robustness.is_none());
    }
}
