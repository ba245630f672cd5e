//! `POST /v1/process` without a language model: documents in, chunks and vectors out.

use super::server::{cosine, data_factory, floats};
use serde_json::{Value, json};
use std::collections::HashSet;

const MARKDOWN: &str = "# Cooling\n\nA card that gets hot is withheld from new pods.\n\n## Fans\n\nThe fan turns faster when the \
                        card is hot. It is loud – über alles.\n\n## Liquid\n\nSome cards are cooled by a liquid.\n";

pub fn of_type<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["type"] == kind).collect()
}

#[tokio::test]
async fn documents_become_chunks_with_places_headings_and_vectors() {
    let long = "The operator moves a workload to the coolest healthy card. ".repeat(100);
    let body = json!({
        "documents": [
            { "id": "md", "title": "Cooling", "format": "markdown", "text": MARKDOWN, "metadata": { "source": "wiki" } },
            { "id": "long", "text": long },
        ],
        "options": { "chunk_max_tokens": 24 },
    });
    let answer = data_factory().post("/v1/process", &body).await;
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    let lines = answer.lines();
    let chunks = of_type(&lines, "chunk");
    for chunk in &chunks {
        let text = if chunk["document_id"] == "md" { MARKDOWN } else { &long };
        let place = |name: &str| usize::try_from(chunk[name].as_u64().unwrap()).unwrap();
        assert_eq!(chunk["text"], text[place("start")..place("end")]);
        assert!(place("tokens") <= 26, "{chunk}");
        assert_eq!((&chunk["context"], chunk.get("context_error")), (&json!(null), None));
        let embedded = data_factory().post("/embed", &json!({ "inputs": chunk["text"] })).await.json();
        assert!(cosine(&floats(&chunk["vector"]), &floats(&embedded[0])) > 0.999_999);
    }
    let fans = chunks.iter().find(|chunk| chunk["text"].as_str().unwrap().contains("The fan turns")).unwrap();
    assert_eq!(
        (&fans["heading_path"], &fans["metadata"]),
        (&json!(["Cooling", "Fans"]), &json!({ "source": "wiki" }))
    );
    let ids: HashSet<&str> = chunks.iter().map(|chunk| chunk["chunk_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), chunks.len());

    let documents = of_type(&lines, "document");
    let counted: u64 = documents.iter().map(|document| document["chunks"].as_u64().unwrap()).sum();
    assert_eq!((documents.len(), counted), (2, chunks.len() as u64));
    assert!(!of_type(&lines, "progress").is_empty());
    let summary = lines.last().unwrap();
    assert_eq!(summary["type"], "summary");
    assert_eq!(
        (&summary["documents"], &summary["failed"], &summary["without_context"]),
        (&json!(2), &json!(0), &json!(0))
    );
    assert_eq!(summary["chunks"], chunks.len());
    assert!(summary["tokens_per_second"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn an_edit_changes_the_ids_of_what_it_touches_alone() {
    let ids = async |text: &str| {
        let body =
            json!({ "documents": [{ "id": "d", "text": text }], "options": { "chunk_max_tokens": 16 } });
        let lines = data_factory().post("/v1/process", &body).await.lines();
        let mut chunks = of_type(&lines, "chunk");
        chunks.sort_by_key(|chunk| chunk["index"].as_u64());
        chunks.iter().map(|chunk| chunk["chunk_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let rest = "The second paragraph is about the fans of a card.\n\nThe third paragraph is about a liquid in pipes.";
    let before = ids(&format!("The first paragraph is about heat in general.\n\n{rest}")).await;
    let after = ids(&format!("Now the first paragraph is quite another one, as you see.\n\n{rest}")).await;
    assert_eq!(before.len(), 3);
    assert_ne!(before[0], after[0]);
    assert_eq!(before[1..], after[1..]);
}

#[tokio::test]
async fn a_document_that_is_wrong_fails_alone() {
    let nested = |levels| json!({ "in": (1..levels).fold(json!(1), |inner, _| json!([inner])) });
    let body = json!({ "documents": [
        { "id": "good", "text": "All is well.", "metadata": nested(64) },
        { "id": "sheet", "text": "x", "format": "xlsx" },
        { "id": "good", "text": "Again." },
        { "id": "empty", "text": "" },
        { "id": "deep", "text": "x", "metadata": nested(65) },
    ] });
    let lines = data_factory().post("/v1/process", &body).await.lines();
    let mut errors: Vec<&str> =
        of_type(&lines, "document").iter().filter_map(|line| line["error"].as_str()).collect();
    errors.sort_unstable();
    assert_eq!(errors.len(), 4, "{errors:?}");
    assert!(errors[0].starts_with("documents[1].format is \"xlsx\": it can be text, markdown"), "{errors:?}");
    assert!(errors[1].starts_with("documents[2].id is \"good\" for the second time"), "{errors:?}");
    assert_eq!(errors[2..], ["metadata has 65 levels: it can have 64 at most", "the document holds no text"]);
    assert_eq!(
        (&lines.last().unwrap()["documents"], &lines.last().unwrap()["failed"]),
        (&json!(1), &json!(4))
    );
}

#[tokio::test]
async fn a_request_that_is_wrong_is_refused_with_the_field_and_its_value() {
    for (body, says) in [
        (json!({ "documents": [{ "id": "a" }] }), "documents[0] has no text"),
        (json!({ "documents": [{ "text": "a", "data": "YQ==" }] }), "documents[0] has both"),
        (json!({ "documents": [{ "data": "!" }] }), "documents[0].data is \"!\": it is no Base64"),
        (json!({ "documents": [{ "text": 5 }] }), "documents[0].text is 5"),
        (
            json!({ "documents": [{ "text": "a", "lang": "de" }] }),
            "documents[0].lang is \"de\": unknown field `lang`",
        ),
        (json!({ "documents": [{ "text": "a" }], "options": { "enrich": true } }), "options.enrich is true"),
        (json!({ "documents": [{ "text": "a" }], "options": { "enrich": 1 } }), "options.enrich is 1"),
        (
            json!({ "documents": [{ "text": "a" }], "options": { "chunk_max_tokens": 3 } }),
            "options.chunk_max_tokens is 3",
        ),
        (
            json!({ "documents": [{ "text": "a" }], "options": { "chunk_overlap": 500 } }),
            "options.chunk_overlap is 500",
        ),
    ] {
        data_factory().post("/v1/process", &body).await.refused(422, "Validation", says);
    }
    let none = data_factory().post("/v1/process", &json!({ "documents": [] })).await;
    none.refused(400, "Empty", "documents is []");
}

#[tokio::test]
async fn documents_may_be_larger_than_other_bodies_but_not_endless() {
    let text = "A card is hot. ".repeat(1 << 12);
    let padding = "x".repeat(17_000_000);
    let body = json!({ "documents": [{ "id": "d", "text": text, "metadata": { "padding": padding } }], "options": { "chunk_max_tokens": 254 } });
    // Dropped after the first line, because every chunk repeats the metadata: what counts is that it was taken.
    let taken = data_factory().status("/v1/process", body.to_string()).await;
    let too_large = data_factory().status("/v1/process", " ".repeat((64 << 20) + 1)).await;
    assert_eq!((taken, too_large), (200, 413));
}
