//! What waits of one kind, in the order of its turns: self-clocked fair queueing (S. J. Golestani, "A self-clocked fair queueing
//! scheme for broadband applications", INFOCOM 1994), with requests as the flows and tokens as the work.
//!
//! All requests that wait have the same claim to be computed, however large they are. An input's tag is the clock at its
//! arrival and the tokens of its request from there to its own end; the smallest tag goes first, and the clock shows the tag of the
//! oldest input of the last batch. So the inputs of a request of 20 lie between the first ones of another's 10,000, and it is
//! complete after about twice its own tokens. What comes later has a tag beyond the clock by its own tokens at least, so that
//! the clock moves on: whatever comes, an input that waits becomes the first one.

use std::collections::VecDeque;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{EngineError, Waited};
use crate::batch::{self, Budget};
use crate::model::{Input, Output};

/// One input and who waits for it.
pub struct Job {
    pub input: Input,
    pub arrived: Instant,
    pub answer: oneshot::Sender<Result<(Output, Waited), EngineError>>,
}

/// Inputs of one kind.
#[derive(Default)]
pub struct Line {
    /// With their tags, which ascend.
    jobs: VecDeque<(usize, Job)>,
    /// The tag of the oldest input of the last batch.
    clock: usize,
    /// The tag of the last input of documents.
    documents: usize,
    /// Tokens of all jobs.
    tokens: usize,
}

impl Line {
    /// Inputs that wait.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Tokens of the inputs that wait.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Adds the inputs of one request; those of documents have their turn after the documents before.
    pub fn add(&mut self, request: Vec<Job>, documents: bool) {
        let mut tag = if documents { self.clock.max(self.documents) } else { self.clock };
        for job in request {
            tag += job.input.len();
            self.tokens += job.input.len();
            self.jobs.push_back((tag, job));
        }
        if documents {
            self.documents = tag;
        }
        // Stable: of equal tags the older one goes first. Two runs that ascend are merged in linear time.
        self.jobs.make_contiguous().sort_by_key(|(tag, _)| *tag);
    }

    /// Takes the next batch of `budget` for one of so many workers that are `ready`, among whom what waits is shared out.
    pub fn take(&mut self, budget: Budget, ready: usize) -> Vec<Job> {
        let first = self.jobs.iter().take(batch::WINDOW);
        let lengths: Vec<usize> = first.map(|(_, job)| job.input.len()).collect();
        let share = self.tokens.div_ceil(ready.max(1));
        let chosen = batch::choose(&lengths, Budget { tokens: budget.tokens.min(share), ..budget });
        let end = chosen.last().map_or(0, |last| last + 1);
        self.clock = self.jobs.front().map_or(self.clock, |(tag, _)| *tag);
        let mut chosen = chosen.into_iter().peekable();
        let (mut taken, mut left) = (Vec::new(), Vec::new());
        for (index, (tag, job)) in self.jobs.drain(..end).enumerate() {
            if chosen.next_if_eq(&index).is_some() {
                self.tokens -= job.input.len();
                taken.push(job);
            } else {
                left.push((tag, job));
            }
        }
        for job in left.into_iter().rev() {
            self.jobs.push_front(job);
        }
        taken
    }

    /// Drops the inputs that nobody waits for any more.
    pub fn drop_cancelled(&mut self) {
        self.jobs.retain(|(_, job)| !job.answer.is_closed());
        self.tokens = self.jobs.iter().map(|(_, job)| job.input.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Wants;

    const BUDGET: Budget = Budget { tokens: 100, inputs: 1000 };

    /// A request of inputs of so many tokens, all of which have the id of the request.
    fn request(id: u32, lengths: impl IntoIterator<Item = usize>) -> Vec<Job> {
        let job = |tokens| {
            let (ids, type_ids) = (vec![id; tokens], vec![0; tokens]);
            let input = Input { ids, type_ids, unpooled: 0, unseen: 0, wants: Wants::VECTOR };
            Job { input, arrived: Instant::now(), answer: oneshot::channel().0 }
        };
        lengths.into_iter().map(job).collect()
    }

    /// Tokens that are computed until `count` inputs of the request `id` are, `between` doing something before every batch.
    fn until_complete(
        line: &mut Line,
        id: u32,
        mut count: usize,
        mut between: impl FnMut(&mut Line),
    ) -> usize {
        let mut tokens = 0;
        while count > 0 {
            between(line);
            let batch = line.take(BUDGET, 1);
            assert!(!batch.is_empty(), "{count} inputs of request {id} are gone");
            count -= batch.iter().filter(|job| job.input.ids[0] == id).count();
            tokens += batch.iter().map(|job| job.input.len()).sum::<usize>();
            assert!(tokens < 1_000_000, "{count} inputs of request {id} wait for ever");
        }
        tokens
    }

    #[test]
    fn a_small_request_does_not_wait_for_all_of_a_large_one() {
        let varied = |count: usize| (0..count).map(|number| 1 + number * 7919 % 20);
        for (name, large, small, own) in [
            ("like lengths", request(1, [10; 1000]), request(2, [10; 20]), 200),
            ("other lengths", request(1, [10; 1000]), request(2, [25; 8]), 200),
            ("many lengths", request(1, varied(1000)), request(2, varied(20)), varied(20).sum()),
        ] {
            let mut line = Line::default();
            line.add(large, false);
            line.take(BUDGET, 1);
            let count = small.len();
            line.add(small, false);
            let tokens = until_complete(&mut line, 2, count, |_| ());
            assert!(tokens <= 3 * own + BUDGET.tokens, "{name}: {tokens} tokens were computed before");
            let left = line.len();
            until_complete(&mut line, 1, left, |_| ());
            assert_eq!((line.len(), line.tokens()), (0, 0), "{name}");
        }
    }

    #[test]
    fn who_waits_alone_is_computed_in_its_own_order() {
        let mut line = Line::default();
        line.add((0..100).flat_map(|id| request(id, [10])).collect(), false);
        let order = |line: &mut Line| -> Vec<u32> {
            line.take(BUDGET, 1).iter().map(|job| job.input.ids[0]).collect()
        };
        assert_eq!(order(&mut line), (0..10).collect::<Vec<_>>());
        assert_eq!(order(&mut line), (10..20).collect::<Vec<_>>());
    }

    #[test]
    fn documents_are_computed_one_request_after_another_and_share_with_others() {
        let mut line = Line::default();
        for id in 1..=3 {
            line.add(request(id, [10; 20]), true);
        }
        line.add(request(9, [10; 20]), false);
        // The first of three and the other one take turns; without documents of one claim all four would.
        assert!(until_complete(&mut line, 1, 20, |_| ()) <= 400);
        assert_eq!(line.len(), 40);
        until_complete(&mut line, 2, 20, |_| ());
        assert_eq!(line.len(), 20, "the third one has not begun");
    }

    #[test]
    fn nobody_starves_however_many_small_requests_come() {
        let mut line = Line::default();
        line.add(request(1, [50; 20]), false);
        // Before every batch as many new ones as fill it, beside four batches of them that wait.
        for _ in 0..40 {
            line.add(request(2, [10]), false);
        }
        let tokens = until_complete(&mut line, 1, 20, |line| {
            for _ in 0..10 {
                line.add(request(2, [10]), false);
            }
        });
        assert!(tokens < 300 * 1000, "{tokens} tokens were computed before");
    }

    #[test]
    fn what_nobody_waits_for_is_dropped_with_its_tokens() {
        let mut line = Line::default();
        let (answer, waits) = oneshot::channel();
        let mut jobs = request(1, [10, 20]);
        jobs[1].answer = answer;
        line.add(jobs, false);
        line.drop_cancelled();
        assert_eq!((line.len(), line.tokens()), (1, 20));
        drop(waits);
        line.drop_cancelled();
        assert_eq!((line.len(), line.tokens()), (0, 0));
        assert!(line.take(BUDGET, 1).is_empty());
    }
}
