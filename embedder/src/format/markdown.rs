//! Markdown stays as it is; here its headings are found.

use super::{Extracted, Format, Heading, Markup, cut_title};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// A Markdown text with its headings; the first one of the first level is its title.
pub fn read(text: String) -> Extracted {
    let headings = headings(&text);
    let title = headings.first().filter(|heading| heading.level == 1).map(|heading| heading.title.clone());
    Extracted {
        format: Format::Markdown,
        encoding: None,
        title,
        text,
        markup: Markup::Markdown,
        headings,
        pages: Vec::new(),
    }
}

/// The headings of a Markdown text, in their order.
pub fn headings(text: &str) -> Vec<Heading> {
    let mut found = Vec::new();
    let mut open: Option<Heading> = None;
    for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
        match event {
            Event::Start(Tag::Heading { level, .. }) => {
                let level = level as usize;
                open = Some(Heading { start: range.start, end: usize::MAX, level, title: String::new() });
            }
            Event::End(TagEnd::Heading(_)) => {
                let heading = open.take().map(|mut heading| {
                    heading.title = cut_title(heading.title.split_whitespace().collect::<Vec<_>>().join(" "));
                    heading
                });
                found.extend(heading.filter(|heading| !heading.title.is_empty()));
            }
            Event::Text(part) | Event::Code(part) => {
                if let Some(heading) = &mut open {
                    heading.title.push_str(&part);
                }
            }
            Event::SoftBreak | Event::HardBreak => {
                if let Some(heading) = &mut open {
                    heading.title.push(' ');
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heading_path_of_a_place_is_what_stands_above_it() {
        let text = "intro\n# A\na\n## B `x`\nb\n```\n# code\n```\n## C #\nc\n\nD *d*\n===\nd\n";
        let document = read(text.to_owned());
        for (place, path) in [
            ("intro", vec![]),
            ("a\n", vec!["A"]),
            ("b\n", vec!["A", "B x"]),
            ("# code", vec!["A", "B x"]),
            ("c\n", vec!["A", "C"]),
            ("d\n", vec!["D d"]),
        ] {
            let at = text.find(&format!("\n{place}")).map_or(0, |found| found + 1);
            assert_eq!(document.heading_path(at), path, "{place:?}");
        }
    }

    #[test]
    fn a_heading_that_is_a_whole_text_has_its_beginning_as_its_title() {
        let title = "日本 ".repeat(1000);
        let document = read(format!("# {title}\n\na\n"));
        for cut in document.heading_path(document.text.len()).iter().chain(&document.title) {
            assert!(title.starts_with(cut.as_str()) && (190..=200).contains(&cut.len()), "{cut}");
        }
        assert_eq!((document.headings.len(), document.title.is_some()), (1, true));
    }
}
