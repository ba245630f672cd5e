//! Putting chunks in context by all instances of a pool at once. This file owns what the instances' workers share, and
//! what becomes of every chunk. Who does what is `schedule`'s, what is said `prompt`'s; `workers` follows the instances.

mod prompt;
mod schedule;
#[cfg(test)]
mod tests;
mod workers;

use super::chunk::Chunk;
use super::job::Made;
use super::request::Document;
use crate::ollama::{Answer, Client, Failure, OllamaConfig, Question};
use prompt::Room;
use schedule::{Schedule, Task};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc};

/// How often instances may break over a chunk.
const ATTEMPTS: u32 = 3;

/// A document with its chunks, ready to be put in context.
pub struct Prepared {
    /// The document.
    pub document: Document,
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
#[derive(Clone, Debug, Default, Serialize)]
pub struct InstanceFigures {
    /// Its address.
    pub address: String,
    /// Contexts.
    pub contexts: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Requests that it turned away because it had too much to do.
    pub busy: u64,
    /// Tokens of prompts, those that its prefix cache had included.
    pub prompt_tokens: u64,
    /// Seconds for those that it had to evaluate.
    pub prompt_seconds: f64,
    /// Tokens that it wrote.
    pub output_tokens: u64,
    /// Seconds for them.
    pub output_seconds: f64,
}

impl InstanceFigures {
    fn count(&mut self, answer: &Answer) {
        self.contexts += 1;
        self.prompt_tokens += answer.prompt_eval_count;
        self.prompt_seconds += seconds(answer.prompt_eval_duration);
        self.output_tokens += answer.eval_count;
        self.output_seconds += seconds(answer.eval_duration);
    }
}

/// All the enrichment of one job.
#[derive(Clone)]
pub struct Enricher {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    most_tokens: usize,
    state: Mutex<State>,
    changed: Notify,
}

/// What the workers have: the shared part and the way out, which is closed when the last of them has ended.
#[derive(Clone)]
struct Pool {
    shared: Arc<Shared>,
    outcomes: mpsc::Sender<Outcome>,
}

#[derive(Default)]
struct State {
    schedule: Schedule<SocketAddr>,
    /// Documents with chunks whose outcome has not been sent, and how many these are.
    documents: HashMap<usize, (Arc<Prepared>, usize)>,
    /// How often instances broke over a chunk.
    attempts: HashMap<Task, u32>,
    /// Documents of which less must be sent, because the usual prompt was too long.
    narrow: HashSet<usize>,
    figures: BTreeMap<SocketAddr, InstanceFigures>,
    /// Addresses behind the pool's name.
    known: HashSet<SocketAddr>,
    /// Those whose last request did not fail.
    healthy: HashSet<SocketAddr>,
    /// Chunks whose outcome has not been sent.
    open: usize,
    /// Whether no more documents will come.
    complete: bool,
}

impl Enricher {
    /// Starts with no documents; outcomes go to `outcomes` in any order.
    ///
    /// # Errors
    /// When the configuration is of no use.
    pub fn start(config: &OllamaConfig, outcomes: mpsc::Sender<Outcome>) -> Result<Self, String> {
        let shared = Arc::new(Shared {
            client: Client::new(&config.model)?,
            most_tokens: config.context_max_tokens,
            state: Mutex::default(),
            changed: Notify::new(),
        });
        tokio::spawn(workers::supervise(Pool { shared: shared.clone(), outcomes }, config.hosts.clone()));
        Ok(Self { shared })
    }

    /// Adds a document at a place, of which these chunks are to be put in context.
    pub fn add(&self, place: usize, prepared: Arc<Prepared>, chunks: &[usize]) {
        if chunks.is_empty() {
            return;
        }
        let mut state = self.shared.state();
        state.open += chunks.len();
        state.documents.insert(place, (prepared, chunks.len()));
        for run in chunks.chunk_by(|one, next| one + 1 == *next) {
            state.schedule.add(place, run[0]..run[0] + run.len());
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// Says that no document will follow.
    pub fn finish(&self) {
        self.shared.state().complete = true;
        self.shared.changed.notify_waiters();
    }

    /// What each instance did so far.
    pub fn figures(&self) -> Vec<InstanceFigures> {
        let state = self.shared.state();
        let named = |(address, figures): (&SocketAddr, &InstanceFigures)| InstanceFigures {
            address: address.to_string(),
            ..figures.clone()
        };
        state.figures.iter().map(named).collect()
    }
}

impl State {
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
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    fn done(&self) -> bool {
        let state = self.state();
        (state.complete && state.open == 0) || self.outcomes.is_closed()
    }

    /// The next chunk for an instance, with its document.
    fn next(&self, address: SocketAddr) -> Option<(Task, Arc<Prepared>)> {
        let mut state = self.state();
        let task = state.schedule.next(address)?;
        state.documents.get(&task.document).map(|(prepared, _)| (task, prepared.clone()))
    }

    /// Asks an instance for a chunk's context, with less of the document once the usual prompt was too long.
    async fn ask(
        &self,
        address: SocketAddr,
        task: Task,
        document: &Document,
        chunk: &Chunk,
    ) -> Result<Answer, Failure> {
        let ask = async |room| {
            let prompt = prompt::prompt(document, chunk.start, chunk.end, room);
            let question = Question { prompt: &prompt, most_tokens: self.shared.most_tokens, format: None };
            self.shared.client.ask(address, question).await
        };
        if self.state().narrow.contains(&task.document) {
            return ask(Room::NARROW).await;
        }
        match ask(Room::USUAL).await {
            Err(Failure::TooLong(_)) => {
                self.state().narrow.insert(task.document);
                ask(Room::NARROW).await
            }
            answer => answer,
        }
    }

    /// Lets the others have what an instance has before it, beginning with the chunk that it could not do.
    fn hand_back(&self, address: SocketAddr, task: Task) {
        let mut state = self.state();
        state.schedule.give_up(address);
        state.schedule.put_back(task);
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// Counts an attempt at a chunk; whether there may be another one.
    fn may_try_again(&self, task: Task) -> bool {
        let mut state = self.state();
        let attempts = state.attempts.entry(task).or_default();
        *attempts += 1;
        *attempts < ATTEMPTS
    }

    async fn deliver(&self, task: Task, context: Result<String, String>) {
        let outcome =
            Outcome { document: task.document, chunk: task.chunk, context: context.map(Some), made: None };
        // The reader may be gone, which `done` sees.
        drop(self.outcomes.send(outcome).await);
        // Not before: once nothing is open the workers are stopped, and with them whoever still waits for room.
        self.state().sent(task);
        self.shared.changed.notify_waiters();
    }
}

/// Seconds from nanoseconds.
#[expect(clippy::cast_precision_loss, reason = "a duration for people")]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}
