//! `POST /v1/process` with files: every format as JSON or as a form, and files that can't be read.

use super::process::of_type;
use super::server::data_factory;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::path::Path;

fn file(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/documents").join(name)).unwrap()
}

fn data(name: &str) -> Value {
    json!({ "id": name, "data": STANDARD.encode(file(name)) })
}

/// The line about the end of a document.
fn end_of<'a>(lines: &'a [Value], id: &str) -> &'a Value {
    of_type(lines, "document").into_iter().find(|line| line["document_id"] == id).unwrap()
}

#[tokio::test]
async fn files_of_every_format_become_chunks_and_what_can_not_be_read_fails_alone() {
    let names = [
        "vasa.md",
        "vasa.html",
        "vasa.pdf",
        "vasa.docx",
        "ships.csv",
        "ships.jsonl",
        "secret.pdf",
        "scan.pdf",
    ];
    let mut documents: Vec<Value> = names.iter().map(|name| data(name)).collect();
    documents.push(json!({ "id": "picture", "data": STANDARD.encode(b"\x89PNG\r\n\x1a\n\0\0\0\0") }));
    documents.push(json!({ "id": "damaged", "data": STANDARD.encode(&file("vasa.pdf")[..5000]) }));
    let lines = data_factory()
        .post("/v1/process", &json!({ "documents": documents, "options": { "chunk_max_tokens": 64 } }))
        .await
        .lines();
    for (id, format, chunker, pages) in [
        ("vasa.md", "markdown", "markdown", json!(null)),
        ("vasa.html", "html", "markdown", json!(null)),
        ("vasa.pdf", "pdf", "markdown", json!(2)),
        ("vasa.docx", "docx", "markdown", json!(2)),
        ("ships.csv", "csv", "recursive", json!(null)),
        ("ships.jsonl#vasa", "jsonl", "recursive", json!(null)),
    ] {
        let end = end_of(&lines, id);
        assert_eq!(
            (&end["format"], &end["chunker"], end.get("error")),
            (&json!(format), &json!(chunker), None),
            "{end}"
        );
        assert_eq!(end.get("pages").unwrap_or(&json!(null)), &pages, "{end}");
    }
    for id in ["vasa.md", "vasa.html", "vasa.pdf", "vasa.docx"] {
        assert_eq!(end_of(&lines, id)["title"], "The warship Vasa", "{id}");
        let chunks = of_type(&lines, "chunk").into_iter().filter(|line| line["document_id"] == id);
        let salvage: Vec<&Value> =
            chunks.filter(|line| line["text"].as_str().unwrap().contains("333 years")).collect();
        assert_eq!(salvage.len(), 1, "{id}");
        assert_eq!(salvage[0]["heading_path"], json!(["The warship Vasa", "Salvage"]));
        let pages = if id.ends_with("pdf") || id.ends_with("docx") { json!([2, 2]) } else { json!(null) };
        assert_eq!(salvage[0].get("pages").unwrap_or(&json!(null)), &pages, "{id}");
    }
    let vasa =
        of_type(&lines, "chunk").into_iter().find(|line| line["document_id"] == "ships.jsonl#vasa").unwrap();
    assert_eq!(
        (&vasa["metadata"]["source"], &vasa["text"]),
        (&json!("wiki"), &json!("The Vasa sank in 1628."))
    );
    let failed: Vec<&str> =
        of_type(&lines, "document").iter().filter_map(|line| line["error"].as_str()).collect();
    for says in [
        "line 4 is no JSON object",
        "the PDF is encrypted",
        "text recognition (OCR)",
        "it is a PNG image",
        "reading it as pdf",
    ] {
        assert!(failed.iter().any(|error| error.contains(says)), "{failed:?} do not say {says:?}");
    }
    let summary = lines.last().unwrap();
    assert_eq!((&summary["documents"], &summary["failed"]), (&json!(8), &json!(5)));
}

#[tokio::test]
async fn a_form_takes_files_as_curl_sends_them() {
    let boundary = "----a-boundary";
    let mut body = Vec::new();
    let mut part = |headers: &str, content: &[u8]| {
        body.extend_from_slice(
            format!("--{boundary}\r\nContent-Disposition: form-data; {headers}\r\n\r\n").as_bytes(),
        );
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    };
    part("name=\"file\"; filename=\"vasa.pdf\"\r\nContent-Type: text/plain", &file("vasa.pdf"));
    part("name=\"file\"; filename=\"notes.docx\"", b"These are notes, whatever their name says.");
    part("name=\"options\"", br#"{"chunk_max_tokens": 32}"#);
    part("name=\"metadata\"", br#"{"source": "curl"}"#);
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    let content_type = format!("multipart/form-data; boundary={boundary}");
    let lines = data_factory().post_bytes("/v1/process", &content_type, body).await.lines();
    assert_eq!(
        (end_of(&lines, "vasa.pdf")["format"].as_str(), end_of(&lines, "notes.docx")["format"].as_str()),
        (Some("pdf"), Some("text"))
    );
    for chunk in of_type(&lines, "chunk") {
        assert_eq!(chunk["metadata"]["source"], "curl");
        assert!(chunk["tokens"].as_u64().unwrap() <= 34, "{chunk}");
    }
    for (body, says) in [
        (
            "--x\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\na\r\n--x--\r\n",
            "field \"text\" is no file",
        ),
        (
            "--x\r\nContent-Disposition: form-data; name=\"options\"\r\n\r\nnonsense\r\n--x--\r\n",
            "is not JSON",
        ),
        ("nonsense", "the form"),
    ] {
        let answer =
            data_factory().post_bytes("/v1/process", "multipart/form-data; boundary=x", body.into()).await;
        answer.refused(422, "Validation", says);
    }
    let empty = data_factory()
        .post_bytes("/v1/process", "multipart/form-data; boundary=x", b"--x--\r\n".to_vec())
        .await;
    empty.refused(400, "Empty", "documents is []");
}

#[tokio::test]
async fn every_chunker_keeps_to_the_tokens_and_to_the_places() {
    let text = String::from_utf8(file("vasa.md")).unwrap();
    for (chunker, most) in
        [("recursive", 24), ("markdown", 24), ("code", 24), ("semantic", 40), ("fixed", 24)]
    {
        let body = json!({
            "documents": [{ "id": "d", "text": text }],
            "options": { "chunker": chunker, "chunk_max_tokens": most, "chunk_overlap": 0 },
        });
        let lines = data_factory().post("/v1/process", &body).await.lines();
        assert_eq!(end_of(&lines, "d")["chunker"], chunker, "{lines:?}");
        let chunks = of_type(&lines, "chunk");
        let place = |chunk: &Value, name: &str| usize::try_from(chunk[name].as_u64().unwrap()).unwrap();
        let mut covered = vec![false; text.len()];
        for chunk in &chunks {
            assert_eq!(chunk["text"], text[place(chunk, "start")..place(chunk, "end")]);
            assert!(place(chunk, "tokens") <= most + 2, "{chunk}");
            covered[place(chunk, "start")..place(chunk, "end")].fill(true);
        }
        assert!(text.char_indices().all(|(at, c)| c.is_whitespace() || covered[at]), "{chunker} loses text");
        let again = data_factory().post("/v1/process", &body).await.lines();
        let ids = |lines: &[Value]| {
            let mut ids: Vec<String> =
                of_type(lines, "chunk").iter().map(|chunk| chunk["chunk_id"].to_string()).collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!(ids(&lines), ids(&again), "{chunker}");
    }
    let body = json!({ "documents": [{ "text": "a" }], "options": { "chunker": "page" } });
    data_factory().post("/v1/process", &body).await.refused(422, "Validation", "options.chunker is \"page\"");
}
