//! Putting chunks in context by all instances of a pool at once. This file owns what the instances' workers share, and
//! what becomes of every chunk. Who does what is `schedule`'s, what is said `prompt`'s; `workers` follows the instances,
//! `pace` knows the slow ones, `cache` what was said before.

mod cache;
mod held;
mod pace;
mod prompt;
mod schedule;
#[cfg(test)]
mod tests;
mod workers;

pub use cache::ContextCache;
pub use prompt::INSTRUCTION;

use super::PipelineConfig;
use super::about::About;
use super::chunk::{Chunk, Chunker};
use super::document::Document;
use super::job::Made;
use crate::metrics::{EnrichmentMetrics, InstanceLabels, PromptLabels};
use crate::ollama::{Answer, Client, OllamaConfig};
use pace::Pace;
use schedule::{Schedule, Task};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

/// How often instances may break over a chunk.
const ATTEMPTS: u32 = 3;
/// Chunks that wait for a context before no further document is taken in.
const MOST_OPEN: usize = 10_000;
/// How long after a document an instance without work waits for the next one before it takes a part of another's.
const BETWEEN_DOCUMENTS: Duration = Duration::from_millis(100);

/// A document with its chunks, ready to be put in context.
pub struct Prepared {
    /// The document.
    pub document: Arc<Document>,
    /// What can be seen of it, where the job tells.
    pub about: Option<About>,
    /// By what it was cut.
    pub chunker: Chunker,
    /// Its chunks.
    pub chunks: Vec<Chunk>,
    /// Their ids.
    pub chunk_ids: Vec<String>,
}

/// What became of one chunk.
pub struct Outcome {
    /// Place of the document.
    pub document: usize,
    /// Place of the chunk.
    pub chunk: usize,
    /// The context, or why there is none; `None` where nobody was asked.
    pub context: Result<Option<String>, String>,
    /// What was made of it before, if it was; then nobody is asked.
    pub made: Option<Made>,
}

/// What one instance did in a job.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct InstanceFigures {
    /// Its address.
    pub address: String,
    /// Contexts.
    pub contexts: u64,
    /// Contexts a minute, over the whole job.
    pub contexts_per_minute: f64,
    /// Requests that failed.
    pub failures: u64,
    /// Requests that it turned away because it had too much to do.
    pub busy: u64,
    /// Times that it was left alone because it was much slower than the others.
    pub slow: u64,
    /// Tokens of prompts, those that its prefix cache had included.
    pub prompt_tokens: u64,
    /// Those of them that its prefix cache should have had: the share of each prompt with which the prompt before it began.
    pub prompt_tokens_cached: u64,
    /// Seconds for those that it had to evaluate.
    pub prompt_seconds: f64,
    /// Tokens that it wrote.
    pub output_tokens: u64,
    /// Seconds for them.
    pub output_seconds: f64,
}

/// All the enrichment of one job.
#[derive(Clone)]
pub struct Enricher {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    config: OllamaConfig,
    cache: Arc<ContextCache>,
    metrics: EnrichmentMetrics,
    started: Instant,
    state: Mutex<State>,
    changed: Notify,
}

/// What the workers have: the shared part and the way out, which is closed when the last of them has ended.
#[derive(Clone)]
struct Pool {
    shared: Arc<Shared>,
    outcomes: mpsc::Sender<Outcome>,
}

struct State {
    schedule: Schedule<SocketAddr>,
    /// Documents with chunks whose outcome has not been sent, and how many these are.
    documents: HashMap<usize, (Arc<Prepared>, usize)>,
    /// Chunks of which nobody has said what becomes of them.
    unclaimed: HashSet<Task>,
    /// Chunks that instances are at: since when, and how many.
    flight: HashMap<Task, (Instant, usize)>,
    /// How often instances broke over a chunk.
    attempts: HashMap<Task, u32>,
    /// Chunks over which workers broke too often, and why.
    abandoned: Vec<(Task, String)>,
    /// Documents of which less must be sent, because the usual prompt was too long.
    narrow: HashSet<usize>,
    pace: Pace<SocketAddr>,
    /// The prompt that each instance read last, which its prefix cache holds.
    prompts: HashMap<SocketAddr, String>,
    figures: BTreeMap<SocketAddr, InstanceFigures>,
    /// Addresses behind the pool's name.
    known: HashSet<SocketAddr>,
    /// Those whose last request did not fail.
    healthy: HashSet<SocketAddr>,
    /// When the last context came, or the first chunk began to wait.
    progress: Instant,
    /// Contexts that were given in another job.
    from_cache: u64,
    /// Chunks whose outcome has not been sent.
    open: usize,
    /// When a document was added last.
    added: Instant,
    /// Whether no more documents will come.
    complete: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            schedule: Schedule::default(),
            documents: HashMap::new(),
            unclaimed: HashSet::new(),
            flight: HashMap::new(),
            attempts: HashMap::new(),
            abandoned: Vec::new(),
            narrow: HashSet::new(),
            pace: Pace::default(),
            prompts: HashMap::new(),
            figures: BTreeMap::new(),
            known: HashSet::new(),
            healthy: HashSet::new(),
            progress: Instant::now(),
            from_cache: 0,
            open: 0,
            added: Instant::now(),
            complete: false,
        }
    }
}

impl Enricher {
    /// Starts with no documents; outcomes go to `outcomes` in any order.
    ///
    /// # Errors
    /// When the configuration is of no use.
    pub fn start(
        pipeline: &PipelineConfig,
        config: &OllamaConfig,
        outcomes: mpsc::Sender<Outcome>,
    ) -> Result<Self, String> {
        let shared = Arc::new(Shared {
            client: Client::new(config)?,
            config: config.clone(),
            cache: pipeline.contexts.clone(),
            metrics: pipeline.metrics.enrichment.clone(),
            started: Instant::now(),
            state: Mutex::default(),
            changed: Notify::new(),
        });
        tokio::spawn(workers::supervise(Pool { shared: shared.clone(), outcomes }));
        Ok(Self { shared })
    }

    /// Adds a document at a place, of which these chunks are to be put in context.
    pub fn add(&self, place: usize, prepared: Arc<Prepared>, chunks: &[usize]) {
        if chunks.is_empty() {
            return;
        }
        let mut state = self.shared.state();
        if state.open == 0 {
            state.progress = Instant::now();
        }
        state.added = Instant::now();
        state.open += chunks.len();
        state.unclaimed.extend(chunks.iter().map(|chunk| Task { document: place, chunk: *chunk }));
        state.documents.insert(place, (prepared, chunks.len()));
        for run in chunks.chunk_by(|one, next| one + 1 == *next) {
            state.schedule.add(place, run[0]..run[0] + run.len());
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// Waits while so many chunks are waiting that no further document should be taken in.
    pub async fn room(&self, outcomes: &mpsc::Sender<Outcome>) {
        loop {
            // Registered before looking, so that a change in between is not missed.
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            if self.shared.state().open < MOST_OPEN || outcomes.is_closed() {
                return;
            }
            tokio::select! {
                () = changed => {}
                () = outcomes.closed() => {}
            }
        }
    }

    /// Says that no document will follow.
    pub fn finish(&self) {
        self.shared.state().complete = true;
        self.shared.changed.notify_waiters();
    }

    /// What each instance did so far.
    pub fn figures(&self) -> Vec<InstanceFigures> {
        let state = self.shared.state();
        let minutes = self.shared.started.elapsed().as_secs_f64().max(1e-9) / 60.0;
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let named = |(address, figures): (&SocketAddr, &InstanceFigures)| InstanceFigures {
            address: address.to_string(),
            contexts_per_minute: figures.contexts as f64 / minutes,
            ..figures.clone()
        };
        state.figures.iter().map(named).collect()
    }

    /// How many contexts were given before and not asked for again.
    pub fn contexts_from_cache(&self) -> u64 {
        self.shared.state().from_cache
    }
}

impl State {
    fn figures(&mut self, address: SocketAddr) -> &mut InstanceFigures {
        self.figures.entry(address).or_default()
    }

    /// The next chunk for an instance: one that waits, else one for which another instance takes far too long.
    fn next(&mut self, address: SocketAddr, now: Instant, least: Duration) -> Option<Task> {
        let overdue = self.pace.overdue(least);
        let late = |(task, (since, instances)): &(&Task, &(Instant, usize))| {
            *instances == 1
                && now.saturating_duration_since(*since) > overdue
                && self.unclaimed.contains(task)
        };
        // Whole documents are better than parts, and the next may be on its way.
        let all_there = self.complete || now.saturating_duration_since(self.added) > BETWEEN_DOCUMENTS;
        // What only waits behind a request that is never answered is not held up by it.
        let some_late = self.flight.iter().any(|flight| late(&flight));
        let pays = |busy, waiting| some_late || (all_there && self.pace.pays(address, busy, waiting));
        while let Some(task) = self.schedule.next(address, pays) {
            // It may have been done by another one meanwhile.
            if self.unclaimed.contains(&task) {
                return Some(task);
            }
        }
        self.flight
            .iter()
            .filter(late)
            .min_by_key(|(task, (since, _))| (*since, task.document, task.chunk))
            .map(|(task, _)| *task)
    }

    /// One instance less is at a chunk; whether nobody is at it any more and nothing has become of it.
    fn land(&mut self, task: Task) -> bool {
        if let Some((_, instances)) = self.flight.get_mut(&task) {
            *instances -= 1;
            if *instances > 0 {
                return false;
            }
            self.flight.remove(&task);
        }
        self.unclaimed.contains(&task)
    }

    /// Forgets a document with its last chunk: a job may have more of them than fit into memory.
    fn sent(&mut self, task: Task) {
        self.open -= 1;
        self.attempts.remove(&task);
        if let Some((_, open)) = self.documents.get_mut(&task.document) {
            *open -= 1;
            if *open == 0 {
                self.documents.remove(&task.document);
                self.narrow.remove(&task.document);
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held left nothing half done: every change is one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an answer to a prompt.
    fn count(&self, address: SocketAddr, answer: &Answer, prompt: String) -> pace::Prompt {
        let labels = InstanceLabels { instance: address.to_string() };
        let mut state = self.state();
        let before = state.prompts.insert(address, prompt);
        let prompt = state.prompts.get(&address).map(String::as_str).unwrap_or_default();
        let shared = before.map_or(0, |before| prompt::shared(&before, prompt));
        let cached = answer.prompt_eval_count * shared as u64 / prompt.len().max(1) as u64;
        let sort = if shared * 2 < prompt.len() { pace::Prompt::First } else { pace::Prompt::Further };
        let figures = state.figures(address);
        figures.contexts += 1;
        figures.prompt_tokens += answer.prompt_eval_count;
        figures.prompt_tokens_cached += cached;
        figures.prompt_seconds += seconds(answer.prompt_eval_duration);
        figures.output_tokens += answer.eval_count;
        figures.output_seconds += seconds(answer.eval_duration);
        drop(state);
        let tokens = |kind| PromptLabels { instance: labels.instance.clone(), kind };
        self.metrics.prompt_tokens.get_or_create(&tokens("cached")).inc_by(cached);
        let evaluated = answer.prompt_eval_count - cached;
        self.metrics.prompt_tokens.get_or_create(&tokens("evaluated")).inc_by(evaluated);
        self.metrics.output_tokens.get_or_create(&labels).inc_by(answer.eval_count);
        self.metrics.contexts.get_or_create(&labels).inc();
        sort
    }
}

/// Seconds from nanoseconds.
#[expect(clippy::cast_precision_loss, reason = "a duration for people")]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}
