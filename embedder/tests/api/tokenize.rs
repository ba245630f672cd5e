//! `POST /tokenize` and `POST /decode`: the dialect of text-embeddings-inference.

use super::models::{changed, folder};
use super::server::{cosine, data_factory, floats, reranker, start};
use principium_embedder::model::{ModelFiles, Side, Truncation, load_tokenizer};
use serde_json::{Value, json};

#[tokio::test]
async fn tokens_come_with_their_places_in_characters() {
    let answer = data_factory().post("/tokenize", &json!({ "inputs": ["Die Kühlung läuft."] })).await.json();
    let tokens = answer[0].as_array().unwrap();
    assert_eq!(
        (&tokens[0]["text"], &tokens[0]["special"], &tokens[0]["start"]),
        (&json!("[CLS]"), &json!(true), &json!(null))
    );
    let text: Vec<char> = "Die Kühlung läuft.".chars().collect();
    for token in tokens.iter().filter(|token| token["special"] == false) {
        let place = |name: &str| usize::try_from(token[name].as_u64().unwrap()).unwrap();
        let part: String = text[place("start")..place("stop")].iter().collect();
        assert_eq!(token["text"], part);
    }
}

#[tokio::test]
async fn special_tokens_can_be_left_out() {
    let body = json!({ "inputs": "card", "add_special_tokens": false });
    let answer = reranker().post("/tokenize", &body).await.json();
    assert_eq!(answer, json!([[{ "id": 4003, "text": "card", "special": false, "start": 0, "stop": 4 }]]));
}

#[tokio::test]
async fn ids_are_decoded_to_their_texts() {
    let decode = async |body| data_factory().post("/decode", &body).await.json();
    assert_eq!(decode(json!({ "ids": [101, 4003, 102] })).await, json!(["card"]));
    assert_eq!(decode(json!({ "ids": [[101, 4003], [4003, 4003]] })).await, json!(["card", "card card"]));
    let whole = json!({ "ids": [101, 4003], "skip_special_tokens": false });
    assert_eq!(decode(whole).await, json!(["[CLS] card"]));
}

#[tokio::test]
async fn what_would_take_too_much_memory_is_refused() {
    let (text, ids) = ("hot ".repeat(200_000), vec![4003; 500_000]);
    for (path, body) in [
        ("/tokenize", json!({ "inputs": text })),
        ("/tokenize", json!({ "inputs": ids })),
        ("/decode", json!({ "ids": ids })),
    ] {
        data_factory().post(path, &body).await.refused(413, "Validation", "and may take 67108864");
    }
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    for (path, body, status, kind, says) in [
        ("/tokenize", json!({ "inputs": [] }), 400, "Empty", "inputs is []"),
        ("/tokenize", json!({ "inputs": true }), 422, "Validation", "inputs is true"),
        ("/tokenize", json!({ "inputs": "a", "prompt_name": "x" }), 422, "Validation", "no prompt \"x\""),
        ("/decode", json!({ "ids": [] }), 400, "Empty", "ids is []"),
        ("/decode", json!({ "ids": "a" }), 422, "Validation", "ids is \"a\": expected a list of token ids"),
        (
            "/decode",
            json!({ "ids": [1, 99999] }),
            422,
            "Validation",
            "token id 99999 is not in the model's vocabulary",
        ),
    ] {
        data_factory().post(path, &body).await.refused(status, kind, says);
    }
}

#[tokio::test]
async fn a_token_that_the_model_has_no_row_for_harms_no_text() {
    // The first id behind the table, as that of EmbeddingGemma's `<image_soft_token>`.
    let copy = changed("bert", "tokenizer.json", |it| {
        let mut token = it["added_tokens"][0].clone();
        token["id"] = json!(54);
        token["content"] = json!("[image]");
        it["added_tokens"].as_array_mut().unwrap().push(token);
    });
    let text = "a [image] card";
    let check = |expected: &[u32]| {
        let tokenizer = load_tokenizer(&ModelFiles::read(copy.path()).unwrap()).unwrap();
        let raw = tokenizer.plain().encode(text, true).unwrap();
        assert_eq!(raw.get_ids(), [2, 7, 54, 9, 3]);
        for input in [
            tokenizer.text(text, Truncation::Refuse),
            tokenizer.prompted("a ", "[image] card", Truncation::DropStart),
            tokenizer.marked("", text, Side::Document, Truncation::DropEnd),
        ] {
            assert_eq!(input.unwrap().ids, expected);
        }
        let pair = tokenizer.pair("[image]", text, Truncation::DropEnd).unwrap();
        assert!(pair.ids.iter().all(|id| *id < 54), "{:?}", pair.ids);
    };
    check(&[2, 7, 1, 9, 3]);
    let server = start(&["--model", &copy.path().display().to_string()]);
    let answer = server.post("/embed", &json!({ "inputs": ["hot", text, "a [UNK] card"] })).await.json();
    assert!(cosine(&floats(&answer[1]), &floats(&answer[2])) > 0.999_999);
    let documents = json!({ "documents": [{ "text": text }, { "text": "a hot card" }] });
    let lines = server.post("/v1/process", &documents).await.lines();
    assert_eq!(lines.iter().filter(|line| line["type"] == "chunk").count(), 2, "{lines:?}");
    let says = "the token id 54 is not in the model's vocabulary, which has the ids from 0 to 53";
    for inputs in [json!([8, 54]), json!(["hot", [54]])] {
        server.post("/embed", &json!({ "inputs": inputs })).await.refused(422, "Validation", says);
    }
    // Without a token for what is unknown it is left out.
    let config = folder("bert").join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    config["unk_token"] = Value::Null;
    std::fs::write(copy.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    check(&[2, 7, 9, 3]);
}
