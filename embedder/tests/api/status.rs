//! What a server says about itself: `/info`, `/health`, `/ready`, `/metrics`; and models or settings that it does not start
//! with.

use super::models::folder;
use super::server::{arguments, cross_encoder, data_factory, minilm, reranker, start};
use principium_embedder::serve;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::path::Path;

const GPUS: &str =
    r#"[{"index":6,"uuid":"GPU-6","memoryMiB":5120},{"index":7,"uuid":"GPU-7","memoryMiB":3072}]"#;

#[tokio::test]
async fn info_says_what_is_served_and_on_what() {
    let info = data_factory().get("/info").await.json();
    for (field, value) in [
        ("role", json!("data-factory")),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("model_id", json!(minilm())),
        ("served_model_name", json!(minilm())),
        ("model_dtype", json!("float32")),
        ("model_type", json!({ "embedding": { "pooling": "mean" } })),
        ("architecture", json!("BertModel")),
        ("dimension", json!(384)),
        ("max_input_length", json!(256)),
        ("auto_truncate", json!(true)),
        ("device", json!("cpu")),
        ("accelerated", json!(false)),
        ("gpus", json!([])),
    ] {
        assert_eq!(info[field], value, "{field}");
    }
    let weights = std::fs::read(Path::new(&minilm()).join("model.safetensors")).unwrap();
    let digest: String = Sha256::digest(weights).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(info["weights_digest"], digest);
    assert_eq!(info["model_sha"], digest, "what comes from a folder has no commit");
    let kernel = info["kernel"].as_str().unwrap();
    assert!(["avx512", "avx2", "portable"].contains(&kernel), "{kernel}");
    let info = reranker().get("/info").await.json();
    assert_eq!((&info["role"], &info["max_input_length"]), (&json!("reranker"), &json!(512)));
    assert_eq!(info["model_type"]["reranker"]["id2label"], json!({ "0": "LABEL_0" }));
}

#[tokio::test]
async fn a_server_without_gpus_is_healthy_and_ready() {
    assert_eq!(data_factory().get("/health").await.status, 200);
    assert_eq!(data_factory().get("/ready").await.json(), json!({ "ready": true }));
}

#[tokio::test]
async fn the_root_is_a_page_or_what_health_is_and_says_nothing_of_how_fast_requests_are_answered() {
    assert!(data_factory().get("/").await.headers["content-type"].to_str().unwrap().starts_with("text/html"));
    let sparse = start(&["--model", &folder("splade-bert").display().to_string()]);
    let analyzer = start(&["--role", "doc-analyzer"]);
    for server in [reranker(), &sparse, &analyzer] {
        let (root, health) = (server.get("/").await, server.get("/health").await);
        assert_eq!((root.status, root.text), (200, health.text));
    }
    let metrics = analyzer.get("/metrics").await.text;
    assert!(metrics.contains(r#"requests_total{route="/",status="200"} 1"#), "{metrics}");
    assert!(!metrics.contains(r#"request_duration_seconds_count{route="/"}"#), "{metrics}");
}

#[tokio::test]
async fn gpus_that_are_not_used_make_it_unready_only_where_acceleration_is_required() {
    for (required, status) in [("true", 503), ("false", 200)] {
        let server = start(&["--model", &minilm(), "--gpus", GPUS, "--require-acceleration", required]);
        let ready = server.get("/ready").await;
        assert_eq!(ready.status, status, "{}", ready.text);
        if status == 503 {
            ready.refused(
                503,
                "Unhealthy",
                "acceleration is required, but this binary was built without the feature `cuda`",
            );
            assert_eq!(ready.headers["retry-after"], "1");
        }
        assert_eq!(server.get("/health").await.status, 200, "a restart would not mend it");
        let info = server.get("/info").await.json();
        assert_eq!((&info["accelerated"], &info["workers"]), (&json!(false), &json!(2)));
        assert_eq!(
            info["gpus"][1],
            json!({ "index": 7, "uuid": "GPU-7", "memory_mib": 3072, "used": false })
        );
        assert!(info["acceleration_message"].as_str().unwrap().contains("cuda"));
        // The alert about it looks at both.
        assert!(server.metric("principium_embedder_accelerated").await < 0.5);
        let share =
            server.metric(r#"principium_embedder_gpu_memory_share_bytes{gpu="7",uuid="GPU-7"}"#).await;
        assert!((share - f64::from(3_u32 << 30)).abs() < 0.5, "{share}");
    }
    let none = start(&["--model", &minilm(), "--require-acceleration", "true"]);
    none.get("/ready").await.refused(503, "Unhealthy", "no GPU was given to this process");
}

#[tokio::test]
async fn metrics_count_what_was_done() {
    data_factory().post("/embed", &json!({ "inputs": "count me" })).await.json();
    data_factory().post("/embed", &json!({ "inputs": 1 })).await.refused(422, "Validation", "inputs is 1");
    data_factory().get("/no/such/route").await.refused(404, "Validation", "no route GET /no/such/route");
    let metrics = data_factory().get("/metrics").await;
    assert!(metrics.headers["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    for line in [
        r#"principium_embedder_requests_total{route="/embed",status="200"} "#,
        r#"principium_embedder_requests_total{route="/embed",status="422"} "#,
        r#"principium_embedder_requests_total{route="other",status="404"} "#,
        r#"principium_embedder_tokens_total{worker="0"} "#,
        r#"principium_embedder_request_duration_seconds_count{route="/embed"} "#,
        // Padding is for GPUs.
        r#"principium_embedder_padding_total{worker="0"} 0"#,
        "principium_embedder_accelerated 0.0",
        "# EOF",
    ] {
        assert!(metrics.text.contains(line), "{line} is not in\n{}", metrics.text);
    }
    for name in ["queue_duration_seconds", "batch_duration_seconds", "batch_inputs", "batch_tokens"] {
        for part in ["count", "sum"] {
            let value = data_factory().metric(&format!("principium_embedder_{name}_{part}")).await;
            assert!(value > 0.0, "{name}_{part}");
        }
    }
    let share = "principium_embedder_gpu_memory_share_bytes{";
    assert!(!metrics.text.contains(share), "the alert about GPUs that are not used would be for nothing");
}

#[test]
fn a_server_does_not_start_with_what_it_can_not_serve() {
    let (minilm, cross_encoder) = (minilm(), cross_encoder());
    let cases: &[(&[&str], &str)] = &[
        (&["--role", "data-factory"], "the role data-factory needs a model: set PRINCIPIUM_MODEL"),
        (&["--role", "reranker", "--model", &minilm], "the role reranker needs a model with labels"),
        (&["--role", "data-factory", "--model", &cross_encoder], "needs a model that embeds texts"),
        (&["--model", "/no/such/folder"], "/no/such/folder/config.json"),
        (&["--model", &minilm, "--default-prompt-name", "query"], "the model has no prompt \"query\""),
        (&["--model", &minilm, "--chunk-overlap", "200"], "lower PRINCIPIUM_CHUNK_OVERLAP"),
        (
            &["--model", &minilm, "--ollama-url", "ollama:11434"],
            "PRINCIPIUM_OLLAMA_URL: \"ollama:11434\" is no address",
        ),
        (&["--model", &minilm, "--ollama-url", "http://o"], "PRINCIPIUM_OLLAMA_MODEL names no model"),
    ];
    for (flags, says) in cases {
        let error =
            serve::build(&arguments(flags)).err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(error.contains(says), "{flags:?}: {error:?} does not say {says:?}");
    }
}

#[test]
fn an_unknown_architecture_is_named_with_those_that_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama" });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let path = folder.path().display().to_string();
    let error = serve::build(&arguments(&["--model", &path]))
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(error.contains("\"LlamaForCausalLM\"; supported are BertModel, BertForMaskedLM"), "{error}");
    let config: Value = json!({ "architectures": ["BertModel"] });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let error = serve::build(&arguments(&["--model", &path]))
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(error.contains("missing field `hidden_size`"), "{error}");
}
