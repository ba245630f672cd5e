//! From the pipeline to the store: chunks as they are made, documents when they are whole, files when all of their documents
//! are through.

use super::change::Changes;
use super::corpus::{DocumentRecord, FileRecord, Place};
use super::kept::KeptChunk;
use super::owner::Owner;
use super::record::JobRecord;
use super::run::{Incoming, Shared, Stop};
use super::store::Store;
use crate::pipeline::{self, ChunkLine, DocumentLine, Line, Made, Settings};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Most lines in one transaction.
const LINES: usize = 256;

/// Keeps what one job makes.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    job: String,
    recipe: String,
    settings: Settings,
    /// Documents of which not all chunks are made, by their places in the job.
    open: HashMap<usize, OpenDocument>,
    /// Files of which not all documents are through, by their numbers in the job.
    files: HashMap<usize, OpenFile>,
    /// Chunks that were made since the last transaction.
    made: Vec<(String, String, KeptChunk)>,
    /// Documents that came to their end since then, with the numbers of their files.
    through: Vec<(usize, Through)>,
    counts: Counts,
    ended: bool,
}

/// A document of which not all chunks are made.
#[derive(Default)]
struct OpenDocument {
    places: Vec<(usize, Place)>,
    without_context: u64,
    metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

/// A document at its end.
enum Through {
    /// It is whole.
    Whole(String, Box<DocumentRecord>),
    /// It can't be processed.
    Failed(String),
}

/// What is known of a file before all of its documents are through.
#[derive(Default)]
struct OpenFile {
    /// Documents to come.
    left: usize,
    /// Documents that are whole.
    documents: Vec<String>,
    /// Those that failed.
    failed: Vec<String>,
    /// Those that were there before, as they are now.
    unchanged: u64,
    /// Chunks that should have been put in context and were not.
    without_context: u64,
}

/// What is counted with the next transaction.
#[derive(Clone, Copy, Default)]
struct Counts {
    documents: u64,
    unchanged: u64,
    removed: u64,
    found: u64,
    chunks: u64,
    embedded: u64,
    reused: u64,
    without_context: u64,
    tokens: u64,
}

impl Keeper {
    pub fn new(shared: Arc<Shared>, settings: Settings) -> Self {
        Self {
            job: shared.live.record().id,
            recipe: pipeline::whole_recipe(&shared.tools.config, settings),
            shared,
            settings,
            open: HashMap::new(),
            files: HashMap::new(),
            made: Vec::new(),
            through: Vec::new(),
            counts: Counts::default(),
            ended: false,
        }
    }

    /// Takes lines until the last.
    pub async fn keep(mut self, lines: mpsc::Receiver<Line>) -> Result<(), Stop> {
        let kept = self.keep_all(lines).await;
        // Whoever still waits for room would wait for ever.
        self.shared.room.close();
        kept
    }

    async fn keep_all(&mut self, mut lines: mpsc::Receiver<Line>) -> Result<(), Stop> {
        while let Some(line) = lines.recv().await {
            self.take(line);
            let mut taken = 1;
            while taken < LINES
                && let Ok(line) = lines.try_recv()
            {
                self.take(line);
                taken += 1;
            }
            self.commit().await?;
        }
        if self.ended {
            Ok(())
        } else {
            Err(Stop::Failed("the pipeline ended before its last line: see the log".to_owned()))
        }
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Chunk(chunk) => self.take_chunk(*chunk),
            Line::Document(document) => self.take_document(*document),
            Line::Progress(_) => {}
            Line::Summary(_) => self.ended = true,
        }
    }

    fn take_chunk(&mut self, line: ChunkLine) {
        let ChunkLine {
            place,
            document_id,
            chunk_id,
            index,
            start,
            end,
            heading_path,
            pages,
            text,
            context,
            context_truncated,
            context_error,
            made_before,
            tokens,
            vector,
            model: _,
            metadata,
        } = line;
        let failed = context_error.is_some();
        if made_before {
            self.counts.reused += 1;
        } else {
            self.counts.embedded += 1;
            self.counts.tokens += tokens as u64;
            self.counts.without_context += u64::from(failed);
            let made = Made { context, context_truncated, tokens, vector };
            let kept = KeptChunk { text, context_error, made };
            self.made.push((document_id, chunk_id.clone(), kept));
        }
        let open = self.open.entry(place).or_default();
        open.places.push((index, Place { id: chunk_id, start, end, heading_path, pages }));
        open.without_context += u64::from(failed);
        open.metadata = metadata;
    }

    fn take_document(&mut self, line: DocumentLine) {
        let DocumentLine { place, origin, document_id: id, title, chunks, read, seconds: _, error } = line;
        let OpenDocument { mut places, without_context, metadata } =
            self.open.remove(&place).unwrap_or_default();
        let Some(file) = self.shared.incoming().id_of(origin.source) else { return };
        self.files
            .entry(origin.source)
            .or_insert_with(|| OpenFile { left: origin.documents, ..OpenFile::default() });
        let error = error.or_else(|| {
            (places.len() != chunks).then(|| format!("{} of its {chunks} chunks came", places.len()))
        });
        if let Some(error) = error {
            self.through.push((origin.source, Through::Failed(id.clone())));
            self.shared.live.note(|record| record.failed(id, error));
            self.shared.tools.metrics.jobs.documents("failed", 1);
            return;
        }
        places.sort_by_key(|(index, _)| *index);
        let config = &self.shared.tools.config;
        let record = DocumentRecord {
            file,
            job: self.job.clone(),
            title,
            metadata,
            model: config.model_name.clone(),
            model_digest: config.model_digest.clone(),
            chunker: self.settings.chunker(read.map_or("unknown", |read| read.chunker)),
            without_context,
            chunks: places.into_iter().map(|(_, place)| place).collect(),
        };
        self.through.push((origin.source, Through::Whole(id, Box::new(record))));
    }

    async fn commit(&mut self) -> Result<(), Stop> {
        let mut changes = Changes { made: std::mem::take(&mut self.made), ..Changes::default() };
        let mut ended: Vec<usize> = Vec::new();
        for (number, id, document) in self.sort_out().await? {
            let Some(file) = self.files.get_mut(&number) else { continue };
            file.left -= 1;
            match document {
                None => file.failed.push(id),
                Some((document, kept_by)) => {
                    file.without_context += document.without_context;
                    file.documents.push(id.clone());
                    match kept_by {
                        // Counted when it was kept, before this job was interrupted.
                        Some(job) if job == self.job => {}
                        Some(_) => {
                            file.unchanged += 1;
                            self.counts.unchanged += 1;
                        }
                        None => {
                            self.counts.documents += 1;
                            self.counts.chunks += document.chunks.len() as u64;
                            changes.documents.push((id, document));
                        }
                    }
                }
            }
            if file.left == 0 {
                ended.push(number);
            }
        }
        let mut room = 0;
        for number in ended {
            let incoming = self.shared.incoming().remove(number);
            let (Some(file), Some(incoming)) = (self.files.remove(&number), incoming) else { continue };
            room += incoming.room as usize;
            // One of them was counted when the source was listed.
            self.counts.found += (file.documents.len() + file.failed.len()) as u64 - 1;
            let (id, record, removed) = file.end(incoming, &self.job, &self.recipe);
            self.counts.removed += removed.len() as u64;
            changes.removed.extend(removed.into_iter().map(|document| (id.clone(), document)));
            changes.files.extend(record.map(|record| (id, record)));
        }
        let counts = std::mem::take(&mut self.counts);
        let change = move |record: &mut JobRecord| {
            let progress = &mut record.progress;
            progress.documents_total += counts.found;
            progress.documents_done += counts.documents;
            progress.documents_unchanged += counts.unchanged;
            progress.documents_removed += counts.removed;
            progress.chunks += counts.chunks;
            progress.chunks_embedded += counts.embedded;
            progress.chunks_without_context += counts.without_context;
            progress.tokens += counts.tokens;
        };
        if changes.is_empty() {
            self.shared.live.note(change);
        } else {
            let keep = move |store: &Store, job: &JobRecord| store.commit(job, &changes);
            self.shared.live.commit(&self.shared.tools.store, change, keep).await?;
        }
        // Only now: what comes next may need it.
        self.shared.room.add_permits(room);
        let metrics = &self.shared.tools.metrics.jobs;
        metrics.documents("processed", counts.documents);
        metrics.documents("removed", counts.removed);
        metrics.chunks("embedded", counts.embedded);
        metrics.chunks("reused", counts.reused);
        self.shared.kept.notify_one();
        Ok(())
    }

    /// The documents that came to their end; those that are whole with the job that kept the very same before, if one did.
    async fn sort_out(
        &mut self,
    ) -> Result<Vec<(usize, String, Option<(DocumentRecord, Option<String>)>)>, Stop> {
        let through = std::mem::take(&mut self.through);
        if through.is_empty() {
            return Ok(Vec::new());
        }
        let corpus = self.shared.live.record().corpus;
        let sorted = self.shared.tools.store.blocking(move |store| {
            let mut whole = Vec::new();
            let mut places = Vec::with_capacity(through.len());
            for (number, through) in through {
                match through {
                    Through::Failed(id) => places.push((number, id, false)),
                    Through::Whole(id, document) => {
                        places.push((number, id.clone(), true));
                        whole.push((id, *document));
                    }
                }
            }
            let kept_by = store.kept_by(&corpus, &whole)?;
            let mut whole = whole.into_iter().map(|(_, document)| document).zip(kept_by);
            let sorted = places
                .into_iter()
                .map(|(number, id, is_whole)| (number, id, if is_whole { whole.next() } else { None }));
            Ok(sorted.collect())
        });
        Ok(sorted.await?)
    }
}

impl OpenFile {
    /// The file as it is kept from now on, with its id, and the documents that it no longer has. Where nothing of it could be
    /// processed, all stays as it was; where something failed of which nobody knows what it is, such as a broken line, nothing goes.
    fn end(self, incoming: Incoming, job: &str, recipe: &str) -> (String, Option<FileRecord>, Vec<String>) {
        let Self { left: _, mut documents, failed, unchanged, without_context } = self;
        let Incoming { id, digest, version, owner, known, room: _ } = incoming;
        if documents.is_empty() {
            return (id, None, Vec::new());
        }
        let whole = failed.is_empty() && without_context == 0;
        let before = known.map(|known| known.documents).unwrap_or_default();
        let there: HashSet<&String> = documents.iter().collect();
        let failed: HashSet<&String> = failed.iter().collect();
        // What can't be told by an id of its own failed under that of the file.
        let unknown = failed.contains(&id);
        let missing = before.into_iter().filter(|it| !there.contains(it));
        let (kept, removed): (Vec<_>, Vec<_>) = missing.partition(|it| unknown || failed.contains(it));
        // The version before of what failed stays.
        documents.extend(kept);
        let (job, recipe) = (job.to_owned(), recipe.to_owned());
        let Owner { place: source, name: source_id } = owner;
        let record =
            FileRecord { digest, version, recipe, source, source_id, job, whole, unchanged, documents };
        (id, Some(record), removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_what_it_has_and_the_version_before_of_what_failed() {
        let strings = |ids: &[&str]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (before, good, failed, documents, removed) in [
            (&[][..], &["f"][..], &[][..], Some(&["f"][..]), &[][..]),
            (&["f#a", "f#b"], &["f#b", "f#c"], &[], Some(&["f#b", "f#c"]), &["f#a"]),
            (&["f#a", "f#b"], &["f#a"], &["f#b"], Some(&["f#a", "f#b"]), &[]),
            (&["f"], &["f#1"], &["f#2"], Some(&["f#1"]), &["f"]),
            (&["f#a", "f#b"], &["f#a"], &["f"], Some(&["f#a", "f#b"]), &[]),
            (&["f"], &[], &["f"], None, &[]),
            (&["f#a", "f#b"], &[], &["f"], None, &[]),
        ] {
            let open = OpenFile { documents: strings(good), failed: strings(failed), ..OpenFile::default() };
            let known = FileRecord { documents: strings(before), ..FileRecord::default() };
            let incoming = Incoming { id: "f".to_owned(), known: Some(known), ..Incoming::default() };
            let (_, record, gone) = open.end(incoming, "j", "r");
            let case = format!("{before:?} {good:?} {failed:?}");
            assert_eq!(
                record.as_ref().map(|record| record.documents.clone()),
                documents.map(strings),
                "{case}"
            );
            assert_eq!(gone, strings(removed), "{case}");
            assert!(record.is_none_or(|record| record.whole == failed.is_empty()), "{case}");
        }
    }
}
