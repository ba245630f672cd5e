//! Under load: a full queue, and clients that leave.

use super::server::{Server, minilm, start};
use serde_json::{Value, json};
use std::time::Duration;

const QUEUE: &str = "principium_embedder_queue_inputs";
const CANCELLED: &str = "principium_embedder_cancelled_inputs_total";

/// Many batches of work.
fn bulk() -> Value {
    let texts: Vec<String> = (0..1000)
        .map(|n| format!("card {n} is cooled by a fan, and by water where that is not enough"))
        .collect();
    json!({ "inputs": texts })
}

fn short() -> Value {
    json!({ "inputs": "a hot card" })
}

async fn until_above_zero(server: &Server, metric: &str) {
    while server.metric(metric).await <= 0.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_full_queue_refuses_with_a_time_to_come_back_and_then_serves_again() {
    let server = start(&["--model", &minilm(), "--max-queue", "1"]);
    let (large, small) = (bulk(), short());
    // Longer than the model takes, which only the tokenizer finds out.
    let long = json!({ "inputs": "hot ".repeat(300), "truncate": false });
    let others = async {
        until_above_zero(&server, QUEUE).await;
        [server.post("/embed", &small).await, server.post("/embed", &long).await]
    };
    let (first, others) = tokio::join!(server.post("/embed", &large), others);
    for other in others {
        other.refused(429, "Overloaded", "inputs are waiting already: try again in a moment");
        let seconds: u32 = other.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds} s");
    }
    assert_eq!(server.metric("principium_embedder_overloaded_requests_total").await, 2.0);
    server.post("/embed", &long).await.refused(413, "Validation", "302 tokens");
    assert_eq!(
        first.json().as_array().unwrap().len(),
        1000,
        "a request of any size is taken while there is room"
    );
    assert_eq!(server.post("/embed", &small).await.status, 200);
}

#[tokio::test]
async fn what_a_client_no_longer_waits_for_is_not_computed() {
    let server = start(&["--model", &minilm()]);
    let body = bulk();
    tokio::select! {
        answer = server.post("/embed", &body) => panic!("answered before it could be left: {}", answer.status),
        () = until_above_zero(&server, QUEUE) => {}
    }
    until_above_zero(&server, CANCELLED).await;
    assert_eq!(server.post("/embed", &short()).await.status, 200);
}
