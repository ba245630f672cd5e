//! `/embed_sparse`, `/embed_all`, `/similarity`, `/v1/encode` and Cohere's `/v2/embed`, on a small model that has all heads.

use super::models::{changed, first_state, folder, unnormalized};
use super::server::{Server, cosine, data_factory, floats, norm, start};
use serde_json::{Value, json};
use std::sync::LazyLock;

/// BGE-M3 in small.
fn all_heads() -> &'static Server {
    static SERVER: LazyLock<Server> =
        LazyLock::new(|| start(&["--model", &folder("bge-m3").display().to_string()]));
    &SERVER
}

fn references(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder(name).join("expected.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["references"].as_array().unwrap().clone()
}

#[track_caller]
fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(off < 1e-4, "off by {off}");
}

#[tokio::test]
async fn one_request_gives_all_three_forms() {
    let references = references("bge-m3");
    let texts: Vec<&Value> = references.iter().map(|row| &row["text"]).collect();
    let answer = all_heads().post("/v1/encode", &json!({ "inputs": texts })).await.json();
    let tokens: usize = references.iter().map(|row| row["ids"].as_array().unwrap().len()).sum();
    assert_eq!(answer["usage"]["total_tokens"], tokens);
    for (index, row) in references.iter().enumerate() {
        let found = &answer["data"][index];
        assert_eq!(found["index"], index);
        close(&floats(&found["dense"]), &floats(&row["vector"]));
        let sparse = row["sparse"].as_array().unwrap();
        let ids: Value = sparse.iter().map(|pair| pair[0].clone()).collect();
        assert_eq!(found["sparse"]["indices"], ids);
        let weights: Vec<f64> = sparse.iter().map(|pair| pair[1].as_f64().unwrap()).collect();
        close(&floats(&found["sparse"]["values"]), &weights);
        let vectors: Vec<f64> = found["multi_vector"].as_array().unwrap().iter().flat_map(floats).collect();
        close(&vectors, &floats(&row["multi"]));
    }
}

#[tokio::test]
async fn vectors_are_as_long_as_sentence_transformers_makes_them_where_no_dialect_says_otherwise() {
    let references = references("modernbert");
    for (similarity, kept) in [("cosine", false), ("dot", true)] {
        let model = unnormalized(similarity);
        let server = start(&["--model", &model.path().display().to_string()]);
        for row in &references {
            let (text, unit, own) = (&row["text"], floats(&row["vector"]), first_state(row));
            assert!((norm(&unit) - 1.0).abs() < 1e-4 && norm(&own) > 5.0);
            for (normalize, expected) in [(Value::Null, &own), (json!(false), &own), (json!(true), &unit)] {
                let body = json!({ "inputs": text, "normalize": normalize });
                let answer = server.post("/v1/encode", &body).await.json();
                close(&floats(&answer["data"][0]["dense"]), expected);
            }
            // Here others have defaults of their own.
            let answer = server.post("/embed", &json!({ "inputs": text })).await.json();
            close(&floats(&answer[0]), &unit);
            let answer = server.post("/embed", &json!({ "inputs": text, "normalize": false })).await.json();
            close(&floats(&answer[0]), &own);
            let answer = server.post("/v1/embeddings", &json!({ "input": text })).await.json();
            close(&floats(&answer["data"][0]["embedding"]), &unit);
            let answer = server.post("/v2/embed", &json!({ "texts": [text] })).await.json();
            close(&floats(&answer["embeddings"]["float"][0]), &unit);
            let answer = server.post("/vertex", &json!({ "instances": [{ "inputs": text }] })).await.json();
            close(&floats(&answer["predictions"][0][0]), &unit);
        }
        // Documents are to be compared.
        let row = &references[0];
        let body = json!({ "documents": [{ "text": row["text"] }] });
        let lines = server.post("/v1/process", &body).await.lines();
        let chunk = lines.iter().find(|line| line["type"] == "chunk").unwrap();
        close(&floats(&chunk["vector"]), &if kept { first_state(row) } else { floats(&row["vector"]) });
    }
}

#[tokio::test]
async fn a_request_gets_what_it_names_and_nothing_else() {
    let body = json!({ "inputs": "hot", "outputs": ["dense"], "dimensions": 8, "normalize": false });
    let answer = all_heads().post("/v1/encode", &body).await.json();
    assert_eq!(floats(&answer["data"][0]["dense"]).len(), 8);
    assert_eq!((answer["data"][0].get("sparse"), answer["data"][0].get("multi_vector")), (None, None));
    for (server, body, status, kind, says) in [
        (
            all_heads(),
            json!({ "inputs": "a", "outputs": [] }),
            400,
            "Empty",
            "name some of dense, sparse, multi_vector",
        ),
        (
            all_heads(),
            json!({ "inputs": "a", "outputs": ["colour"] }),
            422,
            "Validation",
            "outputs[0] is \"colour\"",
        ),
        (
            data_factory(),
            json!({ "inputs": "a", "outputs": ["sparse"] }),
            422,
            "Validation",
            "the model has dense",
        ),
    ] {
        server.post("/v1/encode", &body).await.refused(status, kind, says);
    }
}

#[tokio::test]
async fn queries_and_documents_are_marked_and_punctuation_has_no_vector() {
    let server = start(&["--model", &folder("colbert").display().to_string()]);
    for row in references("colbert") {
        for side in ["query", "document"] {
            let body = json!({ "inputs": row["text"], "input_type": side });
            let answer = server.post("/v1/encode", &body).await.json();
            let vectors = answer["data"][0]["multi_vector"].as_array().unwrap().iter().flat_map(floats);
            close(&vectors.collect::<Vec<_>>(), &floats(&row[side]));
        }
    }
    server.post("/embed", &json!({ "inputs": "a" })).await.refused(424, "Backend", "no embedding model");
    server.post("/v1/process", &json!({})).await.refused(404, "Validation", "no route POST /v1/process");
}

#[tokio::test]
async fn weights_of_words_come_in_the_form_of_tei() {
    let server = start(&["--model", &folder("splade-bert").display().to_string()]);
    assert_eq!(
        server.get("/info").await.json()["model_type"],
        json!({ "embedding": { "pooling": "splade" } })
    );
    let references = references("splade-bert");
    let texts: Vec<&Value> = references.iter().map(|row| &row["text"]).collect();
    let answer = server.post("/embed_sparse", &json!({ "inputs": texts })).await.json();
    for (index, row) in references.iter().enumerate() {
        let values = answer[index].as_array().unwrap();
        let found: Vec<f64> = values.iter().map(|pair| pair["value"].as_f64().unwrap()).collect();
        let expected: Vec<f64> =
            row["sparse"].as_array().unwrap().iter().map(|pair| pair[1].as_f64().unwrap()).collect();
        close(&found, &expected);
    }
    data_factory().post("/embed_sparse", &json!({ "inputs": "a" })).await.refused(
        424,
        "Backend",
        "no sparse model",
    );
}

#[tokio::test]
async fn all_states_are_given_and_their_mean_is_the_vector() {
    let body = json!({ "inputs": ["a hot card", "warm"] });
    let states = data_factory().post("/embed_all", &body).await.json();
    let vectors = data_factory().post("/embed", &body).await.json();
    for (index, tokens) in [(0, 5), (1, 3)] {
        let states: Vec<Vec<f64>> = states[index].as_array().unwrap().iter().map(floats).collect();
        assert_eq!(states.len(), tokens);
        let mean: Vec<f64> = (0..384).map(|column| states.iter().map(|state| state[column]).sum()).collect();
        assert!(cosine(&mean, &floats(&vectors[index])) > 0.999_999);
    }
}

#[tokio::test]
async fn similarities_are_cosines_in_the_order_of_the_sentences() {
    let body = json!({ "inputs": { "source_sentence": "a hot card", "sentences": ["a hot card", "Berlin is in Germany"] } });
    let found = floats(&data_factory().post("/similarity", &body).await.json());
    assert!(found.len() == 2 && (found[0] - 1.0).abs() < 1e-5 && found[1] < 0.5, "{found:?}");
    let body = json!({ "inputs": { "source_sentence": "a", "sentences": [] } });
    data_factory().post("/similarity", &body).await.refused(400, "Empty", "inputs.sentences is []");
}

#[tokio::test]
async fn prompts_come_by_name_by_default_and_by_the_side_of_the_search() {
    let server = start(&["--model", &folder("nomic-bert").display().to_string()]);
    let embed = async |body: Value| floats(&server.post("/embed", &body).await.json()[0]);
    let plain = embed(json!({ "inputs": "search query : hot" })).await;
    close(&embed(json!({ "inputs": "hot", "prompt_name": "query" })).await, &plain);
    let cohere = json!({ "texts": ["hot"], "input_type": "search_query" });
    let cohere = server.post("/v2/embed", &cohere).await.json();
    close(&floats(&cohere["embeddings"]["float"][0]), &plain);
    let encoded = server.post("/v1/encode", &json!({ "inputs": "hot", "input_type": "query" })).await.json();
    close(&floats(&encoded["data"][0]["dense"]), &plain);
    let refused = server.post("/embed", &json!({ "inputs": "hot", "prompt_name": "x" })).await;
    refused.refused(422, "Validation", "no prompt \"x\"; it has [\"document\", \"query\"]");
    // Chunks of documents come with the prompt for documents.
    let lines = server.post("/v1/process", &json!({ "documents": [{ "text": "hot cards" }] })).await.lines();
    let chunk = lines.iter().find(|line| line["type"] == "chunk").unwrap();
    close(
        &floats(&chunk["vector"]),
        &embed(json!({ "inputs": "hot cards", "prompt_name": "document" })).await,
    );
    let server =
        start(&["--model", &folder("nomic-bert").display().to_string(), "--default-prompt-name", "query"]);
    close(&floats(&server.post("/embed", &json!({ "inputs": "hot" })).await.json()[0]), &plain);
    // The default prompt of this model is that of queries.
    let server = start(&["--model", &folder("roberta").display().to_string()]);
    let embed = async |body: Value| floats(&server.post("/embed", &body).await.json()[0]);
    let named = embed(json!({ "inputs": "hot", "prompt_name": "query" })).await;
    close(&embed(json!({ "inputs": "hot" })).await, &named);
    assert!(cosine(&embed(json!({ "inputs": "hot", "prompt_name": "document" })).await, &named) < 0.999);
}

#[tokio::test]
async fn prompts_are_found_under_other_words_for_what_they_are_for() {
    let prompts =
        json!({ "query": "search query : ", "passage": "search document : ", "Clustering": "search : " });
    let copy =
        changed("nomic-bert", "config_sentence_transformers.json", |it| it["prompts"] = prompts.clone());
    let server = start(&["--model", &copy.path().display().to_string()]);
    let embed = async |body: Value| floats(&server.post("/embed", &body).await.json()[0]);
    let passage = embed(json!({ "inputs": "search document : hot" })).await;
    let encoded = server.post("/v1/encode", &json!({ "inputs": "hot" })).await.json();
    close(&floats(&encoded["data"][0]["dense"]), &passage);
    let clustering = embed(json!({ "inputs": "search : hot" })).await;
    let plain = embed(json!({ "inputs": "hot" })).await;
    for (kind, expected) in
        [("search_document", &passage), ("clustering", &clustering), ("classification", &plain)]
    {
        let answer = server.post("/v2/embed", &json!({ "texts": ["hot"], "input_type": kind })).await.json();
        close(&floats(&answer["embeddings"]["float"][0]), expected);
    }
}

#[tokio::test]
async fn cohere_gets_floats_bytes_and_bits_of_the_same_vectors() {
    let kinds = ["float", "int8", "uint8", "binary", "ubinary", "base64"];
    let body = json!({ "model": "embed-v4.0", "texts": ["a hot card", "warm"], "input_type": "search_document",
        "embedding_types": kinds });
    let answer = data_factory().post("/v2/embed", &body).await.json();
    assert_eq!(answer["response_type"], "embeddings_by_type");
    assert_eq!(
        (&answer["texts"][1], &answer["meta"]["billed_units"]["input_tokens"]),
        (&json!("warm"), &json!(8))
    );
    let plain = data_factory().post("/embed", &json!({ "inputs": ["a hot card", "warm"] })).await.json();
    for index in [0, 1] {
        let of = |kind: &str| floats(&answer["embeddings"][kind][index]);
        let (float, int8, ubinary) = (of("float"), of("int8"), of("ubinary"));
        close(&float, &floats(&plain[index]));
        assert!((norm(&float) - 1.0).abs() < 1e-5 && cosine(&float, &int8) > 0.999);
        assert!(int8.iter().zip(of("uint8")).all(|(signed, unsigned)| signed + 128.0 == unsigned));
        assert_eq!(ubinary.len(), 384 / 8);
        assert!(ubinary.iter().zip(of("binary")).all(|(unsigned, signed)| unsigned - 128.0 == signed));
        let positive = float.iter().filter(|value| **value > 0.0).count();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes")]
        let ones: u32 = ubinary.iter().map(|byte| (*byte as u8).count_ones()).sum();
        assert_eq!(positive, ones as usize);
    }
    let short = json!({ "texts": ["a"], "output_dimension": 16 });
    let short = data_factory().post("/v2/embed", &short).await.json();
    assert_eq!(floats(&short["embeddings"]["float"][0]).len(), 16);
}

#[tokio::test]
async fn cohere_cuts_at_the_end_that_the_request_says() {
    let vector = async |body: Value| {
        let answer = data_factory().post("/v2/embed", &body).await.json();
        floats(&answer["embeddings"]["float"][0])
    };
    for (truncate, kept) in [("START", "cold drink"), ("END", "a hot")] {
        let cut = json!({ "texts": ["a hot card, a cold drink"], "max_tokens": 2, "truncate": truncate });
        let expected = vector(json!({ "texts": [kept] })).await;
        close(&vector(cut).await, &expected);
    }
    let whole = json!({ "texts": ["a hot card"], "max_tokens": 3, "truncate": "NONE" });
    close(&vector(whole).await, &vector(json!({ "texts": ["a hot card"] })).await);
}

#[tokio::test]
async fn cohere_is_refused_in_its_own_form() {
    for (body, status, says) in [
        (json!({}), 422, "neither texts nor inputs"),
        (json!({ "texts": [] }), 400, "texts is []"),
        (
            json!({ "texts": ["a"], "output_dimension": 385 }),
            422,
            "output_dimension is 385; the model has 1 to 384",
        ),
        (json!({ "texts": ["a"], "embedding_types": ["int4"] }), 422, "embedding_types[0] is \"int4\""),
        (json!({ "texts": ["hot ".repeat(600)], "truncate": "NONE" }), 413, "the model takes 256"),
        (
            json!({ "texts": ["a hot card"], "max_tokens": 2, "truncate": "NONE" }),
            413,
            "more tokens than max_tokens, which is 2",
        ),
        (json!({ "inputs": [{ "content": [{ "type": "image_url" }] }] }), 422, "unknown variant `image_url`"),
    ] {
        let answer = data_factory().post("/v2/embed", &body).await;
        let message = serde_json::from_str::<Value>(&answer.text).unwrap()["message"].clone();
        assert!(
            answer.status == status && message.as_str().unwrap().contains(says),
            "{body}: {}",
            answer.text
        );
    }
}
