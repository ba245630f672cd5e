//! Which waiting inputs are computed together. Pure: the engine holds the queue and calls `choose`.
//!
//! Interactive inputs (of small requests) go first, but leave half of the budget to bulk ones while these wait, so that
//! neither starves the other. Among its own kind the oldest input always goes; the rest of the budget is filled with
//! inputs of about its length, because a batch of like lengths keeps every core and every GPU kernel evenly busy.

/// Requests of at most this many inputs count as interactive.
pub const INTERACTIVE_INPUTS: usize = 8;

/// How far behind the oldest input one of a better length is looked for.
const WINDOW: usize = 256;

/// What one batch may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Tokens; a single longer input is still taken, alone.
    pub tokens: usize,
    /// Inputs.
    pub inputs: usize,
}

/// One waiting input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Its tokens.
    pub tokens: usize,
    /// Whether it belongs to a small request.
    pub interactive: bool,
}

/// Positions in `queue` (oldest first) of the inputs for the next batch, in ascending order. Empty only for an empty queue.
pub fn choose(queue: &[Waiting], budget: Budget) -> Vec<usize> {
    let of_kind = |interactive| move |index: &usize| queue[*index].interactive == interactive;
    let interactive: Vec<usize> = (0..queue.len()).filter(of_kind(true)).collect();
    let bulk: Vec<usize> = (0..queue.len()).filter(of_kind(false)).collect();
    let mut chosen = Chosen { indices: Vec::new(), tokens: 0 };
    let share = if bulk.is_empty() { budget.tokens } else { budget.tokens / 2 };
    chosen.fill(queue, &interactive, Budget { tokens: share, ..budget });
    chosen.fill(queue, &bulk, budget);
    chosen.indices.sort_unstable();
    chosen.indices
}

struct Chosen {
    indices: Vec<usize>,
    tokens: usize,
}

impl Chosen {
    /// Adds the oldest of `candidates`, then those nearest to it in length, as far as the budget goes.
    fn fill(&mut self, queue: &[Waiting], candidates: &[usize], budget: Budget) {
        let Some(&oldest) = candidates.first() else { return };
        let mut order: Vec<usize> = candidates.iter().copied().take(WINDOW).collect();
        // Stable: of equal lengths the older one goes first. The oldest has distance zero to itself.
        order.sort_by_key(|index| (*index != oldest, queue[*index].tokens.abs_diff(queue[oldest].tokens)));
        for index in order {
            let fits =
                self.tokens + queue[index].tokens <= budget.tokens && self.indices.len() < budget.inputs;
            if fits || self.indices.is_empty() {
                self.tokens += queue[index].tokens;
                self.indices.push(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget { tokens: 100, inputs: 4 };

    fn bulk(tokens: usize) -> Waiting {
        Waiting { tokens, interactive: false }
    }

    fn interactive(tokens: usize) -> Waiting {
        Waiting { tokens, interactive: true }
    }

    #[test]
    fn batches_by_case() {
        let cases: &[(&str, &[Waiting], &[usize])] = &[
            ("nothing waits", &[], &[]),
            ("an input over the budget goes alone", &[bulk(500), bulk(1)], &[0]),
            ("the budget of tokens holds", &[bulk(50), bulk(50), bulk(50)], &[0, 1]),
            ("the budget of inputs holds", &[bulk(1), bulk(1), bulk(1), bulk(1), bulk(1)], &[0, 1, 2, 3]),
            ("like lengths go together", &[bulk(30), bulk(90), bulk(31), bulk(29)], &[0, 2, 3]),
            ("the oldest goes though the others are alike", &[bulk(90), bulk(10), bulk(10)], &[0, 1]),
            ("interactive inputs pass bulk ones", &[bulk(60), bulk(60), interactive(40)], &[0, 2]),
            (
                "interactive inputs leave half to bulk ones",
                &[interactive(30), interactive(30), bulk(50)],
                &[0, 2],
            ),
            (
                "interactive inputs alone have it all",
                &[interactive(30), interactive(30), interactive(30)],
                &[0, 1, 2],
            ),
            ("a long interactive input delays bulk", &[bulk(60), interactive(90)], &[1]),
        ];
        for (name, queue, expected) in cases {
            assert_eq!(choose(queue, BUDGET), *expected, "{name}");
        }
    }

    #[test]
    fn every_input_is_computed_in_the_end() {
        let mut queue: Vec<Waiting> =
            (0..1000).map(|n| Waiting { tokens: 1 + (n * 7919) % 120, interactive: n % 13 == 0 }).collect();
        let mut batches = 0;
        while !queue.is_empty() {
            let chosen = choose(&queue, BUDGET);
            assert!(!chosen.is_empty(), "a queue of {} gave an empty batch", queue.len());
            for index in chosen.into_iter().rev() {
                queue.remove(index);
            }
            batches += 1;
        }
        assert!(batches <= 1000);
    }
}
