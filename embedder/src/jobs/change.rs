//! How a corpus changes: in one transaction its files, documents and chunks, what its sink is to hear, and how far the job is.
//!
//! Chunks are kept as they are made, before their document is whole, so that they are not made again after a crash. A
//! document appears in the corpus, and its sink hears of it, in the transaction that keeps it whole; until then the
//! version before it stays.

use super::corpus::{CHUNKS, CORPORA, CorpusRecord, DOCUMENTS, DocumentRecord, FILES, FileRecord, Place};
use super::kept::KeptChunk;
use super::outbox::{FORMER, OUTBOX, Task, key_of};
use super::owner::Owner;
use super::record::JobRecord;
use super::store::{Store, StoreError, decode, encode, put_job};
use crate::sinks::SinkSpec;
use redb::ReadableTable;
use std::collections::{BTreeMap, HashMap, HashSet};

/// What changes together.
#[derive(Debug, Default)]
pub struct Changes {
    /// Chunks that were made, with the ids of their documents and their own.
    pub made: Vec<(String, String, KeptChunk)>,
    /// Documents that are whole.
    pub documents: Vec<(String, DocumentRecord)>,
    /// Documents that go, with the ids of the files that they go from and their own.
    pub removed: Vec<(String, String)>,
    /// Files all of whose documents are through.
    pub files: Vec<(String, FileRecord)>,
    /// Files that go.
    pub removed_files: Vec<String>,
}

/// A file whose content is the same.
pub(super) struct Touched {
    pub id: String,
    /// What its source says of its state now.
    pub version: Option<String>,
    /// Whose it is now.
    pub owner: Owner,
}

impl Changes {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        let Self { made, documents, removed, files, removed_files } = self;
        made.is_empty()
            && documents.is_empty()
            && removed.is_empty()
            && files.is_empty()
            && removed_files.is_empty()
    }
}

impl Store {
    /// Keeps what was made and how far the job is, in one step.
    pub fn commit(&self, job: &JobRecord, changes: &Changes) -> Result<(), StoreError> {
        let corpus = job.corpus.as_str();
        self.write(|transaction| {
            let mut corpora = transaction.open_table(CORPORA)?;
            let mut record = corpus_record(&corpora, corpus)?;
            let mut tables = Tables {
                corpus,
                delivers: record.sink.as_ref().is_some_and(SinkSpec::takes_chunks),
                generation: record.generation + 1,
                chunks: transaction.open_table(CHUNKS)?,
                documents: transaction.open_table(DOCUMENTS)?,
                outbox: transaction.open_table(OUTBOX)?,
                former: transaction.open_table(FORMER)?,
                former_sinks: record.former.iter().map(key_of).collect::<Result<_, _>>()?,
            };
            for (document, id, kept) in &changes.made {
                let bytes = kept.encode()?;
                tables.chunks.insert((corpus, document.as_str(), id.as_str()), bytes.as_slice())?;
            }
            let mut taken: BTreeMap<String, HashSet<&str>> = BTreeMap::new();
            for (id, document) in &changes.documents {
                let old = tables.replace(id, Some(document), &mut record)?;
                if let Some(old) = old.filter(|old| old.file != document.file) {
                    taken.entry(old.file).or_default().insert(id);
                }
            }
            let mut changed = !changes.documents.is_empty();
            for (file, id) in &changes.removed {
                // What another file has by now is not this one's to take along.
                if tables.file_of(id)?.is_some_and(|now| now == *file) {
                    tables.replace(id, None, &mut record)?;
                    changed = true;
                }
            }
            drop(tables);
            let mut files = transaction.open_table(FILES)?;
            for (id, file) in &changes.files {
                files.insert((corpus, id.as_str()), encode(file)?.as_slice())?;
            }
            for (file, documents) in &taken {
                take_from(&mut files, corpus, file, documents)?;
            }
            for id in &changes.removed_files {
                files.remove((corpus, id.as_str()))?;
            }
            drop(files);
            record.generation += u64::from(changed);
            corpora.insert(corpus, encode(&record)?.as_slice())?;
            put_job(transaction, job)
        })
    }

    /// Keeps what is new of files whose content is the same. All else is left as it is now: what was read of it before may have
    /// changed since, and a file that has gone stays away.
    pub(super) fn touch(&self, job: &JobRecord, files: &[Touched]) -> Result<(), StoreError> {
        let corpus = job.corpus.as_str();
        self.write(|transaction| {
            let mut table = transaction.open_table(FILES)?;
            for Touched { id, version, owner } in files {
                let found: Option<FileRecord> =
                    table.get((corpus, id.as_str()))?.map(|value| decode(value.value())).transpose()?;
                let Some(mut file) = found else { continue };
                file.version.clone_from(version);
                file.source.clone_from(&owner.place);
                file.source_id.clone_from(&owner.name);
                table.insert((corpus, id.as_str()), encode(&file)?.as_slice())?;
            }
            drop(table);
            put_job(transaction, job)
        })
    }

    /// For each of some documents the job that kept the very same, if one did. What misses a context is never the same: it may
    /// have come.
    pub fn kept_by(
        &self,
        corpus: &str,
        documents: &[(String, DocumentRecord)],
    ) -> Result<Vec<Option<String>>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(DOCUMENTS)?;
            let kept_by = |(id, new): &(String, DocumentRecord)| {
                let found = table.get((corpus, id.as_str()))?;
                let found: Option<DocumentRecord> = found.map(|it| decode(it.value())).transpose()?;
                let Some(found) = found.filter(|found| found.without_context == 0) else { return Ok(None) };
                let same = DocumentRecord { job: new.job.clone(), ..found.clone() } == *new;
                Ok(same.then_some(found.job))
            };
            documents.iter().map(kept_by).collect()
        })
    }

    /// What changes when files and documents of these ids go: a file with all of its documents, a document alone.
    pub fn without(&self, corpus: &str, ids: &[String]) -> Result<Changes, StoreError> {
        self.read(|transaction| {
            let (files, documents) = (transaction.open_table(FILES)?, transaction.open_table(DOCUMENTS)?);
            let mut changes = Changes::default();
            let mut opened: BTreeMap<String, FileRecord> = BTreeMap::new();
            for id in ids {
                if let Some(file) = files.get((corpus, id.as_str()))? {
                    let file: FileRecord = decode(file.value())?;
                    changes.removed.extend(file.documents.into_iter().map(|document| (id.clone(), document)));
                    changes.removed_files.push(id.clone());
                } else if let Some(document) = documents.get((corpus, id.as_str()))? {
                    let document: DocumentRecord = decode(document.value())?;
                    if !opened.contains_key(&document.file)
                        && let Some(file) = files.get((corpus, document.file.as_str()))?
                    {
                        opened.insert(document.file.clone(), decode(file.value())?);
                    }
                    if let Some(file) = opened.get_mut(&document.file) {
                        file.documents.retain(|other| other != id);
                        // When its file comes again, it comes back.
                        file.whole = false;
                    }
                    changes.removed.push((document.file, id.clone()));
                }
            }
            // What was named twice goes once.
            let mut seen = HashSet::new();
            changes.removed.retain(|removed| seen.insert(removed.clone()));
            opened.retain(|id, _| !changes.removed_files.contains(id));
            changes.files = opened.into_iter().collect();
            Ok(changes)
        })
    }
}

/// The tables that a document stands in.
struct Tables<'a, 't> {
    corpus: &'a str,
    /// Whether the sink is to hear of every chunk.
    delivers: bool,
    /// That of the corpus once it has changed.
    generation: u64,
    chunks: redb::Table<'t, (&'static str, &'static str, &'static str), &'static [u8]>,
    documents: redb::Table<'t, (&'static str, &'static str), &'static [u8]>,
    outbox: redb::Table<'t, (&'static str, &'static str, &'static str), Task>,
    former: redb::Table<'t, (&'static str, &'static str, &'static str, &'static str), ()>,
    /// Those that took chunk by chunk before.
    former_sinks: Vec<String>,
}

impl Tables<'_, '_> {
    /// The file that a document is in.
    fn file_of(&self, id: &str) -> Result<Option<String>, redb::Error> {
        let found = self.documents.get((self.corpus, id))?;
        let found: Option<DocumentRecord> = found.map(|value| decode(value.value())).transpose()?;
        Ok(found.map(|found| found.file))
    }

    /// Puts a document in the place of the one of its id, or nothing, and notes what the sink has to do. Gives the one before.
    fn replace(
        &mut self,
        id: &str,
        new: Option<&DocumentRecord>,
        record: &mut CorpusRecord,
    ) -> Result<Option<DocumentRecord>, redb::Error> {
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
        // Chunks of a document that goes are left to the sweep at the job's end: the job may be about to bring the document back
        // from another file, with chunks that it has found here and does not make again.
        if new.is_some() {
            self.remove_surplus(id, &wanted)?;
        }
        if let Some(old) = &old {
            for place in old.chunks.iter().filter(|place| !wanted.contains(place.id.as_str())) {
                if self.delivers {
                    self.outbox.insert((corpus, id, place.id.as_str()), (false, self.generation))?;
                }
                for sink in &self.former_sinks {
                    self.former.insert((corpus, sink.as_str(), id, place.id.as_str()), ())?;
                }
            }
        }
        if let Some(new) = new.filter(|_| self.delivers) {
            for id_of_changed in changed(old.as_ref(), new) {
                self.outbox.insert((corpus, id, id_of_changed), (true, self.generation))?;
            }
        }
        Ok(old)
    }

    /// Removes the chunks of a document that it does not want, those of a version that was never whole among them.
    fn remove_surplus(&mut self, id: &str, wanted: &HashSet<&str>) -> Result<(), redb::Error> {
        let corpus = self.corpus;
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
        Ok(())
    }
}

/// Takes documents that another file has now out of the record of the one that had them. When that one comes again, so do they.
fn take_from(
    files: &mut redb::Table<'_, (&'static str, &'static str), &'static [u8]>,
    corpus: &str,
    file: &str,
    documents: &HashSet<&str>,
) -> Result<(), redb::Error> {
    let found: Option<FileRecord> =
        files.get((corpus, file))?.map(|value| decode(value.value())).transpose()?;
    let Some(mut found) = found else { return Ok(()) };
    let before = found.documents.len();
    found.documents.retain(|document| !documents.contains(document.as_str()));
    if found.documents.is_empty() {
        // Whoever names its id means a document.
        files.remove((corpus, file))?;
    } else if found.documents.len() < before {
        found.whole = false;
        files.insert((corpus, file), encode(&found)?.as_slice())?;
    }
    Ok(())
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

/// A corpus as it is, or as it begins.
pub(super) fn corpus_record(
    corpora: &impl ReadableTable<&'static str, &'static [u8]>,
    corpus: &str,
) -> Result<CorpusRecord, redb::Error> {
    Ok(corpora.get(corpus)?.map(|value| decode(value.value())).transpose()?.unwrap_or_default())
}
