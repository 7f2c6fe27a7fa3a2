//! What the page of a memo draws beside the text of its document: bars of the totals, the matrix of risks, the chance of
//! success. Numbers only; the template draws.

use serde::Serialize;

use crate::analysis::{
    decision::{Level, severity},
    document::{Block, Document, ScoreTable, gravest_first},
    memo::Memo,
};

/// The highest score, and so the highest total.
const MAX_SCORE: f64 = 5.0;

const COLOURS: usize = 6;

/// Likelihoods and impacts of the matrix, from its upper left corner.
const LEVELS: [Level; 3] = [Level::High, Level::Medium, Level::Low];

#[derive(Serialize)]
pub(super) struct Figures {
    /// The bar of each option: what each criterion adds to its total. Empty for an option without a total.
    bars: Vec<Vec<Bar>>,
    /// From high impact to low, each from low likelihood to high.
    matrix: Vec<MatrixRow>,
    success_percent: u8,
    /// The percentages between which decisions of this kind succeed, if that is known.
    base_rate: Option<[u8; 2]>,
}

/// A piece of a bar, in percent of the widest possible bar.
#[derive(Serialize)]
struct Bar {
    x: f64,
    width: f64,
    colour: usize,
}

#[derive(Serialize)]
struct MatrixRow {
    impact: Level,
    cells: Vec<MatrixCell>,
}

#[derive(Serialize)]
struct MatrixCell {
    severity: u8,
    /// Places of its risks in the document, from 1.
    risks: Vec<usize>,
}

impl Figures {
    pub(super) fn new(memo: &Memo, document: &Document) -> Figures {
        let blocks = document.sections.iter().flat_map(|section| &section.blocks);
        let tables = blocks.filter_map(|block| if let Block::Table(table) = block { Some(table) } else { None });
        let rate = &memo.analysis.base_rate;
        Figures {
            bars: tables.flat_map(bars).collect(),
            matrix: matrix(memo),
            success_percent: memo.analysis.recommendation.success_percent,
            base_rate: (!rate.reference_class.is_empty()).then_some([rate.low_percent, rate.high_percent]),
        }
    }
}

fn bars(table: &ScoreTable) -> impl Iterator<Item = Vec<Bar>> {
    let weights: f64 = table.rows.iter().map(|row| scale(row.weight)).sum();
    table.options.iter().enumerate().map(move |(option, column)| {
        let rows = table.rows.iter().filter(|_| column.total.is_some());
        let mut x = 0.0;
        let bars = rows.enumerate().filter_map(|(place, row)| {
            let score = row.scores[option].as_ref()?.score;
            let share = scale(row.weight) * scale(score) / weights.max(1.0) / MAX_SCORE * 100.0;
            let bar = Bar { x: round(x), width: round(share), colour: place % COLOURS };
            x += share;
            Some(bar)
        });
        bars.collect()
    })
}

fn scale(value: u8) -> f64 {
    f64::from(value.clamp(1, 5))
}

fn matrix(memo: &Memo) -> Vec<MatrixRow> {
    let risks = gravest_first(&memo.analysis);
    let cell = |impact, likelihood| MatrixCell {
        severity: severity(likelihood, impact),
        risks: (1..)
            .zip(&risks)
            .filter(|(_, risk)| (risk.impact, risk.likelihood) == (impact, likelihood))
            .map(|(number, _)| number)
            .collect(),
    };
    let row = |impact| MatrixRow { impact, cells: LEVELS.into_iter().rev().map(|level| cell(impact, level)).collect() };
    LEVELS.into_iter().map(row).collect()
}

/// To two places: finer differences are not seen.
fn round(share: f64) -> f64 {
    (share * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::{self, decision::Asked};

    fn figures(sample: &str) -> (Figures, Document) {
        let analysis = analysis::parse(sample).unwrap();
        let memo = Memo::new(analysis, &Asked { query: "", options: &[], is_brief: false });
        let document = Document::new(&memo);
        (Figures::new(&memo, &document), document)
    }

    fn english() -> (Figures, Document) {
        figures(include_str!("../analysis/samples/english.json"))
    }

    fn table(document: &Document) -> &ScoreTable {
        let mut blocks = document.sections.iter().flat_map(|section| &section.blocks);
        blocks.find_map(|block| if let Block::Table(table) = block { Some(table) } else { None }).unwrap()
    }

    #[test]
    fn a_bar_is_as_long_as_its_total() {
        let (figures, document) = english();
        for (option, bar) in table(&document).options.iter().zip(&figures.bars) {
            let last = bar.last().unwrap();
            let end = (last.x + last.width) / 100.0 * MAX_SCORE;
            assert!((end - option.total.unwrap()).abs() < 0.01, "{}: {end}", option.letter);
        }
        assert!(table(&document).options[1].is_recommended && figures.success_percent == 70);
    }

    #[test]
    fn an_option_that_fails_a_must_has_no_bar_and_names_the_must() {
        let (figures, document) = figures(include_str!("../analysis/samples/legal.json"));
        let ruled_out = &table(&document).options[0];
        assert!(figures.bars[0].is_empty() && ruled_out.total.is_none());
        assert_eq!(ruled_out.ruled_out.as_deref(), Some("ruled out: fails “Lawful”"));
    }

    #[test]
    fn a_risk_lies_where_its_likelihood_and_impact_meet_and_the_gravest_is_the_first() {
        let (figures, _) = english();
        let high = &figures.matrix[0].cells;
        assert_eq!((&*high[0].risks, &*high[1].risks, high[1].severity), (&[3][..], &[1][..], 6));
        assert_eq!(figures.matrix[1].cells[1].risks, [2]);
        assert_eq!(figures.matrix.iter().flat_map(|row| &row.cells).map(|cell| cell.risks.len()).sum::<usize>(), 3);
    }

    #[test]
    fn a_memo_without_a_decision_has_nothing_to_draw_and_does_not_panic() {
        let (figures, _) = figures(include_str!("../analysis/samples/weather.json"));
        assert!(figures.bars.is_empty() && figures.base_rate.is_none());
    }
}
