//! Putting chunks in context by all instances of a pool at once: who does what is `schedule`'s, what is said `prompt`'s,
//! how it is sent `ollama`'s. This file owns the instances: finding them, following them, leaving out the failing ones.

mod ollama;
mod prompt;
mod schedule;

use super::OllamaConfig;
use super::chunk::Chunk;
use super::request::Document;
use ollama::{Answer, Client, Failure};
use schedule::{Schedule, Task};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet};

/// How often the pool's name is looked up while a job runs.
const REFRESH: Duration = Duration::from_secs(10);
/// How often a chunk is tried, over all instances.
const ATTEMPTS: u32 = 3;
/// How long a failing instance is left alone: the first time, and at most.
const LEAVE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// How often waiting parts look around when nothing wakes them.
const TICK: Duration = Duration::from_millis(500);
/// How long a job waits for an instance that answers before chunks go on without context.
const PATIENCE: Duration = Duration::from_secs(30);

/// A document with its chunks, ready to be put in context.
pub struct Prepared {
    /// The document.
    pub document: Document,
    /// Its chunks.
    pub chunks: Vec<Chunk>,
}

/// What became of one chunk.
pub struct Outcome {
    /// Place of the document.
    pub document: usize,
    /// Place of the chunk.
    pub chunk: usize,
    /// The context, or why there is none.
    pub context: Result<String, String>,
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
    /// Tokens of prompts that it evaluated; what its prefix cache had is not counted.
    pub prompt_tokens: u64,
    /// Seconds for them.
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
    state: Mutex<State>,
    changed: Notify,
    outcomes: mpsc::Sender<Outcome>,
}

#[derive(Default)]
struct State {
    schedule: Schedule<SocketAddr>,
    documents: HashMap<usize, Arc<Prepared>>,
    attempts: HashMap<Task, u32>,
    figures: BTreeMap<SocketAddr, InstanceFigures>,
    /// Addresses behind the pool's name.
    known: HashSet<SocketAddr>,
    /// Those whose last request did not fail.
    healthy: HashSet<SocketAddr>,
    /// Chunks without an outcome.
    open: usize,
    /// Whether more documents may come.
    complete: bool,
}

impl Enricher {
    /// Starts with no documents; outcomes go to `outcomes` in any order.
    ///
    /// # Errors
    /// When the configuration is of no use.
    pub fn start(config: &OllamaConfig, outcomes: mpsc::Sender<Outcome>) -> Result<Self, String> {
        let client = Client::new(&config.model, config.context_max_tokens)?;
        let host = host_and_port(&config.url)?;
        let shared = Arc::new(Shared { client, state: Mutex::default(), changed: Notify::new(), outcomes });
        tokio::spawn(supervise(shared.clone(), host));
        Ok(Self { shared })
    }

    /// Adds a document at a place.
    pub fn add(&self, place: usize, prepared: Arc<Prepared>) {
        let mut state = self.shared.state();
        state.open += prepared.chunks.len();
        state.schedule.add(place, prepared.chunks.len());
        state.documents.insert(place, prepared);
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
        state.figures.iter().map(|(address, figures)| InstanceFigures { address: address.to_string(), ..figures.clone() }).collect()
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic while the lock was held left nothing half done: every change is one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done(&self) -> bool {
        let state = self.state();
        (state.complete && state.open == 0) || self.outcomes.is_closed()
    }

    /// Takes an instance out; returns whether its task will be tried again.
    fn fail(&self, task: Task, address: SocketAddr) -> bool {
        let mut state = self.state();
        state.figures.entry(address).or_default().failures += 1;
        state.healthy.remove(&address);
        state.schedule.give_up(address);
        let attempts = state.attempts.entry(task).or_default();
        *attempts += 1;
        let again = *attempts < ATTEMPTS;
        if again {
            state.schedule.put_back(task);
        }
        drop(state);
        self.changed.notify_waiters();
        again
    }

    async fn deliver(&self, task: Task, context: Result<String, String>) {
        // Counted first: whoever hears of the last outcome must find nothing open.
        self.state().open -= 1;
        let _ = self.outcomes.send(Outcome { document: task.document, chunk: task.chunk, context }).await;
        self.changed.notify_waiters();
    }
}

/// Keeps one worker for every address behind the pool's name, until all is done.
async fn supervise(shared: Arc<Shared>, host: String) {
    let mut workers = JoinSet::new();
    let mut running: HashMap<SocketAddr, AbortHandle> = HashMap::new();
    let mut looked_up: Option<Instant> = None;
    let mut last_healthy = Instant::now();
    while !shared.done() {
        if looked_up.is_none_or(|when| when.elapsed() > REFRESH) {
            looked_up = Some(Instant::now());
            match tokio::net::lookup_host(&host).await {
                Ok(found) => shared.state().known = found.filter(SocketAddr::is_ipv4).collect(),
                Err(error) => tracing::warn!(%host, %error, "looking up the Ollama instances"),
            }
            running.retain(|_, worker| !worker.is_finished());
            let known: Vec<SocketAddr> = shared.state().known.iter().copied().collect();
            for address in known {
                running.entry(address).or_insert_with(|| {
                    shared.state().healthy.insert(address);
                    workers.spawn(work(shared.clone(), address))
                });
            }
        }
        if !shared.state().healthy.is_empty() {
            last_healthy = Instant::now();
        } else if last_healthy.elapsed() > PATIENCE {
            give_up_waiting(&shared, &host).await;
        }
        let _ = tokio::time::timeout(TICK, shared.changed.notified()).await;
    }
    workers.abort_all();
}

/// No instance: everything that waits goes on without context.
async fn give_up_waiting(shared: &Shared, host: &str) {
    loop {
        let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
        let Some(task) = shared.state().schedule.next(nobody) else { return };
        shared.deliver(task, Err(format!("no Ollama instance behind {host}"))).await;
    }
}

/// One instance's work: chunk after chunk. After a failure it takes nothing until it has answered a plain question.
async fn work(shared: Arc<Shared>, address: SocketAddr) {
    let mut leave = LEAVE.0;
    while !shared.done() && shared.state().known.contains(&address) {
        // Registered before looking, so that work which comes in between is not missed.
        let changed = shared.changed.notified();
        let next = {
            let mut state = shared.state();
            state.schedule.next(address).and_then(|task| state.documents.get(&task.document).cloned().map(|p| (task, p)))
        };
        let Some((task, prepared)) = next else {
            let _ = tokio::time::timeout(TICK, changed).await;
            continue;
        };
        let Some(chunk) = prepared.chunks.get(task.chunk) else { continue };
        let prompt = prompt::prompt(&prepared.document, chunk.start, chunk.end);
        match shared.client.generate(address, &prompt).await {
            Ok(answer) => {
                leave = LEAVE.0;
                shared.state().figures.entry(address).or_default().count(&answer);
                let context = prompt::context(&answer.response, answer.done_reason == "length");
                shared.deliver(task, context.ok_or_else(|| format!("{address} gave an empty answer"))).await;
            }
            Err(Failure::Request(message)) => shared.deliver(task, Err(message)).await,
            Err(Failure::Instance(message)) => {
                tracing::warn!(%message, "an Ollama instance failed");
                if !shared.fail(task, address) {
                    shared.deliver(task, Err(message)).await;
                }
                leave = recover(&shared, address, leave).await;
            }
        }
    }
    let mut state = shared.state();
    state.schedule.give_up(address);
    state.healthy.remove(&address);
}

/// Waits until an instance answers again, is no longer one of the pool's, or all is done; returns how long to leave it
/// alone the next time.
async fn recover(shared: &Shared, address: SocketAddr, mut leave: Duration) -> Duration {
    loop {
        tokio::time::sleep(leave).await;
        leave = (leave * 2).min(LEAVE.1);
        if shared.done() || !shared.state().known.contains(&address) {
            return leave;
        }
        if shared.client.answers(address).await {
            shared.state().healthy.insert(address);
            return leave;
        }
    }
}

/// `host:port` of a URL.
fn host_and_port(url: &str) -> Result<String, String> {
    let wrong = || format!("{url:?} is no address of Ollama instances: right is http://<host>:<port>");
    let rest = url.strip_prefix("http://").ok_or_else(wrong)?.trim_end_matches('/');
    let (host, port) = rest.rsplit_once(':').unwrap_or((rest, "11434"));
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(wrong());
    }
    Ok(format!("{host}:{port}"))
}

/// Seconds from nanoseconds.
#[allow(clippy::cast_precision_loss)]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}
