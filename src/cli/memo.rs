//! The memo in a terminal: what to do first, then why, then the detail.
//!
//! What the model wrote is shown as text and nothing else: each piece goes through `clean` on its way to the page, so
//! that no escape sequence reaches the terminal. The rationales of single scores are left to the JSON.

use std::cmp::Reverse;

use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, LineStyle, Table, TableStyle, Width,
};
use console::Style;
use textwrap::WrapAlgorithm;
use textwrap::core::display_width;

use crate::analysis::{
    AssumptionSource, DecisionAnalysis, DecisionOption, Level, Memo, Reversibility, Risk, Status, Verdict,
    WeightedTotal,
};

/// Longer lines are hard to read; wider terminals get a margin.
const MAX_WIDTH: usize = 100;
/// Narrower terminals get lines too long rather than a letter a line.
const MIN_WIDTH: usize = 20;
/// From this width on the table has room for the options' names; below it, only for their letters.
const NAMES_IN_TABLE_FROM: usize = 70;

/// What comfy-table leaves free in a cell, left and right together.
const PADDING: usize = 2;
const TOTAL: &str = "Weighted total";
/// Lines above, below and under the header; none between rows.
const RULED: TableStyle = TableStyle::new()
    .top_border(LineStyle::none().fill('─').junction('─'))
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .bottom_border(LineStyle::none().fill('─').junction('─'));

/// `memo` as text to print on a terminal `width` columns wide, ending in a line break.
pub fn render(memo: &Memo, width: usize, colours: bool) -> String {
    let mut page = Page { text: String::new(), width: width.clamp(MIN_WIDTH, MAX_WIDTH), colours };
    headline(&mut page, memo);
    recommendation(&mut page, memo);
    comparison(&mut page, memo);
    options(&mut page, memo);
    risks(&mut page, memo);
    assumptions(&mut page, memo);
    missing_information(&mut page, memo);
    let recommendation = &memo.analysis.recommendation;
    page.list("Conditions", &recommendation.conditions);
    page.list("What would change this", &recommendation.what_would_change_this);
    next_steps(&mut page, memo);
    page.text
}

fn headline(page: &mut Page, memo: &Memo) {
    let (plain, bold) = (page.style(), page.style().bold());
    page.block("", &plain, &memo.analysis.decision_question, &bold);
    let rule = "─".repeat(page.width);
    page.block("", &plain, &rule, &plain.clone().dim());
    let warning = match memo.analysis.status {
        Status::Complete => "",
        Status::NeedsInformation => "Not ready to decide: something decisive is missing, see below.",
        Status::NotADecision => "This question holds no decision to make.",
    };
    page.block("! ", &plain.clone().yellow(), warning, &plain.clone().yellow());
    page.heading("Bottom line");
    page.block("  ", &plain, &memo.analysis.summary, &plain);
}

fn recommendation(page: &mut Page, memo: &Memo) {
    let (analysis, chosen) = (&memo.analysis, &memo.analysis.recommendation);
    let (plain, dim) = (page.style(), page.style().dim());
    let (verdict, style) = match chosen.verdict {
        Verdict::Proceed => ("Proceed", plain.clone().green()),
        Verdict::ProceedWithConditions => ("Proceed on conditions", plain.clone().green()),
        Verdict::PilotFirst => ("Pilot first", plain.clone().cyan()),
        Verdict::Defer => ("Defer", plain.clone().yellow()),
        Verdict::DoNotProceed => ("Do not proceed", plain.clone().red()),
        Verdict::InsufficientInformation => ("Not enough information", plain.clone().yellow()),
    };
    let option = lettered(memo).find(|(_, option)| option.id == chosen.option_id);
    let option = option.map(|(letter, option)| format!(": {letter}, {}", option.name)).unwrap_or_default();
    let reversibility = match analysis.reversibility {
        Reversibility::OneWayDoor => "One-way door: can't be undone, or only at ruinous cost",
        Reversibility::TwoWayDoor => "Two-way door: can be undone within weeks at small cost",
        Reversibility::PartlyReversible => "Partly reversible: can be undone in part, at a cost",
    };
    let confidence =
        format!("{} %, {}. {}", chosen.confidence_percent, level(chosen.confidence), chosen.confidence_basis);
    page.heading("Recommendation");
    page.block("  ", &plain, &format!("{verdict}{option}"), &style.bold());
    page.block("  Confidence     ", &dim, &confidence, &plain);
    page.block("  Reversibility  ", &dim, reversibility, &plain);
    page.gap();
    page.block("  ", &plain, &chosen.rationale, &plain);
    for trade_off in &chosen.trade_offs_accepted {
        page.block("  Accepting  ", &dim, trade_off, &plain);
    }
}

fn comparison(page: &mut Page, memo: &Memo) {
    let analysis = &memo.analysis;
    if analysis.criteria.is_empty() || analysis.options.is_empty() {
        return;
    }
    page.heading("Comparison");
    for line in score_table(memo, page.width - 2, page.colours).lines() {
        page.text.push_str(&format!("  {}\n", line.trim_end()));
    }
    let plain = page.style();
    let chosen = &analysis.recommendation.option_id;
    let legend = if analysis.options.iter().any(|option| option.id == *chosen) { "; ✓ recommended" } else { "" };
    page.block("  ", &plain, &format!("Scores and weights from 1 (low) to 5 (high){legend}."), &plain.clone().dim());
    if total(memo, chosen).is_some_and(|total| total.rank > 1) {
        let warning = "The recommended option doesn't have the highest total: weigh the reasons above.";
        page.block("! ", &plain.clone().yellow(), warning, &plain.yellow());
    }
}

fn options(page: &mut Page, memo: &Memo) {
    let (plain, dim) = (page.style(), page.style().dim());
    if !memo.analysis.options.is_empty() {
        page.heading("Options");
    }
    for (i, (letter, option)) in lettered(memo).enumerate() {
        if i > 0 {
            page.gap();
        }
        let status_quo = if option.is_status_quo { " (status quo)" } else { "" };
        let bold = plain.clone().bold();
        page.block(&format!("  {letter}  "), &bold, &format!("{}{status_quo}", option.name), &bold);
        page.block("     ", &plain, &option.description, &plain);
        for pro in &option.pros {
            page.block("     + ", &plain.clone().green(), pro, &plain);
        }
        for con in &option.cons {
            page.block("     - ", &plain.clone().red(), con, &plain);
        }
        page.block("     Cost      ", &dim, &option.cost_and_effort, &plain);
        page.block("     Gives up  ", &dim, &option.opportunity_cost, &plain);
    }
}

fn risks(page: &mut Page, memo: &Memo) {
    let (plain, dim) = (page.style(), page.style().dim());
    let risks = gravest_first(memo);
    if !risks.is_empty() {
        page.heading("Risks, gravest first");
    }
    for (i, risk) in risks.into_iter().enumerate() {
        if i > 0 {
            page.gap();
        }
        let style = match risk.severity() {
            6.. => plain.clone().red(),
            3.. => plain.clone().yellow(),
            _ => plain.clone(),
        };
        let option = lettered(memo).find(|(_, option)| option.id == risk.option_id);
        let option = option.map(|(letter, _)| format!("Option {letter}: ")).unwrap_or_default();
        let rating = format!("{option}{} likelihood, {} impact", level(risk.likelihood), level(risk.impact));
        page.block("  ", &plain, &rating, &style);
        page.block("  ", &plain, &risk.description, &plain);
        page.block("  Mitigation  ", &dim, &risk.mitigation, &plain);
        page.block("  Watch for   ", &dim, &risk.early_warning_sign, &plain);
    }
}

fn assumptions(page: &mut Page, memo: &Memo) {
    let (plain, dim) = (page.style(), page.style().dim());
    if !memo.analysis.assumptions.is_empty() {
        page.heading("Assumptions");
    }
    for assumption in &memo.analysis.assumptions {
        let source = match assumption.source {
            AssumptionSource::StatedByUser => "stated in the question",
            AssumptionSource::Inferred => "inferred",
            AssumptionSource::GeneralKnowledge => "general knowledge",
        };
        page.block("  • ", &dim, &format!("{} ({source})", assumption.statement), &plain);
        page.block("    If wrong  ", &dim, &assumption.if_wrong, &plain);
    }
}

fn missing_information(page: &mut Page, memo: &Memo) {
    let (plain, dim) = (page.style(), page.style().dim());
    let mut gaps: Vec<_> = memo.analysis.missing_information.iter().collect();
    gaps.sort_by_key(|gap| !gap.blocks_decision);
    if !gaps.is_empty() {
        page.heading("What is missing");
    }
    for gap in gaps {
        let (mark, style) =
            if gap.blocks_decision { ("  ! ", plain.clone().yellow()) } else { ("  • ", dim.clone()) };
        let blocks = if gap.blocks_decision { " (wait for this)" } else { "" };
        page.block(mark, &style, &format!("{}{blocks}", gap.question), &plain);
        page.block("    Why  ", &dim, &gap.why_it_matters, &plain);
        page.block("    How  ", &dim, &gap.how_to_get_it, &plain);
    }
}

fn next_steps(page: &mut Page, memo: &Memo) {
    let (plain, dim) = (page.style(), page.style().dim());
    if !memo.analysis.next_steps.is_empty() {
        page.heading("Next steps");
    }
    for (i, step) in memo.analysis.next_steps.iter().enumerate() {
        page.block(&format!("  {}. ", i + 1), &plain.clone().bold(), &step.action, &plain.clone().bold());
        page.block("     ", &plain, &format!("{}, {}", step.owner_role, step.timeframe), &plain);
        page.block("     Done when  ", &dim, &step.success_measure, &plain);
    }
}

/// Criteria down, options across, weighted totals at the foot.
fn score_table(memo: &Memo, width: usize, colours: bool) -> Table {
    let analysis = &memo.analysis;
    let recommended = |option: &DecisionOption| option.id == analysis.recommendation.option_id;
    let names = width >= NAMES_IN_TABLE_FROM;
    let mut table = Table::new();
    table.load_style(RULED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(columns(width));
    if colours { table.enforce_styling() } else { table.force_no_tty() }.style_text_only();
    let mut header = vec![Cell::new("Criterion"), number(if names { "Weight" } else { "Wt" })];
    header.extend(lettered(memo).map(|(letter, option)| {
        let mark = if recommended(option) { " ✓" } else { "" };
        let name = if names { format!("\n{}", clean(&option.name)) } else { String::new() };
        emphasised(number(format!("{letter}{mark}{name}")), recommended(option))
    }));
    table.set_header(header);
    for criterion in &analysis.criteria {
        let mut row = vec![Cell::new(clean(&criterion.name)), number(criterion.weight)];
        row.extend(analysis.options.iter().map(|option| {
            let mut evaluations = analysis.evaluations.iter();
            let score =
                evaluations.find(|e| e.option_id == option.id && e.criterion_id == criterion.id).map(|e| e.score);
            match score {
                Some(score @ 4..) => number(score).fg(Color::DarkGreen),
                Some(score @ ..=2) => number(score).fg(Color::DarkRed),
                Some(score) => number(score),
                None => number("–"),
            }
        }));
        table.add_row(row);
    }
    let mut totals = vec![emphasised(Cell::new(TOTAL), true), number("")];
    totals.extend(analysis.options.iter().map(|option| {
        let total = total(memo, &option.id);
        let text = total.map_or("–".to_owned(), |total| format!("{:.2}", total.total));
        emphasised(number(text), total.is_some_and(|total| total.rank == 1))
    }));
    table.add_row(totals);
    if names {
        fit_columns(&mut table, analysis, width);
    } else {
        table.column_iter_mut().for_each(|column| _ = column.set_padding((1, 0)));
    }
    table
}

/// Gives the criteria their room first, for they are what one looks for; the options share the rest evenly.
fn fit_columns(table: &mut Table, analysis: &DecisionAnalysis, width: usize) {
    let longest = |texts: &mut dyn Iterator<Item = &str>| texts.map(|text| display_width(&clean(text))).max();
    let criterion = longest(&mut analysis.criteria.iter().map(|c| c.name.as_str())).unwrap_or_default();
    let option = longest(&mut analysis.options.iter().map(|o| o.name.as_str())).unwrap_or_default();
    let criterion = criterion.clamp(TOTAL.len(), width * 3 / 10) + PADDING;
    let weight = "Weight".len() + PADDING;
    let options = analysis.options.len();
    let share = width.saturating_sub(criterion + weight + options + 1) / options;
    let widths = [criterion, weight].into_iter().chain(vec![share.min(option + PADDING); options]);
    table.set_constraints(widths.map(|width| ColumnConstraint::LowerBoundary(Width::Fixed(columns(width)))));
}

/// The risks, those first that are likely and hurt.
fn gravest_first(memo: &Memo) -> Vec<&Risk> {
    let mut risks: Vec<_> = memo.analysis.risks.iter().collect();
    risks.sort_by_key(|risk| Reverse(risk.gravity()));
    risks
}

/// The options with the letters they go by on the page.
fn lettered(memo: &Memo) -> impl Iterator<Item = (char, &DecisionOption)> {
    ('A'..).zip(&memo.analysis.options)
}

/// The weighted total of an option, if it has one.
fn total<'a>(memo: &'a Memo, option_id: &str) -> Option<&'a WeightedTotal> {
    memo.weighted_totals.iter().find(|total| total.option_id == option_id)
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Low => "low",
        Level::Medium => "medium",
        Level::High => "high",
    }
}

/// A width in comfy-table's measure.
fn columns(width: usize) -> u16 {
    u16::try_from(width).unwrap_or(u16::MAX)
}

fn number(content: impl ToString) -> Cell {
    Cell::new(content).set_alignment(CellAlignment::Center)
}

fn emphasised(cell: Cell, yes: bool) -> Cell {
    if yes { cell.add_attribute(Attribute::Bold) } else { cell }
}

/// `text` as one line without anything a terminal would obey: escape sequences, control characters, and the invisible
/// ones that reorder what is shown.
pub(super) fn clean(text: &str) -> String {
    let reorders = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let text = console::strip_ansi_codes(text);
    let words = text.split_whitespace().map(|word| word.replace(|c: char| c.is_control() || reorders(c), ""));
    words.collect::<Vec<_>>().join(" ")
}

/// The text so far, and how to add to it.
struct Page {
    text: String,
    width: usize,
    colours: bool,
}

impl Page {
    fn style(&self) -> Style {
        Style::new().force_styling(self.colours)
    }

    fn gap(&mut self) {
        self.text.push('\n');
    }

    fn heading(&mut self, title: &str) {
        let title = self.style().bold().underlined().apply_to(title.to_uppercase());
        self.text.push_str(&format!("\n{title}\n"));
    }

    /// Adds `text`, wrapped, beside `lead`: a label, bullet or indent. A blank text adds nothing.
    fn block(&mut self, lead: &str, lead_style: &Style, text: &str, style: &Style) {
        let text = clean(text);
        let indent = display_width(lead);
        let room =
            textwrap::Options::new(self.width.saturating_sub(indent).max(1)).wrap_algorithm(WrapAlgorithm::FirstFit);
        let lines = textwrap::wrap(&text, room);
        for (i, line) in lines.iter().filter(|line| !line.is_empty()).enumerate() {
            match i {
                0 => self.text.push_str(&lead_style.apply_to(lead).to_string()),
                _ => self.text.push_str(&" ".repeat(indent)),
            }
            self.text.push_str(&format!("{}\n", style.apply_to(line)));
        }
    }

    fn list(&mut self, title: &str, items: &[String]) {
        if !items.is_empty() {
            self.heading(title);
        }
        for item in items {
            self.block("  • ", &self.style().dim(), item, &self.style());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis;

    fn english() -> Memo {
        analysis::parse(include_str!("../analysis/samples/english.json")).unwrap().into()
    }

    fn chinese() -> Memo {
        analysis::parse(include_str!("../analysis/samples/chinese.json")).unwrap().into()
    }

    fn lines_too_long(page: &str, width: usize) -> Vec<&str> {
        page.lines().filter(|line| console::measure_text_width(line) > width).collect()
    }

    fn position(page: &str, text: &str) -> usize {
        page.find(text).unwrap_or_else(|| panic!("{text:?} is missing from\n{page}"))
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for memo in [english(), chinese()] {
            for (width, colours) in [(40, false), (40, true), (72, false), (80, true), (120, false)] {
                let page = render(&memo, width, colours);
                assert_eq!(lines_too_long(&page, width), Vec::<&str>::new(), "at {width}\n{page}");
            }
        }
    }

    #[test]
    fn four_options_with_long_names_fit_a_narrow_terminal() {
        let mut memo = english();
        memo.analysis.options.push(memo.analysis.options[2].clone());
        memo.analysis.options[3].name = "Rechtsschutzversicherungsgesellschaften beauftragen".to_owned();
        for width in [40, 72, 80] {
            assert_eq!(lines_too_long(&render(&memo, width, false), width), Vec::<&str>::new());
        }
    }

    #[test]
    fn an_absurd_width_still_gives_a_page() {
        for width in [0, 1, usize::MAX] {
            position(&render(&english(), width, false), "BOTTOM LINE");
        }
    }

    #[test]
    fn the_order_is_what_a_reader_in_a_hurry_needs() {
        let page = render(&english(), 80, false);
        let order = [
            "Should we replace",
            "BOTTOM LINE",
            "RECOMMENDATION",
            "Pilot first: B, Pilot in Lyon",
            "70 %, medium",
            "Partly reversible",
            "COMPARISON",
            "B ✓",
            "3.93",
            "OPTIONS",
            "(status quo)",
            "RISKS",
            "ASSUMPTIONS",
            "WHAT IS MISSING",
            "CONDITIONS",
            "WHAT WOULD CHANGE THIS",
            "NEXT STEPS",
            "COO, this week",
        ];
        assert!(order.map(|text| position(&page, text)).is_sorted(), "{page}");
    }

    #[test]
    fn the_gravest_risk_and_the_blocking_gap_come_first() {
        let page = render(&english(), 80, false);
        let order =
            ["Migration errors", "The pilot drags on", "A security flaw", "(wait for this)", "140 custom reports"];
        assert!(order.map(|text| position(&page, text)).is_sorted(), "{page}");
    }

    #[test]
    fn a_recommendation_against_the_totals_is_pointed_out() {
        let mut memo = english();
        assert!(!render(&memo, 80, false).contains("doesn't have the highest total"));
        memo.analysis.recommendation.option_id = "o3".to_owned();
        position(&render(&memo, 80, false), "doesn't have the highest total");
    }

    #[test]
    fn an_unfinished_memo_says_so_and_leaves_out_what_it_lacks() {
        let page = render(&chinese(), 80, false);
        assert!(position(&page, "Not ready to decide") < position(&page, "BOTTOM LINE"));
        let mut memo = chinese();
        memo.analysis = analysis::DecisionAnalysis {
            status: Status::NotADecision,
            criteria: vec![],
            options: vec![],
            evaluations: vec![],
            risks: vec![],
            assumptions: vec![],
            missing_information: vec![],
            next_steps: vec![],
            ..memo.analysis
        };
        let page = render(&memo, 80, false);
        position(&page, "holds no decision");
        let headings = ["COMPARISON", "OPTIONS", "RISKS", "ASSUMPTIONS", "WHAT IS MISSING", "CONDITIONS", "NEXT STEPS"];
        assert!(!headings.iter().any(|heading| page.contains(heading)), "{page}");
    }

    #[test]
    fn colours_are_used_only_when_asked_for() {
        assert!(!render(&english(), 80, false).contains('\u{1b}'));
        let coloured = render(&english(), 80, true);
        assert!(coloured.contains("\u{1b}["));
        assert_eq!(console::strip_ansi_codes(&coloured), render(&english(), 80, false));
    }

    #[test]
    fn nothing_the_model_writes_commands_the_terminal() {
        fn poison(value: &mut serde_json::Value, path: &str) {
            const ENUMS: [&str; 7] =
                ["status", "reversibility", "source", "likelihood", "impact", "verdict", "confidence"];
            match value {
                serde_json::Value::String(text) if !ENUMS.contains(&path) => {
                    text.push_str(
                        "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{1b}\u{1b}[0m[31m\r\n\u{8}\u{202e}\u{2028}\u{7f}",
                    );
                }
                serde_json::Value::Array(items) => items.iter_mut().for_each(|item| poison(item, path)),
                serde_json::Value::Object(fields) => fields.iter_mut().for_each(|(key, value)| poison(value, key)),
                _ => {}
            }
        }
        let mut memo = serde_json::to_value(english()).unwrap();
        poison(&mut memo, "");
        let page = render(&serde_json::from_value(memo).unwrap(), 80, false);
        let obeyed = |c: char| c != '\n' && (c.is_control() || matches!(c, '\u{202e}' | '\u{2028}'));
        assert!(!page.contains(obeyed), "{:?}", page.lines().find(|line| line.contains(obeyed)));
        assert!(!page.contains("owned"));
        position(&page, "Pilot in Lyon, then roll out");
    }
}
