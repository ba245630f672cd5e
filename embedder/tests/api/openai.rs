//! `POST /v1/embeddings` and `GET /v1/models`: the dialect of OpenAI.

use super::server::{cosine, data_factory, floats};
use base64::Engine as _;
use serde_json::{Value, json};

#[tokio::test]
async fn embeddings_are_those_of_embed() {
    let body = json!({ "model": "any", "input": ["a hot card", "a cold drink"], "user": "u" });
    let answer = data_factory().post("/v1/embeddings", &body).await.json();
    let plain =
        data_factory().post("/embed", &json!({ "inputs": ["a hot card", "a cold drink"] })).await.json();
    assert_eq!((&answer["object"], answer["data"].as_array().unwrap().len()), (&json!("list"), 2));
    for index in [0, 1] {
        let object = &answer["data"][index];
        assert_eq!((&object["object"], &object["index"]), (&json!("embedding"), &json!(index)));
        assert!(cosine(&floats(&object["embedding"]), &floats(&plain[index])) > 0.999_999);
    }
    assert_eq!(answer["usage"], json!({ "prompt_tokens": 10, "total_tokens": 10 }));
    assert!(answer["model"].as_str().unwrap().ends_with("all-minilm-l6-v2-0.1.0"), "{}", answer["model"]);
}

#[tokio::test]
async fn base64_holds_the_same_floats() {
    let float = data_factory().post("/v1/embeddings", &json!({ "input": "warm" })).await.json();
    let body = json!({ "input": "warm", "encoding_format": "base64" });
    let base64 = data_factory().post("/embeddings", &body).await.json();
    let text = base64["data"][0]["embedding"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let decoded: Vec<f64> =
        bytes.chunks_exact(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))).collect();
    assert_eq!(decoded.len(), 384);
    assert!(cosine(&decoded, &floats(&float["data"][0]["embedding"])) > 0.999_999);
}

#[tokio::test]
async fn token_ids_are_embedded_like_their_text() {
    let tokens = data_factory().post("/tokenize", &json!({ "inputs": "a hot graphics card" })).await.json();
    let ids: Vec<Value> = tokens[0].as_array().unwrap().iter().map(|token| token["id"].clone()).collect();
    let embed = async |input: &Value| {
        let body = json!({ "input": input });
        data_factory().post("/v1/embeddings", &body).await.json()
    };
    let text = embed(&json!("a hot graphics card")).await;
    for input in [json!(ids), json!([ids])] {
        let found = embed(&input).await;
        let count = found["data"].as_array().unwrap().len();
        assert_eq!((count, &found["usage"]), (1, &text["usage"]), "{input}");
        let [found, expected] = [&found, &text].map(|answer| floats(&answer["data"][0]["embedding"]));
        assert!(cosine(&found, &expected) > 0.999_999, "{input}");
    }
}

#[tokio::test]
async fn null_is_as_good_as_nothing() {
    let body = json!({ "input": "warm", "encoding_format": null, "dimensions": null });
    let answer = data_factory().post("/v1/embeddings", &body).await.json();
    assert_eq!(floats(&answer["data"][0]["embedding"]).len(), 384);
    let body = json!({ "inputs": "warm", "truncate": null, "truncation_direction": null });
    assert_eq!(data_factory().post("/embed", &body).await.status, 200);
    let body = json!({ "inputs": "warm", "input_type": null, "truncation_direction": null });
    assert_eq!(data_factory().post("/v1/encode", &body).await.status, 200);
    let body = json!({ "texts": ["warm"], "input_type": null, "truncate": null });
    assert_eq!(data_factory().post("/v2/embed", &body).await.status, 200);
}

#[tokio::test]
async fn a_wrong_method_is_refused_in_the_form_of_the_route() {
    for (path, place) in
        [("/v1/embeddings", "/error/message"), ("/v2/embed", "/message"), ("/embed", "/error")]
    {
        let answer = data_factory().get(path).await;
        let body: Value = serde_json::from_str(&answer.text).unwrap();
        let message = body.pointer(place).and_then(Value::as_str);
        assert_eq!(answer.status, 405, "{}", answer.text);
        assert!(message.is_some_and(|it| it.contains("does not take GET")), "{path}: {}", answer.text);
    }
}

#[tokio::test]
async fn dimensions_shorten_the_vector() {
    let answer =
        data_factory().post("/v1/embeddings", &json!({ "input": "warm", "dimensions": 16 })).await.json();
    assert_eq!(floats(&answer["data"][0]["embedding"]).len(), 16);
}

#[tokio::test]
async fn the_model_is_listed() {
    let answer = data_factory().get("/v1/models").await.json();
    assert_eq!((&answer["object"], &answer["data"][0]["object"]), (&json!("list"), &json!("model")));
    assert!(answer["data"][0]["id"].as_str().unwrap().ends_with("all-minilm-l6-v2-0.1.0"));
}

#[tokio::test]
async fn refusals_have_the_form_that_openai_clients_read() {
    for (body, status, says) in [
        (json!({ "input": [] }), 400, "input is []"),
        (json!({ "input": {} }), 422, "input is {}: expected a text"),
        (
            json!({ "input": "a", "encoding_format": "hex" }),
            422,
            "encoding_format is \"hex\": unknown variant `hex`",
        ),
        (json!({ "input": "a", "dimensions": 9999 }), 422, "dimensions is 9999"),
    ] {
        let answer = data_factory().post("/v1/embeddings", &body).await;
        let error = &serde_json::from_str::<Value>(&answer.text).unwrap()["error"];
        assert_eq!(
            (answer.status, &error["type"]),
            (status, &json!("invalid_request_error")),
            "{}",
            answer.text
        );
        assert_eq!(error["code"], json!(status));
        assert!(error["message"].as_str().unwrap().contains(says), "{error} does not say {says:?}");
    }
}
