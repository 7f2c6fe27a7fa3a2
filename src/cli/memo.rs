//! The memo in a terminal: what to do first, then why, then the detail.
//!
//! What the model wrote is shown as text and nothing else: each piece goes through [`clean`] on its way to the page, so
//! that no escape sequence reaches the terminal. The rationales of single scores are left to the JSON.

use std::cmp::Reverse;

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use console::Style;
use textwrap::core::display_width;

use crate::analysis::{AssumptionSource, DecisionOption, Level, Memo, Reversibility, Status, Verdict};

/// Longer lines are hard to read; wider terminals get a margin.
const MAX_WIDTH: usize = 100;
/// Narrower terminals get lines too long rather than a letter a line.
const MIN_WIDTH: usize = 20;
/// The table's columns have room for the options' names from here on; below, only for their letters.
const NAMES_IN_TABLE_FROM: usize = 72;

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
    let confidence = format!("{} %, {}. {}", chosen.confidence_percent, level(chosen.confidence), chosen.confidence_basis);
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
    let total = |option: &DecisionOption| memo.weighted_totals.iter().find(|total| total.option_id == option.id);
    let recommended = |option: &DecisionOption| option.id == analysis.recommendation.option_id;
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(u16::try_from(page.width - 2).unwrap_or(u16::MAX));
    if page.colours { table.enforce_styling() } else { table.force_no_tty() };
    let names = page.width >= NAMES_IN_TABLE_FROM;
    let mut header = vec![Cell::new("Criterion"), number("Weight")];
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
            let score = evaluations.find(|e| e.option_id == option.id && e.criterion_id == criterion.id).map(|e| e.score);
            match score {
                Some(score @ 4..) => number(score).fg(Color::Green),
                Some(score @ ..=2) => number(score).fg(Color::Red),
                Some(score) => number(score),
                None => number("–"),
            }
        }));
        table.add_row(row);
    }
    let mut totals = vec![emphasised(Cell::new("Weighted total"), true), number("")];
    totals.extend(analysis.options.iter().map(|option| {
        let text = total(option).map_or("–".to_owned(), |total| format!("{:.2}", total.total));
        emphasised(number(text), total(option).is_some_and(|total| total.rank == 1))
    }));
    table.add_row(totals);
    page.heading("Comparison");
    for line in table.lines() {
        page.text.push_str(&format!("  {}\n", line.trim_end()));
    }
    let plain = page.style();
    let legend = if analysis.options.iter().any(&recommended) { "; ✓ recommended" } else { "" };
    page.block("  ", &plain, &format!("Scores and weights from 1 (low) to 5 (high){legend}."), &plain.clone().dim());
    let chosen = analysis.options.iter().find(|option| recommended(option)).and_then(total);
    if chosen.is_some_and(|chosen| chosen.rank > 1) {
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
    let mut risks: Vec<_> = memo.analysis.risks.iter().collect();
    risks.sort_by_key(|risk| Reverse((severity(risk.likelihood, risk.impact), risk.impact)));
    if !risks.is_empty() {
        page.heading("Risks, gravest first");
    }
    for (i, risk) in risks.into_iter().enumerate() {
        if i > 0 {
            page.gap();
        }
        let style = match severity(risk.likelihood, risk.impact) {
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
        let (mark, style) = if gap.blocks_decision { ("  ! ", plain.clone().yellow()) } else { ("  • ", dim.clone()) };
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

/// The options with the letters they go by on the page.
fn lettered(memo: &Memo) -> impl Iterator<Item = (char, &DecisionOption)> {
    ('A'..).zip(&memo.analysis.options)
}

/// How grave a risk is, 1 to 9.
fn severity(likelihood: Level, impact: Level) -> u8 {
    let points = |level| match level {
        Level::Low => 1,
        Level::Medium => 2,
        Level::High => 3,
    };
    points(likelihood) * points(impact)
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Low => "low",
        Level::Medium => "medium",
        Level::High => "high",
    }
}

fn number(content: impl ToString) -> Cell {
    Cell::new(content).set_alignment(CellAlignment::Center)
}

fn emphasised(cell: Cell, yes: bool) -> Cell {
    if yes { cell.add_attribute(Attribute::Bold) } else { cell }
}

/// `text` as one line without anything a terminal would obey: escape sequences, control characters, and the invisible
/// ones that reorder what is shown.
fn clean(text: &str) -> String {
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
        let lines = textwrap::wrap(&text, self.width.saturating_sub(indent).max(1));
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

    #[test]
    fn show() {
        for (memo, width) in [(english(), 80), (chinese(), 80), (english(), 120), (english(), 40), (chinese(), 40)] {
            println!("{}\n\n######", render(&memo, width, std::env::var("C").is_ok()));
        }
    }
}
