//! The thread of one replica of the model: takes batches, computes them, answers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::queue::Batch;
use super::{EngineError, Replica, Shared, Waited, Worker};
use crate::batch::Adaptive;
use crate::metrics::WorkerLabels;
use crate::model::{Input, Output};

/// Computes until the engine has stopped and nothing waits.
pub fn work<R: Replica>(shared: &Shared, worker: &Worker<R>, number: usize) {
    let mut budget = Adaptive::new(worker.budget);
    while let Some(Batch { jobs, failed_on }) = shared.next_batch(number, budget.budget()) {
        let started = Instant::now();
        let metrics = &shared.metrics;
        let lengths: Vec<usize> = jobs.iter().map(|job| job.input.len()).collect();
        let tokens: usize = lengths.iter().sum();
        for job in &jobs {
            metrics.queue_duration.observe((started - job.arrived).as_secs_f64());
        }
        let inputs: Vec<&Input> = jobs.iter().map(|job| &job.input).collect();
        let results = compute(&worker.replica, &inputs, &mut budget);
        let inference = started.elapsed();
        metrics.batch_duration.observe(inference.as_secs_f64());
        metrics.batch_inputs.observe(jobs.len() as f64);
        metrics.batch_tokens.observe(tokens as f64);
        let labels = WorkerLabels { worker: number };
        metrics.tokens.get_or_create(&labels).inc_by(tokens as u64);
        metrics.padding.get_or_create(&labels).inc_by(worker.replica.padding(&lengths) as u64);
        let error = results.iter().find_map(|result| result.as_ref().err());
        let again = if let Some(error) = error {
            let again = shared.failed(number, failed_on);
            metrics.batch_failures.get_or_create(&labels).inc();
            tracing::error!(worker = number, inputs = jobs.len(), tokens, %error, again, "a batch failed");
            again
        } else {
            shared.lock().computed(number, failed_on, (tokens, inference), Instant::now());
            false
        };
        let mut failed = Vec::new();
        for (job, result) in jobs.into_iter().zip(results) {
            if result.is_err() && again {
                failed.push(job);
                continue;
            }
            let waited = Waited { queue: started - job.arrived, inference };
            let result = result.and_then(finite);
            // Nobody is there to hear it where the request was cancelled meanwhile.
            drop(job.answer.send(result.map(|output| (output, waited))));
        }
        if !failed.is_empty() {
            shared.lock().leave(Batch { jobs: failed, failed_on: Some(number) });
        }
    }
}

/// Refuses an output that JSON has no numbers for. The batch has not failed by that: another worker would compute the same, and
/// the other inputs have nothing to do with it.
fn finite(output: Output) -> Result<Output, EngineError> {
    if output.is_finite() {
        return Ok(output);
    }
    let message = "the model computed a value for this input that is no finite number: the number format may be too small for it \
                   (try the dtype f32), or the weights are damaged";
    Err(EngineError::Backend(message.to_owned()))
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
