//! Cutting a document into chunks of so many tokens, with their places in its text. No chunk is ever larger, all chunks together
//! hold all that the text says, and the same text is always cut in the same way.

mod fixed;
pub mod semantic;
#[cfg(test)]
pub(crate) mod tests;

use crate::format::{Extracted, Markup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use text_splitter::{ChunkConfig, ChunkSizer, CodeSplitter, MarkdownSplitter, TextSplitter};
use tokenizers::Tokenizer;

/// By what a text is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Chunker {
    /// By what the document is: `Markdown` where it has headings, lists or tables, `Code` for source code, else `Recursive`.
    #[default]
    Auto,
    /// At paragraphs, else lines, sentences, words.
    Recursive,
    /// At headings, blocks and items of Markdown, and of what is read as Markdown: HTML, DOCX and PDF.
    Markdown,
    /// At definitions and statements of source code; other text as `Recursive`.
    Code,
    /// Where neighboring sentences speak of different things, as the embedding model sees it.
    Semantic,
    /// Every so many tokens, between words.
    Fixed,
}

impl Chunker {
    /// Its name in requests and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Recursive => "recursive",
            Self::Markdown => "markdown",
            Self::Code => "code",
            Self::Semantic => "semantic",
            Self::Fixed => "fixed",
        }
    }

    /// Itself, or what `Auto` is for a document.
    pub fn for_document(self, document: &Extracted) -> Self {
        match (self, document.markup) {
            (Self::Auto, Markup::Markdown) => Self::Markdown,
            (Self::Auto, Markup::Code(_)) => Self::Code,
            (Self::Auto, Markup::Plain) => Self::Recursive,
            (chosen, _) => chosen,
        }
    }
}

/// How to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// By what.
    pub chunker: Chunker,
    /// Most tokens of a chunk, those that the tokenizer puts around a text not counted.
    pub most: usize,
    /// Tokens that neighboring chunks share.
    pub overlap: usize,
}

/// A part of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First byte in the document's text.
    pub start: usize,
    /// Byte after the last.
    pub end: usize,
    /// Headings above it, the outermost first.
    pub headings: Vec<String>,
    /// Its first and its last page, where the document has pages.
    pub pages: Option<(usize, usize)>,
}

impl Chunk {
    /// Parts of a document, in the order of their starts, with what the document knows of their places.
    pub fn all(document: &Extracted, parts: impl IntoIterator<Item = Range<usize>>) -> Vec<Self> {
        let mut headings = document.heading_paths();
        let chunk = |Range { start, end }: Range<usize>| {
            let pages = document.page(start).zip(document.page(end.saturating_sub(1).max(start)));
            Self { start, end, headings: headings.at(start), pages }
        };
        parts.into_iter().map(chunk).collect()
    }
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

/// Cuts a document at the best places that keep every chunk within its tokens. `Semantic` needs vectors, which
/// [`semantic`] asks for: here it is cut as `Recursive`.
///
/// # Errors
/// When the overlap is not smaller than a chunk.
pub fn split(tokenizer: &Tokenizer, document: &Extracted, cut: Cut) -> Result<Vec<Chunk>, String> {
    let Cut { chunker, most, overlap } = cut;
    let text = document.text.as_str();
    let config = ChunkConfig::new(most)
        .with_overlap(overlap)
        .map_err(|error| format!("chunks of {most} tokens with an overlap of {overlap}: {error}"))?
        .with_sizer(Tokens(tokenizer));
    let place = |(start, part): (usize, &str)| start..start + part.len();
    let parts: Vec<Range<usize>> = match (chunker.for_document(document), document.markup) {
        (Chunker::Fixed, _) => fixed::split(tokenizer, text, most, overlap),
        (Chunker::Markdown, _) => MarkdownSplitter::new(config).chunk_indices(text).map(place).collect(),
        (Chunker::Code, Markup::Code(language)) => CodeSplitter::new(language.grammar(), config)
            .map_err(|error| format!("the grammar of {}: {error}", language.name()))?
            .chunk_indices(text)
            .map(place)
            .collect(),
        _ => TextSplitter::new(config).chunk_indices(text).map(place).collect(),
    };
    Ok(Chunk::all(document, parts))
}
