//! Where finished chunks go beside the store: vector databases, chunk by chunk, and files, which are written whole.
//!
//! Either has each chunk once, however often a job was begun: databases by the chunk's id, files because a complete new
//! one takes the place of the one before it. Addresses that come with a secret are configuration; a job names only what
//! is its own, the collection, the table or the file.

mod files;
mod jsonl;
mod parquet;
mod postgres;
mod qdrant;

pub use files::Snapshot;
pub use postgres::Postgres;
pub use qdrant::Qdrant;

use crate::model::Similarity;
use crate::objects::{self, Objects};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Longest name of a table or a collection.
const LONGEST_NAME: usize = 63;

/// Where the chunks of a corpus go.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum SinkSpec {
    /// One file of JSON lines: a path in the volumes' folder, or `s3://bucket/key`.
    Jsonl {
        /// The file.
        path: String,
    },
    /// One Parquet file: a path in the volumes' folder, or `s3://bucket/key`.
    Parquet {
        /// The file.
        path: String,
    },
    /// A collection of a Qdrant server, made where it is missing.
    Qdrant {
        /// The collection.
        collection: String,
    },
    /// A table of a PostgreSQL database with pgvector, made where it is missing.
    Postgres {
        /// The table, with its schema or without.
        table: String,
    },
}

impl SinkSpec {
    /// Its name in messages and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Jsonl { .. } => "jsonl",
            Self::Parquet { .. } => "parquet",
            Self::Qdrant { .. } => "qdrant",
            Self::Postgres { .. } => "postgres",
        }
    }

    /// Whether it takes chunk by chunk; the others are written whole.
    pub fn takes_chunks(&self) -> bool {
        matches!(self, Self::Qdrant { .. } | Self::Postgres { .. })
    }

    /// What is wrong with it, with what would be right.
    pub fn check(&self) -> Result<(), String> {
        let name = |name: &str| {
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
            !name.is_empty() && name.len() <= LONGEST_NAME && name.chars().all(good)
        };
        match self {
            Self::Jsonl { path } | Self::Parquet { path } if path.is_empty() || path.ends_with('/') => {
                Err(format!("sink.path is {path:?}: it is the name of a file"))
            }
            Self::Jsonl { path } | Self::Parquet { path } => objects::check("sink.path", path),
            Self::Qdrant { collection } if !name(collection) => Err(format!(
                "sink.collection is {collection:?}: it can have up to {LONGEST_NAME} letters, digits, '_' and '-'"
            )),
            Self::Postgres { table } if table.split('.').count() > 2 || !table.split('.').all(name) => {
                Err(format!(
                    "sink.table is {table:?}: it is a name, or a schema and a name divided by a dot; each can have up to \
                     {LONGEST_NAME} letters, digits, '_' and '-'"
                ))
            }
            Self::Qdrant { .. } | Self::Postgres { .. } => Ok(()),
        }
    }
}

/// A chunk as a sink gets it.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Chunk {
    /// Its id: 32 hexadecimal digits, the same whenever the same text of the same document is processed in the same way.
    pub chunk_id: String,
    /// The corpus that it belongs to.
    pub corpus: String,
    /// Its document.
    pub document_id: String,
    /// The document's title.
    pub title: Option<String>,
    /// Place among the chunks of its document, from 0.
    pub index: usize,
    /// First byte in the document's text: for text, Markdown and source code in UTF-8 that is the original.
    pub start: usize,
    /// Byte after the last.
    pub end: usize,
    /// Headings above it, the outermost first.
    pub heading_path: Vec<String>,
    /// Its first and its last page, where the document has pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages: Option<(usize, usize)>,
    /// The chunk itself.
    pub text: String,
    /// Where it stands in its document, in an LLM's words.
    pub context: Option<String>,
    /// Whether only the beginning of the context is in the vector.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub context_truncated: bool,
    /// Why there is no context although one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_error: Option<String>,
    /// Tokens that were embedded.
    pub tokens: usize,
    /// Name of the embedding model.
    pub model: String,
    /// SHA-256 of its weights.
    pub model_digest: String,
    /// What cut the document: name, version and settings.
    pub chunker: String,
    /// What came with the document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
    /// Vector of context and text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vector: Vec<f32>,
}

/// Why a sink does not take chunks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// It may take them in a while.
    #[error("{0}")]
    Passing(String),
    /// Somebody has to change something.
    #[error("{0}")]
    Lasting(String),
    /// It takes no request of this size.
    #[error("{0}")]
    TooLarge(String),
}

/// Where the servers are, and what opens them. From the configuration alone: a job can't send a secret elsewhere.
#[derive(Clone, Default)]
pub struct SinkServers {
    /// Qdrant's base URL.
    pub qdrant_url: Option<String>,
    /// Qdrant's API key.
    pub qdrant_api_key: Option<String>,
    /// URL of the PostgreSQL database, user and password included.
    pub postgres_url: Option<String>,
    /// Where files go.
    pub objects: Objects,
    /// Where a file is put together before it is sent.
    pub scratch: PathBuf,
}

/// A sink that takes chunk by chunk.
pub enum ChunkSink {
    /// Qdrant.
    Qdrant(Qdrant),
    /// PostgreSQL.
    Postgres(Box<Postgres>),
}

impl ChunkSink {
    /// The sink of this kind for vectors that are compared by `similarity`. It is asked nothing yet; `None` for a file.
    pub fn new(
        spec: &SinkSpec,
        servers: &SinkServers,
        similarity: Similarity,
    ) -> Result<Option<Self>, SinkError> {
        match spec {
            SinkSpec::Jsonl { .. } | SinkSpec::Parquet { .. } => Ok(None),
            SinkSpec::Qdrant { collection } => {
                Qdrant::new(collection, servers, similarity).map(|sink| Some(Self::Qdrant(sink)))
            }
            SinkSpec::Postgres { table } => {
                Postgres::new(table, servers).map(|sink| Some(Self::Postgres(Box::new(sink))))
            }
        }
    }

    /// Takes chunks, in the place of those that have their ids.
    pub async fn upsert(&mut self, chunks: &[Chunk]) -> Result<(), SinkError> {
        match self {
            Self::Qdrant(sink) => sink.upsert(chunks).await,
            Self::Postgres(sink) => sink.upsert(chunks).await,
        }
    }

    /// Removes chunks of a corpus; those that it does not have are no fault, and those that another corpus has brought since stay.
    pub async fn delete(&mut self, corpus: &str, ids: &[String]) -> Result<(), SinkError> {
        match self {
            Self::Qdrant(sink) => sink.delete(corpus, ids).await,
            Self::Postgres(sink) => sink.delete(corpus, ids).await,
        }
    }
}
