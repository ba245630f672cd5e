//! The workers against stand-ins for Ollama that are slow, busy, gone or short of room.

use super::super::request::Format;
use super::*;
use crate::ollama::tests::{pool, stand_in, well};
use axum::http::StatusCode;
use serde_json::json;
use std::time::Duration;

/// A document of so many chunks of 500 bytes.
fn document(chunks: usize) -> Arc<Prepared> {
    let text: String = (0..chunks).map(|chunk| format!("{chunk:<499} ")).collect();
    let cut =
        (0..chunks).map(|chunk| Chunk { start: chunk * 500, end: chunk * 500 + 499, headings: Vec::new() });
    Arc::new(Prepared {
        chunks: cut.collect(),
        chunk_ids: (0..chunks).map(|chunk| chunk.to_string()).collect(),
        document: Document { id: "d".into(), title: None, text, format: Format::Text, metadata: None },
    })
}

/// Puts a document in context by some instances. The reader comes late, and then takes everything.
async fn outcomes(urls: &[&str], chunks: usize, late: Duration) -> (Vec<Outcome>, Enricher) {
    let (sender, mut receiver) = mpsc::channel(1);
    let enricher = Enricher::start(&pool(urls), sender).unwrap();
    enricher.add(0, document(chunks), &(0..chunks).collect::<Vec<_>>());
    enricher.finish();
    tokio::time::sleep(late).await;
    let mut outcomes = Vec::new();
    while let Some(outcome) = receiver.recv().await {
        outcomes.push(outcome);
    }
    outcomes.sort_by_key(|outcome| outcome.chunk);
    (outcomes, enricher)
}

fn assert_all_in_context(outcomes: &[Outcome], chunks: usize) {
    let found: Vec<usize> = outcomes.iter().map(|outcome| outcome.chunk).collect();
    assert_eq!(found, (0..chunks).collect::<Vec<_>>(), "every chunk once");
    for outcome in outcomes {
        assert_eq!(outcome.context, Ok(Some("well".to_owned())), "chunk {}", outcome.chunk);
    }
}

#[tokio::test]
async fn a_slow_reader_loses_no_chunk() {
    let (one, _) = stand_in(|_| well("well")).await;
    let (two, _) = stand_in(|_| well("well")).await;
    // One chunk waits in the channel and one with each worker, for longer than the supervisor takes to look around.
    let (outcomes, _) = outcomes(&[&one, &two], 3, Duration::from_secs(1)).await;
    assert_all_in_context(&outcomes, 3);
}

#[tokio::test]
async fn a_busy_instance_is_asked_again_as_often_as_it_takes() {
    let turned_away = Arc::new(Mutex::new(0_u32));
    let count = turned_away.clone();
    let (busy, _) = stand_in(move |_| {
        let mut count = count.lock().unwrap();
        *count += 1;
        let status = if count.is_multiple_of(2) {
            StatusCode::TOO_MANY_REQUESTS
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        if *count > ATTEMPTS { well("well") } else { (status, json!({ "error": "server busy" })) }
    })
    .await;
    let (outcomes, enricher) = outcomes(&[&busy], 2, Duration::ZERO).await;
    assert_all_in_context(&outcomes, 2);
    let figures = enricher.figures().remove(0);
    assert_eq!((figures.busy, figures.failures, figures.contexts), (3, 0, 2));
}

#[tokio::test]
async fn instances_that_are_gone_lose_nothing_however_many() {
    let gone: Vec<String> = (0..2 * ATTEMPTS)
        .map(|_| {
            format!("http://{}", std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
        })
        .collect();
    // Turns the chunk away at first, so that each of the others tries it.
    let turned_away = Arc::new(Mutex::new(false));
    let (good, _) = stand_in(move |_| {
        let before = std::mem::replace(&mut *turned_away.lock().unwrap(), true);
        if before {
            well("well")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, json!({ "error": "server busy" }))
        }
    })
    .await;
    let mut urls: Vec<&str> = gone.iter().map(String::as_str).collect();
    urls.push(&good);
    let (outcomes, enricher) = outcomes(&urls, 1, Duration::ZERO).await;
    assert_all_in_context(&outcomes, 1);
    let failures: u64 = enricher.figures().iter().map(|figures| figures.failures).sum();
    assert!(failures > u64::from(ATTEMPTS), "only {failures} instances were tried");
}

#[tokio::test]
async fn a_chunk_over_which_instances_break_goes_on_without_context() {
    let (broken, asked) = stand_in(|question| {
        let poison = question["prompt"].as_str().unwrap().contains("Passage of this document:\n1 ");
        if poison { (StatusCode::INTERNAL_SERVER_ERROR, json!({ "error": "crash" })) } else { well("well") }
    })
    .await;
    let (mut outcomes, _) = outcomes(&[&broken], 3, Duration::ZERO).await;
    assert!(outcomes.remove(1).context.unwrap_err().contains("crash"));
    assert!(outcomes.iter().all(|outcome| outcome.context.is_ok()));
    assert_eq!(asked.lock().unwrap().len(), 2 + ATTEMPTS as usize);
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_sent_once_more_with_less_of_the_document() {
    let (small, asked) = stand_in(|question| {
        let long = question["prompt"].as_str().unwrap().len() > 4000;
        let error = json!({ "error": "the input length exceeds the context length" });
        if long { (StatusCode::BAD_REQUEST, error) } else { well("well") }
    })
    .await;
    let (outcomes, _) = outcomes(&[&small], 40, Duration::ZERO).await;
    assert_all_in_context(&outcomes, 40);
    assert_eq!(
        asked.lock().unwrap().len(),
        41,
        "after the first refusal the document's other chunks begin with less"
    );
}
