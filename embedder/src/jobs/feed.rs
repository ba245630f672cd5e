//! From a job's uploads and its source to the pipeline: files that have not changed are left out, those that can't be read are
//! counted.

use super::change::Touched;
use super::corpus::FileRecord;
use super::owner::Owner;
use super::record::JobRecord;
use super::request::JobSpec;
use super::run::{Incoming, ROOM_KIB, Shared, Stop};
use super::store::Store;
use crate::pipeline::{self, Rejected, Settings, Source};
use crate::sources::{Entry, Filter, Read, SourceError, SourceSpec};
use futures::StreamExt as _;
use futures::stream;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Waits before a source is asked again.
const WAITS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(25)];
/// Files of a source that are read at once, so that a distant one keeps nobody waiting.
const READS: usize = 4;
/// Files of the corpus that are looked at, or kept, together.
const PAGE: usize = 256;

/// Feeds one job.
pub(super) struct Feeder {
    shared: Arc<Shared>,
    spec: JobSpec,
    recipe: String,
    /// Of what the source has.
    owner: Owner,
}

/// What a job has found, by which what is gone is told.
pub(super) struct Found {
    spec: JobSpec,
    owner: Owner,
    /// Ids that the source has; `None` without a source.
    ids: Option<HashSet<String>>,
}

/// The pipeline takes no more.
struct Full;

impl Feeder {
    pub fn new(shared: Arc<Shared>, spec: JobSpec, settings: Settings) -> Self {
        let recipe = pipeline::whole_recipe(&shared.tools.config, settings);
        let owner = Owner::of(&spec);
        Self { shared, spec, recipe, owner }
    }

    /// Feeds everything, and returns once the pipeline has all of it.
    pub async fn feed(self: Arc<Self>, files: mpsc::Sender<Result<Source, Rejected>>) -> Result<Found, Stop> {
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
                Ok(file) => {
                    let known = self.known(&file.id).await?;
                    if self.give(file, None, Owner::default(), known, &files).await?.is_err() {
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
                self.feed_source(&source, &entries, &seen, &files).await?;
                Some(entries.into_iter().map(|entry| entry.id).collect())
            }
            None => None,
        };
        Ok(Found { spec: self.spec.clone(), owner: self.owner.clone(), ids })
    }

    async fn feed_source(
        self: &Arc<Self>,
        source: &SourceSpec,
        entries: &[Entry],
        uploaded: &HashSet<String>,
        files: &mpsc::Sender<Result<Source, Rejected>>,
    ) -> Result<(), Stop> {
        let reads = entries.iter().cloned().map(|entry| {
            let (feeder, source) = (self.clone(), source.clone());
            async move {
                let read = feeder.read(&source, &entry).await;
                (entry, read)
            }
        });
        let mut reads = stream::iter(reads).buffered(READS).boxed();
        let mut adopted = Vec::new();
        while let Some((Entry { id, .. }, read)) = reads.next().await {
            if uploaded.contains(&id) {
                let error = "a document of this id came with the job: ids are unique within a job";
                self.fail(id, error.to_owned());
                continue;
            }
            match read? {
                (Err(error), _) => self.fail(id, error.to_string()),
                (Ok(Read::Unchanged), Some(known)) => {
                    self.unchanged(&known);
                    if known.source_id != self.owner.name {
                        let version = known.version;
                        adopted.push(Touched { id, version, owner: self.owner.clone() });
                    }
                    // All of a corpus may be adopted at once, when its job begins to name the source.
                    if adopted.len() >= PAGE {
                        self.touch(std::mem::take(&mut adopted)).await?;
                    }
                }
                // Only a known file is asked for by its version.
                (Ok(Read::Unchanged), None) => self.fail(id, "the source sent nothing".to_owned()),
                (Ok(Read::Content { bytes, version }), known) => {
                    let file = Source { id, title: None, bytes: bytes.into(), format: None, metadata: None };
                    if self.give(file, version, self.owner.clone(), known, files).await?.is_err() {
                        break;
                    }
                }
            }
        }
        self.touch(adopted).await
    }

    /// Reads a file of a source, unless it is as it was, with what is known of it.
    async fn read(
        &self,
        source: &SourceSpec,
        entry: &Entry,
    ) -> Result<(Result<Read, SourceError>, Option<FileRecord>), Stop> {
        let known = self.known(&entry.id).await?;
        let version = known
            .as_ref()
            .filter(|known| self.as_now(known) && known.source == self.owner.place)
            .and_then(|known| known.version.as_deref());
        let mut patience = Patience::default();
        loop {
            match source.read(&self.shared.tools.reach, entry, version).await {
                Err(error) if patience.allows(&error).await => {}
                read => return Ok((read, known)),
            }
        }
    }

    /// Gives a file to the pipeline, unless it is known as it is.
    async fn give(
        &self,
        file: Source,
        version: Option<String>,
        owner: Owner,
        known: Option<FileRecord>,
        files: &mpsc::Sender<Result<Source, Rejected>>,
    ) -> Result<Result<(), Full>, Stop> {
        let digest = digest(&file);
        if let Some(known) = known.as_ref().filter(|known| self.as_now(known) && known.digest == digest) {
            self.unchanged(known);
            let before = (&known.version, &known.source, &known.source_id);
            if before != (&version, &owner.place, &owner.name) {
                self.touch(vec![Touched { id: file.id, version, owner }]).await?;
            }
            return Ok(Ok(()));
        }
        let kib = (file.bytes.len() >> 10).clamp(1, ROOM_KIB);
        let room = u32::try_from(kib).unwrap_or(u32::MAX);
        let Ok(permit) = self.shared.room.acquire_many(room).await else { return Ok(Err(Full)) };
        // Given back when all of its documents are out of the pipeline.
        permit.forget();
        let incoming = Incoming { id: file.id.clone(), digest, version, owner, known, room };
        self.shared.incoming().add(incoming);
        Ok(files.send(Ok(file)).await.map_err(|_| Full))
    }

    async fn known(&self, id: &str) -> Result<Option<FileRecord>, Stop> {
        let (corpus, id) = (self.spec.corpus.clone(), id.to_owned());
        Ok(self.shared.tools.store.blocking(move |store| store.file(&corpus, &id)).await?)
    }

    /// Whether a file would be processed as it was.
    fn as_now(&self, known: &FileRecord) -> bool {
        known.recipe == self.recipe && known.whole
    }

    fn unchanged(&self, known: &FileRecord) {
        self.shared.live.note(|record| {
            let documents = known.documents.len() as u64;
            // One of them was counted when the source was listed.
            record.progress.documents_total += documents.saturating_sub(1);
            // What this very job has processed, before it was interrupted, is counted already.
            record.progress.documents_unchanged +=
                if known.job == record.id { known.unchanged } else { documents };
        });
    }

    fn fail(&self, id: String, error: String) {
        self.shared.live.note(|record| record.failed(id, error));
        self.shared.tools.metrics.jobs.documents("failed", 1);
    }

    /// Keeps the new versions and owners of files whose content is the same.
    async fn touch(&self, files: Vec<Touched>) -> Result<(), Stop> {
        if files.is_empty() {
            return Ok(());
        }
        let keep = move |store: &Store, job: &JobRecord| store.touch(job, &files);
        self.shared.live.commit(&self.shared.tools.store, |_| {}, keep).await?;
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
        let Self { spec, owner, ids } = self;
        let mut gone = spec.delete.clone();
        if let Some(ids) = ids.filter(|_| spec.prune) {
            let filter = spec.source.as_ref().map(SourceSpec::filter).transpose();
            let filter = filter.map_err(Stop::Failed)?.flatten();
            let corpus = spec.corpus.clone();
            let look = move |store: &Store| no_longer(store, &corpus, &owner, filter.as_ref(), &ids);
            gone.extend(shared.tools.store.blocking(look).await?);
        }
        for page in gone.chunks(PAGE) {
            let (corpus, page) = (spec.corpus.clone(), page.to_vec());
            let changes = shared.tools.store.blocking(move |store| store.without(&corpus, &page)).await?;
            if changes.is_empty() {
                continue;
            }
            let count = changes.removed.len() as u64;
            let change = move |record: &mut JobRecord| record.progress.documents_removed += count;
            let keep = move |store: &Store, job: &JobRecord| store.commit(job, &changes);
            shared.live.commit(&shared.tools.store, change, keep).await?;
            shared.tools.metrics.jobs.documents("removed", count);
            shared.kept.notify_one();
        }
        Ok(())
    }
}

/// Files of a source that it no longer has.
fn no_longer(
    store: &Store,
    corpus: &str,
    owner: &Owner,
    filter: Option<&Filter>,
    ids: &HashSet<String>,
) -> Result<Vec<String>, super::store::StoreError> {
    let (mut gone, mut after) = (Vec::new(), None);
    loop {
        let page = store.files(corpus, after.as_deref(), PAGE)?;
        let Some((last, _)) = page.last() else { return Ok(gone) };
        after = Some(last.clone());
        let missing =
            page.into_iter().filter(|(id, record)| !ids.contains(id) && owner.loses(id, record, filter));
        gone.extend(missing.map(|(id, _)| id));
    }
}

/// SHA-256 of all that the chunks of a file are made of or repeat.
fn digest(file: &Source) -> String {
    let Source { id: _, title, bytes, format, metadata } = file;
    let rest = serde_json::json!({ "title": title, "format": format, "metadata": metadata });
    let mut hasher = Sha256::new();
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
    hasher.update(rest.to_string());
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
