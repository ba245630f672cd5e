//! Which instance puts which chunk in context next. Pure: it knows no network and no clock.
//!
//! An LLM server keeps what it has read of the last prompt. All chunks of a document share the document as the beginning
//! of their prompts, so they go to one instance one after another, and only the first pays for reading the document. An
//! instance without work takes a whole document; when none is left, it takes the later half of what another one has before
//! it, where that is worth reading the document once more.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::ops::Range;

/// A chunk of a document, by their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Task {
    /// Place of the document.
    pub document: usize,
    /// Place of the chunk in its document.
    pub chunk: usize,
}

/// Work that waits and work that is under way, by instance.
#[derive(Debug)]
pub struct Schedule<I> {
    waiting: VecDeque<(usize, Range<usize>)>,
    own: HashMap<I, (usize, Range<usize>)>,
}

impl<I: Copy + Eq + Hash + Ord> Default for Schedule<I> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), own: HashMap::new() }
    }
}

impl<I: Copy + Eq + Hash + Ord> Schedule<I> {
    /// Adds chunks of a document that follow one another.
    pub fn add(&mut self, document: usize, chunks: Range<usize>) {
        if !chunks.is_empty() {
            self.waiting.push_back((document, chunks));
        }
    }

    /// Puts back a chunk that could not be done, before everything else.
    pub fn put_back(&mut self, task: Task) {
        self.waiting.push_front((task.document, task.chunk..task.chunk + 1));
    }

    /// The next chunk for an instance; `None` when nothing waits that it could do. `pays`: whether it is worth while to
    /// take half of so many chunks that wait for another one.
    pub fn next(&mut self, instance: I, pays: impl Fn(I, usize) -> bool) -> Option<Task> {
        if self.own.get(&instance).is_none_or(|(_, range)| range.is_empty()) {
            let taken = self.waiting.pop_front().or_else(|| self.steal(instance, pays))?;
            self.own.insert(instance, taken);
        }
        let (document, range) = self.own.get_mut(&instance)?;
        range.next().map(|chunk| Task { document: *document, chunk })
    }

    /// Gives up an instance: what it had before it waits again.
    pub fn give_up(&mut self, instance: I) {
        if let Some(rest) = self.own.remove(&instance).filter(|(_, range)| !range.is_empty()) {
            self.waiting.push_front(rest);
        }
    }

    fn steal(&mut self, thief: I, pays: impl Fn(I, usize) -> bool) -> Option<(usize, Range<usize>)> {
        let others = self.own.iter().map(|(instance, (_, range))| (*instance, range.len()));
        let worth =
            others.filter(|(other, waiting)| *other != thief && *waiting > 0 && pays(*other, *waiting));
        // The instance breaks ties, so that the same input gives the same plan.
        let (victim, _) = worth.max_by_key(|(other, waiting)| (*waiting, *other))?;
        let (document, range) = self.own.get_mut(&victim)?;
        let middle = range.end - range.len().div_ceil(2);
        let stolen = middle..range.end;
        range.end = middle;
        Some((*document, stolen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const ALWAYS: fn(char, usize) -> bool = |_, _| true;

    fn task(document: usize, chunk: usize) -> Option<Task> {
        Some(Task { document, chunk })
    }

    #[test]
    fn an_instance_stays_with_its_document() {
        let mut schedule = Schedule::default();
        schedule.add(0, 0..2);
        schedule.add(1, 0..2);
        assert_eq!(schedule.next('a', ALWAYS), task(0, 0));
        assert_eq!(schedule.next('b', ALWAYS), task(1, 0));
        assert_eq!(schedule.next('a', ALWAYS), task(0, 1));
        assert_eq!(schedule.next('b', ALWAYS), task(1, 1));
        assert_eq!(schedule.next('a', ALWAYS), None);
    }

    #[test]
    fn an_idle_instance_takes_the_later_half_of_what_the_busiest_has_before_it() {
        let mut schedule = Schedule::default();
        schedule.add(0, 0..9);
        assert_eq!(schedule.next('a', ALWAYS), task(0, 0));
        assert_eq!(schedule.next('b', ALWAYS), task(0, 5), "the later half of 1..9");
        assert_eq!(schedule.next('a', ALWAYS), task(0, 1));
        assert_eq!(schedule.next('b', ALWAYS), task(0, 6), "in order, for the prefix's sake");
    }

    #[test]
    fn the_last_chunk_does_not_wait_behind_a_busy_instance() {
        let mut schedule = Schedule::default();
        schedule.add(0, 0..2);
        assert_eq!(schedule.next('a', ALWAYS), task(0, 0));
        assert_eq!(schedule.next('b', ALWAYS), task(0, 1));
        assert_eq!(schedule.next('a', ALWAYS), None);
        assert_eq!(schedule.next('b', ALWAYS), None);
    }

    #[test]
    fn nothing_is_taken_from_another_where_that_does_not_pay() {
        let mut schedule = Schedule::default();
        schedule.add(0, 0..9);
        schedule.add(1, 0..4);
        assert_eq!((schedule.next('a', ALWAYS), schedule.next('b', ALWAYS)), (task(0, 0), task(1, 0)));
        assert_eq!(schedule.next('c', |_, waiting| waiting > 8), None);
        assert_eq!(schedule.next('c', |other, _| other == 'b'), task(1, 2));
        assert_eq!(schedule.next('d', |_, waiting| waiting >= 8), task(0, 5));
    }

    #[test]
    fn what_fails_is_done_by_another_and_nothing_is_lost_or_twice() {
        let mut schedule = Schedule::default();
        for document in 0..5 {
            schedule.add(document, 0..document + 1);
        }
        let failed = schedule.next('a', ALWAYS).unwrap();
        schedule.put_back(failed);
        schedule.give_up('a');
        let mut done = HashSet::new();
        while let Some(task) = schedule.next('b', ALWAYS).or_else(|| schedule.next('c', ALWAYS)) {
            assert!(done.insert(task), "{task:?} twice");
        }
        assert_eq!(done.len(), 15);
    }
}
