//! HTML to text: what a reader of the page sees, with its headings, lists, tables and preformatted text.
//!
//! It reads tokens and builds no tree, so that neither depth nor broken nesting costs anything.

use super::draft::Draft;
use super::{Extracted, Format, ReadError};
use html5gum::{DefaultEmitter, Token, Tokenizer};

/// Elements whose content nobody reads.
const UNSEEN: [&str; 9] =
    ["script", "style", "template", "noscript", "svg", "math", "iframe", "select", "button"];
/// Elements that end a line of text.
const BLOCKS: [&str; 27] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "center",
    "details",
    "dd",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "header",
    "hr",
    "main",
    "nav",
    "ol",
    "p",
    "section",
    "summary",
    "ul",
    "legend",
    "caption",
];

/// What a page says.
///
/// # Errors
/// When it is longer than a document may be.
pub fn read(html: &str) -> Result<Extracted, ReadError> {
    let mut page = Page::new(true);
    page.read(html);
    if page.navigation > 0 {
        // A `nav` that never ends has swallowed the page.
        page = Page::new(false);
        page.read(html);
    }
    page.flush();
    page.draft.finish(Format::Html, Some(page.title))
}

struct Page {
    draft: Draft,
    title: String,
    in_title: bool,
    /// The unseen element that is open, and how often.
    unseen: Option<(String, usize)>,
    skips_navigation: bool,
    navigation: usize,
    /// The text of the block so far.
    inline: String,
    heading: Option<usize>,
    preformatted: usize,
    /// Open lists: the next number of each, where it has numbers.
    lists: Vec<Option<usize>>,
    /// Whether the block is the first of an item.
    item: bool,
    /// Open tables; those inside another are part of its cell.
    tables: usize,
    rows: Vec<Vec<String>>,
}

impl Page {
    fn new(skips_navigation: bool) -> Self {
        Self {
            draft: Draft::default(),
            title: String::new(),
            in_title: false,
            unseen: None,
            skips_navigation,
            navigation: 0,
            inline: String::new(),
            heading: None,
            preformatted: 0,
            lists: Vec::new(),
            item: false,
            tables: 0,
            rows: Vec::new(),
        }
    }

    fn read(&mut self, html: &str) {
        let mut emitter = DefaultEmitter::default();
        // What stands in a script is no markup.
        emitter.naively_switch_states(true);
        for Ok(token) in Tokenizer::new_with_emitter(html, emitter) {
            match token {
                Token::StartTag(tag) => {
                    let name = String::from_utf8_lossy(&tag.name).into_owned();
                    self.start(&name, tag.self_closing);
                }
                Token::EndTag(tag) => {
                    let name = String::from_utf8_lossy(&tag.name).into_owned();
                    self.end(&name);
                }
                Token::String(text) => self.text(&String::from_utf8_lossy(&text)),
                _ => {}
            }
            if self.draft.is_too_long() {
                return;
            }
        }
    }

    fn start(&mut self, name: &str, self_closing: bool) {
        match &mut self.unseen {
            Some((open, depth)) => {
                *depth += usize::from(open == name && !self_closing);
                return;
            }
            None if UNSEEN.contains(&name) && !self_closing => {
                self.unseen = Some((name.to_owned(), 1));
                return;
            }
            None => {}
        }
        if name == "nav" && self.skips_navigation {
            self.flush();
            self.navigation += 1;
        }
        if self.navigation > 0 {
            return;
        }
        match name {
            "title" => self.in_title = true,
            "br" => self.inline.push('\n'),
            "table" => {
                if self.tables == 0 {
                    self.flush();
                }
                self.tables += 1;
            }
            "tr" if self.tables == 1 => {
                self.end_cell();
                self.rows.push(Vec::new());
            }
            "td" | "th" if self.tables == 1 => self.end_cell(),
            _ if self.tables > 0 => self.inline.push(' '),
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => {
                self.flush();
                self.heading = name[1..].parse().ok();
            }
            "pre" | "textarea" => {
                self.flush();
                self.preformatted += 1;
            }
            "li" => {
                self.flush();
                self.item = true;
            }
            _ if BLOCKS.contains(&name) => {
                // A paragraph inside an item is still the item's text.
                if !self.item || !self.inline.trim().is_empty() {
                    self.flush();
                }
                match name {
                    "ul" => self.lists.push(None),
                    "ol" => self.lists.push(Some(1)),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, name: &str) {
        if let Some((open, depth)) = &mut self.unseen {
            if open == name {
                *depth -= 1;
                if *depth == 0 {
                    self.unseen = None;
                }
            }
            return;
        }
        if self.navigation > 0 {
            self.navigation -= usize::from(name == "nav");
            return;
        }
        match name {
            "title" => self.in_title = false,
            "table" if self.tables > 0 => {
                self.tables -= 1;
                if self.tables == 0 {
                    self.end_cell();
                    self.draft.table(&std::mem::take(&mut self.rows));
                    self.inline.clear();
                }
            }
            "td" | "th" | "tr" if self.tables == 1 => self.end_cell(),
            _ if self.tables > 0 => self.inline.push(' '),
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "li" => self.flush(),
            "pre" | "textarea" => {
                self.flush();
                self.preformatted = self.preformatted.saturating_sub(1);
            }
            _ if BLOCKS.contains(&name) => {
                self.flush();
                if matches!(name, "ul" | "ol") {
                    self.lists.pop();
                    self.item = false;
                }
            }
            _ => {}
        }
    }

    fn text(&mut self, text: &str) {
        if self.unseen.is_some() || self.navigation > 0 {
            return;
        }
        if self.in_title {
            self.title.push_str(text);
        } else if self.preformatted > 0 && self.tables == 0 {
            self.inline.push_str(text);
        } else {
            // Line breaks of the source are spaces; those of `br` are in the text already.
            self.inline.push_str(&text.replace(['\n', '\r', '\t'], " "));
        }
    }

    fn end_cell(&mut self) {
        let text = std::mem::take(&mut self.inline);
        if let Some(row) = self.rows.last_mut().filter(|_| !text.trim().is_empty()) {
            row.push(text);
        } else if !text.trim().is_empty() {
            self.rows.push(vec![text]);
        }
    }

    /// Ends the block.
    fn flush(&mut self) {
        let text = std::mem::take(&mut self.inline);
        let heading = self.heading.take();
        if text.trim().is_empty() {
            return;
        }
        if self.preformatted > 0 {
            return self.draft.code(&text);
        }
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        let text = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
        if let Some(level) = heading {
            self.draft.heading(level, &text);
        } else if std::mem::take(&mut self.item) && !self.lists.is_empty() {
            let depth = self.lists.len() - 1;
            let mark = match self.lists.last_mut() {
                Some(Some(number)) => {
                    *number += 1;
                    format!("{}.", *number - 1)
                }
                _ => "-".to_owned(),
            };
            self.draft.item(depth, &mark, &text);
        } else {
            self.draft.paragraph(&text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_becomes_what_its_reader_sees() {
        let html = "<!DOCTYPE html><html><head><title>The  Vasa &amp; more</title><style>p{}</style></head><body>\
            <nav><a href=/>Home</a></nav><script>if (a<b) document.write('<p>no</p>')</script>\
            <h1>Vasa</h1><p>A ship&nbsp;of <b>1628</b>,<br>sunk.</p>\
            <h2>Why\n it sank</h2><ul><li>too heavy<li><p>too narrow</p><ol><li>one</li><li>two</li></ol></li></ul>\
            <table><tr><th>Part</th><th>Tons</th></tr><tr><td>Hull<table><tr><td>oak</td></tr></table></td><td>1</td></tr></table>\
            <pre>a  b\n  c</pre><svg><text>no</text></svg>after</body></html>";
        let page = read(html).unwrap();
        assert_eq!(page.title.as_deref(), Some("The Vasa & more"));
        assert_eq!(
            page.text,
            "# Vasa\n\nA ship of 1628,\nsunk.\n\n## Why it sank\n\n- too heavy\n- too narrow\n  1. one\n  2. two\n\n\
             | Part | Tons |\n| --- | --- |\n| Hull oak | 1 |\n\n```\na  b\n  c\n```\n\nafter"
        );
        assert_eq!(page.heading_path(page.text.find("too heavy").unwrap()), ["Vasa", "Why it sank"]);
    }

    #[test]
    fn broken_and_hostile_pages_are_read_as_far_as_they_go() {
        for (html, text) in [
            ("<p>a<p>b</div></table></b>", "a\n\nb"),
            ("<nav><p>never closed", "never closed"),
            ("<h1>a<h2>b", "# a\n\n## b"),
            ("<td>a</td><li>b", "a\n\nb"),
            ("<", "<"),
        ] {
            assert_eq!(read(html).unwrap().text, text, "{html}");
        }
        let deep = format!(
            "{}x{}",
            "<div><table><tr><td>".repeat(200_000),
            "</td></tr></table></div>".repeat(200_000)
        );
        assert_eq!(read(&deep).unwrap().text, "x");
    }
}
