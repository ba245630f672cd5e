//! API keys, request ids, and the description of the routes.

use super::jobs;
use super::models::folder;
use super::server::{Server, data_factory, reranker, start};
use serde_json::{Value, json};

#[tokio::test]
async fn a_key_opens_what_the_model_does_and_the_rest_is_open() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "third\n").unwrap();
    let model = folder("bert").display().to_string();
    let path = file.path().display().to_string();
    let server = start(&["--model", &model, "--api-keys", "first,second", "--api-keys-file", &path]);
    let body = json!({ "inputs": "hot" });
    server.post("/embed", &body).await.refused(401, "Unauthorized", "Authorization: Bearer <key>");
    for (key, status) in [("first", 200), ("second", 200), ("third", 200), ("fourth", 401)] {
        let answer = server.post_with("/embed", &body, &[("authorization", &format!("Bearer {key}"))]).await;
        assert_eq!(answer.status, status, "{key}");
    }
    for (path, field) in [("/v1/embeddings", "error"), ("/v2/embed", "message")] {
        let answer = server.post(path, &json!({ "input": "hot" })).await;
        assert_eq!((answer.status, answer.headers["www-authenticate"].to_str().unwrap()), (401, "Bearer"));
        assert!(serde_json::from_str::<Value>(&answer.text).unwrap().get(field).is_some(), "{}", answer.text);
    }
    for path in ["/info", "/health", "/ready", "/metrics", "/openapi.json", "/docs"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    assert_eq!(server.get("/v1/models").await.status, 401);
    assert_eq!(
        (server.get("/").await.status, server.post("/", &body).await.status),
        (200, 401),
        "its page is open"
    );
    let description = server.get("/openapi.json").await.json();
    assert_eq!(description["paths"]["/embed"]["post"]["security"], json!([{ "key": [] }]));
    assert_eq!(description["paths"]["/info"]["get"].get("security"), None);
}

#[tokio::test]
async fn every_answer_has_an_id_and_the_clients_own_is_kept() {
    let body = json!({ "inputs": "hot" });
    let own = data_factory().post_with("/embed", &body, &[("x-request-id", "mine-1")]).await;
    assert_eq!(own.headers["x-request-id"], "mine-1");
    let one = data_factory().post("/embed", &body).await;
    let two = data_factory().post("/no/such/route", &body).await;
    assert_ne!(one.headers["x-request-id"], two.headers["x-request-id"]);
}

/// Asks for everything that a server says it has, with something for every variable of a path, and follows every reference of
/// the description.
async fn check(server: &Server, some: &[&str]) {
    let description = server.get("/openapi.json").await.json();
    assert_eq!(description["openapi"], "3.1.0");
    let paths = description["paths"].as_object().unwrap();
    for path in some {
        assert!(paths.contains_key(*path), "{path} is not described");
    }
    for (path, operations) in paths {
        assert!(!path.contains("{*"), "{path} is not written as OpenAPI has it");
        let variables: Vec<&str> =
            path.split('{').skip(1).map(|rest| rest.split_once('}').unwrap().0).collect();
        let filled =
            variables.iter().fold(path.clone(), |path, name| path.replace(&format!("{{{name}}}"), "none"));
        for (method, operation) in operations.as_object().unwrap() {
            let declared = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
            let names: Vec<&str> = declared.iter().map(|it| it["name"].as_str().unwrap()).collect();
            assert_eq!(names, variables, "{method} {path}");
            for parameter in declared {
                assert_eq!(
                    (&parameter["in"], &parameter["required"]),
                    (&json!("path"), &json!(true)),
                    "{path}"
                );
                assert_eq!(parameter["schema"], json!({ "type": "string" }), "{path}");
            }
            let path = &filled;
            let answer = match method.as_str() {
                "get" => server.get(path).await,
                "post" => server.post(path, &json!([])).await,
                "delete" => server.delete(path).await,
                other => panic!("{other} is not tried"),
            };
            let missing = answer.status == 405 || answer.text.contains("there is no route");
            assert!(!missing, "{method} {path} is described, but: {}", answer.text);
            assert!(operation["summary"].as_str().unwrap().len() > 5);
        }
    }
    let text = description.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(description.pointer(reference).is_some(), "{reference} leads nowhere");
    }
}

#[tokio::test]
async fn the_description_is_that_of_the_routes() {
    check(
        data_factory(),
        &["/embed", "/v1/encode", "/v1/process", "/v2/embed", "/v1/models/{model}", "/info"],
    )
    .await;
    check(jobs::server(), &["/v1/jobs", "/v1/jobs/{id}/events", "/v1/corpora/{corpus}/chunks", "/v1/search"])
        .await;
    check(reranker(), &["/rerank", "/predict", "/", "/v2/rerank", "/metrics"]).await;
    check(&start(&["--role", "doc-analyzer"]), &["/v1/analyze", "/docs", "/"]).await;
    let schemas = jobs::server().get("/openapi.json").await.json()["components"]["schemas"].clone();
    assert_eq!(
        schemas["JobRequest"]["properties"]["source"]["anyOf"][0]["$ref"],
        "#/components/schemas/SourceSpec"
    );
    assert!(schemas["JobRecord"]["properties"].get("progress").is_some());
    let inputs = &data_factory().get("/openapi.json").await.json()["components"]["schemas"]["EmbedRequest"];
    assert_eq!(inputs["required"], json!(["inputs"]));
    assert!(inputs["properties"]["prompt_name"]["description"].as_str().unwrap().contains("prompt"));
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let page = data_factory().get("/docs").await;
    assert!(page.headers["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(page.text.contains("openapi.json") && !page.text.contains("://"));
}
