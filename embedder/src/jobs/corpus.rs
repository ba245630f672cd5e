//! What the store keeps of a corpus: its documents, what was made of their chunks, and what its sink has yet to hear.
//!
//! Chunks are kept as they are made, before their document is whole, so that they are not made again after a crash. A
//! document appears in the corpus, and its sink hears of it, in the transaction that keeps it whole; until then the
//! version before it stays.

use super::record::JobRecord;
use super::store::{Store, StoreError, decode, encode, put_job};
use crate::pipeline::Made;
use crate::sinks::{Chunk, SinkSpec};
use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};

const CORPORA: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("corpora");
/// Documents by corpus and id.
const DOCUMENTS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("documents");
/// What was made of chunks, by corpus, document and chunk.
const CHUNKS: TableDefinition<'_, (&str, &str, &str), &[u8]> = TableDefinition::new("chunks");
/// Chunks that the sink has yet to take (`true`) or to remove.
const OUTBOX: TableDefinition<'_, (&str, &str, &str), bool> = TableDefinition::new("outbox");

/// A corpus.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct CorpusRecord {
    /// Where its chunks go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink: Option<SinkSpec>,
    /// Documents.
    pub documents: u64,
    /// Their chunks.
    pub chunks: u64,
    /// Counts the changes, so that whoever has read it knows whether to read it again.
    pub generation: u64,
}

/// A document of a corpus.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct DocumentRecord {
    /// SHA-256 of its content, title and metadata.
    pub digest: String,
    /// What its source says of its state, such as an ETag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How it was processed.
    pub recipe: String,
    /// The source that it came from; empty for one that was uploaded.
    pub source: String,
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
    /// First byte in the original.
    pub start: usize,
    /// Byte after the last.
    pub end: usize,
    /// Headings above it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heading_path: Vec<String>,
}

/// A chunk as it is kept: all that its id stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptChunk {
    /// The chunk itself.
    pub text: String,
    /// Why there is no context although one was asked for.
    pub context_error: Option<String>,
    /// What was made of it.
    pub made: Made,
}

#[derive(Deserialize, Serialize)]
struct KeptHeader {
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<String>,
    #[serde(default)]
    context_truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_error: Option<String>,
    tokens: usize,
}

/// What changes together.
#[derive(Debug, Default)]
pub struct Changes {
    /// Chunks that were made, with the ids of their documents and their own.
    pub made: Vec<(String, String, KeptChunk)>,
    /// Documents that are whole.
    pub documents: Vec<(String, DocumentRecord)>,
    /// Documents that go.
    pub removed: Vec<String>,
}

/// What the sink has yet to do.
#[derive(Debug, Default)]
pub struct Delivery {
    /// Chunks to take.
    pub upserts: Vec<Chunk>,
    /// Chunks to remove, with the ids of their documents and their own.
    pub deletes: Vec<(String, String)>,
    /// What is done once the sink has taken all of this.
    done: Vec<(String, String, bool)>,
}

impl Delivery {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }
}

/// Makes the tables, so that readers find them.
pub(super) fn make_tables(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(CORPORA)?;
    transaction.open_table(DOCUMENTS)?;
    transaction.open_table(CHUNKS)?;
    transaction.open_table(OUTBOX)?;
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
        self.read(|transaction| {
            let mut found = Vec::new();
            for entry in transaction.open_table(DOCUMENTS)?.range((corpus, after.unwrap_or(""))..)? {
                let (key, value) = entry?;
                let (in_corpus, id) = key.value();
                if in_corpus != corpus || found.len() == limit {
                    break;
                }
                if Some(id) != after {
                    found.push((id.to_owned(), decode(value.value())?));
                }
            }
            Ok(found)
        })
    }

    /// The chunks of a document, in their order.
    pub fn chunks(&self, corpus: &str, id: &str, record: &DocumentRecord) -> Result<Vec<Chunk>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(CHUNKS)?;
            let kept = |place: &Place| -> Result<KeptChunk, redb::Error> {
                let found = table.get((corpus, id, place.id.as_str()))?;
                found.map_or_else(
                    || Err(lost(corpus, id, &place.id)),
                    |value| KeptChunk::decode(value.value()),
                )
            };
            let places = record.chunks.iter().enumerate();
            places.map(|(index, place)| Ok(chunk(corpus, id, record, index, kept(place)?))).collect()
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

    /// Names the sink of a corpus. One that takes chunk by chunk and was another before is to hear of all chunks.
    pub fn set_sink(&self, corpus: &str, sink: Option<&SinkSpec>) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut corpora = transaction.open_table(CORPORA)?;
            let mut record = corpus_record(&corpora, corpus)?;
            if record.sink.as_ref() == sink {
                return Ok(());
            }
            record.sink = sink.cloned();
            corpora.insert(corpus, encode(&record)?.as_slice())?;
            let mut outbox = transaction.open_table(OUTBOX)?;
            let old: Vec<(String, String)> = keys(&outbox, corpus)?;
            for (document, id) in old {
                outbox.remove((corpus, document.as_str(), id.as_str()))?;
            }
            if !sink.is_some_and(SinkSpec::takes_chunks) {
                return Ok(());
            }
            for entry in transaction.open_table(DOCUMENTS)?.range((corpus, "")..)? {
                let (key, value) = entry?;
                let (in_corpus, document) = key.value();
                if in_corpus != corpus {
                    break;
                }
                let found: DocumentRecord = decode(value.value())?;
                for place in &found.chunks {
                    outbox.insert((corpus, document, place.id.as_str()), true)?;
                }
            }
            Ok(())
        })
    }

    /// Keeps what was made and how far the job is, in one step.
    pub fn commit(&self, job: &JobRecord, changes: &Changes) -> Result<(), StoreError> {
        let corpus = job.corpus.as_str();
        self.write(|transaction| {
            let mut corpora = transaction.open_table(CORPORA)?;
            let mut record = corpus_record(&corpora, corpus)?;
            let mut tables = Tables {
                corpus,
                delivers: record.sink.as_ref().is_some_and(SinkSpec::takes_chunks),
                chunks: transaction.open_table(CHUNKS)?,
                documents: transaction.open_table(DOCUMENTS)?,
                outbox: transaction.open_table(OUTBOX)?,
            };
            for (document, id, kept) in &changes.made {
                let bytes = kept.encode()?;
                tables.chunks.insert((corpus, document.as_str(), id.as_str()), bytes.as_slice())?;
            }
            for (id, document) in &changes.documents {
                tables.replace(id, Some(document), &mut record)?;
            }
            for id in &changes.removed {
                tables.replace(id, None, &mut record)?;
            }
            drop(tables);
            if !changes.documents.is_empty() || !changes.removed.is_empty() {
                record.generation += 1;
            }
            corpora.insert(corpus, encode(&record)?.as_slice())?;
            put_job(transaction, job)
        })
    }

    /// What the sink of a corpus has yet to do, up to `limit` chunks.
    pub fn undelivered(&self, corpus: &str, limit: usize) -> Result<Delivery, StoreError> {
        self.read(|transaction| {
            let documents = transaction.open_table(DOCUMENTS)?;
            let chunks = transaction.open_table(CHUNKS)?;
            let mut delivery = Delivery::default();
            let mut current: Option<(String, DocumentRecord, HashMap<String, usize>)> = None;
            for entry in transaction.open_table(OUTBOX)?.range((corpus, "", "")..)?.take(limit) {
                let (key, value) = entry?;
                let (in_corpus, document, id) = key.value();
                if in_corpus != corpus {
                    break;
                }
                delivery.done.push((document.to_owned(), id.to_owned(), value.value()));
                if !value.value() {
                    delivery.deletes.push((document.to_owned(), id.to_owned()));
                    continue;
                }
                if current.as_ref().is_none_or(|(known, ..)| known != document) {
                    let Some(found) = documents.get((corpus, document))? else { continue };
                    let record: DocumentRecord = decode(found.value())?;
                    let places = record.chunks.iter().enumerate();
                    let places = places.map(|(index, place)| (place.id.clone(), index)).collect();
                    current = Some((document.to_owned(), record, places));
                }
                let Some((_, record, places)) = &current else { continue };
                let Some(index) = places.get(id) else { continue };
                let kept = chunks.get((corpus, document, id))?.ok_or_else(|| lost(corpus, document, id))?;
                let kept = KeptChunk::decode(kept.value())?;
                delivery.upserts.push(chunk(corpus, document, record, *index, kept));
            }
            Ok(delivery)
        })
    }

    /// Notes that the sink has done what it had to do.
    pub fn delivered(&self, job: &JobRecord, delivery: &Delivery) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut outbox = transaction.open_table(OUTBOX)?;
            for (document, id, upsert) in &delivery.done {
                let key = (job.corpus.as_str(), document.as_str(), id.as_str());
                // What has changed its mind meanwhile is still to be done.
                if outbox.get(key)?.is_some_and(|now| now.value() == *upsert) {
                    outbox.remove(key)?;
                }
            }
            drop(outbox);
            put_job(transaction, job)
        })
    }
}

/// The tables that a document stands in.
struct Tables<'a, 't> {
    corpus: &'a str,
    /// Whether the sink is to hear of every chunk.
    delivers: bool,
    chunks: redb::Table<'t, (&'static str, &'static str, &'static str), &'static [u8]>,
    documents: redb::Table<'t, (&'static str, &'static str), &'static [u8]>,
    outbox: redb::Table<'t, (&'static str, &'static str, &'static str), bool>,
}

impl Tables<'_, '_> {
    /// Puts a document in the place of the one of its id, or nothing, and notes what the sink has to do.
    fn replace(
        &mut self,
        id: &str,
        new: Option<&DocumentRecord>,
        record: &mut CorpusRecord,
    ) -> Result<(), redb::Error> {
        let corpus = self.corpus;
        let old = match new {
            Some(new) => self.documents.insert((corpus, id), encode(new)?.as_slice())?,
            None => self.documents.remove((corpus, id))?,
        };
        let old: Option<DocumentRecord> = old.map(|value| decode(value.value())).transpose()?;
        record.documents += u64::from(new.is_some());
        record.documents -= u64::from(old.is_some());
        record.chunks += new.map_or(0, |new| new.chunks.len() as u64);
        record.chunks -= old.as_ref().map_or(0, |old| old.chunks.len() as u64);
        let wanted: HashSet<&str> = new.iter().flat_map(|new| &new.chunks).map(|it| it.id.as_str()).collect();
        // Those of a version that was never whole are among them.
        let surplus: Vec<String> = self
            .chunks
            .range((corpus, id, "")..)?
            .map(|entry| {
                entry.map(|(key, _)| {
                    (key.value().0 == corpus && key.value().1 == id, key.value().2.to_owned())
                })
            })
            .take_while(|entry| entry.as_ref().map_or(true, |(same, _)| *same))
            .filter(|entry| entry.as_ref().map_or(true, |(_, chunk)| !wanted.contains(chunk.as_str())))
            .map(|entry| entry.map(|(_, chunk)| chunk))
            .collect::<Result<_, _>>()?;
        for chunk in &surplus {
            self.chunks.remove((corpus, id, chunk.as_str()))?;
        }
        if !self.delivers {
            return Ok(());
        }
        if let Some(old) = &old {
            for place in old.chunks.iter().filter(|place| !wanted.contains(place.id.as_str())) {
                self.outbox.insert((corpus, id, place.id.as_str()), false)?;
            }
        }
        if let Some(new) = new {
            for id_of_changed in changed(old.as_ref(), new) {
                self.outbox.insert((corpus, id, id_of_changed), true)?;
            }
        }
        Ok(())
    }
}

/// The chunks of a document that look otherwise in a sink than those of the version before it.
fn changed<'a>(old: Option<&DocumentRecord>, new: &'a DocumentRecord) -> Vec<&'a str> {
    let all = || new.chunks.iter().map(|place| place.id.as_str()).collect();
    let Some(old) = old else { return all() };
    let same = |it: &DocumentRecord| {
        (it.title.clone(), it.metadata.clone(), it.model.clone(), it.model_digest.clone(), it.chunker.clone())
    };
    // A context that came at the second try changes a chunk, but not its id.
    if same(old) != same(new) || old.without_context > 0 {
        return all();
    }
    let before: HashMap<&str, (usize, &Place)> =
        old.chunks.iter().enumerate().map(|(index, place)| (place.id.as_str(), (index, place))).collect();
    let places = new.chunks.iter().enumerate();
    let changed = places.filter(|(index, place)| before.get(place.id.as_str()) != Some(&(*index, *place)));
    changed.map(|(_, place)| place.id.as_str()).collect()
}

impl KeptChunk {
    /// A JSON header with its length before it, and the vector as little-endian numbers behind it.
    fn encode(&self) -> Result<Vec<u8>, redb::Error> {
        let Made { context, context_truncated, tokens, vector } = &self.made;
        let header = KeptHeader {
            text: self.text.clone(),
            context: context.clone(),
            context_truncated: *context_truncated,
            context_error: self.context_error.clone(),
            tokens: *tokens,
        };
        let header = encode(&header)?;
        let length = u32::try_from(header.len())
            .map_err(|_| redb::Error::Corrupted("a chunk of more than 4 GiB".to_owned()))?;
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend(vector.iter().flat_map(|number| number.to_le_bytes()));
        Ok(bytes)
    }

    fn decode(bytes: &[u8]) -> Result<Self, redb::Error> {
        let short = || redb::Error::Corrupted("a chunk is cut off".to_owned());
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (header, vector) = rest.split_at_checked(length).ok_or_else(short)?;
        let KeptHeader { text, context, context_truncated, context_error, tokens } = decode(header)?;
        let (numbers, rest) = vector.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(short());
        }
        let vector = numbers.iter().map(|number| f32::from_le_bytes(*number)).collect();
        Ok(Self { text, context_error, made: Made { context, context_truncated, tokens, vector } })
    }
}

fn chunk(corpus: &str, document: &str, record: &DocumentRecord, index: usize, kept: KeptChunk) -> Chunk {
    let place = &record.chunks[index];
    Chunk {
        chunk_id: place.id.clone(),
        corpus: corpus.to_owned(),
        document_id: document.to_owned(),
        title: record.title.clone(),
        index,
        start: place.start,
        end: place.end,
        heading_path: place.heading_path.clone(),
        text: kept.text,
        context: kept.made.context,
        context_truncated: kept.made.context_truncated,
        context_error: kept.context_error,
        tokens: kept.made.tokens,
        model: record.model.clone(),
        model_digest: record.model_digest.clone(),
        chunker: record.chunker.clone(),
        metadata: record.metadata.clone(),
        vector: kept.made.vector,
    }
}

fn corpus_record(
    corpora: &impl ReadableTable<&'static str, &'static [u8]>,
    corpus: &str,
) -> Result<CorpusRecord, redb::Error> {
    Ok(corpora.get(corpus)?.map(|value| decode(value.value())).transpose()?.unwrap_or_default())
}

fn keys(
    table: &impl ReadableTable<(&'static str, &'static str, &'static str), bool>,
    corpus: &str,
) -> Result<Vec<(String, String)>, redb::Error> {
    let mut keys = Vec::new();
    for entry in table.range((corpus, "", "")..)? {
        let (key, _) = entry?;
        let (in_corpus, document, id) = key.value();
        if in_corpus != corpus {
            break;
        }
        keys.push((document.to_owned(), id.to_owned()));
    }
    Ok(keys)
}

fn lost(corpus: &str, document: &str, chunk: &str) -> redb::Error {
    redb::Error::Corrupted(format!("chunk {chunk} of document {document:?} in corpus {corpus} is missing"))
}
