//! A text in the making: blocks are added one after another, and headings and pages keep their places.

use super::{Extracted, Format, Heading, Markup, ReadError, TEXT_LIMIT, check_length, cut_title};

/// Deepest level of a heading, as word processors have them; Markdown has marks for six.
const LEVELS: usize = 9;
/// Columns to which the rows of a table are filled up: a wide one would grow with the product of its rows and its columns.
const COLUMNS: usize = 1000;

/// Text with Markdown's marks that grows block by block.
#[derive(Default)]
pub struct Draft {
    text: String,
    headings: Vec<Heading>,
    pages: Vec<usize>,
    /// A page that starts with the next block.
    new_page: bool,
    /// Whether the last block was an item of a list, which the next item follows without an empty line.
    in_list: bool,
}

impl Draft {
    /// Begins a page with the next block. A page without a block has the place of the one after it.
    pub fn page(&mut self) {
        if self.new_page {
            self.pages.push(self.text.len());
        }
        self.new_page = true;
    }

    /// Adds a paragraph.
    pub fn paragraph(&mut self, text: &str) {
        self.block(text, false);
    }

    /// Adds a heading of a level from 1.
    pub fn heading(&mut self, level: usize, title: &str) {
        let title = title.split_whitespace().collect::<Vec<_>>().join(" ");
        if title.is_empty() {
            return;
        }
        self.block(&format!("{} {title}", "#".repeat(level.clamp(1, 6))), false);
        let start = self.text.len() - title.len() - level.clamp(1, 6) - 1;
        let (level, title) = (level.clamp(1, LEVELS), cut_title(title));
        self.headings.push(Heading { start, end: usize::MAX, level, title });
    }

    /// Adds an item of a list, so many levels deep.
    pub fn item(&mut self, depth: usize, mark: &str, text: &str) {
        if !text.trim().is_empty() {
            self.block(&format!("{}{mark} {}", "  ".repeat(depth.min(8)), text.trim()), true);
        }
    }

    /// Adds text whose line breaks and spaces count.
    pub fn code(&mut self, text: &str) {
        let text = text.trim_matches(['\n', '\r']);
        if !text.trim().is_empty() {
            self.block(&format!("```\n{text}\n```"), false);
        }
    }

    /// Adds a table whose first row is its header.
    pub fn table(&mut self, rows: &[Vec<String>]) {
        let width = rows.iter().map(Vec::len).max().unwrap_or_default();
        let filled = |row: &&Vec<String>| row.iter().any(|cell| !cell.trim().is_empty());
        let mut lines = String::new();
        for (place, row) in rows.iter().filter(filled).enumerate() {
            // Enough for `finish` to refuse the document.
            if self.text.len() + lines.len() > TEXT_LIMIT {
                break;
            }
            if place > 0 {
                lines.push('\n');
            }
            // A table of one column is how pages were once laid out.
            if width == 1 {
                lines.extend(row.iter().map(|cell| clean(cell)));
                continue;
            }
            lines.push('|');
            lines.extend(row.iter().map(|cell| format!(" {} |", clean(cell))));
            let columns = row.len().max(width.min(COLUMNS));
            lines.push_str(&"  |".repeat(columns - row.len()));
            if place == 0 {
                lines.push_str(&format!("\n|{}", " --- |".repeat(columns)));
            }
        }
        self.block(&lines, false);
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it is longer than a document may be.
    pub fn finish(mut self, format: Format, title: Option<String>) -> Result<Extracted, ReadError> {
        check_length(&self.text)?;
        if self.new_page {
            self.pages.push(self.text.len());
        }
        let title = title.map(|title| cut_title(clean(&title))).filter(|title| !title.is_empty());
        let Self { text, headings, pages, .. } = self;
        Ok(Extracted { format, encoding: None, title, text, markup: Markup::Markdown, headings, pages })
    }

    /// Whether it is longer than a document may be, so that a reader may stop early.
    pub fn is_too_long(&self) -> bool {
        check_length(&self.text).is_err()
    }

    fn block(&mut self, text: &str, item: bool) {
        let text = text.trim_end();
        if text.trim().is_empty() {
            return;
        }
        if !self.text.is_empty() {
            self.text.push_str(if item && self.in_list { "\n" } else { "\n\n" });
        }
        if std::mem::take(&mut self.new_page) {
            self.pages.push(self.text.len());
        }
        self.text.push_str(text);
        self.in_list = item;
    }
}

/// One line of words.
fn clean(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "¦")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_and_pages_keep_their_places() {
        let mut draft = Draft::default();
        draft.page();
        draft.heading(1, "One");
        draft.paragraph("a");
        draft.page();
        draft.page();
        draft.item(0, "-", "b");
        draft.item(1, "-", "c");
        draft.heading(2, " Two\n three ");
        draft.table(&[vec!["h".into(), "i|".into()], vec!["1".into()], vec![" ".into()]]);
        let found = draft.finish(Format::Html, Some(" A\ntitle ".into())).unwrap();
        assert_eq!(
            found.text,
            "# One\n\na\n\n- b\n  - c\n\n## Two three\n\n| h | i¦ |\n| --- | --- |\n| 1 |  |"
        );
        for heading in &found.headings {
            assert!(
                found.text[heading.start..]
                    .trim_start_matches('#')
                    .starts_with(&format!(" {}", heading.title))
            );
            assert!(found.text[heading.start..].starts_with('#'));
        }
        let place = |text: &str| found.text.find(text).unwrap();
        assert_eq!(
            (found.page(0), found.page(place("a\n")), found.page(place("- b"))),
            (Some(1), Some(1), Some(3))
        );
        assert_eq!(found.heading_path(place("| 1")), ["One", "Two three"]);
        assert_eq!(found.title.as_deref(), Some("A title"));
    }

    #[test]
    fn levels_and_titles_of_headings_are_bounded_and_the_text_is_whole() {
        let mut draft = Draft::default();
        let long = "ä ".repeat(1000);
        for level in [0, 9, usize::MAX] {
            draft.heading(level, &long);
        }
        let found = draft.finish(Format::Docx, Some(long.clone())).unwrap();
        assert_eq!(found.headings.iter().map(|heading| heading.level).collect::<Vec<_>>(), [1, 9, 9]);
        for heading in &found.headings {
            assert!(long.starts_with(&heading.title) && (190..=200).contains(&heading.title.len()));
            assert!(found.text[heading.start..].trim_start_matches('#').starts_with(" ä ä"));
        }
        assert!(found.title.is_some_and(|title| title.len() <= 200));
        assert_eq!(found.text.matches('ä').count(), 3000);
    }

    #[test]
    fn a_wide_table_is_filled_up_so_far_and_a_long_one_is_refused_before_it_is_made() {
        let cells = |count: usize| vec!["a".to_owned(); count];
        let mut draft = Draft::default();
        draft.table(&[cells(1), cells(COLUMNS + 5)]);
        let found = draft.finish(Format::Html, None).unwrap();
        let columns: Vec<usize> = found.text.lines().map(|line| line.matches('|').count() - 1).collect();
        assert_eq!(columns, [COLUMNS, COLUMNS, COLUMNS + 5]);
        let mut rows = vec![cells(COLUMNS)];
        rows.resize(20_000, cells(1));
        let mut draft = Draft::default();
        draft.table(&rows);
        assert!(draft.text.len() < TEXT_LIMIT + (1 << 20), "{} bytes", draft.text.len());
        assert!(matches!(draft.finish(Format::Html, None), Err(ReadError::TooLarge { .. })));
    }
}
