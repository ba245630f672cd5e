//! What the store keeps of a corpus: its files, the documents in them, and what was made of their chunks. How these change
//! is `change`'s, what a sink hears of it `outbox`'s.

use super::kept::KeptChunk;
use super::store::{Store, StoreError, decode};
use crate::pipeline::Made;
use crate::sinks::{Chunk, SinkSpec};
use redb::{ReadableTable, TableDefinition, WriteTransaction};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(super) const CORPORA: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("corpora");
/// Files by corpus and id.
pub(super) const FILES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("files");
/// Documents by corpus and id.
pub(super) const DOCUMENTS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("documents");
/// What was made of chunks, by corpus, document and chunk.
pub(super) const CHUNKS: TableDefinition<'_, (&str, &str, &str), &[u8]> = TableDefinition::new("chunks");

/// Chunks that are swept out in one transaction.
const SWEPT_AT_ONCE: usize = 4096;

/// A corpus.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct CorpusRecord {
    /// Where its chunks go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink: Option<SinkSpec>,
    /// Where they went before, chunk by chunk: what goes from the corpus meanwhile is kept for when one of these is the sink again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<SinkSpec>,
    /// Documents.
    pub documents: u64,
    /// Their chunks.
    pub chunks: u64,
    /// Counts the changes, so that whoever has read it knows whether to read it again.
    pub generation: u64,
}

/// What was uploaded, or what a source has, under one name. It holds one document, or several as JSON lines do.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct FileRecord {
    /// SHA-256 of its content, format, title and metadata.
    pub digest: String,
    /// What its source says of its state, such as an ETag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How it was processed.
    pub recipe: String,
    /// The place that it came from, in which its version holds; empty for one that was uploaded.
    pub source: String,
    /// The name that its job gave to the source; empty where it gave none, as no job did at first.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source_id: String,
    /// The job that processed it.
    pub job: String,
    /// Whether there is nothing in it that failed and is to be tried again.
    pub whole: bool,
    /// Documents in it that the job found as they were kept before.
    pub unchanged: u64,
    /// Its documents, by id.
    pub documents: Vec<String>,
}

/// A document of a corpus.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct DocumentRecord {
    /// The file that it is in, by id.
    pub file: String,
    /// The job that processed it.
    pub job: String,
    /// Its title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What came with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
    /// Name of the embedding model.
    pub model: String,
    /// Digest of its weights.
    pub model_digest: String,
    /// What cut it.
    pub chunker: String,
    /// Chunks that should have been put in context and were not: these are tried again.
    pub without_context: u64,
    /// Its chunks, in their order.
    pub chunks: Vec<Place>,
}

/// Where a chunk stands in its document.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Place {
    /// Its id.
    pub id: String,
    /// First byte in the document's text.
    pub start: usize,
    /// Byte after the last.
    pub end: usize,
    /// Headings above it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heading_path: Vec<String>,
    /// Its first and its last page, where the document has pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<(usize, usize)>,
}

/// Makes the tables, so that readers find them.
pub(super) fn make_tables(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(CORPORA)?;
    transaction.open_table(FILES)?;
    transaction.open_table(DOCUMENTS)?;
    transaction.open_table(CHUNKS)?;
    Ok(())
}

impl Store {
    /// All corpora, by name.
    pub fn corpora(&self) -> Result<BTreeMap<String, CorpusRecord>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(CORPORA)?;
            let entries = table.iter()?.map(|entry| {
                let (name, record) = entry?;
                Ok((name.value().to_owned(), decode(record.value())?))
            });
            entries.collect()
        })
    }

    /// A corpus.
    pub fn corpus(&self, corpus: &str) -> Result<Option<CorpusRecord>, StoreError> {
        self.read(|transaction| {
            transaction.open_table(CORPORA)?.get(corpus)?.map(|value| decode(value.value())).transpose()
        })
    }

    /// A file.
    pub fn file(&self, corpus: &str, id: &str) -> Result<Option<FileRecord>, StoreError> {
        self.read(|transaction| {
            transaction.open_table(FILES)?.get((corpus, id))?.map(|it| decode(it.value())).transpose()
        })
    }

    /// Up to `limit` files after the id `after`, by id.
    pub fn files(
        &self,
        corpus: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, FileRecord)>, StoreError> {
        self.read(|transaction| page(&transaction.open_table(FILES)?, corpus, after, limit, entry))
    }

    /// A document.
    pub fn document(&self, corpus: &str, id: &str) -> Result<Option<DocumentRecord>, StoreError> {
        self.read(|transaction| {
            transaction.open_table(DOCUMENTS)?.get((corpus, id))?.map(|it| decode(it.value())).transpose()
        })
    }

    /// Up to `limit` documents after the id `after`, by id.
    pub fn documents(
        &self,
        corpus: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, DocumentRecord)>, StoreError> {
        self.read(|transaction| page(&transaction.open_table(DOCUMENTS)?, corpus, after, limit, entry))
    }

    /// The ids of up to `limit` documents after the id `after`, in their order.
    pub fn document_ids(
        &self,
        corpus: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        let id = |id: &str, _: &[u8]| Ok(id.to_owned());
        self.read(|transaction| page(&transaction.open_table(DOCUMENTS)?, corpus, after, limit, id))
    }

    /// The chunks of a document, in their order; `None` where there is no such document. Both are read from one state: a job may
    /// replace the document at any time, and with it go the chunks of the version before.
    pub fn chunks(&self, corpus: &str, id: &str) -> Result<Option<Vec<Chunk>>, StoreError> {
        self.read(|transaction| {
            let documents = transaction.open_table(DOCUMENTS)?;
            let Some(record) = documents.get((corpus, id))? else { return Ok(None) };
            let record: DocumentRecord = decode(record.value())?;
            let table = transaction.open_table(CHUNKS)?;
            let kept = |place: &Place| -> Result<KeptChunk, redb::Error> {
                let found = table.get((corpus, id, place.id.as_str()))?;
                found.map_or_else(
                    || Err(lost(corpus, id, &place.id)),
                    |value| KeptChunk::decode(value.value()),
                )
            };
            let places = record.chunks.iter().enumerate();
            let chunks =
                places.map(|(index, place)| Ok(kept(place)?.in_document(corpus, id, &record, index)));
            chunks.collect::<Result<Vec<_>, redb::Error>>().map(Some)
        })
    }

    /// What was made of a chunk; nothing where its context is to be tried again.
    pub fn made(&self, corpus: &str, document: &str, id: &str) -> Result<Option<Made>, StoreError> {
        let kept = self.read(|transaction| {
            let table = transaction.open_table(CHUNKS)?;
            table.get((corpus, document, id))?.map(|value| KeptChunk::decode(value.value())).transpose()
        })?;
        Ok(kept.filter(|kept| kept.context_error.is_none()).map(|kept| kept.made))
    }
}

impl Store {
    /// Removes what was made for documents that are not there: those that were taken out, and those of a job that was interrupted,
    /// whose file did not come again. Gives the number of chunks.
    pub fn sweep(&self, corpus: &str) -> Result<usize, StoreError> {
        let orphans = self.read(|transaction| {
            let (documents, chunks) = (transaction.open_table(DOCUMENTS)?, transaction.open_table(CHUNKS)?);
            orphans(&documents, &chunks, corpus)
        })?;
        for page in orphans.chunks(SWEPT_AT_ONCE) {
            self.write(|transaction| {
                let mut chunks = transaction.open_table(CHUNKS)?;
                for (document, id) in page {
                    chunks.remove((corpus, document.as_str(), id.as_str()))?;
                }
                Ok(())
            })?;
        }
        Ok(orphans.len())
    }
}

/// Chunks whose document is not there, with its id. Goes from document to document: the chunks of those that are there are not read.
fn orphans(
    documents: &impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
    chunks: &impl ReadableTable<(&'static str, &'static str, &'static str), &'static [u8]>,
    corpus: &str,
) -> Result<Vec<(String, String)>, redb::Error> {
    let mut found = Vec::new();
    let mut from = (String::new(), String::new());
    loop {
        let Some(entry) = chunks.range((corpus, from.0.as_str(), from.1.as_str())..)?.next() else { break };
        let (key, _) = entry?;
        let (in_corpus, document, id) = key.value();
        if in_corpus != corpus {
            break;
        }
        from = if documents.get((corpus, document))?.is_some() {
            // Behind the last id that any chunk of the document can have.
            (document.to_owned(), "\u{10FFFF}".to_owned())
        } else {
            found.push((document.to_owned(), id.to_owned()));
            (document.to_owned(), format!("{id}\0"))
        };
    }
    Ok(found)
}

/// What `take` makes of up to `limit` entries of a corpus after the id `after`, by id.
fn page<T>(
    table: &impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
    corpus: &str,
    after: Option<&str>,
    limit: usize,
    take: impl Fn(&str, &[u8]) -> Result<T, redb::Error>,
) -> Result<Vec<T>, redb::Error> {
    let mut found = Vec::new();
    for entry in table.range((corpus, after.unwrap_or(""))..)? {
        let (key, value) = entry?;
        let (in_corpus, id) = key.value();
        if in_corpus != corpus || found.len() == limit {
            break;
        }
        if Some(id) != after {
            found.push(take(id, value.value())?);
        }
    }
    Ok(found)
}

/// An entry with its id.
fn entry<T: DeserializeOwned>(id: &str, value: &[u8]) -> Result<(String, T), redb::Error> {
    Ok((id.to_owned(), decode(value)?))
}

/// A chunk that a document names and nobody has.
pub(super) fn lost(corpus: &str, document: &str, chunk: &str) -> redb::Error {
    redb::Error::Corrupted(format!("chunk {chunk} of document {document:?} in corpus {corpus} is missing"))
}
