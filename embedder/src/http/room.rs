//! How much memory one request may take. A small body can ask for an answer a thousand times its size, and a process that runs
//! out of memory is lost for everybody: so a request is refused while its texts become tokens, before anything is computed.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::ApiError;
use crate::model::{Heads, Input, ModelFiles, SparseHead};

/// The most numbers of one request: 256 MiB as f32, and up to 12 characters each in JSON beside, which makes 1 GiB.
const MOST: usize = 1 << 26;
/// What an input takes in the queue, whatever its length. A token counts as one number.
const INPUT: usize = 32;
/// What a tokenizer that tells where its tokens stand takes for each byte of a text, and a decoder for each token.
pub(super) const BYTE: usize = 140;
/// What the id of a token takes while it becomes a part of the text that the model's input is made of.
const ID: usize = 32;
/// What a label takes beside its score: its name.
const LABEL: usize = 8;
/// What the weight of a word takes with the word.
const WORD: usize = 4;
/// Words to which a masked language model gives a weight, about: only its computation shows how many they are.
const WORDS: usize = 256;

tokio::task_local! {
    static ROOM: Arc<Room>;
}

/// What the inputs of a request take together.
#[derive(Default)]
pub(super) struct Room {
    inputs: AtomicUsize,
    numbers: AtomicUsize,
}

impl Room {
    /// That of the request that the task answers. There is none outside of a request: on the command line nobody else suffers.
    pub(super) fn of_request() -> Option<Arc<Self>> {
        ROOM.try_with(Arc::clone).ok()
    }

    /// Takes so many `numbers` for one of the `inputs` that are prepared together, and refuses what is too much.
    pub(super) fn take(&self, numbers: usize, inputs: usize) -> Result<(), ApiError> {
        let taken = self.numbers.fetch_add(numbers, Ordering::Relaxed) + numbers;
        let counted = self.inputs.fetch_add(1, Ordering::Relaxed) + 1;
        if taken <= MOST {
            return Ok(());
        }
        // The other inputs are taken for such as these: to look at them would cost as much as an answer.
        let all = (taken / counted).saturating_mul(inputs).max(taken);
        Err(ApiError::answer_too_large(format!(
            "the request would take about {all} numbers, those of its tokens and of the answer, and may take {MOST}: \
             send fewer or shorter texts at once"
        )))
    }

    /// Takes room for so many token `ids` in a request's `field`, before texts are made of them.
    pub(super) fn take_ids(&self, field: &str, ids: usize) -> Result<(), ApiError> {
        let numbers = ID.saturating_mul(ids);
        if self.numbers.fetch_add(numbers, Ordering::Relaxed).saturating_add(numbers) <= MOST {
            return Ok(());
        }
        Err(ApiError::answer_too_large(format!(
            "{field} has {ids} token ids, and a request may have {} in all: send fewer at once",
            MOST / ID
        )))
    }
}

/// Gives what `answer` does for a request the room of one.
pub(super) async fn bounded<T>(answer: impl Future<Output = T>) -> T {
    ROOM.scope(Arc::default(), answer).await
}

/// What an input takes, and what is computed of it.
pub(super) fn numbers(files: &ModelFiles, input: &Input) -> usize {
    let Heads { dense, labels, sparse, multi } = &files.heads;
    let (wants, tokens) = (input.wants, input.len());
    let vector = match (labels, dense) {
        (Some(labels), _) => LABEL * labels.len(),
        (None, Some(dense)) => dense.width,
        (None, None) => 0,
    };
    let words = match sparse {
        Some(SparseHead::MaskedLm(_)) => WORDS,
        Some(SparseHead::Tokens(_)) => tokens,
        None => 0,
    };
    let wanted = [
        (wants.vector, vector),
        (wants.states, tokens * files.width()),
        (wants.sparse, WORD * words),
        (wants.multi, tokens * multi.as_ref().map_or(0, |multi| multi.width)),
    ];
    let wanted: usize = wanted.iter().filter(|(wants, _)| *wants).map(|(_, numbers)| numbers).sum();
    INPUT + tokens + wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Wants;
    use std::path::Path;

    #[test]
    fn what_is_wanted_of_an_input_is_counted() {
        for (name, wants, expected) in [
            ("bge-m3", Wants::VECTOR, 32),
            ("bge-m3", Wants::STATES, 10 * 32),
            ("bge-m3", Wants::MULTI, 10 * 32),
            ("bge-m3", Wants::SPARSE, WORD * 10),
            ("bge-m3", Wants::VECTOR | Wants::MULTI, 32 + 10 * 32),
            ("colbert", Wants::MULTI, 10 * 16),
            ("pylate", Wants::MULTI, 10 * 16),
            ("splade-bert", Wants::SPARSE, WORD * WORDS),
        ] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models").join(name);
            let files = ModelFiles::read(&folder).unwrap();
            let input = Input { ids: vec![5; 10], type_ids: vec![0; 10], unpooled: 0, unseen: 0, wants };
            assert_eq!(numbers(&files, &input), INPUT + 10 + expected, "{name}: {wants:?}");
        }
    }

    #[tokio::test]
    async fn token_ids_are_counted_over_all_lists_of_a_request() {
        let most = MOST / ID;
        for (ids, refused) in [(&[most][..], false), (&[most + 1], true), (&[most, 1], true)] {
            let taken = bounded(async {
                let room = Room::of_request().unwrap();
                ids.iter().try_for_each(|ids| room.take_ids("inputs", *ids))
            });
            let error = taken.await.err().map(|error| error.to_string());
            assert_eq!(error.is_some(), refused, "{ids:?}");
            let says = format!("{} token ids, and a request may have {most}", ids[ids.len() - 1]);
            assert!(error.is_none_or(|error| error.contains(&says)), "{ids:?}");
        }
    }

    #[tokio::test]
    async fn all_that_one_request_computes_is_counted_together() {
        let refused = bounded(async {
            // As a request of several instances does it.
            Room::of_request().unwrap().take(MOST, 1).unwrap();
            Room::of_request().unwrap().take(1, 10).unwrap_err().to_string()
        });
        let says = format!("about {} numbers", 10 * (MOST / 2));
        let refused = refused.await;
        assert!(refused.contains(&says), "{refused:?} does not say {says:?}");
        // The next request has as much again.
        bounded(async {
            Room::of_request().unwrap().take(MOST, 1).unwrap();
        })
        .await;
        assert!(Room::of_request().is_none());
    }
}
