//! A memo as Markdown (CommonMark with tables). What the model wrote is escaped, so that it is text and nothing else.

use super::{
    document::{Block, Detail, Document, Item, Marker, ScoreTable},
    memo::Memo,
};

/// Characters that mean something in Markdown or the HTML it may hold.
const SPECIAL: &[char] = &['\\', '`', '*', '_', '[', ']', '<', '>', '|', '#', '~', '&', '!'];

/// Invisible characters that change the order in which others are shown.
const REORDERING: &[char] = &[
    '\u{61c}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}',
    '\u{2067}', '\u{2068}', '\u{2069}',
];

/// The memo as Markdown, ending in a line break.
pub fn markdown(memo: &Memo) -> String {
    let document = Document::new(memo);
    let mut text = format!("# {}\n", escaped(&document.title));
    for section in &document.sections {
        text.push_str(&format!("\n## {}\n\n", section.heading));
        for block in &section.blocks {
            push(&mut text, block);
        }
    }
    text + &format!("\n---\n\n{}\n", document.closing)
}

fn push(text: &mut String, block: &Block) {
    match block {
        Block::Headline(headline, _) => text.push_str(&format!("**{}**\n\n", escaped(headline))),
        Block::Paragraph(paragraph) => text.push_str(&format!("{}\n\n", escaped(paragraph))),
        Block::Note(note) => text.push_str(&format!("> {}\n\n", escaped(note))),
        Block::Item(item) => push_item(text, item),
        Block::Table(table) => push_table(text, table),
    }
}

fn push_item(text: &mut String, item: &Item) {
    let said: Vec<&Detail> = item.details.iter().filter(|detail| !detail.text.trim().is_empty()).collect();
    let line = |detail: &Detail| match detail.label {
        "" => escaped(&detail.text),
        label => format!("{label}: {}", escaped(&detail.text)),
    };
    let marker = match item.marker {
        Marker::Letter(letter) => {
            text.push_str(&format!("### {letter}: {}\n\n", escaped(&item.text)));
            said.iter().for_each(|detail| text.push_str(&format!("- {}\n", line(detail))));
            text.push('\n');
            return;
        }
        Marker::Bullet | Marker::Warning => "- ".to_owned(),
        Marker::Number(number) => format!("{number}. "),
    };
    let details = said.into_iter().map(line);
    if item.text.is_empty() {
        details.for_each(|detail| text.push_str(&format!("{marker}{detail}\n")));
    } else {
        let indent = " ".repeat(marker.len());
        text.push_str(&format!("{marker}{}\n", escaped(&item.text)));
        details.for_each(|detail| text.push_str(&format!("{indent}- {detail}\n")));
    }
}

fn push_table(text: &mut String, table: &ScoreTable) {
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let head = table.options.iter().map(|option| {
        let mark = if option.is_recommended { " ✓" } else { "" };
        format!("{}{mark}: {}", option.letter, escaped(&option.name))
    });
    text.push_str(&row([table.criterion, table.weight].map(str::to_owned).into_iter().chain(head).collect()));
    text.push_str(&format!("|---|---:|{}\n", "---:|".repeat(table.options.len())));
    for criterion in &table.rows {
        let scores = criterion.scores.iter().map(|score| score.map_or("–".to_owned(), |score| score.to_string()));
        text.push_str(&row([escaped(&criterion.name), criterion.weight.to_string()]
            .into_iter()
            .chain(scores)
            .collect()));
    }
    let totals = table.options.iter().map(|option| match option.total {
        _ if option.is_ruled_out => table.ruled_out.to_owned(),
        Some(total) => format!("{total:.2}"),
        None => "–".to_owned(),
    });
    text.push_str(&row([format!("**{}**", table.total), String::new()].into_iter().chain(totals).collect()));
    text.push('\n');
}

/// `text` on one line, with nothing in it that Markdown would read.
fn escaped(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.chars().filter(|c| is_shown(*c)).fold(String::new(), |mut escaped, c| {
        if SPECIAL.contains(&c) {
            escaped.push('\\');
        }
        escaped.push(c);
        escaped
    })
}

/// Whether a character is shown, and nothing else: a terminal obeys control characters, and others reorder the text.
pub fn is_shown(c: char) -> bool {
    !c.is_control() && !REORDERING.contains(&c)
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
