//! The words that are sent to an LLM, and what is made of its answer.
//!
//! The recipe is contextual retrieval (Anthropic, 2024): the model reads the document, then one chunk, and says in a
//! sentence where the chunk stands. The document comes first, so that the beginning of the prompt is the same, byte for
//! byte, for all chunks of a document, and the server reads it once.

use super::super::request::Document;

/// Longest title that is sent, in bytes.
const TITLE: usize = 300;

/// How much of a document is sent beside the chunk; all in bytes.
///
/// A document longer than `whole` is cut to its beginning (title, author, what it is about) and a window around the
/// chunk. Windows lie on a grid, so that the chunks of one cell share the whole prompt before themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    whole: usize,
    head: usize,
    /// Cells of the grid.
    cell: usize,
    /// What is sent before and after a chunk's cell.
    margin: usize,
}

impl Room {
    /// For languages with about four bytes a token, in a context window of 4,096 tokens.
    pub const USUAL: Self = Self { whole: 11_000, head: 3_000, cell: 4_000, margin: 1_500 };
    /// Where that was too much: fits even if every byte is a token.
    pub const NARROW: Self = Self { whole: 2_000, head: 500, cell: 700, margin: 400 };
}

/// The prompt for the chunk at `start..end` of a document.
pub fn prompt(document: &Document, start: usize, end: usize, room: Room) -> String {
    let title = document
        .title
        .as_deref()
        .map(|title| format!("Title: {}\n\n", up_to(title, TITLE)))
        .unwrap_or_default();
    format!(
        "Document:\n{title}{}\n\nEnd of the document.\n\nPassage of this document:\n{}\n\nEnd of the passage.\n\n\
         In one short sentence, say what this passage is about and name the subject of the document, so that a search \
         finds the passage. Answer with this sentence alone.",
        shown(&document.text, start, room),
        &document.text[start..end]
    )
}

/// What is sent of a document for a chunk that starts at `start`.
fn shown(text: &str, start: usize, room: Room) -> String {
    if text.len() <= room.whole {
        return text.to_owned();
    }
    let cell = start / room.cell * room.cell;
    let from = text.floor_char_boundary(cell.saturating_sub(room.margin));
    let to = text.floor_char_boundary(cell + room.cell + room.margin);
    let head = up_to(text, room.head);
    if from <= head.len() { text[..to].to_owned() } else { format!("{head}\n[…]\n{}", &text[from..to]) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::request::Format;

    fn document(text: String) -> Document {
        Document { id: "d".into(), title: None, text, format: Format::Text, metadata: None }
    }

    fn shared_bytes(one: &str, two: &str) -> usize {
        one.bytes().zip(two.bytes()).take_while(|(a, b)| a == b).count()
    }

    #[test]
    fn all_chunks_of_a_document_share_the_beginning_of_their_prompts() {
        let document = document("Vasa sank. ".repeat(50));
        let (one, two) = (prompt(&document, 0, 10, Room::USUAL), prompt(&document, 11, 21, Room::USUAL));
        assert!(shared_bytes(&one, &two) > document.text.len());
    }

    #[test]
    fn neighbors_in_a_long_document_share_all_that_stands_before_the_passage() {
        let document = document((0..5000).map(|n| format!("ä{n} ")).collect());
        for room in [Room::USUAL, Room::NARROW] {
            let cell = 10 * room.cell;
            let places =
                [cell + 10, cell + room.cell / 2].map(|place| document.text.floor_char_boundary(place));
            let [one, two] = places.map(|start| prompt(&document, start, start, room));
            let passage = one.find("Passage of this document").unwrap();
            assert!(passage > room.cell && shared_bytes(&one, &two) > passage, "{room:?}");
        }
    }

    #[test]
    fn a_long_document_is_cut_to_its_head_and_what_surrounds_the_chunk() {
        let document = document((0..5000).map(|n| format!("ä{n} ")).collect());
        for (room, most) in [(Room::USUAL, 10_500), (Room::NARROW, 2_500)] {
            for place in [0, 1, 1499, 3000, 4000, 4100, 9000, document.text.len() - 10] {
                let start = document.text.floor_char_boundary(place);
                let chunk = &document.text[start..(start + 10).min(document.text.len())];
                let prompt = prompt(&document, start, start + chunk.len(), room);
                assert!(prompt.len() < most, "{} bytes at {place}", prompt.len());
                assert!(prompt.contains("ä0 ") && prompt.matches(chunk).count() >= 2, "{place}: {prompt}");
            }
        }
        let far = prompt(&document, document.text.len(), document.text.len(), Room::USUAL);
        assert!(far.contains("ä4999 ") && !far.contains("ä2500 "));
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
