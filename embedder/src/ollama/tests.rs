//! A stand-in for an Ollama instance that fails on demand, and the tests of the client against it.

use super::*;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use std::sync::{Arc, Mutex};

/// Every question that a stand-in was asked.
pub(crate) type Asked = Arc<Mutex<Vec<Value>>>;

/// An instance on a port of its own that answers each question as `answer` says.
pub(crate) async fn stand_in(
    answer: impl Fn(&Value) -> (StatusCode, Value) + Clone + Send + Sync + 'static,
) -> (String, Asked) {
    let asked = Asked::default();
    let record = asked.clone();
    let generate = post(move |Json(question): Json<Value>| async move {
        let answer = answer(&question);
        record.lock().unwrap().push(question);
        (answer.0, Json(answer.1))
    });
    let router = Router::new().route("/api/generate", generate).route("/api/version", get(|| async { "{}" }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

/// What an instance answers when all is well.
pub(crate) fn well(text: &str) -> (StatusCode, Value) {
    (
        StatusCode::OK,
        json!({ "response": text, "done_reason": "stop", "prompt_eval_count": 7, "eval_count": 3 }),
    )
}

/// A pool of some instances, with little patience.
pub(crate) fn pool(urls: &[&str]) -> OllamaConfig {
    let (milliseconds, usual) = (Duration::from_millis, Timing::default());
    OllamaConfig {
        hosts: hosts(&urls.join(",")).unwrap(),
        model: "m".into(),
        context_max_tokens: 100,
        context_window: 4096,
        prompt: None,
        ca_file: None,
        timing: Timing { leave: (milliseconds(100), milliseconds(500)), overdue: milliseconds(800), ..usual },
    }
}

async fn ask(config: &OllamaConfig) -> Result<Answer, Failure> {
    let client = Client::new(config).unwrap();
    let address = client.find().await.unwrap()[0];
    client.ask(address, Question { prompt: "p", most_tokens: 5, format: None }).await
}

#[tokio::test]
async fn a_failure_says_what_can_be_done_about_it() {
    type Kind = fn(&Failure) -> bool;
    let cases: &[(u16, &str, Kind)] = &[
        (400, "the input length exceeds the context length", |failure| {
            matches!(failure, Failure::TooLong(_))
        }),
        (400, "invalid option", |failure| matches!(failure, Failure::Refused(_))),
        (404, "model not found", |failure| matches!(failure, Failure::Broken(_))),
        (429, "slow down", |failure| matches!(failure, Failure::Busy { .. })),
        (500, "the runner died", |failure| matches!(failure, Failure::Broken(_))),
        (503, "server busy", |failure| matches!(failure, Failure::Busy { .. })),
    ];
    for (status, message, expected) in cases {
        let status = StatusCode::from_u16(*status).unwrap();
        let (url, _) = stand_in(move |_| (status, json!({ "error": message }))).await;
        let failure = ask(&pool(&[&url])).await.unwrap_err();
        assert!(
            expected(&failure) && failure.to_string().contains(message),
            "{status} {message}: {failure:?}"
        );
    }
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(matches!(ask(&pool(&[&format!("http://{free}")])).await, Err(Failure::Unreachable(_))));
}

#[tokio::test]
async fn a_prompt_is_never_cut_silently() {
    let (url, asked) = stand_in(|_| well("yes")).await;
    assert_eq!(ask(&pool(&[&url])).await.unwrap().response, "yes");
    let question = asked.lock().unwrap()[0].clone();
    assert_eq!(question["truncate"], false);
    assert_eq!(question["options"]["num_ctx"], 4096);
}

#[tokio::test]
async fn an_instance_behind_tls_is_asked_by_its_name_and_its_certificate_is_checked() {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let server = server.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // One that is not trusted is left in the middle of its handshake.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await;
            let body = r#"{"response":"yes"}"#;
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, cert.pem()).unwrap();
    let unknown = pool(&[&format!("https://localhost:{port}")]);
    assert!(matches!(ask(&unknown).await, Err(Failure::Unreachable(_) | Failure::Broken(_))));
    let known = OllamaConfig { ca_file: Some(ca_file), ..unknown };
    assert_eq!(ask(&known).await.unwrap().response, "yes");
}

#[test]
fn urls_become_hosts_or_are_named() {
    let named = |urls| hosts(urls).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(named("http://a:1, http://b/,https://c"), ["a:1", "b:11434", "c:443"]);
    assert!(hosts("https://c").unwrap()[0].secure);
    for wrong in ["a:1", "ftp://a", "http://", "http://a:x", "http://a:1/v1", "http://a,"] {
        assert!(hosts(wrong).unwrap_err().contains("right is http://<host>:<port>"), "{wrong}");
    }
}
