//! The words that are sent to an LLM, and what is made of its answer.
//!
//! The recipe is contextual retrieval (Anthropic, 2024): the model reads the document, then one chunk, and says in a
//! sentence where the chunk stands. The document comes first, so that the beginning of the prompt is the same, byte for
//! byte, for all chunks of a document, and the server reads it once.

use super::super::request::Document;

/// Longest document that is sent whole, in bytes; about 2,700 tokens of English. A longer one is cut to its beginning and
/// what surrounds the chunk, so that it fits into a context window of 4,096 tokens together with the chunk and the answer.
const WHOLE: usize = 11_000;
/// How much of a long document's beginning is sent, in bytes: title, author, what it is about.
const HEAD: usize = 3_000;
/// How much before and after the chunk is sent of a long document, in bytes.
const AROUND: usize = 3_000;

/// The prompt for the chunk at `start..end` of a document.
pub fn prompt(document: &Document, start: usize, end: usize) -> String {
    let text = &document.text;
    let title = document.title.as_deref().map(|title| format!("Title: {title}\n\n")).unwrap_or_default();
    let shown = if text.len() <= WHOLE {
        text.clone()
    } else {
        let head = &text[..floor(text, HEAD)];
        let around = &text[floor(text, start.saturating_sub(AROUND).max(head.len()))..floor(text, (end + AROUND).min(text.len()))];
        format!("{head}\n[…]\n{around}")
    };
    format!(
        "Document:\n{title}{shown}\n\nEnd of the document.\n\nPassage of this document:\n{}\n\nEnd of the passage.\n\n\
         In one short sentence, say what this passage is about and name the subject of the document, so that a search \
         finds the passage. Answer with this sentence alone.",
        &text[start..end]
    )
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

/// The last place at or before `place` that is between two characters.
fn floor(text: &str, place: usize) -> usize {
    (0..=place.min(text.len())).rev().find(|place| text.is_char_boundary(*place)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::request::Format;

    fn document(text: String) -> Document {
        Document { id: "d".into(), title: None, text, format: Format::Text, metadata: None }
    }

    #[test]
    fn all_chunks_of_a_document_share_the_beginning_of_their_prompts() {
        let document = document("Vasa sank. ".repeat(50));
        let (one, two) = (prompt(&document, 0, 10), prompt(&document, 11, 21));
        let shared = one.bytes().zip(two.bytes()).take_while(|(a, b)| a == b).count();
        assert!(shared > document.text.len(), "{shared}");
    }

    #[test]
    fn a_long_document_is_cut_to_its_head_and_what_surrounds_the_chunk() {
        let text = (0..5000).map(|n| format!("ä{n} ")).collect::<String>();
        let start = text.find("ä4000 ").unwrap();
        let prompt = prompt(&document(text.clone()), start, start + 8);
        assert!(prompt.len() < WHOLE + 1000, "{}", prompt.len());
        assert!(prompt.contains("ä0 ") && prompt.contains("ä3990 ") && prompt.contains("ä4010 ") && !prompt.contains("ä2500 "));
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
