//! Which waiting inputs are computed together, and how many. Pure: the engine holds the queue and asks.
//!
//! Inputs of small requests are interactive, all others bulk. The two kinds take turns while both wait: an interactive
//! input waits for one bulk batch at most, and however many of them come, every second batch is a bulk one. Within a kind
//! the first input always goes; the rest of the budget is filled with inputs of about its length, because a batch of like
//! lengths keeps every core and every GPU kernel evenly busy.

use crate::model::Footprint;

/// Requests of at most this many inputs count as interactive.
pub const INTERACTIVE_INPUTS: usize = 8;

/// How far behind the first input one of a better length is looked for, in inputs: a batch of the shortest ones holds no more.
/// Sorting so many takes some microseconds, a batch takes milliseconds.
pub const WINDOW: usize = 1024;

/// The same in tokens, as a multiple of a batch's: with more to choose from, inputs of a rare length would be passed over for long.
const WINDOW_BATCHES: usize = 4;

/// Batches without trouble after which a budget that was halved is doubled again.
const RECOVERY: u32 = 256;

/// The smallest budget that running out of memory leads to, in tokens.
const SMALLEST: usize = 64;

/// What one batch may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Tokens; a single longer input is still taken, alone.
    pub tokens: usize,
    /// Inputs.
    pub inputs: usize,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Inputs of small requests.
    Interactive,
    /// All others.
    Bulk,
    /// Those of documents, which are bulk, too. However many requests they come in, they have the claim of one, and go one after
    /// another: what is computed first is kept first.
    Documents,
}

impl Kind {
    /// The kind of a request's inputs.
    pub fn of(inputs: usize) -> Self {
        if inputs <= INTERACTIVE_INPUTS { Self::Interactive } else { Self::Bulk }
    }
}

/// Whose turn it is after `last`, where so many inputs of each kind wait; `None` where none does.
pub fn turn(interactive: usize, bulk: usize, last: Kind) -> Option<Kind> {
    match (interactive, bulk, last) {
        (0, 0, _) => None,
        (0, _, _) | (1.., 1.., Kind::Interactive) => Some(Kind::Bulk),
        (_, 0, _) | (1.., 1.., Kind::Bulk | Kind::Documents) => Some(Kind::Interactive),
    }
}

/// Positions of the inputs for the next batch, in ascending order, of a queue of inputs of so many tokens in the order of their
/// turns. Empty only for an empty queue. Looks at the first [`WINDOW`] inputs, and at no more than fill some batches.
pub fn choose(queue: &[usize], budget: Budget) -> Vec<usize> {
    let Some(&first) = queue.first() else { return Vec::new() };
    let most = budget.tokens.saturating_mul(WINDOW_BATCHES);
    let mut before = 0;
    let within = queue.iter().take(WINDOW).take_while(|tokens| {
        let within = before < most;
        before += **tokens;
        within
    });
    let mut order: Vec<usize> = (0..within.count().max(1)).collect();
    // Stable: of equal lengths the one in front goes first. The first one has distance zero to itself.
    order.sort_by_key(|index| (*index != 0, queue[*index].abs_diff(first)));
    let (mut chosen, mut tokens) = (Vec::new(), 0);
    for index in order {
        let fits = tokens + queue[index] <= budget.tokens && chosen.len() < budget.inputs;
        if fits || chosen.is_empty() {
            tokens += queue[index];
            chosen.push(index);
        }
    }
    chosen.sort_unstable();
    chosen
}

/// The budget of one worker, which shrinks where its device runs out of memory and grows back when it no longer does: what
/// takes the memory may be a neighbor on the same GPU, who comes and goes.
#[derive(Debug, Clone, Copy)]
pub struct Adaptive {
    full: Budget,
    tokens: usize,
    untroubled: u32,
}

impl Adaptive {
    /// Begins with all of `full`.
    pub fn new(full: Budget) -> Self {
        Self { full, tokens: full.tokens, untroubled: 0 }
    }

    /// What the next batch may hold.
    pub fn budget(&self) -> Budget {
        Budget { tokens: self.tokens, ..self.full }
    }

    /// A batch of `tokens` was too large for the device's memory.
    pub fn ran_out_of_memory(&mut self, tokens: usize) {
        self.tokens = self.tokens.min((tokens / 2).max(SMALLEST));
        self.untroubled = 0;
    }

    /// A batch went well.
    pub fn succeeded(&mut self) {
        self.untroubled = self.untroubled.saturating_add(1);
        if self.untroubled >= RECOVERY && self.tokens < self.full.tokens {
            self.tokens = (self.tokens * 2).min(self.full.tokens);
            self.untroubled = 0;
        }
    }
}

/// Tokens of a batch that fit into `share` bytes of a GPU beside the weights and the scores of words, at most `most`. An eighth of
/// the share is left to the driver and to fragmentation.
pub fn tokens_within(share: u64, footprint: Footprint, most: usize) -> usize {
    let Footprint { weights, token, words } = footprint;
    let room = (share - share / 8).saturating_sub(weights + words);
    let tokens = usize::try_from(room / token.max(1)).unwrap_or(usize::MAX);
    tokens.clamp(SMALLEST, most.max(SMALLEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget { tokens: 100, inputs: 4 };

    #[test]
    fn batches_by_case() {
        let cases: &[(&str, &[usize], &[usize])] = &[
            ("nothing waits", &[], &[]),
            ("an input over the budget goes alone", &[500, 1], &[0]),
            ("the budget of tokens holds", &[50, 50, 50], &[0, 1]),
            ("the budget of inputs holds", &[1, 1, 1, 1, 1], &[0, 1, 2, 3]),
            ("like lengths go together", &[30, 90, 31, 29], &[0, 2, 3]),
            ("the first goes though the others are alike", &[90, 10, 10], &[0, 1]),
            ("what lies four batches behind is not looked at", &[30, 90, 90, 90, 90, 90, 30], &[0]),
        ];
        for (name, queue, expected) in cases {
            assert_eq!(choose(queue, BUDGET), *expected, "{name}");
        }
    }

    #[test]
    fn kinds_take_turns_while_both_wait() {
        use Kind::{Bulk, Interactive};
        for (interactive, bulk, last, expected) in [
            (0, 0, Bulk, None),
            (3, 0, Interactive, Some(Interactive)),
            (0, 3, Bulk, Some(Bulk)),
            (1, 1, Bulk, Some(Interactive)),
            (9, 1, Interactive, Some(Bulk)),
        ] {
            assert_eq!(turn(interactive, bulk, last), expected, "{interactive} and {bulk} after {last:?}");
        }
        assert_eq!((Kind::of(INTERACTIVE_INPUTS), Kind::of(INTERACTIVE_INPUTS + 1)), (Interactive, Bulk));
    }

    #[test]
    fn a_batch_holds_as_many_short_inputs_as_the_budget_has_room_for() {
        let budget = Budget { tokens: 16_384, inputs: 1024 };
        assert_eq!(choose(&[4; 5000], budget).len(), 1024);
    }

    #[test]
    fn no_input_waits_for_more_batches_than_inputs_in_front_of_it() {
        // Whatever the lengths, the first goes with every batch, so that position p is the first after p batches.
        let mut queue: Vec<(usize, usize)> = (0..1000).map(|n| (n, 1 + (n * 7919) % 120)).collect();
        let mut batches = 0;
        while !queue.is_empty() {
            let lengths: Vec<usize> = queue.iter().map(|(_, tokens)| *tokens).collect();
            let chosen = choose(&lengths, BUDGET);
            assert_eq!(chosen.first(), Some(&0), "the first did not go");
            for index in chosen.into_iter().rev() {
                let (arrived, _) = queue.remove(index);
                assert!(batches <= arrived, "input {arrived} went only with batch {batches}");
            }
            batches += 1;
        }
    }

    #[test]
    fn a_budget_halves_when_memory_runs_out_and_grows_back() {
        let mut adaptive = Adaptive::new(Budget { tokens: 4096, inputs: 8 });
        adaptive.ran_out_of_memory(3000);
        assert_eq!(adaptive.budget(), Budget { tokens: 1500, inputs: 8 });
        // A smaller batch says nothing about larger ones that went well.
        adaptive.ran_out_of_memory(100);
        assert_eq!(adaptive.budget().tokens, 64);
        for _ in 0..RECOVERY * 6 {
            adaptive.succeeded();
        }
        assert_eq!(adaptive.budget().tokens, 4096);
        for _ in 0..RECOVERY * 2 {
            adaptive.succeeded();
        }
        assert_eq!(adaptive.budget().tokens, 4096);
    }

    #[test]
    fn batches_fit_into_the_share_of_a_gpu() {
        const GIB: u64 = 1 << 30;
        let footprint = Footprint { weights: GIB, token: 1 << 20, words: 0 };
        for (name, share, expected) in [
            ("7 GiB of 8, less 1 GiB of weights, at 1 MiB a token", 8 * GIB, 6144),
            ("never more than asked for", 80 * GIB, 16_384),
            ("weights that fill the share leave the smallest batch", GIB, SMALLEST),
        ] {
            assert_eq!(tokens_within(share, footprint, 16_384), expected, "{name}");
        }
        let scored = Footprint { words: GIB, ..footprint };
        assert_eq!(
            tokens_within(8 * GIB, scored, 16_384),
            5120,
            "1 GiB of the first goes to the scores of words"
        );
    }

    #[test]
    fn short_texts_fill_the_batches_of_a_model_that_takes_long_ones_and_a_long_text_is_alone() {
        // Qwen3-Embedding-0.6B in bf16, with 32,768 positions, on 4 GiB.
        let footprint = Footprint { weights: 1200 << 20, token: 2 * 40 * 1024, words: 0 };
        let budget = Budget { tokens: tokens_within(4 << 30, footprint, 16_384), inputs: 1024 };
        assert_eq!(budget.tokens, 16_384);
        assert_eq!(choose(&[128; 1000], budget).len(), 128);
        assert_eq!(choose(&[32_768, 128, 128], budget), [0]);
    }
}
