//! What waits, which workers are free, and who gets what. Holds no lock, starts no thread and reads no clock.
//!
//! Of the workers that are free the one on the coolest GPU gets the next batch. Where several are free, what waits is
//! shared out among them: a batch that fills one GPU while others idle would take longer than one for each. A batch that fails
//! goes to another worker once; where that one computes it, the fault was the first one's, which then rests for a while.
//!
//! An express worker computes beside the ordinary ones on the same device. It is given interactive inputs alone, while no ordinary worker is
//! ready: they share the device with the batches that run instead of waiting for their end. All that is said of workers otherwise
//! is said of the ordinary ones.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Worker;
use super::line::{Job, Line};
use crate::batch::{self, Budget, Kind};
use crate::gpus::Temperature;

/// How long a worker rests after its first fault; twice as long after each further one.
const REST: Duration = Duration::from_secs(1);
/// The most doublings of that: about a minute.
const MOST_DOUBLINGS: u32 = 6;

/// What a batch before the last one still says of a worker's pace.
const FADING: f64 = 0.9;
/// The longest that anybody is told to wait, in seconds: others may leave before.
const LONGEST_WAIT: f64 = 60.0;

/// What one worker computes at once.
pub struct Batch {
    pub jobs: Vec<Job>,
    /// The worker that failed on it, where it is the second try.
    pub failed_on: Option<usize>,
}

/// What the queue knows of a worker.
pub struct Place {
    standing: Standing,
    /// What its next batch may hold.
    budget: Budget,
    temperature: Temperature,
    express: bool,
    pace: Pace,
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

/// Tokens and seconds of the last batches, of which older ones count less.
#[derive(Default)]
struct Pace {
    tokens: f64,
    seconds: f64,
}

impl Place {
    /// The place of a worker that is not free yet.
    pub fn of<R>(worker: &Worker<R>) -> Self {
        Self {
            standing: Standing::Busy,
            budget: worker.budget,
            temperature: worker.temperature.clone(),
            express: worker.express,
            pace: Pace::default(),
            failed: false,
            faults: 0,
            rests_until: None,
        }
    }

    fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    fn is_ready(&self, now: Instant) -> bool {
        matches!(self.standing, Standing::Free) && !self.rests(now)
    }
}

pub struct Queue {
    /// Inputs of small requests; kept apart, so that no number of bulk inputs hides them.
    interactive: Line,
    bulk: Line,
    /// Whose turn was last.
    last: Kind,
    /// Batches that failed, for another worker.
    again: VecDeque<Batch>,
    places: Vec<Place>,
    pub stopped: bool,
}

impl Queue {
    /// A queue for these workers.
    pub fn new(places: Vec<Place>) -> Self {
        Self {
            interactive: Line::default(),
            bulk: Line::default(),
            last: Kind::Bulk,
            again: VecDeque::new(),
            places,
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
        self.ordinary().map(|(_, place)| place.budget.tokens).sum()
    }

    /// Workers that could be given a batch.
    pub fn ready(&self, now: Instant) -> usize {
        self.ordinary().filter(|(_, place)| place.is_ready(now)).count()
    }

    /// Whether the last batch of every worker failed: either the inputs were bad, or nothing can be computed any more.
    pub fn is_suspect(&self) -> bool {
        self.ordinary().all(|(_, place)| place.failed)
    }

    /// Whether nothing will come any more.
    pub fn is_over(&self) -> bool {
        // Who computes may still fail, and leave its batch to another one.
        self.stopped && self.len() == 0 && self.places.iter().all(|it| matches!(it.standing, Standing::Free))
    }

    /// Seconds from 1 to 60 until what waits is computed, at the pace of the last batches.
    pub fn seconds_of_work(&self) -> u32 {
        let tokens = self.interactive.tokens() + self.bulk.tokens();
        let measured = self.ordinary().map(|(_, place)| &place.pace).filter(|pace| pace.seconds > 0.0);
        let pace: f64 = measured.map(|pace| pace.tokens / pace.seconds).sum();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at least 1, at most 60")]
        if pace > 0.0 { (tokens as f64 / pace).ceil().clamp(1.0, LONGEST_WAIT) as u32 } else { 1 }
    }

    /// Adds the inputs of one request.
    pub fn add(&mut self, kind: Kind, request: Vec<Job>) {
        self.of(kind).add(request, kind == Kind::Documents);
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

    /// Lays a batch ready for each worker that is free, as long as something waits for it; the workers that got one, and the
    /// inputs that were dropped because nobody waits for them any more.
    pub fn deal(&mut self, now: Instant) -> (Vec<usize>, usize) {
        let mut given = Vec::new();
        let for_ordinary = self.len() > 0 && self.ready(now) > 0;
        let for_express = self.interactive.len() > 0 && self.express(now).is_some();
        if !for_ordinary && !for_express {
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
            self.last = kind;
            self.give(worker, kind, now);
            given.push(worker);
        }
        // What is left waits because no ordinary worker is ready.
        while self.interactive.len() > 0
            && let Some(worker) = self.express(now)
        {
            self.give(worker, Kind::Interactive, now);
            given.push(worker);
        }
        (given, cancelled)
    }

    /// Whether a batch that `worker` failed on can be left to another one.
    pub fn another(&self, worker: usize, now: Instant) -> bool {
        self.ordinary().any(|(other, place)| other != worker && !place.rests(now))
    }

    /// Leaves a batch that a worker failed on to another one.
    pub fn leave(&mut self, batch: Batch) {
        self.again.push_back(batch);
    }

    /// Takes note that `worker` failed.
    pub fn failed(&mut self, worker: usize) {
        self.places[worker].failed = true;
    }

    /// Takes note that `worker` computed a batch of so many tokens within a time. Where another one had failed on it, that one
    /// rests.
    pub fn computed(
        &mut self,
        worker: usize,
        failed_on: Option<usize>,
        (tokens, inference): (usize, Duration),
        now: Instant,
    ) {
        let place = &mut self.places[worker];
        (place.failed, place.faults, place.rests_until) = (false, 0, None);
        place.pace.tokens = place.pace.tokens * FADING + tokens as f64;
        place.pace.seconds = place.pace.seconds * FADING + inference.as_secs_f64();
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

    fn of(&mut self, kind: Kind) -> &mut Line {
        match kind {
            Kind::Interactive => &mut self.interactive,
            Kind::Bulk | Kind::Documents => &mut self.bulk,
        }
    }

    fn ordinary(&self) -> impl Iterator<Item = (usize, &Place)> {
        self.places.iter().enumerate().filter(|(_, place)| !place.express)
    }

    /// The worker for the next batch; of equally warm ones the first.
    fn coolest(&self, now: Instant, except: Option<usize>) -> Option<usize> {
        let ready = self.ordinary().filter(|(worker, place)| place.is_ready(now) && Some(*worker) != except);
        // A GPU that does not answer is the last one to be given work.
        ready.min_by_key(|(_, place)| place.temperature.get().unwrap_or(i32::MAX)).map(|(worker, _)| worker)
    }

    /// An express worker that is ready.
    pub fn express(&self, now: Instant) -> Option<usize> {
        self.places.iter().position(|place| place.express && place.is_ready(now))
    }

    /// Lays the next inputs of `kind` ready for one of the workers that are ready.
    fn give(&mut self, worker: usize, kind: Kind, now: Instant) {
        let (ready, budget) = (self.ready(now), self.places[worker].budget);
        let jobs = self.of(kind).take(budget, ready);
        self.places[worker].standing = Standing::Given(Batch { jobs, failed_on: None });
    }

    fn drop_cancelled(&mut self) {
        self.interactive.drop_cancelled();
        self.bulk.drop_cancelled();
        for batch in &mut self.again {
            batch.jobs.retain(|job| !job.answer.is_closed());
        }
        self.again.retain(|batch| !batch.jobs.is_empty());
    }
}
