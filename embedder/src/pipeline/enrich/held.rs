//! A chunk in the hands of a worker. However the worker ends, the chunk goes on: to the next stage, or to another worker.

use super::prompt::{self, Room};
use super::schedule::Task;
use super::{ATTEMPTS, Outcome, Pool, Prepared, State, cache};
use crate::ollama::{Answer, Failure, Question};
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

/// A chunk that an instance is asked about.
pub struct Held {
    pool: Pool,
    address: SocketAddr,
    task: Task,
    prepared: Arc<Prepared>,
    taken: Instant,
    /// Whether it has been said what becomes of the chunk.
    settled: bool,
}

/// What was said of a chunk.
pub enum Said {
    /// By the instance: the answer and the prompt.
    Now(Answer, String),
    /// In another job.
    Before(String),
}

impl Pool {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    pub(super) fn done(&self) -> bool {
        let state = self.state();
        (state.complete && state.open == 0) || self.outcomes.is_closed()
    }

    /// Takes the next chunk for an instance.
    pub(super) fn take(&self, address: SocketAddr) -> Option<Held> {
        let mut state = self.state();
        let now = Instant::now();
        let task = state.next(address, now, self.shared.config.timing.overdue)?;
        let prepared = state.documents.get(&task.document)?.0.clone();
        let (_, instances) = state.flight.entry(task).or_insert((now, 0));
        *instances += 1;
        drop(state);
        Some(Held { pool: self.clone(), address, task, prepared, taken: now, settled: false })
    }

    /// Sends what becomes of a chunk, unless somebody else has.
    pub(super) async fn deliver(&self, task: Task, context: Result<String, String>) {
        if !self.state().unclaimed.remove(&task) {
            return;
        }
        if context.is_ok() {
            self.state().progress = Instant::now();
        }
        let outcome =
            Outcome { document: task.document, chunk: task.chunk, context: context.map(Some), made: None };
        // The reader may be gone, which `done` sees.
        drop(self.outcomes.send(outcome).await);
        // Not before: once nothing is open the workers are stopped, and with them whoever still waits for room.
        self.state().sent(task);
        self.shared.changed.notify_waiters();
    }
}

impl Held {
    /// Asks the instance, with less of the document once the usual prompt was too long.
    pub async fn ask(&self) -> Result<Said, Failure> {
        let window = usize::try_from(self.pool.shared.config.context_window).unwrap_or(usize::MAX);
        if self.pool.state().narrow.contains(&self.task.document) {
            return self.ask_with(Room::narrow(window)).await;
        }
        match self.ask_with(Room::usual(window)).await {
            Err(Failure::TooLong(_)) => {
                self.pool.state().narrow.insert(self.task.document);
                self.ask_with(Room::narrow(window)).await
            }
            said => said,
        }
    }

    async fn ask_with(&self, room: Room) -> Result<Said, Failure> {
        let config = &self.pool.shared.config;
        let Some(chunk) = self.prepared.chunks.get(self.task.chunk) else {
            return Err(Failure::Refused("there is no such chunk".to_owned()));
        };
        let prompt =
            prompt::prompt(&self.prepared.document, chunk.start..chunk.end, room, config.instruction());
        let most_tokens = config.context_max_tokens;
        let key = cache::key(&config.model, most_tokens, config.context_window, &prompt);
        if let Some(context) = self.pool.shared.cache.get(&key) {
            return Ok(Said::Before(context));
        }
        let question = Question { prompt: &prompt, most_tokens, format: None };
        let answer = self.pool.shared.client.ask(self.address, question).await?;
        if let Some(context) = prompt::context(&answer.response, answer.done_reason == "length") {
            self.pool.shared.cache.put(key, &context);
        }
        Ok(Said::Now(answer, prompt))
    }

    /// Says what becomes of the chunk.
    pub async fn deliver(mut self, context: Result<String, String>) {
        self.settled = true;
        self.pool.state().land(self.task);
        self.pool.deliver(self.task, context).await;
    }

    /// Lets the others have the chunk, and what else the instance has before it.
    pub fn hand_back(mut self) {
        self.settled = true;
        let mut state = self.pool.state();
        state.schedule.give_up(self.address);
        if state.land(self.task) {
            state.schedule.put_back(self.task);
        }
        drop(state);
        self.pool.shared.changed.notify_waiters();
    }

    /// How long the instance has been asked.
    pub fn since(&self) -> Duration {
        self.taken.elapsed()
    }

    /// Lets others try the chunk, unless too many broke over it.
    pub fn broke(mut self, why: &str) {
        self.settled = true;
        self.try_again(why);
    }

    fn try_again(&self, why: &str) {
        let mut state = self.pool.state();
        state.schedule.give_up(self.address);
        let attempts = state.attempts.entry(self.task).or_default();
        *attempts += 1;
        let again = *attempts < ATTEMPTS;
        if state.land(self.task) {
            match again {
                true => state.schedule.put_back(self.task),
                false => state.abandoned.push((self.task, why.to_owned())),
            }
        }
        drop(state);
        self.pool.shared.changed.notify_waiters();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The worker was stopped or has panicked.
        if !self.settled {
            self.try_again("the worker that asked for its context failed");
        }
    }
}
