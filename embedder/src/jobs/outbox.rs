//! What a sink has yet to hear of a corpus: kept in the transaction that changes the corpus, and forgotten once the sink has
//! taken it. So nothing is left out and nothing is there twice, whenever the process or the sink ends.

use super::change::corpus_record;
use super::corpus::{CHUNKS, CORPORA, DOCUMENTS, DocumentRecord, lost};
use super::kept::KeptChunk;
use super::record::JobRecord;
use super::store::{Store, StoreError, decode, encode, put_job};
use crate::sinks::{Chunk, SinkSpec};
use redb::{ReadOnlyTable, ReadableTable, TableDefinition, WriteTransaction};
use std::collections::{HashMap, HashSet};

/// What a sink has yet to do with a chunk: to take it (`true`) or to remove it, and since which generation of the corpus. By that
/// a task is known from the one before it over the same chunk.
pub(super) type Task = (bool, u64);

/// An entry: document, chunk, and what the sink has to do with it.
pub(super) type Entry = (String, String, Task);

/// What the sink has yet to do, by corpus, document and chunk.
pub(super) const OUTBOX: TableDefinition<'_, (&str, &str, &str), Task> = TableDefinition::new("deliveries");

/// The outbox of the first format of the store, which does not know since when.
const FIRST_OUTBOX: TableDefinition<'_, (&str, &str, &str), bool> = TableDefinition::new("outbox");

/// Chunks that a former sink has and is to remove should it become the sink again: by corpus, sink, document and chunk.
pub(super) const FORMER: TableDefinition<'_, (&str, &str, &str, &str), ()> =
    TableDefinition::new("former-sinks");

/// What the sink has yet to do.
#[derive(Debug, Default)]
pub struct Delivery {
    /// Chunks to take.
    pub upserts: Vec<Chunk>,
    /// Chunks to remove, with the ids of their documents and their own.
    pub deletes: Vec<(String, String)>,
    /// What is done once the sink has taken all of this.
    pub(super) done: Vec<Entry>,
}

/// How much of the outbox is read at once.
#[derive(Clone, Debug)]
pub struct Portion {
    /// Most entries.
    pub entries: usize,
    /// Most bytes of the chunks to take, as JSON. One chunk is read, however large it is.
    pub bytes: usize,
    /// What the sink has refused: these are passed over.
    pub refused: HashSet<Entry>,
}

impl Delivery {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }
}

impl Store {
    /// Names the sink of a corpus. One that takes chunk by chunk and was another before is to hear of all chunks; one that was
    /// the sink earlier, also of those that went meanwhile.
    pub fn set_sink(&self, corpus: &str, sink: Option<&SinkSpec>) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut corpora = transaction.open_table(CORPORA)?;
            let mut record = corpus_record(&corpora, corpus)?;
            if record.sink.as_ref() == sink {
                return Ok(());
            }
            let left = std::mem::replace(&mut record.sink, sink.cloned()).filter(SinkSpec::takes_chunks);
            record.former.retain(|former| Some(former) != sink && Some(former) != left.as_ref());
            record.former.extend(left.clone());
            corpora.insert(corpus, encode(&record)?.as_slice())?;
            let mut outbox = transaction.open_table(OUTBOX)?;
            let mut former = transaction.open_table(FORMER)?;
            let left = left.as_ref().map(key_of).transpose()?;
            for (document, id, task) in entries(&outbox, corpus)? {
                outbox.remove((corpus, document.as_str(), id.as_str()))?;
                if let (Some(left), (false, _)) = (&left, task) {
                    former.insert((corpus, left.as_str(), document.as_str(), id.as_str()), ())?;
                }
            }
            let Some(sink) = sink.filter(|sink| sink.takes_chunks()) else { return Ok(()) };
            for entry in transaction.open_table(DOCUMENTS)?.range((corpus, "")..)? {
                let (key, value) = entry?;
                let (in_corpus, document) = key.value();
                if in_corpus != corpus {
                    break;
                }
                let found: DocumentRecord = decode(value.value())?;
                for place in &found.chunks {
                    outbox.insert((corpus, document, place.id.as_str()), (true, record.generation))?;
                }
            }
            let own = key_of(sink)?;
            for (document, id) in gone(&former, corpus, &own)? {
                former.remove((corpus, own.as_str(), document.as_str(), id.as_str()))?;
                let key = (corpus, document.as_str(), id.as_str());
                // What came back meanwhile is among those to take.
                if outbox.get(key)?.is_none() {
                    outbox.insert(key, (false, record.generation))?;
                }
            }
            Ok(())
        })
    }

    /// What the sink of a corpus has yet to do, up to a portion.
    pub fn undelivered(&self, corpus: &str, portion: &Portion) -> Result<Delivery, StoreError> {
        self.read(|transaction| {
            let mut reader = Reader {
                corpus,
                documents: transaction.open_table(DOCUMENTS)?,
                chunks: transaction.open_table(CHUNKS)?,
                current: None,
            };
            let mut delivery = Delivery::default();
            let mut bytes = 0;
            for entry in transaction.open_table(OUTBOX)?.range((corpus, "", "")..)? {
                let (key, value) = entry?;
                let (in_corpus, document, id) = key.value();
                if in_corpus != corpus || delivery.done.len() == portion.entries {
                    break;
                }
                let entry = (document.to_owned(), id.to_owned(), value.value());
                if portion.refused.contains(&entry) {
                    continue;
                }
                let (upsert, _) = value.value();
                if !upsert {
                    delivery.deletes.push((document.to_owned(), id.to_owned()));
                } else if let Some(chunk) = reader.chunk(document, id)? {
                    bytes += size(&chunk);
                    if bytes > portion.bytes && !delivery.upserts.is_empty() {
                        break;
                    }
                    delivery.upserts.push(chunk);
                }
                delivery.done.push(entry);
            }
            Ok(delivery)
        })
    }

    /// Notes that the sink has done what it had to do.
    pub fn delivered(&self, job: &JobRecord, delivery: &Delivery) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut outbox = transaction.open_table(OUTBOX)?;
            for (document, id, task) in &delivery.done {
                let key = (job.corpus.as_str(), document.as_str(), id.as_str());
                // What has changed meanwhile is still to be done, be it to take the chunk once more.
                if outbox.get(key)?.is_some_and(|now| now.value() == *task) {
                    outbox.remove(key)?;
                }
            }
            drop(outbox);
            put_job(transaction, job)
        })
    }
}

/// Takes over what a store of the first format has in its outbox.
pub(super) fn adopt(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    let first = transaction.open_table(FIRST_OUTBOX)?;
    let mut outbox = transaction.open_table(OUTBOX)?;
    for entry in first.iter()? {
        let (key, upsert) = entry?;
        // Every change has a generation after this one.
        outbox.insert(key.value(), (upsert.value(), 0_u64))?;
    }
    transaction.delete_table(first)?;
    Ok(())
}

/// Reads chunks as a sink gets them.
struct Reader<'a> {
    corpus: &'a str,
    documents: ReadOnlyTable<(&'static str, &'static str), &'static [u8]>,
    chunks: ReadOnlyTable<(&'static str, &'static str, &'static str), &'static [u8]>,
    /// The document that was read last, with its id and the places of its chunks.
    current: Option<(String, DocumentRecord, HashMap<String, usize>)>,
}

impl Reader<'_> {
    /// A chunk of a document; `None` where the document does not have it any more.
    fn chunk(&mut self, document: &str, id: &str) -> Result<Option<Chunk>, redb::Error> {
        let corpus = self.corpus;
        if self.current.as_ref().is_none_or(|(known, ..)| known != document) {
            let Some(found) = self.documents.get((corpus, document))? else { return Ok(None) };
            let record: DocumentRecord = decode(found.value())?;
            let places = record.chunks.iter().enumerate();
            let places = places.map(|(index, place)| (place.id.clone(), index)).collect();
            self.current = Some((document.to_owned(), record, places));
        }
        let Some((_, record, places)) = &self.current else { return Ok(None) };
        let Some(index) = places.get(id) else { return Ok(None) };
        let kept = self.chunks.get((corpus, document, id))?.ok_or_else(|| lost(corpus, document, id))?;
        Ok(Some(KeptChunk::decode(kept.value())?.in_document(corpus, document, record, *index)))
    }
}

/// Bytes of a chunk as JSON.
fn size(chunk: &Chunk) -> usize {
    // Chunks always serialize: their maps have strings for keys.
    serde_json::to_vec(chunk).unwrap_or_default().len()
}

/// A sink as a part of a key.
pub(super) fn key_of(sink: &SinkSpec) -> Result<String, redb::Error> {
    serde_json::to_string(sink).map_err(|error| redb::Error::Corrupted(format!("a sink: {error}")))
}

fn entries(
    table: &impl ReadableTable<(&'static str, &'static str, &'static str), Task>,
    corpus: &str,
) -> Result<Vec<Entry>, redb::Error> {
    let mut found = Vec::new();
    for entry in table.range((corpus, "", "")..)? {
        let (key, value) = entry?;
        let (in_corpus, document, id) = key.value();
        if in_corpus != corpus {
            break;
        }
        found.push((document.to_owned(), id.to_owned(), value.value()));
    }
    Ok(found)
}

/// What a former sink has to remove.
fn gone(
    table: &impl ReadableTable<(&'static str, &'static str, &'static str, &'static str), ()>,
    corpus: &str,
    sink: &str,
) -> Result<Vec<(String, String)>, redb::Error> {
    let mut found = Vec::new();
    for entry in table.range((corpus, sink, "", "")..)? {
        let (key, _) = entry?;
        let (in_corpus, of, document, id) = key.value();
        if (in_corpus, of) != (corpus, sink) {
            break;
        }
        found.push((document.to_owned(), id.to_owned()));
    }
    Ok(found)
}
