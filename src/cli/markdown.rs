//! The memo as Markdown (CommonMark with tables), to be kept, sent or published: the same parts in the same order as in
//! the terminal. What the model wrote is escaped, so that it is text and nothing else.

use super::memo::{self, clean};
use crate::analysis::{AssumptionSource, Memo, Reversibility, Status, Verdict};

/// Characters that mean something in Markdown or the HTML it may hold.
const SPECIAL: &[char] = &['\\', '`', '*', '_', '[', ']', '<', '>', '|', '#', '~', '&', '!'];

/// `memo` as a Markdown document, ending in a line break.
pub(super) fn render(memo: &Memo) -> String {
    let analysis = &memo.analysis;
    let chosen = &analysis.recommendation;
    let letter = |id: &str| memo::lettered(memo).find(|(_, option)| option.id == id);
    let mut page = Page(format!("# {}\n", text(&analysis.decision_question)));
    match analysis.status {
        Status::Complete => {}
        Status::NeedsInformation => page.paragraph("**Not ready to decide: something decisive is missing.**"),
        Status::NotADecision => page.paragraph("**This question holds no decision to make.**"),
    }
    page.paragraph(&text(&analysis.summary));

    page.heading("Recommendation");
    let verdict = match chosen.verdict {
        Verdict::Proceed => "Proceed",
        Verdict::ProceedWithConditions => "Proceed on conditions",
        Verdict::PilotFirst => "Pilot first",
        Verdict::Defer => "Defer",
        Verdict::DoNotProceed => "Do not proceed",
        Verdict::InsufficientInformation => "Not enough information",
    };
    let option = letter(&chosen.option_id);
    let option = option.map(|(letter, option)| format!(": {letter}, {}", text(&option.name))).unwrap_or_default();
    page.paragraph(&format!("**{verdict}{option}**"));
    page.paragraph(&text(&chosen.rationale));
    let reversibility = match analysis.reversibility {
        Reversibility::OneWayDoor => "one-way door",
        Reversibility::TwoWayDoor => "two-way door",
        Reversibility::PartlyReversible => "partly reversible",
    };
    let confidence = format!(
        "Confidence: {} %, {}. {}",
        chosen.confidence_percent,
        memo::level(chosen.confidence),
        text(&chosen.confidence_basis)
    );
    let accepted = chosen.trade_offs_accepted.iter().map(|accepted| format!("Accepting: {}", text(accepted)));
    page.list([confidence, format!("Reversibility: {reversibility}")].into_iter().chain(accepted));

    page.comparison(memo);
    page.options(memo);
    page.risks(memo);

    page.titled_list(
        "Assumptions",
        analysis.assumptions.iter().map(|assumption| {
            let source = match assumption.source {
                AssumptionSource::StatedByUser => "stated in the question",
                AssumptionSource::Inferred => "inferred",
                AssumptionSource::GeneralKnowledge => "general knowledge",
            };
            format!("{} ({source}). If wrong: {}", text(&assumption.statement), text(&assumption.if_wrong))
        }),
    );
    page.titled_list(
        "What is missing",
        analysis.missing_information.iter().map(|gap| {
            let blocks = if gap.blocks_decision { "**Wait for this.** " } else { "" };
            let (why, how) = (text(&gap.why_it_matters), text(&gap.how_to_get_it));
            format!("{blocks}{} Why: {why} How: {how}", text(&gap.question))
        }),
    );
    page.titled_list("Conditions", chosen.conditions.iter().map(|condition| text(condition)));
    page.titled_list("What would change this", chosen.what_would_change_this.iter().map(|fact| text(fact)));
    if !analysis.next_steps.is_empty() {
        page.heading("Next steps");
        page.0.push('\n');
        for (step, number) in analysis.next_steps.iter().zip(1..) {
            let who = format!("{}, {}", text(&step.owner_role), text(&step.timeframe));
            let done = text(&step.success_measure);
            page.0.push_str(&format!("{number}. {} ({who}). Done when: {done}\n", text(&step.action)));
        }
    }
    page.0
}

/// The text so far, and how to add to it.
struct Page(String);

impl Page {
    fn heading(&mut self, title: &str) {
        self.0.push_str(&format!("\n## {title}\n"));
    }

    fn paragraph(&mut self, text: &str) {
        if !text.is_empty() {
            self.0.push_str(&format!("\n{text}\n"));
        }
    }

    fn list(&mut self, items: impl IntoIterator<Item = String>) {
        self.0.push('\n');
        items.into_iter().for_each(|item| self.0.push_str(&format!("- {item}\n")));
    }

    /// Nothing at all if there are no items.
    fn titled_list(&mut self, title: &str, items: impl IntoIterator<Item = String>) {
        let items: Vec<String> = items.into_iter().collect();
        if !items.is_empty() {
            self.heading(title);
            self.list(items);
        }
    }

    fn comparison(&mut self, memo: &Memo) {
        let analysis = &memo.analysis;
        if analysis.criteria.is_empty() || analysis.options.is_empty() {
            return;
        }
        self.heading("Comparison");
        let names: Vec<String> =
            memo::lettered(memo).map(|(letter, option)| format!("{letter}: {}", text(&option.name))).collect();
        self.0.push_str(&format!("\n| Criterion | Weight | {} |\n", names.join(" | ")));
        self.0.push_str(&format!("|---|---:|{}\n", "---:|".repeat(names.len())));
        for criterion in &analysis.criteria {
            let scores = analysis.options.iter().map(|option| {
                let mut evaluations = analysis.evaluations.iter();
                let found = evaluations.find(|e| e.option_id == option.id && e.criterion_id == criterion.id);
                found.map_or("–".to_owned(), |evaluation| evaluation.score.to_string())
            });
            let scores: Vec<String> = scores.collect();
            self.0.push_str(&format!(
                "| {} | {} | {} |\n",
                text(&criterion.name),
                criterion.weight,
                scores.join(" | ")
            ));
        }
        let totals: Vec<String> = (analysis.options.iter())
            .map(|option| memo::total(memo, &option.id).map_or("–".to_owned(), |total| format!("{:.2}", total.total)))
            .collect();
        self.0.push_str(&format!("| **Weighted total** | | {} |\n", totals.join(" | ")));
        self.paragraph("Scores and weights from 1 (low) to 5 (high).");
    }

    fn options(&mut self, memo: &Memo) {
        if !memo.analysis.options.is_empty() {
            self.heading("Options");
        }
        for (letter, option) in memo::lettered(memo) {
            let status_quo = if option.is_status_quo { " (status quo)" } else { "" };
            self.0.push_str(&format!("\n### {letter}: {}{status_quo}\n", text(&option.name)));
            self.paragraph(&text(&option.description));
            let pros = option.pros.iter().map(|pro| format!("For: {}", text(pro)));
            let cons = option.cons.iter().map(|con| format!("Against: {}", text(con)));
            let rest = [
                format!("Cost: {}", text(&option.cost_and_effort)),
                format!("Gives up: {}", text(&option.opportunity_cost)),
            ];
            self.list(pros.chain(cons).chain(rest));
        }
    }

    fn risks(&mut self, memo: &Memo) {
        let risks = memo::gravest_first(memo).into_iter().map(|risk| {
            let option = memo::lettered(memo).find(|(_, option)| option.id == risk.option_id);
            let option = option.map(|(letter, _)| format!("Option {letter}: ")).unwrap_or_default();
            let (likelihood, impact) = (memo::level(risk.likelihood), memo::level(risk.impact));
            let (mitigation, sign) = (text(&risk.mitigation), text(&risk.early_warning_sign));
            let rating = format!("**{option}{likelihood} likelihood, {impact} impact.**");
            format!("{rating} {} Mitigation: {mitigation} Watch for: {sign}", text(&risk.description))
        });
        self.titled_list("Risks, gravest first", risks);
    }
}

/// `text` on one line, with nothing in it that Markdown would read.
fn text(text: &str) -> String {
    clean(text).chars().fold(String::new(), |mut escaped, c| {
        if SPECIAL.contains(&c) {
            escaped.push('\\');
        }
        escaped.push(c);
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis;

    fn english() -> Memo {
        analysis::parse(include_str!("../analysis/samples/english.json")).unwrap().into()
    }

    #[test]
    fn the_parts_come_in_the_order_of_the_terminal_page() {
        let page = render(&english());
        let order = ["# Should we", "## Recommendation", "Pilot first: B", "## Comparison", "| Criterion | Weight |"]
            .into_iter()
            .chain([
                "## Options",
                "### A: ",
                "## Risks",
                "## Assumptions",
                "## What is missing",
                "## Next steps",
                "1. ",
            ]);
        let places: Vec<usize> =
            order.map(|part| page.find(part).unwrap_or_else(|| panic!("{part:?} is missing from\n{page}"))).collect();
        assert!(places.is_sorted(), "{page}");
        let rows: Vec<usize> =
            page.lines().filter(|line| line.starts_with('|')).map(|line| line.matches('|').count()).collect();
        assert!(rows.iter().all(|cells| *cells == rows[0]), "{page}");
    }

    #[test]
    fn what_the_model_writes_is_text_and_nothing_else() {
        let mut memo = english();
        memo.analysis.criteria[0].name = "Cost | *risk*\n# <script> [x](http://y) `z`\u{1b}[2J".to_owned();
        let page = render(&memo);
        assert!(page.contains(r"| Cost \| \*risk\* \# \<script\> \[x\](http://y) \`z\` |"), "{page}");
    }
}
