//! From a job's uploads and its source to the pipeline: what has not changed is left out, what can't be read is counted.

use super::corpus::{Changes, DocumentRecord};
use super::request::JobSpec;
use super::run::{ROOM_KIB, Shared, Stop};
use super::store::Store;
use crate::pipeline::{self, Document, Rejected, Settings};
use crate::sources::{Entry, Read, SourceError, SourceSpec};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Waits before a source is asked again.
const WAITS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(25)];
/// Documents of the corpus that are looked at together.
const PAGE: usize = 256;

/// What is known of a document before it comes out of the pipeline.
pub(super) struct Incoming {
    pub digest: String,
    pub version: Option<String>,
    pub source: String,
    pub title: Option<String>,
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
    /// What it takes of the room.
    pub room: u32,
}

/// Feeds one job.
pub(super) struct Feeder {
    shared: Arc<Shared>,
    spec: JobSpec,
    recipe: String,
    source: String,
}

/// What a job has found, by which what is gone is told.
pub(super) struct Found {
    spec: JobSpec,
    source: String,
    /// Ids that the source has; `None` without a source.
    ids: Option<HashSet<String>>,
}

/// The pipeline takes no more.
struct Full;

impl Feeder {
    pub fn new(shared: Arc<Shared>, spec: JobSpec, settings: Settings) -> Self {
        let recipe = pipeline::whole_recipe(&shared.tools.config, settings);
        let source = spec.source.as_ref().map(SourceSpec::identity).unwrap_or_default();
        Self { shared, spec, recipe, source }
    }

    /// Feeds everything, and returns once the pipeline has all of it.
    pub async fn feed(self, documents: mpsc::Sender<Result<Document, Rejected>>) -> Result<Found, Stop> {
        let mut seen = HashSet::new();
        let id = self.shared.live.record().id;
        self.shared.live.note(|record| record.progress.documents_total = self.spec.uploaded);
        for place in 0..self.spec.uploaded {
            let job = id.clone();
            let found = self.shared.tools.store.blocking(move |store| store.uploaded(&job, place)).await?;
            let Some(request) = found else {
                return Err(Stop::Failed(format!("document {place} that came with the job is missing")));
            };
            let at = usize::try_from(place).unwrap_or(usize::MAX);
            match request.validate(at, &mut seen) {
                Ok(document) => {
                    let known = self.known(&document.id).await?;
                    if self.give(document, None, String::new(), known, &documents).await?.is_err() {
                        break;
                    }
                }
                Err(rejected) => self.fail(rejected.id, rejected.error),
            }
        }
        let ids = match self.spec.source.clone() {
            Some(source) => {
                let mut patience = Patience::default();
                let entries = loop {
                    match source.list(&self.shared.tools.reach).await {
                        Err(error) if patience.allows(&error).await => {}
                        listed => break listed,
                    }
                };
                let entries =
                    entries.map_err(|error| Stop::Failed(format!("listing the source: {error}")))?;
                self.shared.live.note(|record| record.progress.documents_total += entries.len() as u64);
                self.feed_source(&entries, &documents).await?;
                Some(entries.into_iter().map(|entry| entry.id).collect())
            }
            None => None,
        };
        Ok(Found { spec: self.spec, source: self.source, ids })
    }

    async fn feed_source(
        &self,
        entries: &[Entry],
        documents: &mpsc::Sender<Result<Document, Rejected>>,
    ) -> Result<(), Stop> {
        let Some(source) = &self.spec.source else { return Ok(()) };
        for entry in entries {
            let known = self.known(&entry.id).await?;
            let version = known
                .as_ref()
                .filter(|known| self.as_now(known) && known.source == self.source)
                .and_then(|known| known.version.clone());
            let reach = &self.shared.tools.reach;
            let mut patience = Patience::default();
            let read = loop {
                match source.read(reach, entry, version.as_deref()).await {
                    Err(error) if patience.allows(&error).await => {}
                    read => break read,
                }
            };
            match (read, known) {
                (Err(error), _) => self.fail(entry.id.clone(), error.to_string()),
                (Ok(Read::Unchanged), Some(known)) => self.unchanged(&known),
                // Only a known document is asked for by its version.
                (Ok(Read::Unchanged), None) => {
                    self.fail(entry.id.clone(), "the source sent nothing".to_owned());
                }
                (Ok(Read::Content { bytes, version, media_type }), known) => {
                    let document = match pipeline::read_document(&entry.id, bytes, media_type.as_deref()) {
                        Ok(document) => document,
                        Err(rejected) => {
                            self.fail(rejected.id, rejected.error);
                            continue;
                        }
                    };
                    if self.give(document, version, self.source.clone(), known, documents).await?.is_err() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives a document to the pipeline, unless it is known as it is.
    async fn give(
        &self,
        document: Document,
        version: Option<String>,
        source: String,
        known: Option<DocumentRecord>,
        documents: &mpsc::Sender<Result<Document, Rejected>>,
    ) -> Result<Result<(), Full>, Stop> {
        let digest = digest(&document);
        if let Some(known) = known.filter(|known| self.as_now(known) && known.digest == digest) {
            self.unchanged(&known);
            if known.version != version || known.source != source {
                self.touch(document.id, DocumentRecord { version, source, ..known }).await?;
            }
            return Ok(Ok(()));
        }
        let kib = (document.text.len() >> 10).clamp(1, ROOM_KIB);
        let room = u32::try_from(kib).unwrap_or(u32::MAX);
        let Ok(permit) = self.shared.room.acquire_many(room).await else { return Ok(Err(Full)) };
        // Given back when the document is out of the pipeline.
        permit.forget();
        let incoming = Incoming {
            digest,
            version,
            source,
            title: document.title.clone(),
            metadata: document.metadata.clone(),
            room,
        };
        self.shared.incoming().insert(document.id.clone(), incoming);
        Ok(documents.send(Ok(document)).await.map_err(|_| Full))
    }

    async fn known(&self, id: &str) -> Result<Option<DocumentRecord>, Stop> {
        let (corpus, id) = (self.spec.corpus.clone(), id.to_owned());
        Ok(self.shared.tools.store.blocking(move |store| store.document(&corpus, &id)).await?)
    }

    /// Whether a document would be processed as it was.
    fn as_now(&self, known: &DocumentRecord) -> bool {
        known.recipe == self.recipe && known.without_context == 0
    }

    fn unchanged(&self, known: &DocumentRecord) {
        self.shared.live.note(|record| {
            // What this very job has processed, before it was interrupted, is counted already.
            if known.job != record.id {
                record.progress.documents_unchanged += 1;
            }
        });
    }

    fn fail(&self, id: String, error: String) {
        self.shared.live.note(|record| record.failed(id, error));
        self.shared.tools.metrics.jobs.documents("failed", 1);
    }

    /// Keeps the new version of a document whose content is the same.
    async fn touch(&self, id: String, record: DocumentRecord) -> Result<(), Stop> {
        let changes = Changes { documents: vec![(id, record)], ..Changes::default() };
        let live = &self.shared.live;
        live.commit(&self.shared.tools.store, |_| {}, move |store, job| store.commit(job, &changes)).await?;
        Ok(())
    }
}

/// How often a source was asked in vain.
#[derive(Default)]
struct Patience(usize);

impl Patience {
    /// Whether to ask again after an error; waits a while if so.
    async fn allows(&mut self, error: &SourceError) -> bool {
        let (SourceError::Passing(message), Some(wait)) = (error, WAITS.get(self.0)) else { return false };
        tracing::warn!(message, "a source does not answer; trying again");
        tokio::time::sleep(*wait).await;
        self.0 += 1;
        true
    }
}

impl Found {
    /// Takes out of the corpus what the source no longer has and what was to be deleted.
    pub async fn remove_what_is_gone(self, shared: &Shared) -> Result<(), Stop> {
        let Self { spec, source, ids } = self;
        let mut gone = spec.delete.clone();
        if let Some(ids) = ids.filter(|_| spec.prune) {
            let corpus = spec.corpus.clone();
            gone.extend(
                shared.tools.store.blocking(move |store| no_longer(store, &corpus, &source, &ids)).await?,
            );
        }
        for page in gone.chunks(PAGE) {
            let corpus = spec.corpus.clone();
            let page = page.to_vec();
            let removed = shared
                .tools
                .store
                .blocking(move |store| {
                    let there = |id: &String| store.document(&corpus, id).map(|found| found.is_some());
                    let mut removed = Vec::new();
                    for id in page {
                        if there(&id)? {
                            removed.push(id);
                        }
                    }
                    Ok(removed)
                })
                .await?;
            if removed.is_empty() {
                continue;
            }
            let count = removed.len() as u64;
            let changes = Changes { removed, ..Changes::default() };
            let change =
                move |record: &mut super::record::JobRecord| record.progress.documents_removed += count;
            let keep = move |store: &Store, job: &super::record::JobRecord| store.commit(job, &changes);
            shared.live.commit(&shared.tools.store, change, keep).await?;
            shared.tools.metrics.jobs.documents("removed", count);
            shared.kept.notify_one();
        }
        Ok(())
    }
}

/// Documents of a source that it no longer has.
fn no_longer(
    store: &Store,
    corpus: &str,
    source: &str,
    ids: &HashSet<String>,
) -> Result<Vec<String>, super::store::StoreError> {
    let (mut gone, mut after) = (Vec::new(), None);
    loop {
        let page = store.documents(corpus, after.as_deref(), PAGE)?;
        let Some((last, _)) = page.last() else { return Ok(gone) };
        after = Some(last.clone());
        let missing = page.into_iter().filter(|(id, record)| record.source == source && !ids.contains(id));
        gone.extend(missing.map(|(id, _)| id));
    }
}

/// SHA-256 of all that a document's chunks are made of or repeat.
fn digest(document: &Document) -> String {
    let Document { id: _, title, text, format, metadata } = document;
    let rest = serde_json::json!({ "title": title, "format": format!("{format:?}"), "metadata": metadata });
    let mut hasher = Sha256::new();
    hasher.update((text.len() as u64).to_le_bytes());
    hasher.update(text);
    hasher.update(rest.to_string());
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
