//! The queue and the threads that own a model each. Inputs come in, outputs go out through oneshots; no HTTP, no tensors.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use crate::batch::{self, Budget, INTERACTIVE_INPUTS, Waiting};
use crate::metrics::{Metrics, WorkerLabels};
use crate::model::{Input, Model, Output, TextTokenizer, Truncation, normalize};
use crate::pipeline::{EmbedTexts, Embedding};

/// The most candidates of a kind that one choice of a batch looks at; what is behind them keeps its turn.
const CANDIDATES: usize = 1024;

/// Why inputs were not computed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The queue is full; the caller may try again later.
    #[error("{waiting} inputs are waiting already: try again in a moment, or send fewer requests at a time")]
    Overloaded {
        /// Inputs in the queue.
        waiting: usize,
    },
    /// The model failed.
    #[error("{0}")]
    Backend(String),
    /// The process is about to end.
    #[error("the server is shutting down")]
    Stopped,
}

/// What the engine may hold.
#[derive(Debug, Clone, Copy)]
pub struct EngineLimits {
    /// One batch.
    pub batch: Budget,
    /// Waiting inputs from which on a further request is refused. A request of any size is taken below that.
    pub queue_inputs: usize,
}

/// Starts batches on one thread a worker; clones share them.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    limits: EngineLimits,
    metrics: Arc<Metrics>,
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Inputs of small requests; kept apart, so that no number of bulk inputs hides them.
    interactive: VecDeque<Job>,
    bulk: VecDeque<Job>,
    stopped: bool,
}

impl Queue {
    fn len(&self) -> usize {
        self.interactive.len() + self.bulk.len()
    }
}

struct Job {
    input: Input,
    arrived: Instant,
    answer: oneshot::Sender<Result<Output, EngineError>>,
}

impl Engine {
    /// Starts one thread for each of `workers`, which owns that replica of the model until the engine stops.
    pub fn start(workers: Vec<Model>, limits: EngineLimits, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { limits, metrics, queue: Mutex::default(), filled: Condvar::new() });
        for (number, model) in (0_u32..).zip(workers) {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("model-{number}"))
                .spawn(move || work(&shared, &model, number))?;
        }
        Ok(Self { shared })
    }

    /// Computes `inputs` in batches with those of other requests; one result for each, in order.
    /// Dropping the future takes back what has not begun.
    pub async fn run(&self, inputs: Vec<Input>) -> Result<Vec<Output>, EngineError> {
        let interactive = inputs.len() <= INTERACTIVE_INPUTS;
        let arrived = Instant::now();
        let mut answers = Vec::with_capacity(inputs.len());
        {
            let mut queue = self.shared.lock();
            if queue.stopped {
                return Err(EngineError::Stopped);
            }
            if queue.len() >= self.shared.limits.queue_inputs {
                self.shared.metrics.overloaded.inc();
                return Err(EngineError::Overloaded { waiting: queue.len() });
            }
            let jobs = if interactive { &mut queue.interactive } else { &mut queue.bulk };
            for input in inputs {
                let (answer, receiver) = oneshot::channel();
                answers.push(receiver);
                jobs.push_back(Job { input, arrived, answer });
            }
            self.shared.show_length(&queue);
        }
        self.shared.filled.notify_all();
        let mut results = Vec::with_capacity(answers.len());
        for answer in answers {
            results.push(answer.await.map_err(|_| EngineError::Stopped)??);
        }
        Ok(results)
    }

    /// Takes no more inputs; the workers end once the queue is empty.
    pub fn stop(&self) {
        self.shared.lock().stopped = true;
        self.shared.filled.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A panic while the lock was held can't leave a queue half written: every change is one call.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show_length(&self, queue: &Queue) {
        self.metrics.queue_inputs.set(i64::try_from(queue.len()).unwrap_or(i64::MAX));
    }

    /// Waits for the next batch; `None` once the engine has stopped and nothing waits.
    fn next_batch(&self) -> Option<Vec<Job>> {
        let mut queue = self.lock();
        loop {
            let before = queue.len();
            queue.interactive.retain(|job| !job.answer.is_closed());
            queue.bulk.retain(|job| !job.answer.is_closed());
            self.metrics.cancelled.inc_by((before - queue.len()) as u64);
            if queue.len() > 0 {
                break;
            }
            self.show_length(&queue);
            if queue.stopped {
                return None;
            }
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let waiting = |job: &Job, interactive| Waiting { tokens: job.input.len(), interactive };
        let interactive = queue.interactive.iter().take(CANDIDATES).map(|job| waiting(job, true));
        let bulk = queue.bulk.iter().take(CANDIDATES).map(|job| waiting(job, false));
        let candidates: Vec<Waiting> = interactive.chain(bulk).collect();
        let first_bulk = queue.interactive.len().min(CANDIDATES);
        let mut jobs = Vec::new();
        // From the back, so that the positions before stay what they are.
        for index in batch::choose(&candidates, self.limits.batch).into_iter().rev() {
            let job = match index.checked_sub(first_bulk) {
                Some(index) => queue.bulk.remove(index),
                None => queue.interactive.remove(index),
            };
            jobs.extend(job);
        }
        jobs.reverse();
        self.show_length(&queue);
        Some(jobs)
    }
}

fn work(shared: &Shared, model: &Model, number: u32) {
    while let Some(jobs) = shared.next_batch() {
        let started = Instant::now();
        let metrics = &shared.metrics;
        let tokens: usize = jobs.iter().map(|job| job.input.len()).sum();
        for job in &jobs {
            metrics.queue_duration.observe((started - job.arrived).as_secs_f64());
        }
        let results = compute(model, &jobs);
        metrics.batch_duration.observe(started.elapsed().as_secs_f64());
        metrics.batch_inputs.observe(jobs.len() as f64);
        metrics.batch_tokens.observe(tokens as f64);
        metrics.tokens.get_or_create(&WorkerLabels { worker: number }).inc_by(tokens as u64);
        match results {
            Ok(results) => {
                for (job, result) in jobs.into_iter().zip(results) {
                    // Nobody is there to hear it where the request was cancelled meanwhile.
                    drop(job.answer.send(Ok(result)));
                }
            }
            Err(error) => {
                tracing::error!(worker = number, inputs = jobs.len(), tokens, %error, "a batch failed");
                for job in jobs {
                    drop(job.answer.send(Err(error.clone())));
                }
            }
        }
    }
}

/// A panic inside a kernel fails its batch, not the process.
fn compute(model: &Model, jobs: &[Job]) -> Result<Vec<Output>, EngineError> {
    let inputs: Vec<&Input> = jobs.iter().map(|job| &job.input).collect();
    let results = catch_unwind(AssertUnwindSafe(|| model.run(&inputs)))
        .map_err(|_| EngineError::Backend(format!("the model panicked on a batch of {} inputs", jobs.len())))?
        .map_err(|error| EngineError::Backend(error.to_string()))?;
    if results.len() == jobs.len() {
        Ok(results)
    } else {
        Err(EngineError::Backend(format!(
            "the model gave {} results for {} inputs",
            results.len(),
            jobs.len()
        )))
    }
}

/// The engine as the document pipeline sees it: texts in, normalized vectors out, waiting while the queue is full.
pub struct PipelineEmbedder {
    /// Computes.
    pub engine: Engine,
    /// Tokenizes.
    pub tokenizer: TextTokenizer,
    /// Put before every text: the model's prompt for documents.
    pub prompt: String,
}

impl EmbedTexts for PipelineEmbedder {
    fn embed(&self, texts: Vec<String>) -> BoxFuture<'_, Result<Vec<Embedding>, String>> {
        Box::pin(async move {
            let (tokenizer, prompt) = (self.tokenizer.clone(), self.prompt.clone());
            let tokenize = move || {
                texts
                    .iter()
                    .map(|text| tokenizer.text(&format!("{prompt}{text}"), Truncation::DropEnd))
                    .collect::<Result<Vec<_>, _>>()
            };
            let inputs = tokio::task::spawn_blocking(tokenize)
                .await
                .map_err(|error| format!("tokenizing: {error}"))?
                .map_err(|error| error.to_string())?;
            let tokens: Vec<usize> = inputs.iter().map(Input::len).collect();
            loop {
                match self.engine.run(inputs.clone()).await {
                    Ok(outputs) => {
                        return Ok(outputs
                            .into_iter()
                            .zip(tokens)
                            .map(|(Output { mut vector, .. }, tokens)| {
                                normalize(&mut vector);
                                Embedding { vector, tokens }
                            })
                            .collect());
                    }
                    // A document is a long job: it waits where an interactive client is told to come back.
                    Err(EngineError::Overloaded { .. }) => {
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                    Err(error) => return Err(error.to_string()),
                }
            }
        })
    }
}
