//! What waits, which workers are free, and who gets what. Holds no lock, starts no thread and reads no clock.
//!
//! Of the workers that are free the one on the coolest GPU gets the next batch. Where several are free, what waits is
//! shared out among them: a batch that fills one GPU while others idle would take longer than one for each. A batch that fails
//! goes to another worker once; where that one computes it, the fault was the first one's, which then rests for a while.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{EngineError, Waited};
use crate::batch::{self, Budget, Kind};
use crate::gpus::Temperature;
use crate::model::{Input, Output};

/// How long a worker rests after its first fault; twice as long after each further one.
const REST: Duration = Duration::from_secs(1);
/// The most doublings of that: about a minute.
const MOST_DOUBLINGS: u32 = 6;

/// One input and who waits for it.
pub struct Job {
    pub input: Input,
    pub arrived: Instant,
    pub answer: oneshot::Sender<Result<(Output, Waited), EngineError>>,
}

/// What one worker computes at once.
pub struct Batch {
    pub jobs: Vec<Job>,
    /// The worker that failed on it, where it is the second try.
    pub failed_on: Option<usize>,
}

/// What the queue knows of a worker.
struct Place {
    standing: Standing,
    /// What its next batch may hold.
    budget: Budget,
    temperature: Temperature,
    /// Whether its last batch failed.
    failed: bool,
    /// How often in a row others computed what it had failed on.
    faults: u32,
    rests_until: Option<Instant>,
}

enum Standing {
    Free,
    /// A batch lies ready for it.
    Given(Batch),
    Busy,
}

impl Place {
    fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    fn is_ready(&self, now: Instant) -> bool {
        matches!(self.standing, Standing::Free) && !self.rests(now)
    }
}

pub struct Queue {
    /// Inputs of small requests; kept apart, so that no number of bulk inputs hides them.
    interactive: VecDeque<Job>,
    bulk: VecDeque<Job>,
    /// Whose turn was last.
    last: Kind,
    /// Batches that failed, for another worker.
    again: VecDeque<Batch>,
    places: Vec<Place>,
    pub stopped: bool,
}

impl Queue {
    /// A queue for so many workers, none of which is free yet.
    pub fn new(workers: impl Iterator<Item = (Budget, Temperature)>) -> Self {
        let place = |(budget, temperature)| Place {
            standing: Standing::Busy,
            budget,
            temperature,
            failed: false,
            faults: 0,
            rests_until: None,
        };
        Self {
            interactive: VecDeque::new(),
            bulk: VecDeque::new(),
            last: Kind::Bulk,
            again: VecDeque::new(),
            places: workers.map(place).collect(),
            stopped: false,
        }
    }

    /// Inputs that wait.
    pub fn len(&self) -> usize {
        self.interactive.len()
            + self.bulk.len()
            + self.again.iter().map(|batch| batch.jobs.len()).sum::<usize>()
    }

    /// Tokens of a batch on every worker.
    pub fn capacity(&self) -> usize {
        self.places.iter().map(|place| place.budget.tokens).sum()
    }

    /// Workers that could be given a batch.
    pub fn ready(&self, now: Instant) -> usize {
        self.places.iter().filter(|place| place.is_ready(now)).count()
    }

    /// Whether the last batch of every worker failed: either the inputs were bad, or nothing can be computed any more.
    pub fn is_suspect(&self) -> bool {
        self.places.iter().all(|place| place.failed)
    }

    /// Whether nothing will come any more.
    pub fn is_over(&self) -> bool {
        // Who computes may still fail, and leave its batch to another one.
        self.stopped && self.len() == 0 && self.places.iter().all(|it| matches!(it.standing, Standing::Free))
    }

    /// Adds an input.
    pub fn push(&mut self, kind: Kind, job: Job) {
        self.of(kind).push_back(job);
    }

    /// Takes note that `worker` is free for a batch of `budget`.
    pub fn free(&mut self, worker: usize, budget: Budget) {
        let place = &mut self.places[worker];
        (place.standing, place.budget) = (Standing::Free, budget);
    }

    /// The batch that lies ready for `worker`, which is busy from then on.
    pub fn take(&mut self, worker: usize) -> Option<Batch> {
        let standing = &mut self.places[worker].standing;
        if !matches!(standing, Standing::Given(_)) {
            return None;
        }
        match std::mem::replace(standing, Standing::Busy) {
            Standing::Given(batch) => Some(batch),
            Standing::Free | Standing::Busy => None,
        }
    }

    /// How long `worker` still rests.
    pub fn rest(&self, worker: usize, now: Instant) -> Option<Duration> {
        self.places[worker].rests_until.and_then(|until| until.checked_duration_since(now))
    }

    /// Lays a batch ready for each worker that is free, as long as something waits; the workers that got one, and the inputs
    /// that were dropped because nobody waits for them any more.
    pub fn deal(&mut self, now: Instant) -> (Vec<usize>, usize) {
        let mut given = Vec::new();
        if self.len() == 0 || self.ready(now) == 0 {
            return (given, 0);
        }
        let before = self.len();
        self.drop_cancelled();
        let cancelled = before - self.len();
        for batch in std::mem::take(&mut self.again) {
            match self.coolest(now, batch.failed_on) {
                Some(worker) => {
                    self.places[worker].standing = Standing::Given(batch);
                    given.push(worker);
                }
                None => self.again.push_back(batch),
            }
        }
        while let Some(worker) = self.coolest(now, None)
            && let Some(kind) = batch::turn(self.interactive.len(), self.bulk.len(), self.last)
        {
            let jobs = self.choose(kind, self.places[worker].budget, now);
            self.last = kind;
            self.places[worker].standing = Standing::Given(Batch { jobs, failed_on: None });
            given.push(worker);
        }
        (given, cancelled)
    }

    /// Whether a batch that `worker` failed on can be left to another one.
    pub fn another(&self, worker: usize, now: Instant) -> bool {
        self.places.iter().enumerate().any(|(other, place)| other != worker && !place.rests(now))
    }

    /// Leaves a batch that a worker failed on to another one.
    pub fn leave(&mut self, batch: Batch) {
        self.again.push_back(batch);
    }

    /// Takes note that `worker` failed.
    pub fn failed(&mut self, worker: usize) {
        self.places[worker].failed = true;
    }

    /// Takes note that `worker` computed a batch, which another one may have failed on: that one rests.
    pub fn computed(&mut self, worker: usize, failed_on: Option<usize>, now: Instant) {
        let place = &mut self.places[worker];
        (place.failed, place.faults, place.rests_until) = (false, 0, None);
        if let Some(other) = failed_on {
            let place = &mut self.places[other];
            let rest = REST * (1 << place.faults.min(MOST_DOUBLINGS));
            place.rests_until = Some(now + rest);
            place.faults = place.faults.saturating_add(1);
            tracing::warn!(
                worker = other,
                seconds = rest.as_secs(),
                "another worker computed what it failed on"
            );
        }
    }

    fn of(&mut self, kind: Kind) -> &mut VecDeque<Job> {
        match kind {
            Kind::Interactive => &mut self.interactive,
            Kind::Bulk => &mut self.bulk,
        }
    }

    /// The worker for the next batch; of equally warm ones the first.
    fn coolest(&self, now: Instant, except: Option<usize>) -> Option<usize> {
        let ready = self.places.iter().enumerate();
        let ready = ready.filter(|(worker, place)| place.is_ready(now) && Some(*worker) != except);
        // A GPU that does not answer is the last one to be given work.
        ready.min_by_key(|(_, place)| place.temperature.get().unwrap_or(i32::MAX)).map(|(worker, _)| worker)
    }

    /// Takes the next inputs of `kind` for one of the workers that are ready.
    fn choose(&mut self, kind: Kind, budget: Budget, now: Instant) -> Vec<Job> {
        let ready = self.ready(now);
        let waiting = self.of(kind);
        let tokens: Vec<usize> = waiting.iter().take(batch::WINDOW).map(|job| job.input.len()).collect();
        // Those behind the window are taken to be as long as those in it.
        let all = tokens.iter().sum::<usize>() * waiting.len() / tokens.len().max(1);
        let budget = Budget { tokens: budget.tokens.min(all.div_ceil(ready.max(1))), ..budget };
        // From the back, so that the positions before stay what they are.
        let chosen = batch::choose(&tokens, budget).into_iter().rev();
        let mut jobs: Vec<Job> = chosen.filter_map(|index| waiting.remove(index)).collect();
        jobs.reverse();
        jobs
    }

    fn drop_cancelled(&mut self) {
        self.interactive.retain(|job| !job.answer.is_closed());
        self.bulk.retain(|job| !job.answer.is_closed());
        for batch in &mut self.again {
            batch.jobs.retain(|job| !job.answer.is_closed());
        }
        self.again.retain(|batch| !batch.jobs.is_empty());
    }
}
