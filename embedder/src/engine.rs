//! The queue and the threads that own a model each. Inputs come in, outputs go out through oneshots; no HTTP, no tensors.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use crate::batch::{self, Adaptive, Budget, Kind};
use crate::metrics::{Metrics, WorkerLabels};
use crate::model::{Input, Model, ModelError, Output, TextTokenizer, Truncation, normalize};
use crate::pipeline::{EmbedTexts, Embedding};

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

struct Queue {
    /// Inputs of small requests; kept apart, so that no number of bulk inputs hides them.
    interactive: VecDeque<Job>,
    bulk: VecDeque<Job>,
    /// Whose turn was last.
    last: Kind,
    stopped: bool,
}

impl Queue {
    fn len(&self) -> usize {
        self.interactive.len() + self.bulk.len()
    }

    fn of(&mut self, kind: Kind) -> &mut VecDeque<Job> {
        match kind {
            Kind::Interactive => &mut self.interactive,
            Kind::Bulk => &mut self.bulk,
        }
    }
}

struct Job {
    input: Input,
    arrived: Instant,
    answer: oneshot::Sender<Result<(Output, Waited), EngineError>>,
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
    /// Starts one thread for each of `workers`, which owns that replica of the model until the engine stops and takes batches
    /// of its budget from the queue that all of them share.
    pub fn start<R: Replica>(
        workers: Vec<(R, Budget)>,
        limits: EngineLimits,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let queue =
            Queue { interactive: VecDeque::new(), bulk: VecDeque::new(), last: Kind::Bulk, stopped: false };
        let shared = Arc::new(Shared { limits, metrics, queue: Mutex::new(queue), filled: Condvar::new() });
        for (number, (replica, budget)) in (0_u32..).zip(workers) {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("model-{number}"))
                .spawn(move || work(&shared, &replica, budget, number))?;
        }
        Ok(Self { shared })
    }

    /// Computes `inputs` in batches with those of other requests; one result for each, in order.
    /// Dropping the future takes back what has not begun.
    pub async fn run(&self, inputs: Vec<Input>) -> Result<Vec<Output>, EngineError> {
        Ok(self.run_timed(inputs).await?.0)
    }

    /// The same, with how long each input waited.
    pub async fn run_timed(&self, inputs: Vec<Input>) -> Result<(Vec<Output>, Vec<Waited>), EngineError> {
        let kind = Kind::of(inputs.len());
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
            let jobs = queue.of(kind);
            for input in inputs {
                let (answer, receiver) = oneshot::channel();
                answers.push(receiver);
                jobs.push_back(Job { input, arrived, answer });
            }
            self.shared.show_length(&queue);
        }
        self.shared.filled.notify_all();
        let (mut results, mut waited) =
            (Vec::with_capacity(answers.len()), Vec::with_capacity(answers.len()));
        for answer in answers {
            let (output, time) = answer.await.map_err(|_| EngineError::Stopped)??;
            results.push(output);
            waited.push(time);
        }
        Ok((results, waited))
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
    fn next_batch(&self, budget: Budget) -> Option<Vec<Job>> {
        let mut queue = self.lock();
        loop {
            let before = queue.len();
            queue.interactive.retain(|job| !job.answer.is_closed());
            queue.bulk.retain(|job| !job.answer.is_closed());
            self.metrics.cancelled.inc_by((before - queue.len()) as u64);
            if let Some(kind) = batch::turn(queue.interactive.len(), queue.bulk.len(), queue.last) {
                queue.last = kind;
                let waiting = queue.of(kind);
                let tokens: Vec<usize> =
                    waiting.iter().take(batch::WINDOW).map(|job| job.input.len()).collect();
                // From the back, so that the positions before stay what they are.
                let chosen = batch::choose(&tokens, budget).into_iter().rev();
                let mut jobs: Vec<Job> = chosen.filter_map(|index| waiting.remove(index)).collect();
                jobs.reverse();
                self.show_length(&queue);
                return Some(jobs);
            }
            self.show_length(&queue);
            if queue.stopped {
                return None;
            }
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn work<R: Replica>(shared: &Shared, replica: &R, budget: Budget, number: u32) {
    let mut budget = Adaptive::new(budget);
    while let Some(jobs) = shared.next_batch(budget.budget()) {
        let started = Instant::now();
        let metrics = &shared.metrics;
        let lengths: Vec<usize> = jobs.iter().map(|job| job.input.len()).collect();
        let tokens: usize = lengths.iter().sum();
        for job in &jobs {
            metrics.queue_duration.observe((started - job.arrived).as_secs_f64());
        }
        let inputs: Vec<&Input> = jobs.iter().map(|job| &job.input).collect();
        let results = compute(replica, &inputs, &mut budget);
        let inference = started.elapsed();
        metrics.batch_duration.observe(inference.as_secs_f64());
        metrics.batch_inputs.observe(jobs.len() as f64);
        metrics.batch_tokens.observe(tokens as f64);
        let labels = WorkerLabels { worker: number };
        metrics.tokens.get_or_create(&labels).inc_by(tokens as u64);
        metrics.padding.get_or_create(&labels).inc_by(replica.padding(&lengths) as u64);
        if let Some(error) = results.iter().find_map(|result| result.as_ref().err()) {
            tracing::error!(worker = number, inputs = jobs.len(), tokens, %error, "a batch failed");
        }
        for (job, result) in jobs.into_iter().zip(results) {
            let waited = Waited { queue: started - job.arrived, inference };
            // Nobody is there to hear it where the request was cancelled meanwhile.
            drop(job.answer.send(result.map(|output| (output, waited))));
        }
    }
}

/// One result for each input. Where the device runs out of memory, the batch is computed in two halves, and so on.
fn compute<R: Replica>(
    replica: &R,
    inputs: &[&Input],
    budget: &mut Adaptive,
) -> Vec<Result<Output, EngineError>> {
    // A panic inside a kernel fails its batch, not the process.
    let error = match catch_unwind(AssertUnwindSafe(|| replica.run(inputs))) {
        Ok(Ok(results)) if results.len() == inputs.len() => {
            budget.succeeded();
            return results.into_iter().map(Ok).collect();
        }
        Ok(Ok(results)) => format!("the model gave {} results for {} inputs", results.len(), inputs.len()),
        Ok(Err(error)) if error.is_out_of_memory() && inputs.len() > 1 => {
            let tokens = inputs.iter().map(|input| input.len()).sum();
            budget.ran_out_of_memory(tokens);
            tracing::warn!(inputs = inputs.len(), tokens, %error, "out of memory: halving the batch");
            let (first, second) = inputs.split_at(inputs.len() / 2);
            let mut results = compute(replica, first, budget);
            results.extend(compute(replica, second, budget));
            return results;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the model panicked on a batch of {} inputs", inputs.len()),
    };
    inputs.iter().map(|_| Err(EngineError::Backend(error.clone()))).collect()
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
                    .map(|text| tokenizer.prompted(&prompt, text, Truncation::DropEnd))
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
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    Err(error) => return Err(error.to_string()),
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Wants;
    use std::sync::mpsc;

    /// Answers with the first id; fails above so many tokens; reports its batches and waits to be let go on.
    struct Scripted {
        most_tokens: usize,
        begun: mpsc::Sender<Vec<u32>>,
        go_on: mpsc::Receiver<()>,
    }

    impl Replica for Scripted {
        fn run(&self, inputs: &[&Input]) -> Result<Vec<Output>, ModelError> {
            self.begun.send(inputs.iter().map(|input| input.ids[0]).collect()).unwrap();
            // A test that lets go of the sender lets everything go on.
            let _ = self.go_on.recv();
            if inputs.iter().map(|input| input.len()).sum::<usize>() > self.most_tokens {
                let source = candle_core::Error::Msg("CUDA_ERROR_OUT_OF_MEMORY: out of memory".to_owned());
                return Err(ModelError::Tensor { doing: "testing".to_owned(), source });
            }
            assert!(inputs.iter().all(|input| input.ids[0] != 666), "the number that panics");
            let vector = |input: &&Input| vec![input.ids[0] as f32];
            Ok(inputs.iter().map(|input| Output { vector: vector(input), ..Output::default() }).collect())
        }

        fn padding(&self, lengths: &[usize]) -> usize {
            lengths.len()
        }
    }

    struct Fixture {
        engine: Engine,
        metrics: Arc<Metrics>,
        begun: mpsc::Receiver<Vec<u32>>,
        go_on: mpsc::Sender<()>,
    }

    fn fixture(budget: usize, most_tokens: usize) -> Fixture {
        let (begun, batches) = mpsc::channel();
        let (sender, go_on) = mpsc::channel();
        let metrics = Arc::new(Metrics::default());
        let replica = Scripted { most_tokens, begun, go_on };
        let budget = Budget { tokens: budget, inputs: 100 };
        let limits = EngineLimits { queue_inputs: 20 };
        let engine = Engine::start(vec![(replica, budget)], limits, Arc::clone(&metrics)).unwrap();
        Fixture { engine, metrics, begun: batches, go_on: sender }
    }

    impl Fixture {
        /// The next batch, which then waits for `go_on`.
        fn batch(&self) -> Vec<u32> {
            self.begun.recv_timeout(Duration::from_secs(10)).unwrap()
        }

        async fn until_waiting(&self, inputs: i64) {
            while self.metrics.queue_inputs.get() != inputs {
                tokio::task::yield_now().await;
            }
        }
    }

    fn numbers(outputs: Vec<Output>) -> Vec<f32> {
        outputs.into_iter().flat_map(|output| output.vector).collect()
    }

    fn inputs(ids: impl IntoIterator<Item = u32>) -> Vec<Input> {
        let input = |id| Input {
            ids: vec![id; 10],
            type_ids: vec![0; 10],
            unpooled: 0,
            unseen: 0,
            wants: Wants::VECTOR,
        };
        ids.into_iter().map(input).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_interactive_input_waits_for_one_bulk_batch_at_most_and_bulk_for_one_interactive() {
        let fixture = fixture(20, usize::MAX);
        let bulk = tokio::spawn({
            let engine = fixture.engine.clone();
            async move { engine.run(inputs(0..10)).await }
        });
        fixture.until_waiting(8).await;
        assert_eq!(fixture.batch(), [0, 1]);
        let small = [100, 200].map(|id| {
            let engine = fixture.engine.clone();
            tokio::spawn(async move { engine.run(inputs(id..id + 2)).await })
        });
        fixture.until_waiting(12).await;
        for expected in [&[100, 101][..], &[2, 3], &[200, 201], &[4, 5]] {
            fixture.go_on.send(()).unwrap();
            let mut batch = fixture.batch();
            // The two small requests may come in either order.
            if batch[0] >= 100 && batch[0] != expected[0] {
                batch = batch.iter().map(|id| if *id >= 200 { id - 100 } else { id + 100 }).collect();
            }
            assert_eq!(batch, expected);
        }
        drop(fixture.go_on);
        for request in small {
            request.await.unwrap().unwrap();
        }
        let results = numbers(bulk.await.unwrap().unwrap());
        assert_eq!(results, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_whose_client_is_gone_is_not_computed() {
        let fixture = fixture(20, usize::MAX);
        let first = tokio::spawn({
            let engine = fixture.engine.clone();
            async move { engine.run(inputs([1])).await }
        });
        assert_eq!(fixture.batch(), [1]);
        let gone = tokio::spawn({
            let engine = fixture.engine.clone();
            async move { engine.run(inputs(2..20)).await }
        });
        fixture.until_waiting(18).await;
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        fixture.go_on.send(()).unwrap();
        first.await.unwrap().unwrap();
        fixture.until_waiting(0).await;
        assert_eq!(fixture.metrics.cancelled.get(), 18);
        assert!(fixture.begun.try_recv().is_err(), "nothing more was computed");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_queue_refuses_and_a_stopped_engine_finishes_what_it_has() {
        let fixture = fixture(20, usize::MAX);
        let waiting = tokio::spawn({
            let engine = fixture.engine.clone();
            async move { engine.run(inputs(0..22)).await }
        });
        fixture.until_waiting(20).await;
        let refused = fixture.engine.run(inputs([99])).await.unwrap_err();
        assert!(matches!(refused, EngineError::Overloaded { waiting: 20 }), "{refused}");
        assert_eq!(fixture.metrics.overloaded.get(), 1);
        fixture.engine.stop();
        assert!(matches!(fixture.engine.run(inputs([99])).await, Err(EngineError::Stopped)));
        drop(fixture.go_on);
        assert_eq!(waiting.await.unwrap().unwrap().len(), 22);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn running_out_of_memory_halves_the_batch_and_the_next_ones() {
        let fixture = fixture(80, 25);
        drop(fixture.go_on);
        let results = fixture.engine.run(inputs(0..16)).await.unwrap();
        assert_eq!(numbers(results).into_iter().sum::<f32>(), 120.0);
        let sizes: Vec<usize> =
            std::iter::from_fn(|| fixture.begun.try_recv().ok()).map(|it| it.len()).collect();
        assert_eq!(sizes[..7], [8, 4, 2, 2, 4, 2, 2], "halves of halves, until they fit");
        assert!(sizes[7..].iter().all(|size| *size <= 6), "{sizes:?}: the smallest budget is 64 tokens");
        assert!(fixture.engine.run(inputs([1])).await.is_ok());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_panic_fails_its_batch_alone() {
        let fixture = fixture(20, usize::MAX);
        drop(fixture.go_on);
        let error = fixture.engine.run(inputs([666])).await.unwrap_err();
        assert!(error.to_string().contains("panicked on a batch of 1 inputs"), "{error}");
        assert_eq!(numbers(fixture.engine.run(inputs([7])).await.unwrap()), [7.0]);
        assert_eq!(fixture.metrics.padding.get_or_create(&WorkerLabels { worker: 0 }).get(), 2);
    }
}
