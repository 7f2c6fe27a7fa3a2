//! A memo as a document: headings, paragraphs, lists and one table, in the order of reading and in the words of the memo's
//! language. The pages, Markdown and the terminal are laid out from it, so all of them say the same.

use std::cmp::Reverse;

use serde::Serialize;

use super::{
    decision::{Action, Cell, DecisionAnalysis, DecisionOption, Gap, Kind, Origin, Reversibility, Risk, Status},
    labels::Labels,
    memo::Memo,
    ranking::RobustnessLabel,
    text::is_blank,
};

#[derive(Debug, Serialize)]
pub struct Document {
    pub title: String,
    /// In the order of reading, without empty ones.
    pub sections: Vec<Section>,
    pub closing: &'static str,
}

#[derive(Debug, Serialize)]
pub struct Section {
    /// The label that is its heading, and its name for a layout.
    pub key: &'static str,
    pub heading: &'static str,
    pub blocks: Vec<Block>,
}

/// A `Note` is a paragraph to be noticed, `Facts` are details of the recommendation.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Block {
    Headline { text: String, tone: Tone },
    Paragraph { text: String },
    Note { text: String },
    Facts { facts: Vec<Detail> },
    Item(Item),
    Table(ScoreTable),
    Robustness { label: &'static str, word: &'static str, text: String, tone: Tone },
}

#[derive(Debug, Serialize)]
pub struct Item {
    pub marker: Marker,
    pub text: String,
    /// Words about the item that belong behind its text.
    pub remarks: Vec<Remark>,
    pub details: Vec<Detail>,
}

#[derive(Debug, Serialize)]
pub struct Remark {
    pub text: String,
    pub tone: Tone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Marker {
    Bullet,
    Warning,
    Number(usize),
    Letter(char),
}

/// Texts about an item under one label: at least one, and not blank.
#[derive(Debug, Serialize)]
pub struct Detail {
    pub key: &'static str,
    /// Empty for a description.
    pub label: &'static str,
    pub texts: Vec<String>,
    pub tone: Tone,
}

/// The colour of a text, where there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tone {
    Plain,
    Good,
    Warn,
    Bad,
}

/// The scores: criteria down, options across. Its texts are the headings and what is written in the place of a total.
#[derive(Debug, Serialize)]
pub struct ScoreTable {
    pub criterion: &'static str,
    pub weight: &'static str,
    pub total: &'static str,
    pub ruled_out: &'static str,
    pub scale: &'static str,
    pub options: Vec<Column>,
    pub rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub struct Column {
    pub letter: char,
    pub name: String,
    pub is_recommended: bool,
    pub is_status_quo: bool,
    /// The failed musts in words, if there are any.
    pub ruled_out: Option<String>,
    pub total: Option<f64>,
    pub is_best: bool,
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub weight: u8,
    pub why: String,
    /// One for each option.
    pub scores: Vec<Option<Cell>>,
}

impl Document {
    pub fn new(memo: &Memo) -> Document {
        let analysis = &memo.analysis;
        let writer = Writer { memo, analysis, labels: memo.labels() };
        let flags = memo.flags.iter().map(|flag| Block::Note { text: flag.message.clone() }).collect();
        let sections = match analysis.kind {
            Kind::NotADecision => vec![
                ("summary", paragraph(&analysis.summary)),
                ("ask_instead", paragraph(&analysis.suggested_question)),
                ("flags", flags),
            ],
            Kind::Decision => vec![
                ("gaps_first", writer.questions_first()),
                ("summary", writer.summary()),
                ("recommendation", writer.recommendation()),
                ("comparison", writer.comparison()),
                ("case_against", paragraph(&analysis.case_against)),
                ("options", items(lettered(analysis), |it| writer.option(it))),
                ("risks", items(gravest_first(analysis), |risk| writer.risk(risk))),
                ("premortem", writer.premortem()),
                ("assumptions", writer.assumptions()),
                ("gaps", writer.other_gaps()),
                ("material", writer.material()),
                ("next_steps", writer.next_steps()),
                ("flags", flags),
            ],
        };
        let sections = sections.into_iter().filter(|(_, blocks)| !blocks.is_empty());
        let is_named = analysis.kind == Kind::Decision && !is_blank(&analysis.decision_question);
        Document {
            title: if is_named { analysis.decision_question.clone() } else { memo.headline.clone() },
            sections: sections.map(|(key, blocks)| Section { key, heading: writer.labels.text(key), blocks }).collect(),
            closing: writer.labels.text("disclaimer"),
        }
    }
}

impl Item {
    fn new(marker: Marker, text: &str, details: Vec<Detail>) -> Item {
        Item { marker, text: text.to_owned(), remarks: Vec::new(), details: without_blanks(details) }
    }

    fn remark(mut self, text: impl Into<String>, tone: Tone) -> Item {
        self.remarks.push(Remark { text: text.into(), tone });
        self
    }

    /// The text with its remarks in brackets.
    pub fn line(&self) -> String {
        self.remarks.iter().fold(self.text.clone(), |line, remark| format!("{line} ({})", remark.text))
    }
}

pub fn gravest_first(analysis: &DecisionAnalysis) -> Vec<&Risk> {
    let mut risks: Vec<_> = analysis.risks.iter().collect();
    risks.sort_by_key(|risk| Reverse(risk.gravity()));
    risks
}

fn lettered(analysis: &DecisionAnalysis) -> impl Iterator<Item = (char, &DecisionOption)> {
    ('A'..='Z').zip(&analysis.options)
}

struct Writer<'a> {
    memo: &'a Memo,
    analysis: &'a DecisionAnalysis,
    labels: Labels,
}

impl Writer<'_> {
    fn detail(&self, key: &'static str, text: &str) -> Detail {
        self.details(key, &[text.to_owned()], Tone::Plain)
    }

    fn details(&self, key: &'static str, texts: &[String], tone: Tone) -> Detail {
        Detail { key, label: self.labels.text(key), texts: texts.to_vec(), tone }
    }

    fn questions_first(&self) -> Vec<Block> {
        if self.analysis.status != Status::NeedsInformation {
            return Vec::new();
        }
        let note = Block::Note { text: self.labels.text("needs_information").to_owned() };
        let decisive = self.analysis.gaps.iter().filter(|gap| gap.wait);
        [note].into_iter().chain(items(decisive, |gap| self.gap(gap))).collect()
    }

    fn summary(&self) -> Vec<Block> {
        let tone = match self.analysis.recommendation.action {
            Action::Do | Action::DoIf | Action::Pilot => Tone::Good,
            Action::Wait => Tone::Warn,
        };
        let headline = Block::Headline { text: self.memo.headline.clone(), tone };
        [headline].into_iter().chain(paragraph(&self.analysis.summary)).collect()
    }

    fn recommendation(&self) -> Vec<Block> {
        let it = &self.analysis.recommendation;
        let reversibility =
            self.analysis.chosen().map_or("", |chosen| self.labels.word("reversibility", chosen.reversibility));
        let by = |text: &String, by: &str| match by {
            "" => text.clone(),
            _ => self.labels.fill("by", &[("text", text), ("by", by)]),
        };
        let conditions: Vec<_> = it.conditions.iter().map(|one| by(&one.text, &one.by)).collect();
        let kill_criteria: Vec<_> = it.kill_criteria.iter().map(|one| by(&one.sign, &one.by)).collect();
        let facts = vec![
            self.detail("reversibility", reversibility),
            self.detail("success", &format!("{} %", it.success_percent)),
            self.detail("basis", &it.basis),
            self.detail("base_rate", &self.base_rate()),
            self.detail("overrides", &it.overrides_scores_because),
            self.details("conditions", &conditions, Tone::Plain),
            self.details("kill_criteria", &kill_criteria, Tone::Bad),
            self.details("trade_offs", &it.trade_offs, Tone::Plain),
        ];
        let facts = Block::Facts { facts: without_blanks(facts) };
        paragraph(&it.rationale).into_iter().chain([facts]).collect()
    }

    fn base_rate(&self) -> String {
        let rate = &self.analysis.base_rate;
        if rate.reference_class.is_empty() {
            return String::new();
        }
        let (low, high) = (rate.low_percent.to_string(), rate.high_percent.to_string());
        let blanks = [("class", rate.reference_class.as_str()), ("low", &low), ("high", &high)];
        format!("{}. {}", self.labels.fill("base_rate_text", &blanks), rate.adjustment)
    }

    fn comparison(&self) -> Vec<Block> {
        if self.analysis.criteria.is_empty() || self.analysis.options.is_empty() {
            return Vec::new();
        }
        let column = |(letter, option): (char, &DecisionOption)| Column {
            letter,
            name: option.name.clone(),
            is_recommended: option.id == self.analysis.recommendation.option_id,
            is_status_quo: option.origin == Origin::StatusQuo,
            ruled_out: self.ruled_out(option),
            total: self.memo.total(&option.id).map(|total| total.total),
            is_best: self.memo.total(&option.id).is_some_and(|total| total.rank == 1),
        };
        let rows = self.analysis.criteria.iter().map(|criterion| Row {
            name: criterion.name.clone(),
            weight: criterion.weight,
            why: criterion.why.clone(),
            scores: (self.analysis.options.iter())
                .map(|option| self.analysis.cell(&option.id, &criterion.id).cloned())
                .collect(),
        });
        let table = ScoreTable {
            criterion: self.labels.text("criterion"),
            weight: self.labels.text("weight"),
            total: self.labels.text("total"),
            ruled_out: self.labels.text("ruled_out_short"),
            scale: self.labels.text("scale"),
            options: lettered(self.analysis).map(column).collect(),
            rows: rows.collect(),
        };
        let scale = paragraph(table.scale);
        [Block::Table(table)].into_iter().chain(self.robustness()).chain(scale).collect()
    }

    fn robustness(&self) -> Option<Block> {
        let label = self.memo.robustness.as_ref()?.label;
        let tone = match label {
            RobustnessLabel::Robust => Tone::Good,
            RobustnessLabel::Sensitive => Tone::Warn,
            RobustnessLabel::Fragile => Tone::Bad,
        };
        let word = self.labels.word("robustness_word", label);
        let text = self.memo.robustness_text.clone()?;
        Some(Block::Robustness { label: self.labels.text("robustness"), word, text, tone })
    }

    fn ruled_out(&self, option: &DecisionOption) -> Option<String> {
        let failed: Vec<&str> = self.analysis.failed_musts(&option.id).map(|must| must.name.as_str()).collect();
        (!failed.is_empty()).then(|| self.labels.fill("ruled_out", &[("musts", &failed.join(", "))]))
    }

    fn option(&self, (letter, option): (char, &DecisionOption)) -> Item {
        let is_final = option.reversibility == Reversibility::OneWayDoor;
        let reversibility = self.detail("reversibility", self.labels.word("reversibility", option.reversibility));
        let details = vec![
            self.detail("", &option.description),
            Detail { tone: if is_final { Tone::Warn } else { Tone::Plain }, ..reversibility },
            self.details("pros", &option.pros, Tone::Good),
            self.details("cons", &option.cons, Tone::Bad),
            self.detail("cost", &option.cost),
            self.detail("forecloses", &option.forecloses),
        ];
        let mut item = Item::new(Marker::Letter(letter), &option.name, details);
        if option.origin == Origin::StatusQuo {
            item = item.remark(self.labels.text("status_quo"), Tone::Plain);
        }
        match self.ruled_out(option) {
            Some(ruled_out) => item.remark(ruled_out, Tone::Bad),
            None => item,
        }
    }

    fn risk(&self, risk: &Risk) -> Item {
        let tone = match risk.severity() {
            6.. => Tone::Bad,
            3.. => Tone::Warn,
            _ => Tone::Plain,
        };
        let level = |key, level| Detail { tone, ..self.detail(key, self.labels.word("level", level)) };
        let details = vec![
            self.detail("option", &self.option_name(&risk.option_id)),
            level("likelihood", risk.likelihood),
            level("impact", risk.impact),
            self.detail("mitigation", &risk.mitigation),
            self.detail("warning_sign", &risk.early_warning_sign),
        ];
        Item::new(Marker::Bullet, &risk.description, details)
    }

    fn premortem(&self) -> Vec<Block> {
        items(&self.analysis.premortem, |failure| {
            Item::new(Marker::Bullet, &failure.story, vec![self.detail("first_sign", &failure.first_sign)])
        })
    }

    fn assumptions(&self) -> Vec<Block> {
        items(&self.analysis.assumptions, |it| {
            let if_wrong = format!("{} {}", it.if_wrong, self.flip(&it.flips_to));
            Item::new(Marker::Bullet, &it.statement, vec![self.detail("if_wrong", &if_wrong)])
                .remark(self.labels.word("source", it.source), Tone::Plain)
        })
    }

    /// The gaps that the memo has not asked about first, the decisive ones before others.
    fn other_gaps(&self) -> Vec<Block> {
        let is_first = self.analysis.status == Status::NeedsInformation;
        let mut gaps: Vec<&Gap> = self.analysis.gaps.iter().filter(|gap| !(is_first && gap.wait)).collect();
        gaps.sort_by_key(|gap| !gap.wait);
        items(gaps, |gap| self.gap(gap))
    }

    fn gap(&self, gap: &Gap) -> Item {
        let days = self.labels.fill("days", &[("days", &gap.days.to_string())]);
        let why = format!("{} {}", gap.why, self.flip(&gap.flips_to));
        let details = vec![self.detail("why", &why), self.detail("how", &format!("{} ({days})", gap.how))];
        let item = Item::new(if gap.wait { Marker::Warning } else { Marker::Bullet }, &gap.question, details);
        if gap.wait { item.remark(self.labels.text("wait"), Tone::Warn) } else { item }
    }

    fn material(&self) -> Vec<Block> {
        items(&self.analysis.material, |it| {
            let (label, texts) = (self.labels.word("material", it.kind), vec![it.consequence.clone()]);
            let detail = Detail { key: "material", label, texts, tone: Tone::Warn };
            Item::new(Marker::Bullet, &format!("“{}”", it.quote), vec![detail])
        })
    }

    fn next_steps(&self) -> Vec<Block> {
        items((1..).zip(&self.analysis.next_steps), |(number, step)| {
            let due = self.labels.fill("due", &[("days", &step.due_days.to_string())]);
            let owner = format!("{}, {due}", step.owner_role);
            let details = vec![self.detail("owner", &owner), self.detail("measure", &step.measure)];
            Item::new(Marker::Number(number), &step.action, details)
        })
    }

    fn option_name(&self, id: &str) -> String {
        let found = lettered(self.analysis).find(|(_, option)| option.id == id);
        found.map(|(letter, option)| format!("{letter}, {}", option.name)).unwrap_or_default()
    }

    /// The option to choose then; empty if the choice stays.
    fn flip(&self, id: &str) -> String {
        match self.option_name(id).as_str() {
            "" => String::new(),
            option => self.labels.fill("flips_to", &[("option", option)]),
        }
    }
}

fn items<T>(list: impl IntoIterator<Item = T>, item: impl Fn(T) -> Item) -> Vec<Block> {
    list.into_iter().map(|one| Block::Item(item(one))).collect()
}

fn paragraph(text: &str) -> Vec<Block> {
    if is_blank(text) { Vec::new() } else { vec![Block::Paragraph { text: text.to_owned() }] }
}

fn without_blanks(mut details: Vec<Detail>) -> Vec<Detail> {
    details.iter_mut().for_each(|detail| detail.texts.retain(|text| !is_blank(text)));
    details.retain(|detail| !detail.texts.is_empty());
    details
}
