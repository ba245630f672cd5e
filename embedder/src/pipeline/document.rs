//! A document on its way: as it came, as it was read, or why neither.

use crate::format::{Extracted, Format};
use bytes::Bytes;

/// A document as it came.
#[derive(Clone, Debug)]
pub struct Source {
    /// Id: the client's, or made from the content.
    pub id: String,
    /// Title, where the client gave one.
    pub title: Option<String>,
    /// All of it.
    pub bytes: Bytes,
    /// How it is written; absent where the content tells.
    pub format: Option<Format>,
    /// What the client wants back with every chunk.
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

/// A document that has been read.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its id.
    pub id: String,
    /// Its title: the client's, or its own.
    pub title: Option<String>,
    /// What it says.
    pub content: Extracted,
    /// What the client wants back with every chunk.
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Document {
    /// All of its text.
    pub fn text(&self) -> &str {
        &self.content.text
    }
}

/// Where a document comes from in its job. By these numbers it is known even where its id is wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Number of its source among those of the job, from 0.
    pub source: usize,
    /// How many documents that source holds; each of them ends, well or not.
    pub documents: usize,
}

/// A document that fails, while the others go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its id.
    pub id: String,
    /// Its title, where the client gave one.
    pub title: Option<String>,
    /// Why.
    pub error: String,
}
