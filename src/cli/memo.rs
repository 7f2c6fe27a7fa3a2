//! The memo in a terminal: its document, wrapped and coloured.
//!
//! What the model wrote is shown as text and nothing else: each piece goes through `clean` on its way to the page, so
//! that no escape sequence reaches the terminal. The reasons for single scores are left to the JSON.

use std::fmt::Display;

use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, LineStyle, Table, TableStyle, Width,
};
use console::Style;
use textwrap::WrapAlgorithm;
use textwrap::core::display_width;

use super::terminal::clean;
use crate::analysis::{
    document::{Block, Column, Detail, Document, Item, Marker, ScoreTable, Tone},
    memo::Memo,
};

/// Longer lines are hard to read; wider terminals get a margin.
const MAX_WIDTH: usize = 100;
/// Narrower terminals get lines too long rather than a letter a line.
const MIN_WIDTH: usize = 20;
/// From this width on the table has room for the options' names; below it, only for their letters.
const NAMES_IN_TABLE_FROM: usize = 70;

const MAX_NAMED: usize = 5;

/// What comfy-table leaves free in a cell, left and right together.
const PADDING: usize = 2;
/// Lines above, below and under the header, but not between rows.
const RULED: TableStyle = TableStyle::new()
    .top_border(LineStyle::none().fill('─').junction('─'))
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .bottom_border(LineStyle::none().fill('─').junction('─'));

pub(super) fn render(memo: &Memo, width: usize, colours: bool) -> String {
    let mut page = Page { text: String::new(), width: width.clamp(MIN_WIDTH, MAX_WIDTH), colours };
    let document = Document::new(memo);
    let (bold, dim) = (page.style().bold(), page.style().dim());
    page.block("", &document.title, &bold);
    page.block("", &"─".repeat(page.width), &dim);
    for section in &document.sections {
        page.heading(section.heading);
        for (i, block) in section.blocks.iter().enumerate() {
            block_on(&mut page, block, i > 0);
        }
    }
    page.gap();
    page.block("", document.closing, &dim);
    page.text
}

fn block_on(page: &mut Page, block: &Block, follows: bool) {
    let (plain, warn) = (page.style(), page.toned(Tone::Warn));
    match block {
        Block::Headline { text, tone } => page.block("  ", text, &page.toned(*tone).bold()),
        Block::Paragraph { text } => page.block("  ", text, &plain),
        Block::Robustness { label, word, text, .. } => page.block("  ", &format!("{label}: {word}. {text}"), &plain),
        Block::Note { text } => page.block(warn.apply_to("! "), text, &warn),
        Block::Facts { facts } => details_on(page, 2, facts),
        Block::Item(item) => item_on(page, item, follows),
        Block::Table(table) => {
            for line in score_table(table, page.width - 2, page.colours).lines() {
                page.text.push_str(&format!("  {}\n", line.trim_end()));
            }
        }
    }
}

fn item_on(page: &mut Page, item: &Item, follows: bool) {
    let (plain, dim, bold) = (page.style(), page.style().dim(), page.style().bold());
    let (marker, marker_style, style) = match item.marker {
        Marker::Bullet => ("  • ".to_owned(), &dim, &plain),
        Marker::Warning => ("  ! ".to_owned(), &page.toned(Tone::Warn), &plain),
        Marker::Number(number) => (format!("  {number}. "), &bold, &bold),
        Marker::Letter(letter) => (format!("  {letter}  "), &bold, &bold),
    };
    if follows && matches!(item.marker, Marker::Letter(_)) {
        page.gap();
    }
    page.block(marker_style.apply_to(&marker), &item.line(), style);
    details_on(page, display_width(&marker), &item.details);
}

fn details_on(page: &mut Page, indent: usize, details: &[Detail]) {
    for detail in details {
        let label = if detail.label.is_empty() { String::new() } else { format!("{}  ", detail.label) };
        let style = if detail.tone == Tone::Plain { page.style().dim() } else { page.toned(detail.tone) };
        for text in &detail.texts {
            page.block(style.apply_to(format!("{}{label}", " ".repeat(indent))), text, &page.style());
        }
    }
}

fn score_table(scores: &ScoreTable, width: usize, colours: bool) -> Table {
    let names = width >= NAMES_IN_TABLE_FROM && scores.options.len() <= MAX_NAMED;
    let mut table = Table::new();
    table.load_style(RULED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(columns(width));
    if colours { table.enforce_styling() } else { table.force_no_tty() }.style_text_only();
    let weight = if names { scores.weight } else { "1–5" };
    let mut header = vec![Cell::new(scores.criterion), number(weight)];
    header.extend(scores.options.iter().map(|option| {
        let mark = if option.is_recommended { " ✓" } else { "" };
        let name = if names { format!("\n{}", clean(&option.name)) } else { String::new() };
        emphasised(number(format!("{}{mark}{name}", option.letter)), option.is_recommended)
    }));
    table.set_header(header);
    for criterion in &scores.rows {
        let mut row = vec![Cell::new(clean(&criterion.name)), number(criterion.weight)];
        row.extend(criterion.scores.iter().map(|cell| match cell.as_ref().map(|cell| cell.score) {
            Some(score @ 4..) => number(score).fg(Color::DarkGreen),
            Some(score @ ..=2) => number(score).fg(Color::DarkRed),
            Some(score) => number(score),
            None => number("–"),
        }));
        table.add_row(row);
    }
    let mut totals = vec![emphasised(Cell::new(scores.total), true), number("")];
    totals.extend(scores.options.iter().map(|option| emphasised(total(scores, option, names), option.is_best)));
    table.add_row(totals);
    if names {
        fit_columns(&mut table, scores, width);
    } else {
        table.column_iter_mut().for_each(|column| _ = column.set_padding((1, 0)));
    }
    table
}

fn total(scores: &ScoreTable, option: &Column, names: bool) -> Cell {
    match option.total {
        _ if option.ruled_out.is_some() => number(if names { scores.ruled_out } else { "✗" }).fg(Color::DarkRed),
        Some(total) => number(format!("{total:.2}")),
        None => number("–"),
    }
}

/// Gives the criteria their room first, for they are what one looks for; the options share the rest evenly.
fn fit_columns(table: &mut Table, scores: &ScoreTable, width: usize) {
    let longest = |texts: &mut dyn Iterator<Item = &str>| texts.map(|text| display_width(&clean(text))).max();
    let criterion = longest(&mut scores.rows.iter().map(|row| row.name.as_str())).unwrap_or_default();
    let option = longest(&mut scores.options.iter().map(|option| option.name.as_str())).unwrap_or_default();
    let criterion = criterion.clamp(display_width(scores.total), width * 3 / 10) + PADDING;
    let weight = display_width(scores.weight) + PADDING;
    let options = scores.options.len();
    let share = width.saturating_sub(criterion + weight + options + 1) / options;
    let widths = [criterion, weight].into_iter().chain(vec![share.min(option + PADDING); options]);
    table.set_constraints(widths.map(|width| ColumnConstraint::LowerBoundary(Width::Fixed(columns(width)))));
}

fn columns(width: usize) -> u16 {
    u16::try_from(width).unwrap_or(u16::MAX)
}

fn number(content: impl ToString) -> Cell {
    Cell::new(content).set_alignment(CellAlignment::Center)
}

fn emphasised(cell: Cell, yes: bool) -> Cell {
    if yes { cell.add_attribute(Attribute::Bold) } else { cell }
}

struct Page {
    text: String,
    width: usize,
    colours: bool,
}

impl Page {
    fn style(&self) -> Style {
        Style::new().force_styling(self.colours)
    }

    fn toned(&self, tone: Tone) -> Style {
        match tone {
            Tone::Plain => self.style(),
            Tone::Good => self.style().green(),
            Tone::Warn => self.style().yellow(),
            Tone::Bad => self.style().red(),
        }
    }

    fn gap(&mut self) {
        self.text.push('\n');
    }

    fn heading(&mut self, title: &str) {
        let title = self.style().bold().underlined().apply_to(title.to_uppercase());
        self.text.push_str(&format!("\n{title}\n"));
    }

    /// Adds `text`, wrapped, beside `lead`: a label, bullet or indent. A blank text adds nothing.
    fn block(&mut self, lead: impl Display, text: &str, style: &Style) {
        let (text, lead) = (clean(text), lead.to_string());
        let indent = console::measure_text_width(&lead);
        let room = textwrap::Options::new(self.width.saturating_sub(indent).max(1));
        let lines = textwrap::wrap(&text, room.wrap_algorithm(WrapAlgorithm::FirstFit));
        for (i, line) in lines.iter().filter(|line| !line.is_empty()).enumerate() {
            let lead = if i == 0 { lead.clone() } else { " ".repeat(indent) };
            self.text.push_str(&format!("{lead}{}\n", style.apply_to(line)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::{self, decision::Asked};

    /// The memo of a sample file.
    fn memo(sample: &str) -> Memo {
        let analysis = analysis::parse(sample).unwrap();
        Memo::new(analysis, &Asked { query: "", options: &[], is_brief: false })
    }

    fn english() -> Memo {
        memo(include_str!("../analysis/samples/english.json"))
    }

    fn chinese() -> Memo {
        memo(include_str!("../analysis/samples/chinese.json"))
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
    fn many_options_with_long_names_fit_a_narrow_terminal() {
        let mut memo = english();
        for _ in 0..5 {
            let mut option = memo.analysis.options[2].clone();
            option.name = "Rechtsschutzversicherungsgesellschaften beauftragen".to_owned();
            memo.analysis.options.push(option);
            for width in [40, 72, 80] {
                assert_eq!(lines_too_long(&render(&memo, width, false), width), Vec::<&str>::new());
            }
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
            "Pilot first: Pilot in Lyon",
            "RECOMMENDATION",
            "Partly reversible",
            "70 %",
            "Conditions  The vendor",
            "OPTIONS AGAINST WEIGHTED CRITERIA",
            "B ✓",
            "3.93",
            "THE STRONGEST CASE AGAINST",
            "THE OPTIONS",
            "(status quo)",
            "RISKS",
            "Migration errors",
            "The pilot drags on",
            "A security flaw",
            "ASSUMPTIONS",
            "MISSING INFORMATION",
            "(wait for this)",
            "140 custom reports",
            "NEXT STEPS",
            "COO, within 7 days",
        ];
        assert!(order.map(|text| position(&page, text)).is_sorted(), "{page}");
    }

    #[test]
    fn an_unfinished_memo_asks_its_questions_first_in_its_own_language() {
        let page = render(&chinese(), 80, false);
        let order = ["尚不能决策", "现有产品取得清真认证", "结论", "按加权标准比较方案"];
        assert!(order.map(|text| position(&page, text)).is_sorted(), "{page}");
    }

    #[test]
    fn where_there_is_no_decision_only_the_suggested_question_is_shown() {
        let page = render(&memo(include_str!("../analysis/samples/weather.json")), 80, false);
        let order = ["Not a decision yet", "This asks for a fact", "ASK THIS INSTEAD", "staff party"];
        assert!(order.map(|text| position(&page, text)).is_sorted(), "{page}");
        assert!(!page.contains("RECOMMENDATION") && !page.contains("Wait"), "{page}");
    }

    #[test]
    fn an_option_that_fails_a_must_is_ruled_out() {
        let page = render(&memo(include_str!("../analysis/samples/legal.json")), 80, false);
        position(&page, "Dismiss in probation (ruled out: fails “Lawful”)");
        position(&page, "ruled out");
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
        const EVIL: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{1b}\u{1b}[0m[31m\r\n\u{8}\u{202e}\u{2028}\u{7f}";
        let mut memo = english();
        memo.analysis.texts_mut().for_each(|(_, text)| text.push_str(EVIL));
        memo.analysis.options.iter_mut().for_each(|option| option.name.push_str(EVIL));
        memo.analysis.criteria.iter_mut().for_each(|criterion| criterion.name.push_str(EVIL));
        let page = render(&memo, 80, false);
        let obeyed = |c: char| c != '\n' && (c.is_control() || matches!(c, '\u{202e}' | '\u{2028}'));
        assert!(!page.contains(obeyed), "{:?}", page.lines().find(|line| line.contains(obeyed)));
        assert!(!page.contains("owned"));
        position(&page, "Pilot in Lyon, then roll out");
    }
}
