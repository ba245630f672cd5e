//! The queue and the threads that own a model each. Inputs come in, outputs go out through oneshots; no HTTP, no tensors.

mod line;
mod queue;
#[cfg(test)]
mod tests;
mod texts;
mod worker;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

pub use texts::PipelineEmbedder;

use crate::batch::{Budget, Kind};
use crate::gpus::Temperature;
use crate::metrics::{Metrics, WorkerLabels};
use crate::model::{Input, Model, ModelError, Output};
use line::Job;
use queue::{Batch, Place, Queue};

/// How long who can wait does so before a full queue is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// Why inputs were not computed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The queue is full; the caller may try again later.
    #[error("{waiting} inputs are waiting already: try again in a moment, or send fewer requests at a time")]
    Overloaded {
        /// Inputs in the queue.
        waiting: usize,
        /// Seconds after which they will have been computed, at the pace of late.
        seconds: u32,
    },
    /// The model failed.
    #[error("{0}")]
    Backend(String),
    /// The process is about to end.
    #[error("the server is shutting down")]
    Stopped,
}

/// What computes batches: one replica of a model.
pub trait Replica: Send + 'static {
    /// One result for each input, in order.
    fn run(&self, inputs: &[&Input]) -> Result<Vec<Output>, ModelError>;

    /// Positions that are computed for inputs of `lengths` tokens beyond their tokens.
    fn padding(&self, lengths: &[usize]) -> usize;
}

impl Replica for Model {
    fn run(&self, inputs: &[&Input]) -> Result<Vec<Output>, ModelError> {
        Self::run(self, inputs)
    }

    fn padding(&self, lengths: &[usize]) -> usize {
        Self::padding(self, lengths)
    }
}

/// What the engine may hold.
#[derive(Debug, Clone, Copy)]
pub struct EngineLimits {
    /// Waiting inputs from which on a further request is refused. A request of any size is taken below that.
    pub queue_inputs: usize,
}

/// A replica of the model with what the engine has to know of its device.
pub struct Worker<R> {
    /// Computes.
    pub replica: R,
    /// What a batch may hold.
    pub budget: Budget,
    /// How warm the device is: of the workers that are free the coolest one gets the next batch.
    pub temperature: Temperature,
    /// Whether it shares its device with the others, and computes interactive inputs alone, while all others are busy.
    pub express: bool,
}

/// What comes of one input.
type Answer = oneshot::Receiver<Result<(Output, Waited), EngineError>>;

/// Deals batches to one thread a worker; clones share them.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    limits: EngineLimits,
    metrics: Arc<Metrics>,
    queue: Mutex<Queue>,
    /// One for each worker.
    woken: Vec<Condvar>,
}

/// How long an input waited, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waited {
    /// Until its batch began.
    pub queue: Duration,
    /// For its batch.
    pub inference: Duration,
}

impl Engine {
    /// Starts one thread for each of `workers`, which owns that replica of the model until the engine stops and is dealt batches
    /// of its budget from the queue that all of them share.
    pub fn start<R: Replica>(
        workers: Vec<Worker<R>>,
        limits: EngineLimits,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let queue = Mutex::new(Queue::new(workers.iter().map(Place::of).collect()));
        let woken = workers.iter().map(|_| Condvar::new()).collect();
        let shared = Arc::new(Shared { limits, metrics, queue, woken });
        for (number, worker) in workers.into_iter().enumerate() {
            // There from the beginning: an increase is seen only from a value that was told.
            drop(shared.metrics.batch_failures.get_or_create(&WorkerLabels { worker: number }));
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("model-{number}"))
                .spawn(move || worker::work(&shared, &worker, number))?;
        }
        Ok(Self { shared })
    }

    /// Refuses a request, and counts it, where the queue is full or the engine has stopped, as [`Self::run`] would. Who asks first
    /// prepares nothing in vain.
    pub fn admit(&self) -> Result<(), EngineError> {
        let admitted = self.shared.admit(&self.shared.lock());
        admitted.map_err(|error| self.shared.refused(error))
    }

    /// Computes `inputs` in batches with those of other requests; one result for each, in order. Refuses them, and counts it, where
    /// the queue is full. Dropping the future takes back what has not begun.
    pub async fn run(&self, inputs: Vec<Input>) -> Result<Vec<Output>, EngineError> {
        let outputs = self.run_as(Kind::of(inputs.len()), inputs).await?;
        Ok(outputs.into_iter().map(|(output, _)| output).collect())
    }

    /// The same for inputs of `kind`, however many they are, with how long each of them waited.
    pub async fn run_as(&self, kind: Kind, inputs: Vec<Input>) -> Result<Vec<(Output, Waited)>, EngineError> {
        let answers = self.shared.take(kind, inputs).map_err(|(error, _)| self.shared.refused(error))?;
        all(answers).await
    }

    /// The same for who waits where a client is told to come back: while the queue is full, the inputs are brought again.
    pub async fn run_patiently(
        &self,
        kind: Kind,
        mut inputs: Vec<Input>,
    ) -> Result<Vec<(Output, Waited)>, EngineError> {
        loop {
            inputs = match self.shared.take(kind, inputs) {
                Ok(answers) => return all(answers).await,
                Err((EngineError::Overloaded { .. }, inputs)) => inputs,
                Err((error, _)) => return Err(error),
            };
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Tokens that all workers compute at once.
    pub fn capacity(&self) -> usize {
        self.shared.lock().capacity()
    }

    /// Whether anything can be computed: where the last batch of every worker failed, `input` is tried. A device whose context
    /// is lost fails everything from then on, until the process is started anew.
    pub async fn check(&self, input: Input) -> Result<(), EngineError> {
        if !self.shared.lock().is_suspect() {
            return Ok(());
        }
        match self.shared.take(Kind::Interactive, vec![input]) {
            Ok(answers) => all(answers).await.map(|_| ()),
            // Where much waits, much is being computed.
            Err((EngineError::Overloaded { .. }, _)) => Ok(()),
            Err((error, _)) => Err(error),
        }
    }

    /// Takes no more inputs; the workers end once the queue is empty.
    pub fn stop(&self) {
        self.shared.lock().stopped = true;
        self.shared.wake_all();
    }
}

/// One result for each input, in order.
async fn all(answers: Vec<Answer>) -> Result<Vec<(Output, Waited)>, EngineError> {
    let mut results = Vec::with_capacity(answers.len());
    for answer in answers {
        results.push(answer.await.map_err(|_| EngineError::Stopped)??);
    }
    Ok(results)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A panic while the lock was held can't leave a queue half written: every change is one call.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a request where it can't be taken.
    fn admit(&self, queue: &Queue) -> Result<(), EngineError> {
        if queue.stopped {
            return Err(EngineError::Stopped);
        }
        if queue.len() >= self.limits.queue_inputs {
            return Err(EngineError::Overloaded { waiting: queue.len(), seconds: queue.seconds_of_work() });
        }
        Ok(())
    }

    /// Counts what a client is told.
    fn refused(&self, error: EngineError) -> EngineError {
        if matches!(error, EngineError::Overloaded { .. }) {
            self.metrics.overloaded.inc();
        }
        error
    }

    /// Puts the inputs of one request into the queue; gives them back where it can't take them.
    fn take(&self, kind: Kind, inputs: Vec<Input>) -> Result<Vec<Answer>, (EngineError, Vec<Input>)> {
        let arrived = Instant::now();
        let job = |input| {
            let (answer, receiver) = oneshot::channel();
            (Job { input, arrived, answer }, receiver)
        };
        let (jobs, answers): (Vec<_>, Vec<_>) = inputs.into_iter().map(job).unzip();
        let mut queue = self.lock();
        if let Err(error) = self.admit(&queue) {
            return Err((error, jobs.into_iter().map(|job| job.input).collect()));
        }
        queue.add(kind, jobs);
        self.deal(&mut queue);
        Ok(answers)
    }

    fn wake_all(&self) {
        self.woken.iter().for_each(Condvar::notify_all);
    }

    /// Has the queue deal, and wakes those who got something.
    fn deal(&self, queue: &mut Queue) {
        let (given, cancelled) = queue.deal(Instant::now());
        self.metrics.cancelled.inc_by(cancelled as u64);
        self.metrics.queue_inputs.set(i64::try_from(queue.len()).unwrap_or(i64::MAX));
        for worker in given {
            self.woken[worker].notify_all();
        }
    }

    /// Waits for the next batch of `worker`; `None` once the engine has stopped and nothing waits.
    fn next_batch(&self, worker: usize, budget: Budget) -> Option<Batch> {
        let mut queue = self.lock();
        queue.free(worker, budget);
        loop {
            self.deal(&mut queue);
            if let Some(batch) = queue.take(worker) {
                return Some(batch);
            }
            if queue.is_over() {
                self.wake_all();
                return None;
            }
            let woken = &self.woken[worker];
            queue = match queue.rest(worker, Instant::now()) {
                Some(rest) => woken.wait_timeout(queue, rest).unwrap_or_else(PoisonError::into_inner).0,
                None => woken.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Takes note that a batch failed that `failed_on` may have failed on before; whether it is left to another worker.
    fn failed(&self, worker: usize, failed_on: Option<usize>) -> bool {
        let mut queue = self.lock();
        queue.failed(worker);
        failed_on.is_none() && queue.another(worker, Instant::now())
    }
}
