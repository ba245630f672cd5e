//! From the store to the sink: chunk by chunk while the job runs, or a whole file at its end.

use super::outbox::Portion;
use super::record::JobRecord;
use super::run::{Shared, Stop};
use super::store::{Store, StoreError};
use crate::sinks::{Chunk, ChunkSink, SinkError, SinkSpec, Snapshot};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Entries of the outbox that one request to a sink is made of.
const BATCH: usize = 256;
/// Bytes of the chunks in one request, as JSON. Qdrant takes requests of 32 MiB unless it is set otherwise, and in those vectors
/// are about twice as long.
const BATCH_BYTES: usize = 8 << 20;
/// First wait after a sink has failed; doubled up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Failures in a row after which the job fails: about eight minutes.
const ATTEMPTS: u32 = 14;
/// Documents that are read for a file at once.
const PAGE: usize = 64;

/// Brings the chunks of a corpus to its sink.
pub(super) struct Deliverer {
    shared: Arc<Shared>,
    corpus: String,
    spec: Option<SinkSpec>,
    sink: Option<ChunkSink>,
    /// What is read of the outbox next.
    portion: Portion,
    /// Why the sink has refused a chunk that came alone.
    refusal: Option<String>,
}

impl Deliverer {
    pub fn new(shared: Arc<Shared>, corpus: String, spec: Option<SinkSpec>) -> Result<Self, Stop> {
        let (servers, similarity) = (&shared.tools.servers, shared.tools.config.similarity);
        let sink = spec.as_ref().map(|spec| ChunkSink::new(spec, servers, similarity)).transpose();
        let sink = sink.map_err(|error| Stop::Failed(error.to_string()))?.flatten();
        let portion = Portion { entries: BATCH, bytes: BATCH_BYTES, refused: HashSet::new() };
        Ok(Self { shared, corpus, spec, sink, portion, refusal: None })
    }

    /// Delivers while some work goes on, and what is left when it has ended. A sink that fails ends the work; one that only finds a
    /// chunk too large does not, so that a job can take that chunk out of the corpus.
    pub async fn deliver_while(&mut self, work: impl Future<Output = Result<(), Stop>>) -> Result<(), Stop> {
        let shared = self.shared.clone();
        let finished = AtomicBool::new(false);
        let working = async {
            work.await?;
            finished.store(true, Ordering::Release);
            shared.kept.notify_one();
            Ok::<(), Stop>(())
        };
        let delivering = async {
            loop {
                let last = finished.load(Ordering::Acquire);
                if last {
                    // What was too large may be gone by now.
                    self.portion.refused.clear();
                    self.refusal = None;
                }
                self.deliver().await?;
                if last {
                    return self.refusal.take().map_or(Ok(()), |message| Err(Stop::Failed(message)));
                }
                // Everything is delivered: something must be kept before there is more to do.
                shared.kept.notified().await;
            }
        };
        tokio::try_join!(working, delivering)?;
        match self.spec.clone() {
            Some(spec) if !spec.takes_chunks() => self.write_file(&spec).await,
            _ => Ok(()),
        }
    }

    /// Delivers everything that the sink has yet to hear, but for chunks that are too large for it.
    async fn deliver(&mut self) -> Result<(), Stop> {
        let (Some(sink), Some(spec)) = (&mut self.sink, &self.spec) else { return Ok(()) };
        self.portion.entries = BATCH;
        loop {
            let (corpus, portion) = (self.corpus.clone(), self.portion.clone());
            let store = &self.shared.tools.store;
            let delivery = store.blocking(move |store| store.undelivered(&corpus, &portion)).await?;
            if delivery.is_empty() {
                return Ok(());
            }
            let deletes: Vec<String> = delivery.deletes.iter().map(|(_, id)| id.clone()).collect();
            let mut patience = Patience::new(&self.shared, spec);
            let too_large = loop {
                match send(sink, &self.corpus, &delivery.upserts, &deletes).await {
                    Ok(()) => break None,
                    Err(SinkError::TooLarge(message)) => break Some(message),
                    Err(error) => patience.after(error).await?,
                }
            };
            patience.end();
            if let Some(message) = too_large {
                self.shared.tools.metrics.jobs.sink_failed(spec.name());
                if let [(document, id, _)] = delivery.done.as_slice() {
                    let sink = spec.name();
                    self.refusal = Some(format!(
                        "the sink {sink}: chunk {id} of document {document:?} is too large: {message}; the other chunks are \
                         delivered: process the document with less metadata, or delete it"
                    ));
                    self.portion.refused.extend(delivery.done);
                    self.portion.entries = BATCH;
                } else {
                    self.portion.entries = delivery.done.len() / 2;
                }
                continue;
            }
            // Growing by one meets few chunks that are too large once more.
            self.portion.entries = (self.portion.entries + 1).min(BATCH);
            let (upserts, deletes) = (delivery.upserts.len() as u64, deletes.len() as u64);
            let change = move |record: &mut JobRecord| {
                record.progress.sink_upserts += upserts;
                record.progress.sink_deletes += deletes;
            };
            let keep = move |store: &Store, job: &JobRecord| store.delivered(job, &delivery);
            self.shared.live.commit(&self.shared.tools.store, change, keep).await?;
            self.shared.tools.metrics.jobs.delivered(spec.name(), upserts + deletes);
        }
    }

    /// Writes the file of the whole corpus.
    async fn write_file(&self, spec: &SinkSpec) -> Result<(), Stop> {
        let mut patience = Patience::new(&self.shared, spec);
        let chunks = loop {
            match self.try_to_write_file(spec).await {
                Ok(chunks) => break chunks,
                Err(error) => patience.after(error).await?,
            }
        };
        patience.end();
        let change = move |record: &mut JobRecord| record.progress.sink_upserts = chunks;
        self.shared.live.commit(&self.shared.tools.store, change, Store::put_job).await?;
        self.shared.tools.metrics.jobs.delivered(spec.name(), chunks);
        Ok(())
    }

    async fn try_to_write_file(&self, spec: &SinkSpec) -> Result<u64, SinkError> {
        let (spec, corpus, record) = (spec.clone(), self.corpus.clone(), self.shared.live.record());
        // An id is used again when its job has been forgotten.
        let job = format!("{} {}", record.id, record.created_ms);
        let (store, tools) = (self.shared.tools.store.clone(), self.shared.tools.clone());
        let written = tokio::task::spawn_blocking(move || {
            write_corpus(&store, &corpus, Snapshot::begin(&spec, &tools.servers, &job)?)
        });
        let written =
            written.await.map_err(|error| SinkError::Passing(format!("writing a file: {error}")))?;
        let (snapshot, chunks) = written?;
        snapshot.publish().await?;
        Ok(chunks)
    }
}

async fn send(
    sink: &mut ChunkSink,
    corpus: &str,
    upserts: &[Chunk],
    deletes: &[String],
) -> Result<(), SinkError> {
    if !upserts.is_empty() {
        sink.upsert(upserts).await?;
    }
    if !deletes.is_empty() {
        sink.delete(corpus, deletes).await?;
    }
    Ok(())
}

/// How often a sink has failed in a row, and how long it is left alone after that.
struct Patience<'a> {
    shared: &'a Shared,
    sink: &'static str,
    failures: u32,
    wait: Duration,
}

impl<'a> Patience<'a> {
    fn new(shared: &'a Shared, spec: &SinkSpec) -> Self {
        Self { shared, sink: spec.name(), failures: 0, wait: FIRST_WAIT }
    }

    /// Waits before the next attempt, unless somebody has to change something or it has failed too often.
    async fn after(&mut self, error: SinkError) -> Result<(), Stop> {
        self.failures += 1;
        self.shared.tools.metrics.jobs.sink_failed(self.sink);
        let kept = "what was made is kept, and the next job of the corpus delivers it";
        let sink = self.sink;
        match error {
            SinkError::Lasting(message) | SinkError::TooLarge(message) => {
                Err(Stop::Failed(format!("the sink {sink}: {message}; {kept}")))
            }
            SinkError::Passing(message) if self.failures == ATTEMPTS => Err(Stop::Failed(format!(
                "the sink {sink} failed {ATTEMPTS} times in a row: {message}; {kept}"
            ))),
            SinkError::Passing(message) => {
                tracing::warn!(
                    sink,
                    message,
                    seconds = self.wait.as_secs_f64(),
                    "a sink failed; trying again"
                );
                let message = format!("waiting for the sink {sink}: {message}");
                self.shared.live.note(|record| record.error = Some(message));
                tokio::time::sleep(self.wait).await;
                self.wait = (self.wait * 2).min(LONGEST_WAIT);
                Ok(())
            }
        }
    }

    /// It has succeeded: nothing is waited for any more.
    fn end(self) {
        if self.failures > 0 {
            self.shared.live.note(|record| record.error = None);
        }
    }
}

/// Writes all chunks of a corpus, by document and place.
fn write_corpus(store: &Store, corpus: &str, mut snapshot: Snapshot) -> Result<(Snapshot, u64), SinkError> {
    let failed = |error: StoreError| match error {
        StoreError::Damaged { .. } => SinkError::Lasting(error.to_string()),
        _ => SinkError::Passing(error.to_string()),
    };
    let (mut after, mut count) = (None, 0);
    loop {
        let mut page = store.document_ids(corpus, after.as_deref(), PAGE).map_err(failed)?;
        for id in &page {
            for chunk in store.chunks(corpus, id).map_err(failed)?.unwrap_or_default() {
                snapshot.add(chunk)?;
                count += 1;
            }
        }
        let Some(last) = page.pop() else { return Ok((snapshot, count)) };
        after = Some(last);
    }
}
