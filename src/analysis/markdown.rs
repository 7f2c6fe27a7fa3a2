//! A memo as Markdown (CommonMark with tables). What the model wrote is escaped, so that it is text and nothing else.

use super::{
    document::{Block, Detail, Document, Item, Marker, ScoreTable},
    memo::Memo,
    text::on_one_line,
};

/// Characters that mean something in Markdown or the HTML it may hold.
const SPECIAL: &[char] = &['\\', '`', '*', '_', '[', ']', '<', '>', '|', '#', '~', '&', '!'];

pub fn markdown(memo: &Memo) -> String {
    let document = Document::new(memo);
    let mut text = format!("# {}\n", escaped(&document.title));
    for section in &document.sections {
        text.push_str(&format!("\n## {}\n\n", section.heading));
        section.blocks.iter().for_each(|block| push(&mut text, block));
    }
    text + &format!("\n---\n\n{}\n", document.closing)
}

fn push(text: &mut String, block: &Block) {
    match block {
        Block::Headline { text: headline, .. } => text.push_str(&format!("**{}**\n\n", escaped(headline))),
        Block::Paragraph { text: paragraph } => text.push_str(&format!("{}\n\n", escaped(paragraph))),
        Block::Note { text: note } => text.push_str(&format!("> {}\n\n", escaped(note))),
        Block::Facts { facts } => push_details(text, "", facts),
        Block::Item(item) => push_item(text, item),
        Block::Table(table) => push_table(text, table),
        Block::Robustness { label, word, text: robustness, .. } => {
            text.push_str(&format!("{label}: {word}. {}\n\n", escaped(robustness)));
        }
    }
}

fn push_item(text: &mut String, item: &Item) {
    let line = escaped(&item.line());
    let marker = match item.marker {
        Marker::Letter(letter) => {
            text.push_str(&format!("### {letter}: {line}\n\n"));
            push_details(text, "", &item.details);
            text.push('\n');
            return;
        }
        Marker::Bullet | Marker::Warning => "- ".to_owned(),
        Marker::Number(number) => format!("{number}. "),
    };
    text.push_str(&format!("{marker}{line}\n"));
    push_details(text, &" ".repeat(marker.len()), &item.details);
}

fn push_details(text: &mut String, indent: &str, details: &[Detail]) {
    for detail in details {
        let label = if detail.label.is_empty() { String::new() } else { format!("{}: ", detail.label) };
        for one in &detail.texts {
            text.push_str(&format!("{indent}- {label}{}\n", escaped(one)));
        }
    }
}

fn push_table(text: &mut String, table: &ScoreTable) {
    let mut row = |first: String, second: String, options: &mut dyn Iterator<Item = String>| {
        let cells: Vec<String> = [first, second].into_iter().chain(options).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    };
    let mut options = table.options.iter().map(|option| {
        let mark = if option.is_recommended { " ✓" } else { "" };
        format!("{}{mark}: {}", option.letter, escaped(&option.name))
    });
    row(table.criterion.to_owned(), table.weight.to_owned(), &mut options);
    row("---".to_owned(), "---:".to_owned(), &mut table.options.iter().map(|_| "---:".to_owned()));
    for criterion in &table.rows {
        let mut scores = criterion.scores.iter().map(|cell| shown(cell.as_ref().map(|cell| cell.score)));
        row(escaped(&criterion.name), criterion.weight.to_string(), &mut scores);
    }
    let mut totals = table.options.iter().map(|option| match option.ruled_out {
        Some(_) => table.ruled_out.to_owned(),
        None => shown(option.total.map(|total| format!("{total:.2}"))),
    });
    row(format!("**{}**", table.total), String::new(), &mut totals);
    text.push('\n');
}

fn shown(value: Option<impl ToString>) -> String {
    value.map_or("–".to_owned(), |value| value.to_string())
}

/// `text` on one line, with nothing in it that Markdown would read.
fn escaped(text: &str) -> String {
    on_one_line(text).chars().fold(String::new(), |mut escaped, c| {
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
    use crate::analysis::tests::memo_of;

    #[test]
    fn a_memo_as_markdown_has_all_its_parts_in_order_and_whole_tables() {
        let page = markdown(&memo_of("ceo"));
        let order = [
            "# How should Helios",
            "## Bottom line",
            "**Do, on conditions: Build in two stages**",
            "## Recommendation",
            "- Reversibility: Two-way door",
            "- Chance of success: 66 %",
            "| Criterion | Weight | A: Buy",
            "Robustness: sensitive. Close call:",
            "## The strongest case against",
            "## The options",
            "### A: Buy Northwind at USD 42M",
            "## Risks",
            "## If it failed",
            "## Assumptions",
            "## Missing information",
            "## Next steps",
            "1. ",
        ];
        let places: Vec<usize> = order
            .iter()
            .map(|part| page.find(part).unwrap_or_else(|| panic!("{part:?} is missing from\n{page}")))
            .collect();
        assert!(places.is_sorted() && page.ends_with(".\n"), "{page}");
        let rows: Vec<usize> =
            page.lines().filter(|line| line.starts_with('|')).map(|line| line.matches('|').count()).collect();
        assert!(rows.iter().all(|cells| *cells == rows[0]), "{page}");
    }

    #[test]
    fn what_the_model_wrote_is_text() {
        assert_eq!(
            escaped("a | *b*\n# <script> [x](http://y)\u{7}\u{202e}"),
            r"a \| \*b\* \# \<script\> \[x\](http://y)"
        );
    }
}
