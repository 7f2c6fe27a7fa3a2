//! A memo as a document: headings, paragraphs, lists and one table, in the order of reading and in the words of the memo's
//! language. Markdown and the terminal are written from it, so both say the same.

use std::cmp::Reverse;

use super::{
    decision::{Action, DecisionAnalysis, DecisionOption, Gap, Kind, Level, Origin, Reversibility, Risk, Status},
    labels::Labels,
    memo::Memo,
};

/// A memo, ready to be laid out.
#[derive(Debug)]
pub struct Document {
    /// The decision question.
    pub title: String,
    /// In the order of reading; empty ones are left out.
    pub sections: Vec<Section>,
    /// What a reader should know about every memo.
    pub closing: &'static str,
}

/// A heading and what stands below it.
#[derive(Debug)]
pub struct Section {
    /// The heading.
    pub heading: &'static str,
    /// What stands below.
    pub blocks: Vec<Block>,
}

/// A piece of a section.
#[derive(Debug)]
pub enum Block {
    /// The recommendation in a line.
    Headline(String, Tone),
    /// Running text.
    Paragraph(String),
    /// Something to be noticed.
    Note(String),
    /// An item of a list.
    Item(Item),
    /// The scores.
    Table(ScoreTable),
}

/// An item of a list, and what is said about it.
#[derive(Debug)]
pub struct Item {
    /// How it is marked.
    pub marker: Marker,
    /// The item itself.
    pub text: String,
    /// What is said about it.
    pub details: Vec<Detail>,
}

/// How an item is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// As one of a list.
    Bullet,
    /// As one to be noticed.
    Warning,
    /// By its number.
    Number(usize),
    /// By the letter of an option.
    Letter(char),
}

/// One thing that is said about an item.
#[derive(Debug)]
pub struct Detail {
    /// What it is.
    pub label: &'static str,
    /// It.
    pub text: String,
    /// How it is coloured.
    pub tone: Tone,
}

/// How something is coloured where there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Not at all.
    Plain,
    /// As good.
    Good,
    /// As something to look at twice.
    Warn,
    /// As bad.
    Bad,
}

/// Criteria down, options across.
#[derive(Debug)]
pub struct ScoreTable {
    /// Heading of the first column.
    pub criterion: &'static str,
    /// Heading of the second column.
    pub weight: &'static str,
    /// Name of the last row.
    pub total: &'static str,
    /// Shown instead of the total of an option that fails a must.
    pub ruled_out: &'static str,
    /// A column each.
    pub options: Vec<Column>,
    /// A row for each criterion.
    pub rows: Vec<Row>,
}

/// An option in a table.
#[derive(Debug)]
pub struct Column {
    /// The letter of the option.
    pub letter: char,
    /// Its name.
    pub name: String,
    /// It is the recommended one.
    pub is_recommended: bool,
    /// It fails a must.
    pub is_ruled_out: bool,
    /// Its weighted total, if it is ranked.
    pub total: Option<f64>,
    /// It has the highest total.
    pub is_best: bool,
}

/// A criterion in a table.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its weight.
    pub weight: u8,
    /// The score of each option.
    pub scores: Vec<Option<u8>>,
}

impl Document {
    /// The document of a memo.
    pub fn new(memo: &Memo) -> Document {
        let labels = memo.labels();
        let closing = labels.text("disclaimer");
        let analysis = &memo.analysis;
        if analysis.kind == Kind::NotADecision {
            let mut sections = vec![Section {
                heading: labels.text("summary"),
                blocks: vec![Block::Paragraph(analysis.summary.clone())],
            }];
            if !analysis.suggested_question.is_empty() {
                let blocks = vec![Block::Paragraph(analysis.suggested_question.clone())];
                sections.push(Section { heading: labels.text("ask_instead"), blocks });
            }
            return Document { title: memo.headline.clone(), sections, closing };
        }
        let writer = Writer { memo, analysis, labels };
        let sections = [
            ("gaps_first", writer.questions_first()),
            ("summary", writer.summary()),
            ("recommendation", writer.recommendation()),
            ("comparison", writer.comparison()),
            ("case_against", paragraph(&analysis.case_against)),
            ("options", writer.options()),
            ("risks", writer.risks()),
            ("premortem", writer.premortem()),
            ("assumptions", writer.assumptions()),
            ("gaps", writer.gaps()),
            ("material", writer.material()),
            ("next_steps", writer.next_steps()),
            ("flags", memo.flags.iter().map(|flag| Block::Note(flag.message.clone())).collect()),
        ];
        let sections = sections.into_iter().filter(|(_, blocks)| !blocks.is_empty());
        Document {
            title: analysis.decision_question.clone(),
            sections: sections.map(|(key, blocks)| Section { heading: labels.text(key), blocks }).collect(),
            closing,
        }
    }
}

/// The options with their letters.
pub fn lettered(analysis: &DecisionAnalysis) -> impl Iterator<Item = (char, &DecisionOption)> {
    ('A'..='Z').zip(&analysis.options)
}

/// The risks, the gravest first.
pub fn gravest_first(analysis: &DecisionAnalysis) -> Vec<&Risk> {
    let mut risks: Vec<_> = analysis.risks.iter().collect();
    risks.sort_by_key(|risk| Reverse(risk.gravity()));
    risks
}

/// How an action is coloured.
pub fn tone_of(action: Action) -> Tone {
    match action {
        Action::Do | Action::DoIf | Action::Pilot => Tone::Good,
        Action::Wait => Tone::Warn,
    }
}

struct Writer<'a> {
    memo: &'a Memo,
    analysis: &'a DecisionAnalysis,
    labels: Labels,
}

impl Writer<'_> {
    fn detail(&self, key: &str, text: &str) -> Detail {
        self.toned(key, text, Tone::Plain)
    }

    fn toned(&self, key: &str, text: &str, tone: Tone) -> Detail {
        Detail { label: self.labels.text(key), text: text.to_owned(), tone }
    }

    fn option(&self, id: &str) -> String {
        lettered(self.analysis)
            .find(|(_, option)| option.id == id)
            .map(|(letter, it)| format!("{letter}, {}", it.name))
            .unwrap_or_default()
    }

    /// The option that something leads to; empty if it changes nothing.
    fn flip(&self, id: &str) -> String {
        let option = self.option(id);
        if option.is_empty() { option } else { self.labels.fill("flips_to", &[("option", &option)]) }
    }

    fn questions_first(&self) -> Vec<Block> {
        if self.analysis.status != Status::NeedsInformation {
            return Vec::new();
        }
        let note = Block::Note(self.labels.text("needs_information").to_owned());
        let decisive = self.analysis.gaps.iter().filter(|gap| gap.wait).map(|gap| self.gap(gap, Marker::Warning));
        [note].into_iter().chain(decisive).collect()
    }

    fn summary(&self) -> Vec<Block> {
        let headline = Block::Headline(self.memo.headline.clone(), tone_of(self.analysis.recommendation.action));
        [headline].into_iter().chain(paragraph(&self.analysis.summary)).collect()
    }

    fn recommendation(&self) -> Vec<Block> {
        let it = &self.analysis.recommendation;
        let rate = &self.analysis.base_rate;
        let mut details = Vec::new();
        if let Some(chosen) = self.analysis.chosen() {
            details.push(self.detail("reversibility", self.labels.word("reversibility", chosen.reversibility)));
        }
        details.push(self.detail("success", &format!("{} %", it.success_percent)));
        details.push(self.detail("basis", &it.basis));
        if !rate.reference_class.is_empty() {
            let (low, high) = (rate.low_percent.to_string(), rate.high_percent.to_string());
            let blanks = [("class", rate.reference_class.as_str()), ("low", &low), ("high", &high)];
            let text = format!("{}. {}", self.labels.fill("base_rate_text", &blanks), rate.adjustment);
            details.push(self.detail("base_rate", text.trim()));
        }
        details.push(self.detail("overrides", &it.overrides_scores_because));
        let by = |text: &str, by: &str| match by {
            "" => text.to_owned(),
            _ => self.labels.fill("by", &[("text", text), ("by", by)]),
        };
        details.extend(it.conditions.iter().map(|one| self.detail("conditions", &by(&one.text, &one.by))));
        details
            .extend(it.kill_criteria.iter().map(|one| self.toned("kill_criteria", &by(&one.sign, &one.by), Tone::Bad)));
        details.extend(it.trade_offs.iter().map(|text| self.detail("trade_offs", text)));
        let item = |detail: Detail| Item { marker: Marker::Bullet, text: String::new(), details: vec![detail] };
        let details = details.into_iter().filter(|detail| !detail.text.is_empty());
        paragraph(&it.rationale).into_iter().chain(details.map(|detail| Block::Item(item(detail)))).collect()
    }

    fn comparison(&self) -> Vec<Block> {
        if self.analysis.criteria.is_empty() || self.analysis.options.is_empty() {
            return Vec::new();
        }
        let column = |(letter, option): (char, &DecisionOption)| {
            let total = self.memo.total(&option.id);
            Column {
                letter,
                name: option.name.clone(),
                is_recommended: option.id == self.analysis.recommendation.option_id,
                is_ruled_out: self.analysis.failed_musts(&option.id).next().is_some(),
                total: total.map(|total| total.total),
                is_best: total.is_some_and(|total| total.rank == 1),
            }
        };
        let rows = self.analysis.criteria.iter().map(|criterion| {
            let score = |option: &DecisionOption| Some(self.analysis.cell(&option.id, &criterion.id)?.score);
            Row {
                name: criterion.name.clone(),
                weight: criterion.weight,
                scores: self.analysis.options.iter().map(score).collect(),
            }
        });
        let table = ScoreTable {
            criterion: self.labels.text("criterion"),
            weight: self.labels.text("weight"),
            total: self.labels.text("total"),
            ruled_out: self.labels.text("ruled_out_short"),
            options: lettered(self.analysis).map(column).collect(),
            rows: rows.collect(),
        };
        let scale = Block::Paragraph(self.labels.text("scale").to_owned());
        [Block::Table(table)].into_iter().chain(self.robustness()).chain([scale]).collect()
    }

    fn robustness(&self) -> Option<Block> {
        let (robustness, text) = (self.memo.robustness.as_ref()?, self.memo.robustness_text.as_ref()?);
        let word = self.labels.word("robustness_word", robustness.label);
        Some(Block::Paragraph(format!("{}: {word}. {text}", self.labels.text("robustness"))))
    }

    fn options(&self) -> Vec<Block> {
        let item = |(letter, option): (char, &DecisionOption)| {
            let failed: Vec<&str> = self.analysis.failed_musts(&option.id).map(|must| must.name.as_str()).collect();
            let mut text = option.name.clone();
            if option.origin == Origin::StatusQuo {
                text.push_str(&format!(" ({})", self.labels.text("status_quo")));
            }
            if !failed.is_empty() {
                let ruled_out = self.labels.fill("ruled_out", &[("musts", &failed.join(", "))]);
                text.push_str(&format!(" ({ruled_out})"));
            }
            let mut details = vec![Detail { label: "", text: option.description.clone(), tone: Tone::Plain }];
            let tone = match option.reversibility {
                Reversibility::OneWayDoor => Tone::Warn,
                Reversibility::TwoWayDoor | Reversibility::PartlyReversible => Tone::Plain,
            };
            details.push(self.toned("reversibility", self.labels.word("reversibility", option.reversibility), tone));
            details.extend(option.pros.iter().map(|pro| self.toned("pros", pro, Tone::Good)));
            details.extend(option.cons.iter().map(|con| self.toned("cons", con, Tone::Bad)));
            details.push(self.detail("cost", &option.cost));
            details.push(self.detail("forecloses", &option.forecloses));
            Block::Item(Item { marker: Marker::Letter(letter), text, details })
        };
        lettered(self.analysis).map(item).collect()
    }

    fn risks(&self) -> Vec<Block> {
        let item = |risk: &Risk| {
            let level = |level: Level| self.labels.word("level", level);
            let tone = match risk.severity() {
                6.. => Tone::Bad,
                3.. => Tone::Warn,
                _ => Tone::Plain,
            };
            let details = vec![
                self.detail("option", &self.option(&risk.option_id)),
                self.toned("likelihood", level(risk.likelihood), tone),
                self.toned("impact", level(risk.impact), tone),
                self.detail("mitigation", &risk.mitigation),
                self.detail("warning_sign", &risk.early_warning_sign),
            ];
            Block::Item(Item { marker: Marker::Bullet, text: risk.description.clone(), details })
        };
        gravest_first(self.analysis).into_iter().map(item).collect()
    }

    fn premortem(&self) -> Vec<Block> {
        let items = self.analysis.premortem.iter().map(|failure| {
            let details = vec![self.detail("first_sign", &failure.first_sign)];
            Block::Item(Item { marker: Marker::Bullet, text: failure.story.clone(), details })
        });
        items.collect()
    }

    fn assumptions(&self) -> Vec<Block> {
        let items = self.analysis.assumptions.iter().map(|it| {
            let text = format!("{} ({})", it.statement, self.labels.word("source", it.source));
            let if_wrong = format!("{} {}", it.if_wrong, self.flip(&it.flips_to));
            let details = vec![self.detail("if_wrong", if_wrong.trim())];
            Block::Item(Item { marker: Marker::Bullet, text, details })
        });
        items.collect()
    }

    fn gaps(&self) -> Vec<Block> {
        let is_first = self.analysis.status == Status::NeedsInformation;
        let mut gaps: Vec<&Gap> = self.analysis.gaps.iter().filter(|gap| !(is_first && gap.wait)).collect();
        gaps.sort_by_key(|gap| !gap.wait);
        let marker = |gap: &Gap| if gap.wait { Marker::Warning } else { Marker::Bullet };
        gaps.into_iter().map(|gap| self.gap(gap, marker(gap))).collect()
    }

    fn gap(&self, gap: &Gap, marker: Marker) -> Block {
        let wait = if gap.wait { format!(" ({})", self.labels.text("wait")) } else { String::new() };
        let days = self.labels.fill("days", &[("days", &gap.days.to_string())]);
        let why = format!("{} {}", gap.why, self.flip(&gap.flips_to));
        let details = vec![self.detail("why", why.trim()), self.detail("how", &format!("{} ({days})", gap.how))];
        Block::Item(Item { marker, text: format!("{}{wait}", gap.question), details })
    }

    fn material(&self) -> Vec<Block> {
        let items = self.analysis.material.iter().map(|it| {
            let label = self.labels.word("material", it.kind);
            let details = vec![Detail { label, text: it.consequence.clone(), tone: Tone::Warn }];
            Block::Item(Item { marker: Marker::Bullet, text: format!("“{}”", it.quote), details })
        });
        items.collect()
    }

    fn next_steps(&self) -> Vec<Block> {
        let items = self.analysis.next_steps.iter().zip(1..).map(|(step, number)| {
            let due = self.labels.fill("due", &[("days", &step.due_days.to_string())]);
            let details = vec![
                self.detail("owner", &format!("{}, {due}", step.owner_role)),
                self.detail("measure", &step.measure),
            ];
            Block::Item(Item { marker: Marker::Number(number), text: step.action.clone(), details })
        });
        items.collect()
    }
}

fn paragraph(text: &str) -> Vec<Block> {
    if text.trim().is_empty() { Vec::new() } else { vec![Block::Paragraph(text.to_owned())] }
}
