//! What holds of every chunker and every text.

use super::*;
use crate::format::{CodeLanguage, Format};
use proptest::prelude::*;
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

/// A text that is marked so.
pub(crate) fn document(text: &str, markup: Markup) -> Extracted {
    let headings = match markup {
        Markup::Markdown => crate::format::read(text.as_bytes(), Some(Format::Markdown))
            .ok()
            .and_then(|mut records| records.remove(0).ok())
            .map(|record| record.content.headings)
            .unwrap_or_default(),
        _ => Vec::new(),
    };
    Extracted { markup, headings, ..Extracted::plain(text.to_owned()) }
}

const CHUNKERS: [(Chunker, Markup); 5] = [
    (Chunker::Recursive, Markup::Plain),
    (Chunker::Markdown, Markup::Markdown),
    (Chunker::Code, Markup::Code(CodeLanguage::Python)),
    (Chunker::Semantic, Markup::Plain),
    (Chunker::Fixed, Markup::Plain),
];

/// Cuts as the pipeline does, with vectors that depend on the length of the units.
fn cut(tokenizer: &Tokenizer, document: &Extracted, cut: Cut) -> Vec<Chunk> {
    if cut.chunker != Chunker::Semantic {
        return split(tokenizer, document, cut).unwrap();
    }
    let units = semantic::units(tokenizer, &document.text, cut.most);
    let mut neighbors = semantic::Neighbors::default();
    for (range, _) in &units {
        neighbors.add(if range.len() % 3 == 0 { vec![1.0, 0.0] } else { vec![0.0, 1.0] });
    }
    let fits = |part: Range<usize>| count(tokenizer, &document.text[part]) <= cut.most;
    Chunk::all(document, semantic::group(&units, &neighbors, cut.most, fits))
}

/// Checks what holds of all chunks of a text.
fn check(text: &str, most: usize, overlap: usize) -> Result<(), TestCaseError> {
    let tokenizer = words();
    for (chunker, markup) in CHUNKERS {
        let document = document(text, markup);
        let how = Cut { chunker, most, overlap };
        let chunks = cut(&tokenizer, &document, how);
        let mut covered = vec![false; text.len()];
        for pair in chunks.windows(2) {
            prop_assert!(
                pair[0].start < pair[1].start && pair[0].end <= pair[1].end,
                "{chunker:?}: {pair:?}"
            );
            prop_assert!(overlap > 0 || pair[0].end <= pair[1].start, "{chunker:?}: {pair:?} share text");
        }
        for chunk in &chunks {
            let part = text.get(chunk.start..chunk.end);
            prop_assert!(part.is_some_and(|part| !part.trim().is_empty()), "{chunker:?}: {chunk:?}");
            let tokens = count(&tokenizer, part.unwrap_or_default());
            prop_assert!(tokens <= most, "{chunker:?}: {tokens} tokens in {chunk:?}");
            covered[chunk.start..chunk.end].fill(true);
        }
        let lost = text.char_indices().find(|(place, letter)| !letter.is_whitespace() && !covered[*place]);
        prop_assert!(lost.is_none(), "{chunker:?} lost {lost:?}");
        prop_assert_eq!(cut(&tokenizer, &document, how), chunks, "{:?} is not deterministic", chunker);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn chunks_hold_everything_within_their_tokens(
        blocks in prop::collection::vec(
            prop_oneof![
                "[a-zäß日]{1,9}( [a-z,]{1,7}){0,30}[.!?]",
                "#{1,3} [A-Z][a-z]{0,8}",
                "(- [a-z]{1,5}\n){1,4}",
                "```\n[a-z (){};\n]{0,60}\n```",
                "def [a-z]{1,5}\\(x\\):\n    return x",
                "\\| [a-z]{1,4} \\| [a-z]{1,4} \\|\n\\| --- \\| --- \\|\n(\\| [a-z]{1,4} \\| [0-9]{1,3} \\|\n){1,6}",
                "\\PC{0,40}",
            ],
            0..12,
        ),
        most in 4_usize..40,
        share in 0_usize..3,
    ) {
        check(&blocks.join("\n\n"), most, most * share / 4)?;
    }
}

#[test]
fn markdown_is_cut_at_its_headings_and_code_at_its_definitions() {
    let tokenizer = words();
    let parts = |text: &str, chunker, markup, most| -> Vec<String> {
        let document = document(text, markup);
        let chunks = split(&tokenizer, &document, Cut { chunker, most, overlap: 0 }).unwrap();
        chunks.iter().map(|chunk| text[chunk.start..chunk.end].to_owned()).collect()
    };
    let markdown = "# One\n\na b c d\n\n# Two\n\ne f g h\n";
    assert_eq!(parts(markdown, Chunker::Auto, Markup::Markdown, 8), ["# One\n\na b c d", "# Two\n\ne f g h"]);
    let code = "def one(a):\n    return a\n\ndef two(b):\n    return b\n";
    assert_eq!(
        parts(code, Chunker::Auto, Markup::Code(CodeLanguage::Python), 9),
        ["def one(a):\n    return a", "def two(b):\n    return b"]
    );
}

#[test]
fn fixed_windows_share_their_tokens() {
    let text = "a b c d e f g h i";
    let document = document(text, Markup::Plain);
    let cut = |most, overlap| {
        let chunks = split(&words(), &document, Cut { chunker: Chunker::Fixed, most, overlap }).unwrap();
        chunks.iter().map(|chunk| &text[chunk.start..chunk.end]).collect::<Vec<_>>()
    };
    assert_eq!(cut(4, 0), ["a b c d", "e f g h", "i"]);
    assert_eq!(cut(4, 2), ["a b c d", "c d e f", "e f g h", "g h i"]);
    assert!(split(&words(), &document, Cut { chunker: Chunker::Fixed, most: 4, overlap: 4 }).is_err());
}
