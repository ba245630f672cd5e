//! The workers against stand-ins for Ollama that are slow, busy, gone or short of room.

use super::*;
use crate::format::Extracted;
use crate::ollama::Timing;
use crate::ollama::tests::{pool, stand_in, well};
use crate::pipeline::tests::config;
use axum::http::StatusCode;
use serde_json::{Value, json};

/// A document of so many chunks of 500 bytes.
fn document(chunks: usize) -> Arc<Prepared> {
    let text: String = (0..chunks).map(|chunk| format!("{chunk:<499} ")).collect();
    let content = Extracted::plain(text);
    Arc::new(Prepared {
        chunks: Chunk::all(&content, (0..chunks).map(|chunk| chunk * 500..chunk * 500 + 499)),
        chunk_ids: (0..chunks).map(|chunk| chunk.to_string()).collect(),
        about: None,
        chunker: Chunker::Fixed,
        document: Arc::new(Document { id: "d".into(), title: None, content, metadata: None }),
    })
}

/// Puts a document in context by some instances. The reader comes late, and then takes everything.
async fn outcomes(urls: &[&str], chunks: usize, late: Duration) -> (Vec<Outcome>, Enricher) {
    outcomes_of(&config(false), &pool(urls), chunks, late).await
}

async fn outcomes_of(
    pipeline: &PipelineConfig,
    ollama: &OllamaConfig,
    chunks: usize,
    late: Duration,
) -> (Vec<Outcome>, Enricher) {
    let (sender, mut receiver) = mpsc::channel(1);
    let enricher = Enricher::start(pipeline, ollama, sender).unwrap();
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

/// The chunk that a question is about.
fn asked_about(question: &Value) -> usize {
    let prompt = question["prompt"].as_str().unwrap();
    let passage = prompt.split("Passage of this document:\n").nth(1).unwrap();
    passage.split_whitespace().next().unwrap().parse().unwrap()
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
        if asked_about(question) == 1 {
            (StatusCode::INTERNAL_SERVER_ERROR, json!({ "error": "crash" }))
        } else {
            well("well")
        }
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

#[tokio::test]
async fn instances_that_are_busy_for_ever_cost_the_contexts_and_no_more() {
    let (busy, _) = stand_in(|_| (StatusCode::SERVICE_UNAVAILABLE, json!({ "error": "server busy" }))).await;
    let mut ollama = pool(&[&busy]);
    ollama.timing = Timing { stalled: Duration::from_secs(1), ..ollama.timing };
    let (outcomes, _) = outcomes_of(&config(false), &ollama, 3, Duration::ZERO).await;
    assert_eq!(outcomes.len(), 3);
    for outcome in outcomes {
        let error = outcome.context.unwrap_err();
        assert!(error.contains("too busy for 1 s"), "{error}");
    }
}

/// An instance that takes so many milliseconds for each answer, by its number.
async fn paced(milliseconds: fn(usize) -> u64) -> String {
    let answered = Arc::new(Mutex::new(0));
    let generate = axum::routing::post(move || async move {
        let number = {
            let mut answered = answered.lock().unwrap();
            *answered += 1;
            *answered
        };
        tokio::time::sleep(Duration::from_millis(milliseconds(number))).await;
        axum::Json(well("well").1)
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().route("/api/generate", generate);
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

#[tokio::test]
async fn a_slow_instance_holds_up_nobody() {
    // After three slow answers one never comes.
    let slow = paced(|number| if number > 3 { 600_000 } else { 400 }).await;
    let fast = paced(|_| 5).await;
    let (outcomes, enricher) = outcomes(&[&slow, &fast], 600, Duration::ZERO).await;
    assert_all_in_context(&outcomes, 600);
    let mut contexts: Vec<(u64, u64)> = enricher.figures().iter().map(|it| (it.contexts, it.slow)).collect();
    contexts.sort_unstable();
    assert_eq!((contexts[0].1, contexts[1]), (1, (600 - contexts[0].0, 0)), "{contexts:?}");
}

#[tokio::test]
async fn a_worker_that_panics_loses_no_chunk() {
    let (sender, mut receiver) = mpsc::channel(8);
    let enricher = Enricher::start(&config(false), &pool(&["http://127.0.0.1:1"]), sender.clone()).unwrap();
    let pool = Pool { shared: enricher.shared.clone(), outcomes: sender };
    enricher.add(0, document(1), &[0]);
    enricher.finish();
    let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
    for _ in 0..100 {
        let Some(held) = pool.take(nobody) else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let worker = tokio::spawn(async move {
            let _held = held;
            panic!("a bug");
        });
        assert!(worker.await.unwrap_err().is_panic());
        if !pool.state().attempts.is_empty() && pool.state().abandoned.is_empty() {
            continue;
        }
        break;
    }
    drop(pool);
    let outcome = receiver.recv().await.unwrap();
    assert!(outcome.context.unwrap_err().contains("worker that asked for its context failed"));
}

#[tokio::test]
async fn what_was_said_before_is_not_asked_again() {
    let (good, asked) = stand_in(|_| well("well")).await;
    let (pipeline, ollama) = (config(false), pool(&[&good]));
    let (first, _) = outcomes_of(&pipeline, &ollama, 5, Duration::ZERO).await;
    let (second, enricher) = outcomes_of(&pipeline, &ollama, 5, Duration::ZERO).await;
    assert_all_in_context(&first, 5);
    assert_all_in_context(&second, 5);
    assert_eq!((asked.lock().unwrap().len(), enricher.contexts_from_cache()), (5, 5));
    let other = OllamaConfig { prompt: Some("Say it in Latin.".into()), ..ollama };
    outcomes_of(&pipeline, &other, 5, Duration::ZERO).await;
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 10, "another instruction is another question");
    assert!(asked[9]["prompt"].as_str().unwrap().ends_with("Say it in Latin."));
}

#[tokio::test]
async fn tokens_that_the_prefix_cache_should_have_are_counted() {
    let (good, _) = stand_in(|_| well("well")).await;
    let (_, enricher) = outcomes(&[&good], 10, Duration::ZERO).await;
    let figures = enricher.figures().remove(0);
    assert_eq!((figures.contexts, figures.prompt_tokens), (10, 70));
    // All but the first prompt begin with the whole document, which is most of them.
    assert!((45..63).contains(&figures.prompt_tokens_cached), "{figures:?}");
}
