//! What clients and platforms of text-embeddings-inference count on beside its routes: what a request cost in its answer's headers,
//! the routes of SageMaker and Vertex AI, and that a trace is passed on.

use super::jobs;
use super::models::folder;
use super::server::{Server, data_factory, reranker, start};
use axum::http::{HeaderMap, Uri};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

const TIMES: [&str; 5] =
    ["x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"];

fn small(name: &str, role: &str) -> Server {
    start(&["--model", &folder(name).display().to_string(), "--role", role])
}

#[tokio::test]
async fn answers_say_what_they_cost() {
    let two = json!(["a hot card", "wärme"]);
    for (server, path, body, characters) in [
        (data_factory(), "/embed", json!({ "inputs": two }), 15),
        (data_factory(), "/embed_all", json!({ "inputs": two }), 15),
        (data_factory(), "/v1/embeddings", json!({ "input": two }), 15),
        (
            data_factory(),
            "/vertex",
            json!({ "instances": [{ "inputs": "a hot card" }, { "inputs": "wärme" }] }),
            15,
        ),
        (reranker(), "/rerank", json!({ "query": "hot", "texts": two }), 18),
        (reranker(), "/predict", json!({ "inputs": [["hot", "a hot card"]] }), 13),
    ] {
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        let number = |name: &str| answer.headers[name].to_str().unwrap().parse::<u64>().unwrap();
        assert_eq!(answer.headers["x-compute-type"], "cpu+optimized", "{path}");
        assert_eq!(number("x-compute-characters"), characters, "{path}");
        assert!(number("x-compute-tokens") > 4, "{path}");
        let [compute, total, tokenization, queue, inference] = TIMES.map(number);
        assert_eq!(compute, total, "{path}");
        // Each is rounded down by itself.
        assert!(tokenization + queue + inference <= total + 3, "{path}: {:?}", answer.headers);
    }
    for answer in
        [data_factory().get("/info").await, data_factory().post("/embed", &json!({ "inputs": [] })).await]
    {
        assert!(TIMES.iter().all(|name| !answer.headers.contains_key(*name)), "nothing was computed");
    }
}

#[tokio::test]
async fn platforms_find_what_the_model_is_for_on_their_routes() {
    let (sparse, labels) = (small("splade-bert", "data-factory"), small("bert-classifier", "reranker"));
    let (embed, rerank) =
        (json!({ "inputs": "hot" }), json!({ "query": "hot", "texts": ["warm", "a hot card"] }));
    for (server, own, body) in [
        (data_factory(), "/embed", &embed),
        (&sparse, "/embed_sparse", &embed),
        (reranker(), "/rerank", &rerank),
        (&labels, "/predict", &embed),
    ] {
        let expected = server.post(own, body).await.json();
        for path in ["/", "/invocations"] {
            assert_eq!(server.post(path, body).await.json(), expected, "{own} on {path}");
        }
        let vertex = server.post("/vertex", &json!({ "instances": [body, body] })).await.json();
        assert_eq!(vertex, json!({ "predictions": [expected, expected] }), "{own}");
        assert_eq!(
            server.post("/vertex", &json!({ "instances": [] })).await.json(),
            json!({ "predictions": [] })
        );
    }
    let pair = json!({ "instances": [{ "inputs": [["hot", "a hot card"]] }] });
    assert!(reranker().post("/vertex", &pair).await.json()["predictions"][0][0][0]["score"].is_f64());
    for (body, status, kind, says) in [
        (
            json!({ "instances": [embed, { "text": "hot" }] }),
            422,
            "Validation",
            "instances[1] is {\"text\":\"hot\"}: missing field `inputs`",
        ),
        (json!({ "inputs": "hot" }), 422, "Validation", "missing field `instances`"),
        (json!({ "instances": [{ "inputs": [] }] }), 400, "Empty", "inputs is []"),
    ] {
        data_factory().post("/vertex", &body).await.refused(status, kind, says);
    }
}

/// A server that answers questions for a language model and for a reranker, and keeps their headers by path.
async fn listener() -> (String, Arc<Mutex<Vec<(String, HeaderMap)>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let router = Router::new().fallback(async move |uri: Uri, headers: HeaderMap| {
        hears.lock().unwrap().push((uri.path().to_owned(), headers));
        Json(match uri.path() {
            "/rerank" => json!([{ "index": 0, "score": 0.5 }]),
            _ => json!({ "response": "It is about cards.", "done_reason": "stop" }),
        })
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, heard)
}

#[tokio::test]
async fn a_trace_is_passed_on_to_the_language_model_and_to_the_reranker() {
    let (url, heard) = listener().await;
    let data = tempfile::tempdir().unwrap();
    let server = jobs::with_folder(
        data.path(),
        &["--ollama-url", &url, "--ollama-model", "small", "--reranker-url", &url],
    );
    let document = json!({ "id": "card", "text": "A hot card is cooled by fans." });
    server.run_job(&json!({ "documents": [document] })).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let traced = [("traceparent", parent), ("tracestate", "vendor=1"), ("authorization", "Bearer theirs")];
    let last = |path: &str| {
        let heard = heard.lock().unwrap();
        let (_, headers) = heard.iter().rev().find(|(asked, _)| asked == path).unwrap();
        let value = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        ["traceparent", "tracestate", "authorization"].map(value)
    };
    let text = json!({ "documents": [{ "text": "Another card is warm." }] });
    let search = json!({ "query": "Which card is hot?" });
    for (asks, path, body) in [("/api/generate", "/v1/process", &text), ("/rerank", "/v1/search", &search)] {
        let answer = server.post_with(path, body, &traced).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        assert_eq!(last(asks), [Some(parent.to_owned()), Some("vendor=1".to_owned()), None], "{path}");
    }
    server.post("/v1/search", &search).await;
    assert_eq!(last("/rerank"), [const { None::<String> }; 3], "a request without a trace begins none");
}

#[tokio::test]
async fn what_the_model_can_t_do_is_a_failed_dependency() {
    let body = json!({ "inputs": "hot" });
    data_factory().post("/embed_sparse", &body).await.refused(424, "Backend", "no sparse model");
    let labels = small("bert-classifier", "reranker");
    let body = json!({ "query": "hot", "texts": ["warm"] });
    labels.post("/rerank", &body).await.refused(424, "Backend", "it classifies, and does not rerank");
    let asked: Value = labels.get("/openapi.json").await.json();
    assert!(asked["paths"]["/invocations"].is_object() && asked["paths"]["/vertex"].is_object());
}

/// Whether answers are the same but for the last bits of their numbers, which depend on what is computed beside them.
fn alike(one: &Value, two: &Value) -> bool {
    match (one, two) {
        (Value::Array(one), Value::Array(two)) => {
            one.len() == two.len() && one.iter().zip(two).all(|(one, two)| alike(one, two))
        }
        (Value::Object(one), Value::Object(two)) => {
            one.len() == two.len()
                && one.iter().all(|(name, one)| two.get(name).is_some_and(|two| alike(one, two)))
        }
        _ => match (one.as_f64(), two.as_f64()) {
            (Some(one), Some(two)) => (one - two).abs() < 1e-4,
            _ => one == two,
        },
    }
}

#[tokio::test]
async fn null_in_an_optional_field_means_what_its_absence_does() {
    let cut = ["truncate", "truncation_direction"];
    let texts = json!(["warm", "a hot card"]);
    for (server, path, body, fields) in [
        (
            data_factory(),
            "/embed",
            json!({ "inputs": "hot" }),
            &["prompt_name", "normalize", "dimensions"][..],
        ),
        (data_factory(), "/embed", json!({ "inputs": "hot" }), &cut),
        (
            data_factory(),
            "/v1/encode",
            json!({ "inputs": "hot" }),
            &["outputs", "input_type", "prompt_name", "normalize", "dimensions"],
        ),
        (data_factory(), "/tokenize", json!({ "inputs": "hot" }), &["add_special_tokens", "prompt_name"]),
        (data_factory(), "/decode", json!({ "ids": [101, 4003] }), &["skip_special_tokens"]),
        (reranker(), "/rerank", json!({ "query": "hot", "texts": texts }), &["raw_scores", "return_text"]),
        (
            reranker(),
            "/v1/rerank",
            json!({ "query": "hot", "documents": texts }),
            &["model", "top_n", "return_documents"],
        ),
        (reranker(), "/predict", json!({ "inputs": ["hot", "warm"] }), &["raw_scores"]),
        (reranker(), "/predict", json!({ "inputs": ["hot", "warm"] }), &cut),
    ] {
        let absent = server.post(path, &body).await.json();
        for field in fields {
            let mut body = body.clone();
            body[*field] = Value::Null;
            let null = server.post(path, &body).await.json();
            assert!(alike(&null, &absent), "{path} {field}: {null}");
        }
    }
}

#[tokio::test]
async fn what_it_says_about_itself_has_every_field_and_stands_where_clients_look() {
    let info = data_factory().get("/info").await.json();
    for name in [
        "model_id",
        "model_sha",
        "model_dtype",
        "served_model_name",
        "model_type",
        "max_concurrent_requests",
        "max_input_length",
        "max_batch_tokens",
        "max_batch_requests",
        "max_client_batch_size",
        "auto_truncate",
        "tokenization_workers",
        "version",
        "sha",
        "docker_label",
    ] {
        assert!(info.get(name).is_some(), "{name} is not in {info}");
    }
    let [theirs, ours] = ["/api-doc/openapi.json", "/openapi.json"].map(|path| data_factory().get(path));
    assert_eq!(theirs.await.json(), ours.await.json());
}
