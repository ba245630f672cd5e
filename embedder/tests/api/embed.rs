//! `POST /embed`: the dialect of text-embeddings-inference.

use super::server::{cosine, data_factory, floats, norm};
use serde_json::{Value, json};

#[tokio::test]
async fn one_text_and_a_list_of_texts_give_lists_of_vectors() {
    let one = data_factory().post("/embed", &json!({ "inputs": "a hot card" })).await.json();
    let many =
        data_factory().post("/embed", &json!({ "inputs": ["a cold drink", "a hot card"] })).await.json();
    assert_eq!((one.as_array().unwrap().len(), many.as_array().unwrap().len()), (1, 2));
    let (one, two) = (floats(&one[0]), floats(&many[1]));
    assert_eq!(one.len(), 384);
    assert!(cosine(&one, &two) > 0.999_999, "a text has the same vector in any company");
}

#[tokio::test]
async fn the_root_is_embed_as_well() {
    let answer = data_factory().post("/", &json!({ "inputs": "a" })).await.json();
    assert_eq!(floats(&answer[0]).len(), 384);
}

#[tokio::test]
async fn token_ids_are_embedded_like_their_text() {
    let tokens = data_factory().post("/tokenize", &json!({ "inputs": "a hot graphics card" })).await.json();
    let ids: Vec<_> = tokens[0].as_array().unwrap().iter().map(|token| token["id"].clone()).collect();
    let of_ids = data_factory().post("/embed", &json!({ "inputs": [ids] })).await.json();
    let of_text = data_factory().post("/embed", &json!({ "inputs": "a hot graphics card" })).await.json();
    assert!(cosine(&floats(&of_ids[0]), &floats(&of_text[0])) > 0.999_999);
}

#[tokio::test]
async fn vectors_have_length_one_unless_the_request_says_otherwise() {
    let normalized = data_factory().post("/embed", &json!({ "inputs": "warm" })).await.json();
    let raw = data_factory().post("/embed", &json!({ "inputs": "warm", "normalize": false })).await.json();
    let (normalized, raw) = (floats(&normalized[0]), floats(&raw[0]));
    assert!((norm(&normalized) - 1.0).abs() < 1e-5);
    assert!((norm(&raw) - 1.0).abs() > 0.1, "{}", norm(&raw));
    assert!(cosine(&normalized, &raw) > 0.999_999);
}

#[tokio::test]
async fn vectors_can_be_shortened() {
    let whole = data_factory().post("/embed", &json!({ "inputs": "warm" })).await.json();
    let short = data_factory().post("/embed", &json!({ "inputs": "warm", "dimensions": 8 })).await.json();
    let (whole, short) = (floats(&whole[0]), floats(&short[0]));
    assert_eq!(short.len(), 8);
    assert!((norm(&short) - 1.0).abs() < 1e-5 && cosine(&whole[..8], &short) > 0.999_999);
}

#[tokio::test]
async fn a_long_text_is_cut_at_the_end_that_the_request_names_or_refused() {
    let long = format!("{} {}", "cold ".repeat(300), "hot ".repeat(300));
    let cut = async |direction: &str| {
        let body = json!({ "inputs": [long, "cold ".repeat(254), "hot ".repeat(254)], "truncation_direction": direction });
        let vectors = data_factory().post("/embed", &body).await.json();
        [0, 1, 2].map(|index| floats(&vectors[index]))
    };
    let [kept, cold, hot] = cut("Right").await;
    assert!(cosine(&kept, &cold) > 0.999_99 && cosine(&kept, &hot) < 0.99);
    let [kept, cold, hot] = cut("Left").await;
    assert!(cosine(&kept, &hot) > 0.999_99 && cosine(&kept, &cold) < 0.99);
    let refused = data_factory().post("/embed", &json!({ "inputs": long, "truncate": false })).await;
    refused.refused(413, "Validation", "602 tokens, and the model takes 256");
}

#[tokio::test]
async fn of_a_long_text_no_more_is_tokenized_than_the_model_takes() {
    // All of it would take 9 GB while it is tokenized.
    let long = "hot ".repeat(3_900_000);
    let cut = data_factory().post("/embed", &json!({ "inputs": long })).await.json();
    let short = data_factory().post("/embed", &json!({ "inputs": "hot ".repeat(254) })).await.json();
    assert!(cosine(&floats(&cut[0]), &floats(&short[0])) > 0.999_999);
    let refused = data_factory().post("/embed", &json!({ "inputs": long, "truncate": false })).await;
    refused.refused(413, "Validation", "15600000 bytes is too long, as the model takes 256 tokens");
}

#[tokio::test]
async fn a_request_of_any_size_is_split_and_not_refused() {
    let texts: Vec<String> = (0..600).map(|n| format!("card {n}")).collect();
    let vectors = data_factory().post("/embed", &json!({ "inputs": texts })).await.json();
    assert_eq!(vectors.as_array().unwrap().len(), 600);
    let alone = data_factory().post("/embed", &json!({ "inputs": texts[599] })).await.json();
    assert!(
        cosine(&floats(&vectors[599]), &floats(&alone[0])) > 0.999_999,
        "vectors come in the order of the texts"
    );
}

#[tokio::test]
async fn what_is_wrong_is_named_with_its_value() {
    for (body, status, kind, says) in [
        (json!({ "inputs": [] }), 400, "Empty", "inputs is []"),
        (json!({}), 422, "Validation", "missing field `inputs`"),
        (json!({ "inputs": 5 }), 422, "Validation", "inputs is 5: expected a text, a list of texts"),
        (json!({ "inputs": ["a", null] }), 422, "Validation", "inputs is [\"a\",null]"),
        (json!({ "inputs": "a", "truncate": "yes" }), 422, "Validation", "truncate is \"yes\""),
        (
            json!({ "inputs": "a", "truncation_direction": "up" }),
            422,
            "Validation",
            "truncation_direction is \"up\"",
        ),
        (
            json!({ "inputs": "a", "dimensions": 385 }),
            422,
            "Validation",
            "dimensions is 385; the model has 1 to 384",
        ),
        (json!({ "inputs": "a", "dimensions": 0 }), 422, "Validation", "dimensions is 0"),
        (json!({ "inputs": "a", "prompt_name": "query" }), 422, "Validation", "no prompt \"query\""),
        (json!({ "inputs": [[30522]] }), 422, "Validation", "token id 30522"),
    ] {
        data_factory().post("/embed", &body).await.refused(status, kind, says);
    }
    data_factory().post_text("/embed", "{".into()).await.refused(422, "Validation", "not JSON");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_in_words() {
    let body = json!({ "inputs": "x".repeat(16_000_001) });
    data_factory().post("/embed", &body).await.refused(413, "Validation", "payload limit");
}

#[tokio::test]
async fn what_would_not_fit_into_memory_is_refused_before_it_is_computed_in_the_form_of_the_route() {
    let (says, many) =
        ("numbers, those of its tokens and of the answer, and may take 67108864", vec!["a"; 200_000]);
    data_factory().post("/embed", &json!({ "inputs": many })).await.refused(413, "Validation", says);
    for (path, field, place) in
        [("/v1/embeddings", "input", "/error/message"), ("/v2/embed", "texts", "/message")]
    {
        let answer = data_factory().post(path, &json!({ field: many })).await;
        let body: Value = serde_json::from_str(&answer.text).unwrap();
        let message = body.pointer(place).unwrap().as_str().unwrap();
        assert!(answer.status == 413 && message.contains(says), "{path}: {}", answer.text);
    }
    // One vector a text would be a small answer.
    let states = json!({ "inputs": vec!["hot ".repeat(300); 800] });
    data_factory().post("/embed_all", &states).await.refused(413, "Validation", says);
    // One text of one of them would be a small answer as well.
    let ids = json!({ "inputs": vec![1; (1 << 21) + 1] });
    let says = "inputs has 2097153 token ids, and a request may have 2097152 in all";
    data_factory().post("/embed", &ids).await.refused(413, "Validation", says);
}

#[tokio::test]
async fn routes_that_are_not_there_say_so() {
    // Those of others in their own form.
    let jinas = data_factory().post("/v1/rerank", &json!({})).await;
    let says = jinas.text.starts_with(r#"{"detail":"there is no route POST /v1/rerank"#);
    assert!(jinas.status == 404 && says, "{}", jinas.text);
    for path in ["/predict", "/rerank", "/v1/analyze"] {
        data_factory().post(path, &json!({})).await.refused(
            404,
            "Validation",
            &format!("no route POST {path}"),
        );
    }
    data_factory().get("/embed").await.refused(405, "Validation", "does not take GET");
}
