//! One job: its documents go through the pipeline, what comes out is kept, and the sink hears of it, all at once.
//!
//! `feed` gives documents to the pipeline, `keep` takes its lines, `deliver` brings the outbox to the sink. Each waits for
//! the others only where the room between them is full.

use super::corpus::FileRecord;
use super::deliver::Deliverer;
use super::feed::Feeder;
use super::keep::Keeper;
use super::live::Live;
use super::owner::Owner;
use super::record::State;
use super::store::{Store, StoreError};
use crate::metrics::Metrics;
use crate::pipeline::{self, EmbedTexts, Made, MadeBefore, PipelineConfig};
use crate::sinks::SinkServers;
use crate::sources::Reach;
use futures::StreamExt as _;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

/// Files in the pipeline at once, in KiB.
pub(super) const ROOM_KIB: usize = 64 << 10;
/// Documents that wait for the pipeline, and lines that wait to be kept.
const BETWEEN: usize = 64;

/// What jobs are run with.
pub struct Tools {
    /// What is kept.
    pub store: Arc<Store>,
    /// How documents are processed.
    pub config: Arc<PipelineConfig>,
    /// What embeds.
    pub embedder: Arc<dyn EmbedTexts>,
    /// What sources may reach.
    pub reach: Reach,
    /// Where sinks are.
    pub servers: SinkServers,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// Why a job stops before its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// Somebody said so.
    Cancelled,
    /// It can't be done.
    Failed(String),
    /// The store fails, which is not the job's fault.
    Store(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What is known of a file before its documents come out of the pipeline.
#[derive(Default)]
pub(super) struct Incoming {
    pub id: String,
    pub digest: String,
    pub version: Option<String>,
    pub owner: Owner,
    /// The version before.
    pub known: Option<FileRecord>,
    /// What it takes of the room.
    pub room: u32,
}

/// Files in the pipeline, by their numbers: the pipeline counts what it is given.
#[derive(Default)]
pub(super) struct InPipeline {
    given: usize,
    files: HashMap<usize, Incoming>,
}

impl InPipeline {
    /// Adds the file that the pipeline is given next.
    pub fn add(&mut self, file: Incoming) {
        self.files.insert(self.given, file);
        self.given += 1;
    }

    /// The id of a file.
    pub fn id_of(&self, number: usize) -> Option<String> {
        self.files.get(&number).map(|file| file.id.clone())
    }

    /// Takes out a file all of whose documents are through.
    pub fn remove(&mut self, number: usize) -> Option<Incoming> {
        self.files.remove(&number)
    }
}

/// What the parts of a running job share.
pub(super) struct Shared {
    pub tools: Arc<Tools>,
    pub live: Arc<Live>,
    incoming: Mutex<InPipeline>,
    pub room: Semaphore,
    /// Wakes the delivery.
    pub kept: Notify,
}

impl Shared {
    pub fn incoming(&self) -> MutexGuard<'_, InPipeline> {
        // A panic while the lock was held left nothing half done: every change is one call.
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a job to its end and keeps how it ended; one that was cancelled while it waited is left as it is.
pub(super) async fn run(tools: &Arc<Tools>, live: &Arc<Live>) -> Result<(), StoreError> {
    let started = tokio::time::Instant::now();
    let now = now_ms();
    live.commit(
        &tools.store,
        move |record| {
            if record.state.ended() {
                return;
            }
            if record.state == State::Running {
                record.resumed += 1;
            }
            record.state = State::Running;
            record.error = None;
            record.started_ms.get_or_insert(now);
            // Counted anew; what was processed is known by its documents.
            record.progress.documents_total = 0;
            record.progress.documents_failed = 0;
            record.progress.documents_unchanged = 0;
            record.failures.clear();
        },
        Store::put_job,
    )
    .await?;
    if live.record().state.ended() {
        return Ok(());
    }
    let end = tokio::select! {
        end = work(tools, live) => end,
        () = live.cancel.cancelled() => Err(Stop::Cancelled),
    };
    let (state, error) = match end {
        Ok(()) => (State::Succeeded, None),
        Err(Stop::Cancelled) => (State::Cancelled, None),
        Err(Stop::Failed(error)) => (State::Failed, Some(error)),
        // What is damaged is so however often the job is begun again, and the jobs behind it may do without it.
        Err(Stop::Store(error @ StoreError::Damaged { .. })) => (State::Failed, Some(error.to_string())),
        Err(Stop::Store(error)) => {
            let message = error.to_string();
            live.note(|record| record.error = Some(message));
            return Err(error);
        }
    };
    let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (metrics, finished) = (tools.metrics.clone(), now_ms());
    live.commit(
        &tools.store,
        move |record| {
            record.state = state;
            record.error.clone_from(&error);
            record.finished_ms = Some(finished);
            record.progress.running_ms += took;
        },
        move |store, job| {
            store.put_job(job)?;
            // Before anybody can see that it has ended.
            metrics.jobs.ended(state.name());
            Ok(())
        },
    )
    .await?;
    let record = live.record();
    tracing::info!(
        job = record.id,
        corpus = record.corpus,
        state = state.name(),
        error = record.error,
        "a job ended"
    );
    Ok(())
}

async fn work(tools: &Arc<Tools>, live: &Arc<Live>) -> Result<(), Stop> {
    let spec = live.record().spec;
    let settings = spec.options.validate(&tools.config).map_err(|error| Stop::Failed(error.to_string()))?;
    if let Some(sink) = spec.sink.clone() {
        let corpus = spec.corpus.clone();
        // As a change of the job: a sink that is named after the job has ended would be another job's.
        live.commit(&tools.store, |_| {}, move |store, _| store.set_sink(&corpus, Some(&sink))).await?;
    }
    let corpus = spec.corpus.clone();
    let sink = tools.store.blocking(move |store| store.corpus(&corpus)).await?.unwrap_or_default().sink;
    let shared = Arc::new(Shared {
        tools: tools.clone(),
        live: live.clone(),
        incoming: Mutex::default(),
        room: Semaphore::new(ROOM_KIB),
        kept: Notify::new(),
    });
    let (documents, fed) = mpsc::channel(BETWEEN);
    let (lines, made) = mpsc::channel(BETWEEN);
    let job = pipeline::Job {
        documents: ReceiverStream::new(fed).boxed(),
        documents_total: 0,
        settings,
        made: Arc::new(Known { store: tools.store.clone(), corpus: spec.corpus.clone() }),
        describe: false,
    };
    let feeder = Arc::new(Feeder::new(shared.clone(), spec.clone(), settings));
    let mut deliverer = Deliverer::new(shared.clone(), spec.corpus.clone(), sink)?;
    let processing = async {
        // The pipeline ends when its lines are no longer read, which is when this future is dropped.
        let pipeline = pipeline::run(job, tools.config.clone(), tools.embedder.clone(), lines);
        let (found, kept, ()) =
            tokio::join!(feeder.feed(documents), Keeper::new(shared.clone(), settings).keep(made), pipeline);
        let found = found?;
        kept?;
        found.remove_what_is_gone(&shared).await?;
        let corpus = spec.corpus.clone();
        // As a change of the job: what the next one makes is in the corpus before its documents are, and is not to be swept out.
        live.commit(&tools.store, |_| {}, move |store, _| store.sweep(&corpus).map(drop)).await?;
        Ok(())
    };
    deliverer.deliver_while(processing).await
}

/// The store, as the pipeline asks it.
struct Known {
    store: Arc<Store>,
    corpus: String,
}

impl MadeBefore for Known {
    fn made(&self, document_id: &str, chunk_id: &str) -> Option<Made> {
        // A store that fails is noticed when something is to be kept.
        self.store.made(&self.corpus, document_id, chunk_id).ok().flatten()
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
