//! What a request cost, in the headers in which text-embeddings-inference says it: times in whole milliseconds, those of a
//! request of several inputs as the mean over them. Every route that computes something has them.

use std::cell::Cell;
use std::future::Future;
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use axum::response::Response;

use crate::engine::Waited;

tokio::task_local! {
    static COST: Cell<Cost>;
}

/// What the inputs of a request cost together.
#[derive(Clone, Copy, Default)]
struct Cost {
    inputs: u32,
    /// Characters of the texts.
    characters: usize,
    tokens: usize,
    /// Inputs are tokenized together, so that each of them waits for all.
    tokenization: Duration,
    queue: Duration,
    inference: Duration,
}

/// Adds inputs to the cost of the request that the task answers.
pub(super) fn add(characters: usize, tokens: usize, tokenization: Duration, waited: &[Waited]) {
    let inputs = u32::try_from(waited.len()).unwrap_or(u32::MAX);
    // Outside of a request, on the command line, nobody wants to know.
    let _ = COST.try_with(|cost| {
        let before = cost.get();
        cost.set(Cost {
            inputs: before.inputs.saturating_add(inputs),
            characters: before.characters + characters,
            tokens: before.tokens + tokens,
            tokenization: before.tokenization + tokenization.saturating_mul(inputs),
            queue: before.queue + waited.iter().map(|it| it.queue).sum::<Duration>(),
            inference: before.inference + waited.iter().map(|it| it.inference).sum::<Duration>(),
        });
    });
}

/// The answer with headers that say what it cost; `kind` is what computed it.
pub(super) async fn told(kind: &'static str, answer: impl Future<Output = Response>) -> Response {
    let started = Instant::now();
    let work = async {
        let response = answer.await;
        (response, COST.with(Cell::get))
    };
    let (mut response, cost) = COST.scope(Cell::default(), work).await;
    if cost.inputs > 0 && response.status().is_success() {
        write(response.headers_mut(), cost, kind, started.elapsed());
    }
    response
}

fn write(headers: &mut HeaderMap, cost: Cost, kind: &'static str, total: Duration) {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    headers.insert("x-compute-type", axum::http::HeaderValue::from_static(kind));
    for (name, number) in [
        ("x-compute-time", milliseconds(total)),
        ("x-compute-characters", cost.characters as u64),
        ("x-compute-tokens", cost.tokens as u64),
        ("x-total-time", milliseconds(total)),
        ("x-tokenization-time", milliseconds(cost.tokenization / cost.inputs)),
        ("x-queue-time", milliseconds(cost.queue / cost.inputs)),
        ("x-inference-time", milliseconds(cost.inference / cost.inputs)),
    ] {
        headers.insert(name, number.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;
    use axum::response::IntoResponse;

    fn waited(queue: u64, inference: u64) -> Waited {
        Waited { queue: Duration::from_millis(queue), inference: Duration::from_millis(inference) }
    }

    #[tokio::test]
    async fn times_are_means_and_counts_are_sums() {
        let answer = told("cpu+optimized", async {
            add(10, 4, Duration::from_millis(2), &[waited(1, 20), waited(3, 40)]);
            add(5, 3, Duration::from_millis(5), &[waited(8, 90)]);
            "".into_response()
        });
        let headers = answer.await.headers().clone();
        for (name, value) in [
            ("x-compute-type", "cpu+optimized"),
            ("x-compute-characters", "15"),
            ("x-compute-tokens", "7"),
            ("x-tokenization-time", "3"),
            ("x-queue-time", "4"),
            ("x-inference-time", "50"),
        ] {
            assert_eq!(headers[name], value, "{name}");
        }
    }

    #[tokio::test]
    async fn who_computed_nothing_says_nothing_of_it() {
        let nothing = told("cpu+optimized", async { "".into_response() }).await;
        let failed = told("cpu+optimized", async {
            add(1, 1, Duration::ZERO, &[waited(1, 1)]);
            StatusCode::FAILED_DEPENDENCY.into_response()
        });
        for response in [nothing, failed.await] {
            assert!(!response.headers().contains_key("x-compute-type"));
        }
    }
}
