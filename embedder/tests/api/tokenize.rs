//! `POST /tokenize` and `POST /decode`: the dialect of text-embeddings-inference.

use super::server::{data_factory, reranker};
use serde_json::json;

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
