//! `/openapi.json` and its page: what is described is what is served.

use super::jobs;
use super::models::folder;
use super::server::{Answer, Server, cached, data_factory, reranker, start};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

/// One of each role, and one that keeps jobs.
fn servers() -> [&'static Server; 4] {
    static ANALYZER: LazyLock<Server> = LazyLock::new(|| start(&["--role", "doc-analyzer"]));
    [data_factory(), jobs::server(), reranker(), &ANALYZER]
}

/// A method and a path.
type Operation = (String, String);

/// Asks for everything that a server says it has, with something for every variable of a path, and holds the answers to what
/// they are said to be.
async fn check(server: &Server) -> BTreeSet<Operation> {
    let description = server.get("/openapi.json").await.json();
    assert_eq!(description["openapi"], "3.1.0");
    let mut described = BTreeSet::new();
    for (path, operations) in description["paths"].as_object().unwrap() {
        assert!(!path.contains("{*"), "{path} is not written as OpenAPI has it");
        let variables: BTreeSet<&str> =
            path.split('{').skip(1).map(|rest| rest.split_once('}').unwrap().0).collect();
        let filled = |value: &str| {
            variables.iter().fold(path.clone(), |path, name| path.replace(&format!("{{{name}}}"), value))
        };
        for (method, operation) in operations.as_object().unwrap() {
            described.insert((method.clone(), path.clone()));
            let what = format!("{method} {path}");
            assert!(operation["summary"].as_str().unwrap().len() > 5, "{what}");
            let answer = ask(server, method, &filled("none")).await;
            let missing = answer.status == 405 || answer.text.contains("there is no route");
            assert!(!missing, "{what} is described, but: {}", answer.text);
            answered(&what, operation, &answer);
            if !variables.is_empty() {
                answered(&what, operation, &ask(server, method, &filled("%FF")).await);
            }
            let wrong = ask(server, method, &format!("{}?nonsense=1", filled("none"))).await;
            answered(&what, operation, &wrong);
            assert_eq!(parameters(&what, operation, "path"), variables, "{what}");
            assert_eq!(parameters(&what, operation, "query"), taken(&wrong.text), "{what}");
        }
    }
    let text = description.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(description.pointer(reference).is_some(), "{reference} leads nowhere");
    }
    described
}

async fn ask(server: &Server, method: &str, path: &str) -> Answer {
    match method {
        "get" => server.get(path).await,
        "post" => server.post(path, &json!([])).await,
        "delete" => server.delete(path).await,
        other => panic!("{other} is not tried"),
    }
}

/// Holds an answer's status, headers and content type to the description.
#[track_caller]
fn answered(what: &str, operation: &Value, answer: &Answer) {
    let Answer { status, headers, text } = answer;
    let response = &operation["responses"][status.to_string()];
    assert!(response.is_object(), "{what} answers {status}, which is not described: {text}");
    let kind = headers.get("content-type").map(|kind| kind.to_str().unwrap().split(';').next().unwrap());
    let kinds = response["content"].as_object().into_iter().flatten().map(|(kind, _)| kind.as_str());
    assert_eq!(kinds.collect::<Vec<_>>(), kind.into_iter().collect::<Vec<_>>(), "{what}: {status}");
    for name in response["headers"].as_object().into_iter().flatten().map(|(name, _)| name) {
        assert!(headers.contains_key(name), "{what}: {status} comes without {name}");
    }
}

/// The names of an operation's parameters in the path or in the query, each of which is described.
fn parameters<'a>(what: &str, operation: &'a Value, place: &str) -> BTreeSet<&'a str> {
    let all = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
    let names = all.iter().filter(|it| it["in"] == place).map(|it| {
        let described = it["description"].as_str().is_some_and(|text| text.len() > 5);
        assert!(described && it["schema"]["type"].is_string(), "{what}: {it}");
        assert_eq!(it["required"], json!(place == "path"), "{what}: {it}");
        it["name"].as_str().unwrap()
    });
    names.collect()
}

/// The parameters that a route takes, as it says where it is asked with one that it does not take.
fn taken(refusal: &str) -> BTreeSet<&str> {
    let Some((_, known)) = refusal.split_once("unknown field `nonsense`, expected ") else {
        return BTreeSet::new();
    };
    known.split('`').skip(1).step_by(2).collect()
}

/// What the sources make routes of, each with the methods that stand beside it.
fn routes(folder: &Path, found: &mut BTreeSet<Operation>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            routes(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") && !path.ends_with("tests.rs") {
            let source = std::fs::read_to_string(&path).unwrap();
            let served = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for route in served.split(".route(\"").skip(1) {
                let (path, handlers) = route.split_once('"').unwrap();
                let handlers = handlers.lines().next().unwrap();
                for method in ["get", "post", "put", "patch", "delete"] {
                    let stands = |before: &str| handlers.contains(&format!("{before}{method}("));
                    if stands(" ") || stands(".") {
                        found.insert((method.to_owned(), path.to_owned()));
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn what_is_described_is_what_is_served() {
    let mut described = BTreeSet::new();
    for server in servers() {
        described.extend(check(server).await);
    }
    let model = folder("bert").display().to_string();
    check(&start(&["--model", &model, "--api-keys", "first"])).await;
    let mut served = BTreeSet::new();
    routes(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut served);
    assert!(served.len() > 20, "{served:?}");
    let missing: Vec<_> = served.difference(&described).collect();
    assert!(missing.is_empty(), "{missing:?} are served and not described");
}

/// The schemas in the bodies that `of` picks from an operation, each with where it stands.
fn schemas<'a>(description: &'a Value, of: impl Fn(&'a Value) -> Vec<&'a Value>) -> Vec<(String, &'a Value)> {
    let mut found = Vec::new();
    for (path, operations) in description["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            for body in of(operation) {
                let contents = body["content"].as_object().into_iter().flatten();
                let named =
                    contents.map(|(kind, content)| (format!("{method} {path} {kind}"), &content["schema"]));
                found.extend(named);
            }
        }
    }
    found
}

fn followed<'a>(description: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => description.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

/// Every property inside a schema, those behind references included.
fn properties<'a>(
    description: &'a Value,
    schema: &'a Value,
    seen: &mut BTreeSet<&'a str>,
    found: &mut Vec<(&'a str, &'a Value)>,
) {
    if schema["$ref"].as_str().is_some_and(|reference| seen.insert(reference)) {
        properties(description, followed(description, schema), seen, found);
    }
    for (key, inner) in schema.as_object().into_iter().flatten() {
        let inner: Vec<&Value> = match inner {
            Value::Object(fields) if key == "properties" => {
                found.extend(fields.iter().map(|(name, field)| (name.as_str(), field)));
                fields.values().collect()
            }
            Value::Array(parts) => parts.iter().collect(),
            inner => vec![inner],
        };
        for inner in inner {
            properties(description, inner, seen, found);
        }
    }
}

#[tokio::test]
async fn bodies_are_described_to_their_fields() {
    for server in servers() {
        let description = server.get("/openapi.json").await.json();
        let requests = schemas(&description, |operation| vec![&operation["requestBody"]]);
        let responses = schemas(&description, |operation| {
            operation["responses"].as_object().into_iter().flatten().map(|(_, response)| response).collect()
        });
        for (what, schema) in requests.iter().chain(&responses) {
            let schema = followed(&description, schema);
            let says = ["properties", "additionalProperties", "items", "oneOf", "anyOf"];
            let described = schema["type"] == "string" || says.iter().any(|it| schema.get(it).is_some());
            assert!(described, "{what} is but {schema}");
        }
        for (what, schema) in requests {
            let mut found = Vec::new();
            properties(&description, schema, &mut BTreeSet::new(), &mut found);
            for (name, field) in found {
                let described = ["description", "$ref", "const"].iter().any(|it| field.get(it).is_some());
                assert!(described, "{what}: nothing is said of {name}, which is {field}");
            }
        }
    }
}

#[test]
fn what_is_answered_is_what_its_schema_says() {
    let folder = tempfile::tempdir().unwrap();
    let [.., reranker, analyzer] = servers();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi.py");
    let output = Command::new(cached("venvs/clients/bin/python"))
        .args([script, &jobs::with_folder(folder.path(), &[]).url, &reranker.url, &analyzer.url])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let page = data_factory().get("/docs").await;
    assert!(page.headers["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(page.text.contains("openapi.json") && !page.text.contains("://"));
}
