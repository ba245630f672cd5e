//! Cutting a document into chunks of so many tokens, with their places in the original.

use super::request::Format;
use text_splitter::{ChunkConfig, ChunkSizer, MarkdownSplitter, TextSplitter};
use tokenizers::Tokenizer;

/// A part of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First byte in the original.
    pub start: usize,
    /// Byte after the last.
    pub end: usize,
    /// Headings above it, the outermost first.
    pub headings: Vec<String>,
}

/// Counts tokens without those that the tokenizer puts around a text.
struct Tokens<'a>(&'a Tokenizer);

impl ChunkSizer for Tokens<'_> {
    fn size(&self, chunk: &str) -> usize {
        count(self.0, chunk)
    }
}

/// Tokens of a text, special tokens not counted. A text that the tokenizer can't take counts as its bytes, the most that
/// it could be.
pub fn count(tokenizer: &Tokenizer, text: &str) -> usize {
    tokenizer.encode_fast(text, false).map_or(text.len(), |encoding| encoding.len())
}

/// Cuts a text at the best places that keep every chunk within `most` tokens.
///
/// # Errors
/// When `overlap` is not smaller than `most`.
pub fn split(
    tokenizer: &Tokenizer,
    text: &str,
    format: Format,
    most: usize,
    overlap: usize,
) -> Result<Vec<Chunk>, String> {
    let config = ChunkConfig::new(most)
        .with_overlap(overlap)
        .map_err(|error| format!("chunks of {most} tokens with an overlap of {overlap}: {error}"))?
        .with_sizer(Tokens(tokenizer));
    let parts: Vec<(usize, &str)> = match format {
        Format::Text => TextSplitter::new(config).chunk_indices(text).collect(),
        Format::Markdown => MarkdownSplitter::new(config).chunk_indices(text).collect(),
    };
    let headings = if format == Format::Markdown { headings(text) } else { Vec::new() };
    let chunks = parts.into_iter().map(|(start, part)| Chunk {
        start,
        end: start + part.len(),
        headings: above(&headings, start),
    });
    Ok(chunks.collect())
}

/// A heading: where it starts, how deep it is, what it says.
type Heading = (usize, usize, String);

/// The ATX headings of a Markdown text, outside fenced code.
fn headings(text: &str) -> Vec<Heading> {
    let mut found = Vec::new();
    let mut fence: Option<&str> = None;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        let mark = ["```", "~~~"].into_iter().find(|mark| trimmed.starts_with(mark));
        match (fence, mark) {
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            (None, None) => {
                let depth = trimmed.len() - trimmed.trim_start_matches('#').len();
                if (1..=6).contains(&depth) && trimmed[depth..].starts_with(' ') {
                    found.push((
                        start,
                        depth,
                        trimmed[depth..].trim().trim_end_matches('#').trim_end().to_owned(),
                    ));
                }
            }
            _ => {}
        }
        start += line.len();
    }
    found
}

/// The headings under which a place stands, including one that starts there.
fn above(headings: &[Heading], place: usize) -> Vec<String> {
    let mut path: Vec<(usize, &str)> = Vec::new();
    for (_, depth, title) in headings.iter().take_while(|(start, _, _)| *start <= place) {
        path.retain(|(above, _)| above < depth);
        path.push((*depth, title));
    }
    path.into_iter().map(|(_, title)| title.to_owned()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tokenizers::models::wordlevel::WordLevel;
    use tokenizers::pre_tokenizers::whitespace::Whitespace;

    /// A tokenizer for which a word or a mark is a token.
    pub(crate) fn words() -> Tokenizer {
        let vocabulary = [("[UNK]".to_owned(), 0)].into_iter().collect();
        let model = WordLevel::builder().vocab(vocabulary).unk_token("[UNK]".into()).build().unwrap();
        let mut tokenizer = Tokenizer::new(model);
        tokenizer.with_pre_tokenizer(Some(Whitespace {}));
        tokenizer
    }

    #[test]
    fn chunks_point_into_the_original_and_stay_within_their_tokens() {
        let tokenizer = words();
        let text = "# Straße\n\nEins zwei drei. Vier fünf sechs.\n\n## Tief\n\n```\n# no heading\n```\n\nSieben acht neun zehn.\n\n# Ende\n\nElf.\n";
        for (format, most) in [(Format::Text, 6), (Format::Markdown, 6), (Format::Markdown, 12)] {
            let chunks = split(&tokenizer, text, format, most, 0).unwrap();
            assert!(chunks.len() > 2);
            for chunk in &chunks {
                assert!(count(&tokenizer, &text[chunk.start..chunk.end]) <= most, "{chunk:?}");
            }
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let joined: Vec<String> =
                chunks.iter().flat_map(|chunk| words(&text[chunk.start..chunk.end])).collect();
            assert_eq!(joined, words(text), "nothing is lost, nothing is twice");
        }
    }

    #[test]
    fn the_heading_path_of_a_place_is_what_stands_above_it() {
        let text = "intro\n# A\na\n## B\nb\n```\n# code\n```\n## C #\nc\n# D\nd\n";
        let headings = headings(text);
        for (place, path) in [
            ("intro", vec![]),
            ("a\n", vec!["A"]),
            ("b\n", vec!["A", "B"]),
            ("c\n#", vec!["A", "C"]),
            ("d\n", vec!["D"]),
        ] {
            assert_eq!(
                above(&headings, text.find(&format!("\n{place}")).map_or(0, |found| found + 1)),
                path,
                "{place:?}"
            );
        }
    }

    #[test]
    fn overlapping_chunks_share_tokens_and_a_wrong_overlap_is_refused() {
        let tokenizer = words();
        let text = "a b c d e f g h i j k l";
        let chunks = split(&tokenizer, text, Format::Text, 4, 2).unwrap();
        assert!(chunks.windows(2).all(|pair| pair[1].start < pair[0].end), "{chunks:?}");
        assert!(split(&tokenizer, text, Format::Text, 4, 4).is_err());
        assert!(split(&tokenizer, "", Format::Text, 4, 0).unwrap().is_empty());
    }
}
