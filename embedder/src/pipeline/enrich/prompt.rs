//! The words that are sent to an LLM, and what is made of its answer.
//!
//! The recipe is contextual retrieval (Anthropic, 2024): the model reads the document, then one chunk, and says in a
//! sentence where the chunk stands. The document comes first, so that the beginning of the prompt is the same, byte for
//! byte, for all chunks of a document, and the server reads it once.

use super::super::document::Document;
use std::ops::Range;

/// What the model is told to do, unless configured otherwise.
pub const INSTRUCTION: &str = "In one short sentence, say what this passage is about and name the subject of the document, \
                               so that a search finds the passage. Answer with this sentence alone.";
/// Longest title that is sent, in bytes.
const TITLE: usize = 300;
/// The context window for which the sizes of [`Room`] are given, in tokens.
const WINDOW: usize = 4096;

/// How much of a document is sent beside the chunk; all in bytes.
///
/// Of a document longer than `whole`, its outline, its beginning and the section around the chunk are sent. All chunks of a
/// section share the whole prompt before themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    whole: usize,
    /// Outline and beginning together.
    head: usize,
    /// Most of a section.
    section: usize,
    /// What is sent before and after a chunk's section.
    margin: usize,
}

impl Room {
    /// For languages with about four bytes a token, in a context window of so many tokens.
    pub fn usual(window: usize) -> Self {
        Self { whole: 11_000, head: 3_000, section: 5_000, margin: 800 }.scaled(window)
    }

    /// Where that was too much: fits even if every byte is a token.
    pub fn narrow(window: usize) -> Self {
        Self { whole: 2_000, head: 500, section: 900, margin: 200 }.scaled(window)
    }

    fn scaled(self, window: usize) -> Self {
        let scale = |bytes: usize| bytes * window / WINDOW;
        let Self { whole, head, section, margin } = self;
        Self { whole: scale(whole), head: scale(head), section: scale(section), margin: scale(margin) }
    }
}

/// The prompt for the chunk at `start..end` of a document.
pub fn prompt(
    document: &Document,
    Range { start, end }: Range<usize>,
    room: Room,
    instruction: &str,
) -> String {
    let title = document
        .title
        .as_deref()
        .map(|title| format!("Title: {}\n\n", up_to(title, TITLE)))
        .unwrap_or_default();
    format!(
        "Document:\n{title}{}\n\nEnd of the document.\n\nPassage of this document:\n{}\n\nEnd of the passage.\n\n{instruction}",
        shown(document, start, room),
        &document.text()[start..end]
    )
}

/// What is sent of a document for a chunk that starts at `start`.
fn shown(document: &Document, start: usize, room: Room) -> String {
    let text = document.text();
    if text.len() <= room.whole {
        return text.to_owned();
    }
    let outline = outline(document, room.head * 2 / 3);
    let head = up_to(text, room.head - outline.len());
    let section = section(document, start, room.section);
    let from = text.floor_char_boundary(section.start.saturating_sub(room.margin));
    let to = text.ceil_char_boundary(section.end.saturating_add(room.margin).min(text.len()));
    let body = match from <= head.len() {
        true => text[..to].to_owned(),
        false => format!("{head}\n[…]\n{}", &text[from..to]),
    };
    let more = if to < text.len() { "\n[…]" } else { "" };
    format!("{outline}{body}{more}")
}

/// The headings of a document, with as many levels as fit.
fn outline(document: &Document, most: usize) -> String {
    let headings = &document.content.headings;
    let deepest = headings.iter().map(|heading| heading.level).max().unwrap_or(0);
    let with = |levels: usize| -> String {
        let lines = headings.iter().filter(|heading| heading.level <= levels);
        lines
            .map(|heading| format!("{}- {}\n", "  ".repeat(heading.level - 1), up_to(&heading.title, 100)))
            .collect()
    };
    let fitting = (1..=deepest).rev().map(with).find(|outline| outline.len() + 20 <= most);
    fitting
        .filter(|outline| !outline.is_empty())
        .map(|outline| format!("Outline:\n{outline}\n"))
        .unwrap_or_default()
}

/// The section of a place: what stands between two headings, or several of those, at most `most` bytes long.
fn section(document: &Document, place: usize, most: usize) -> Range<usize> {
    let text = document.text();
    let starts = document.content.headings.iter().map(|heading| heading.start);
    let bounds: Vec<usize> = starts.filter(|start| *start > 0).chain([text.len()]).collect();
    let mut start = 0;
    // The end of what fits so far.
    let mut end = 0;
    for bound in bounds {
        if bound - start > most && end > start {
            if place < end {
                return start..end;
            }
            start = end;
        }
        // One part alone is too large: it is cut between paragraphs.
        while bound - start > most {
            let cut = cut(text, start, most);
            if place < cut {
                return start..cut;
            }
            start = cut;
        }
        end = bound;
    }
    start..text.len()
}

/// Where a part that starts at `start` and is too large ends: at the last empty line in its second half, or where it must.
fn cut(text: &str, start: usize, most: usize) -> usize {
    let limit = text.floor_char_boundary(start + most).max(text.ceil_char_boundary(start + 1));
    let half = text.floor_char_boundary(start + most / 2).max(start);
    text[half..limit].rfind("\n\n").map_or(limit, |found| half + found + 2)
}

/// The beginning of a text, cut between two characters.
fn up_to(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// The context in an answer: one line, without quotes, and without a last sentence that was cut off.
pub fn context(answer: &str, cut_off: bool) -> Option<String> {
    let line = answer.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut line = line.trim_matches(|c| matches!(c, '"' | '“' | '”' | '\'' | '`')).trim();
    if cut_off && let Some(end) = line.rfind(['.', '!', '?']) {
        line = &line[..=end];
    }
    (!line.is_empty()).then(|| line.to_owned())
}

/// How many bytes two prompts have in common at their beginning.
pub fn shared(one: &str, two: &str) -> usize {
    one.bytes().zip(two.bytes()).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Extracted, Format, read};

    const USUAL: fn() -> Room = || Room::usual(WINDOW);
    const NARROW: fn() -> Room = || Room::narrow(WINDOW);

    fn document(text: String) -> Document {
        Document { id: "d".into(), title: None, content: Extracted::plain(text), metadata: None }
    }

    /// A book of 40 chapters with two parts each.
    fn book() -> Document {
        let chapter = |number: usize| {
            let part = |part: &str| {
                format!("## Part {part} of {number}\n\n{}\n\n", format!("word{number}{part} ").repeat(60))
            };
            format!("# Chapter {number}\n\n{}{}", part("a"), part("b"))
        };
        let text: String = (0..40).map(chapter).collect();
        let content = read(text.as_bytes(), Some(Format::Markdown)).unwrap().remove(0).unwrap().content;
        Document { id: "b".into(), title: Some("The book".into()), content, metadata: None }
    }

    fn ask(document: &Document, start: usize, room: Room) -> String {
        prompt(document, start..document.text().ceil_char_boundary(start + 10), room, INSTRUCTION)
    }

    #[test]
    fn all_chunks_of_a_document_share_the_beginning_of_their_prompts() {
        let document = document("Vasa sank. ".repeat(50));
        let (one, two) = (ask(&document, 0, USUAL()), ask(&document, 11, USUAL()));
        assert!(shared(&one, &two) > document.text().len());
    }

    #[test]
    fn a_long_document_is_sent_as_its_outline_and_the_section_of_the_chunk() {
        let book = book();
        let place = |words: &str| book.text().find(words).unwrap();
        let (one, two) = (ask(&book, place("word20a"), USUAL()), ask(&book, place("word20b"), USUAL()));
        let passage = one.find("Passage of this document").unwrap();
        assert!(shared(&one, &two) > passage, "chunks of a section share all that stands before the passage");
        assert!(
            one.contains("Outline:\n- Chapter 0\n")
                && one.contains("- Chapter 39\n")
                && one.contains("Title: The book")
        );
        assert!(one.contains("word20a") && !one.contains("word10a") && !one.contains("word30a"), "{one}");
    }

    #[test]
    fn every_place_has_a_section_that_holds_it_and_fits() {
        let plain =
            document((0..5000).map(|n| format!("ä{n} {}", if n % 40 == 0 { "\n\n" } else { "" })).collect());
        for (document, room, most) in [
            (&plain, USUAL(), 11_000),
            (&plain, NARROW(), 2_600),
            (&book(), USUAL(), 11_000),
            (&book(), NARROW(), 2_600),
        ] {
            let mut sections = std::collections::BTreeSet::new();
            for place in (0..document.text().len()).step_by(97) {
                let start = document.text().floor_char_boundary(place);
                let section = section(document, start, room.section);
                assert!(section.contains(&start) && section.len() <= room.section, "{start}: {section:?}");
                sections.insert((section.start, section.end));
                let prompt = ask(document, start, room);
                assert!(prompt.len() < most, "{} bytes at {place}", prompt.len());
                let chunk = &document.text()[start..document.text().ceil_char_boundary(start + 10)];
                assert!(prompt.matches(chunk).count() >= 2, "{place}: {prompt}");
            }
            let sections: Vec<_> = sections.into_iter().collect();
            assert!(sections.windows(2).all(|pair| pair[0].1 == pair[1].0), "sections lie side by side");
        }
    }

    #[test]
    fn an_answer_becomes_one_clean_line() {
        for (answer, cut_off, context_of) in [
            (" \"The ship\n sank.\" ", false, Some("The ship sank.")),
            ("The ship sank. It was to", true, Some("The ship sank.")),
            ("The ship sank and", true, Some("The ship sank and")),
            ("  \n", false, None),
        ] {
            assert_eq!(context(answer, cut_off).as_deref(), context_of, "{answer:?}");
        }
    }
}
