//! What a sink has yet to hear of a corpus: kept in the transaction that changes the corpus, and forgotten once the sink has
//! taken it. So nothing is left out and nothing is there twice, whenever the process or the sink ends.

use super::change::corpus_record;
use super::corpus::{CHUNKS, CORPORA, DOCUMENTS, DocumentRecord, lost};
use super::kept::KeptChunk;
use super::record::JobRecord;
use super::store::{Store, StoreError, decode, encode, put_job};
use crate::sinks::{Chunk, SinkSpec};
use redb::{ReadableTable, TableDefinition};
use std::collections::HashMap;

/// Chunks that the sink has yet to take (`true`) or to remove, by corpus, document and chunk.
pub(super) const OUTBOX: TableDefinition<'_, (&str, &str, &str), bool> = TableDefinition::new("outbox");

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
    done: Vec<(String, String, bool)>,
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
            for (document, id, upsert) in entries(&outbox, corpus)? {
                outbox.remove((corpus, document.as_str(), id.as_str()))?;
                if let (Some(left), false) = (&left, upsert) {
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
                    outbox.insert((corpus, document, place.id.as_str()), true)?;
                }
            }
            let own = key_of(sink)?;
            for (document, id) in gone(&former, corpus, &own)? {
                former.remove((corpus, own.as_str(), document.as_str(), id.as_str()))?;
                let key = (corpus, document.as_str(), id.as_str());
                // What came back meanwhile is among those to take.
                if outbox.get(key)?.is_none() {
                    outbox.insert(key, false)?;
                }
            }
            Ok(())
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
                delivery.upserts.push(kept.in_document(corpus, document, record, *index));
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

/// A sink as a part of a key.
pub(super) fn key_of(sink: &SinkSpec) -> Result<String, redb::Error> {
    serde_json::to_string(sink).map_err(|error| redb::Error::Corrupted(format!("a sink: {error}")))
}

fn entries(
    table: &impl ReadableTable<(&'static str, &'static str, &'static str), bool>,
    corpus: &str,
) -> Result<Vec<(String, String, bool)>, redb::Error> {
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
