//! Documents as they come, read into text with its structure: which format some bytes are, and what they say.
//!
//! The format is told by the content, never by a name. Plain text, Markdown and source code stay what they are; HTML, PDF, DOCX
//! and tables become text with Markdown's marks, so that one chunker serves all. What can't be read says why.

mod code;
mod decode;
mod detect;
mod docx;
mod draft;
mod html;
mod jsonl;
mod markdown;
mod pdf;
mod reader;
mod table;
#[cfg(test)]
mod tests;

pub use code::CodeLanguage;
pub use reader::{RESERVE, Reader, serve_one};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most text that one document may hold, in bytes.
const TEXT_LIMIT: usize = 32 << 20;
/// Longest title of a heading or of a document by itself, in bytes: each chunk below repeats it.
const TITLE: usize = 200;

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Plain text.
    Text,
    /// CommonMark with tables.
    Markdown,
    /// HTML or XHTML.
    Html,
    /// PDF with text in it.
    Pdf,
    /// Office Open XML of word processors.
    Docx,
    /// Source code of a program.
    Code,
    /// A JSON object a line; each is a document of its own.
    Jsonl,
    /// Values divided by commas, semicolons, tabs or bars, with a header.
    Csv,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Text, Self::Markdown, Self::Html, Self::Pdf, Self::Docx, Self::Code, Self::Jsonl, Self::Csv];

    /// Its name in requests and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Markdown => "markdown",
            Self::Html => "html",
            Self::Pdf => "pdf",
            Self::Docx => "docx",
            Self::Code => "code",
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
        }
    }

    /// The format of a name.
    ///
    /// # Errors
    /// A sentence that lists the names there are.
    pub fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|format| format.name() == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.into_iter().map(Self::name).collect();
            format!("it can be {}, or left out: the content tells", names.join(", "))
        })
    }
}

/// The marks by which a text can be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Markup {
    /// None but paragraphs and sentences.
    Plain,
    /// Markdown's.
    Markdown,
    /// A programming language's.
    Code(CodeLanguage),
}

/// A document that has been read. All places are bytes of `text`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extracted {
    /// What it was.
    pub format: Format,
    /// How its bytes became characters, where they were characters.
    pub encoding: Option<String>,
    /// The title that it gives itself.
    pub title: Option<String>,
    /// All that it says.
    pub text: String,
    /// How `text` is marked.
    pub markup: Markup,
    /// Its headings or, in source code, its definitions, in their order.
    pub headings: Vec<Heading>,
    /// Where each page starts; none where the format has no pages.
    pub pages: Vec<usize>,
}

/// A heading and the part of the text under it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heading {
    /// Its first byte.
    pub start: usize,
    /// Where what belongs to it ends at the latest; a heading of its level or above ends it earlier.
    pub end: usize,
    /// 1 is the outermost.
    pub level: usize,
    /// What it says, or the beginning of it.
    pub title: String,
}

/// The headings above one place after another, for all places in one pass.
#[derive(Clone, Debug)]
pub struct HeadingPaths<'a> {
    /// Those that start later.
    later: &'a [Heading],
    /// Those above the last place, the outermost first.
    above: Vec<&'a Heading>,
}

impl HeadingPaths<'_> {
    /// The headings above a place, the outermost first; one that starts there is among them. Places come in their order.
    pub fn at(&mut self, place: usize) -> Vec<String> {
        while let Some((heading, later)) = self.later.split_first()
            && heading.start <= place
        {
            self.above.retain(|above| above.level < heading.level);
            self.above.push(heading);
            self.later = later;
        }
        let above = self.above.iter().filter(|heading| place < heading.end);
        above.map(|heading| heading.title.clone()).collect()
    }
}

impl Extracted {
    /// A plain text, which needs no reading.
    pub fn plain(text: String) -> Self {
        Self {
            format: Format::Text,
            encoding: None,
            title: None,
            text,
            markup: Markup::Plain,
            headings: Vec::new(),
            pages: Vec::new(),
        }
    }

    /// The headings above a place, the outermost first; one that starts there is among them.
    pub fn heading_path(&self, place: usize) -> Vec<String> {
        self.heading_paths().at(place)
    }

    /// The headings above places that are asked for in their order.
    pub fn heading_paths(&self) -> HeadingPaths<'_> {
        HeadingPaths { later: &self.headings, above: Vec::new() }
    }

    /// The page of a place, from 1.
    pub fn page(&self, place: usize) -> Option<usize> {
        match self.pages.partition_point(|start| *start <= place) {
            0 => None,
            page => Some(page),
        }
    }
}

/// One document out of some bytes. Only JSONL holds several.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its own id, where it is one of several.
    pub id: Option<String>,
    /// Its content.
    pub content: Extracted,
    /// Its other fields.
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

impl From<Extracted> for Record {
    fn from(content: Extracted) -> Self {
        Self { id: None, content, metadata: serde_json::Map::new() }
    }
}

/// Why a document can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ReadError {
    /// Nothing that is known.
    #[error("it is {found}: text, Markdown, HTML, PDF, DOCX, source code, JSONL and CSV can be read")]
    Unsupported {
        /// What it looks like.
        found: String,
    },
    /// Nothing in it.
    #[error("the document holds no text{hint}")]
    Empty {
        /// What may be done about it.
        hint: String,
    },
    /// It needs a password.
    #[error("the {} is encrypted: save it without a password", format.name().to_uppercase())]
    Encrypted {
        /// As what it was read.
        format: Format,
    },
    /// Larger than what is read.
    #[error("{what} is larger than {} MiB", limit >> 20)]
    TooLarge {
        /// What is.
        what: String,
        /// In bytes.
        limit: u64,
    },
    /// Not what its beginning promises.
    #[error("reading it as {}: {message}", format.name())]
    Malformed {
        /// As what it was read.
        format: Format,
        /// What is wrong.
        message: String,
    },
}

/// Reads some bytes in this process: as `format`, or as what they are.
///
/// # Errors
/// Why they can't be read.
pub fn read(bytes: &[u8], format: Option<Format>) -> Result<Vec<Result<Record, ReadError>>, ReadError> {
    let format = match format {
        Some(format) => format,
        None => detect::detect(bytes)?,
    };
    let one = |extracted: Extracted| Ok(vec![Ok(extracted.into())]);
    match format {
        Format::Pdf => one(pdf::read(bytes)?),
        Format::Docx => one(docx::read(bytes)?),
        Format::Text | Format::Markdown | Format::Html | Format::Code | Format::Jsonl | Format::Csv => {
            let decoded = decode::decode(bytes)?;
            let encoding = decoded.encoding.map(ToOwned::to_owned);
            let text = decoded.text;
            let mut extracted = match format {
                Format::Markdown => markdown::read(text),
                Format::Html => html::read(&text)?,
                Format::Code => code::read(text),
                Format::Csv => table::read(&text)?,
                Format::Jsonl => return jsonl::read(&text),
                Format::Text | Format::Pdf | Format::Docx => Extracted::plain(text),
            };
            extracted.encoding = encoding;
            if extracted.text.trim().is_empty() {
                return Err(ReadError::Empty { hint: String::new() });
            }
            one(extracted)
        }
    }
}

/// A title, or its beginning where it is too long to be one.
fn cut_title(title: String) -> String {
    match title.len() > TITLE {
        // A copy: what is cut off takes no memory.
        true => title[..title.floor_char_boundary(TITLE)].trim_end().to_owned(),
        false => title,
    }
}

/// Holds a text to its limit.
fn check_length(text: &str) -> Result<(), ReadError> {
    match text.len() > TEXT_LIMIT {
        true => Err(ReadError::TooLarge { what: "its text".to_owned(), limit: TEXT_LIMIT as u64 }),
        false => Ok(()),
    }
}
