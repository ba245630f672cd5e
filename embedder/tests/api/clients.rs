//! The clients that people use, from the package index, against running servers.

use super::models::folder;
use super::server::{cached, cross_encoder, minilm, start};
use std::process::Command;

#[test]
fn clients_from_the_package_index_understand_the_answers() {
    let common = ["--model-name", "small", "--api-keys", "sesame"];
    let embed = start(&[&["--model", &minilm()], &common[..]].concat());
    let rerank = start(&[&["--role", "reranker", "--model", &cross_encoder()], &common[..]].concat());
    let classifier = folder("bert-classifier").display().to_string();
    let classify = start(&[&["--role", "reranker", "--model", &classifier], &common[..]].concat());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients.py");
    let output = Command::new(cached("venvs/clients/bin/python"))
        .args([script, &embed.url, &rerank.url, &classify.url, "sesame"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "after {text:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        ["openai", "cohere", "jina", "huggingface_hub", "langchain", "llama-index", "openapi"]
    );
}
