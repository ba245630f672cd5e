//! `GET /openapi.json`, the description of this process's routes, and `GET /docs`, a page that shows it. Both are made from
//! the table of operations that the router is made from, and need nothing from anywhere else.

use axum::routing::MethodRouter;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::App;
use super::error::Dialect;

/// The page that shows the description.
pub(super) const PAGE: &str = include_str!("docs.html");

/// One route: how it is served and what it takes and gives.
#[derive(Clone, Copy)]
pub(super) struct Operation {
    pub(super) method: &'static str,
    /// As axum writes it: `/v1/jobs/{id}`, `/v1/models/{*model}`.
    pub(super) path: &'static str,
    pub(super) summary: &'static str,
    /// The body of a request.
    pub(super) request: Option<SchemaOf>,
    /// The body of an answer; text where there is none.
    pub(super) response: Option<SchemaOf>,
    /// Who serves it; `None` for routes that another module brings along.
    pub(super) handler: Option<fn() -> MethodRouter<App>>,
}

/// Describes a type.
pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// The schema of `T`, by reference.
pub(super) fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Any object, where a type has no schema.
pub(super) fn object(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({ "type": "object" })
}

/// The description of `operations`. `guarded` says whether those that are not common want an API key.
pub(super) fn document(operations: &[&Operation], common: &[Operation], guarded: bool) -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let mut paths: Map<String, Value> = Map::new();
    let all = operations.iter().map(|it| (*it, guarded)).chain(common.iter().map(|it| (it, false)));
    for (operation, guarded) in all {
        // OpenAPI has no kind of variable for those that may hold slashes.
        let path = paths.entry(operation.path.replace("{*", "{")).or_insert_with(|| json!({}));
        path[operation.method] = describe(operation, guarded, &mut generator);
    }
    let schemas = generator.take_definitions(true);
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "principium embedder",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": schemas },
    });
    if guarded {
        document["components"]["securitySchemes"] = json!({ "key": { "type": "http", "scheme": "bearer" } });
    }
    document
}

fn describe(operation: &Operation, guarded: bool, generator: &mut SchemaGenerator) -> Value {
    let content = |schema: Schema| json!({ "application/json": { "schema": schema } });
    let answer = match operation.response {
        Some(schema) => json!({ "description": "OK", "content": content(schema(generator)) }),
        None => json!({ "description": "OK" }),
    };
    let mut responses = json!({ "200": answer });
    let mut described = json!({ "summary": operation.summary });
    let parameters: Vec<Value> = variables(operation.path).map(parameter).collect();
    if !parameters.is_empty() {
        described["parameters"] = json!(parameters);
        responses["404"] = json!({ "description": "There is no such thing." });
    }
    if let Some(schema) = operation.request {
        described["requestBody"] = json!({ "required": true, "content": content(schema(generator)) });
        let error = refusal(Dialect::of(operation.path));
        for (status, when) in [
            ("400", "There is no input."),
            ("413", "The body is too large, or the answer would be."),
            ("422", "A field is wrong or an input too long."),
            ("424", "The model failed, or can't do this."),
            ("429", "The queue is full: come back, as Retry-After says."),
        ] {
            responses[status] =
                json!({ "description": when, "content": { "application/json": { "schema": error } } });
        }
    }
    if guarded {
        responses["401"] = json!({ "description": "The API key is missing or unknown." });
        described["security"] = json!([{ "key": [] }]);
    }
    described["responses"] = responses;
    described
}

/// The names of the variables in a path.
fn variables(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|part| {
        Some(part.strip_prefix('{')?.strip_suffix('}')?).map(|name| name.trim_start_matches('*'))
    })
}

fn parameter(name: &str) -> Value {
    json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
}

/// The body of a refusal.
fn refusal(dialect: Dialect) -> Value {
    let text = json!({ "type": "string" });
    let properties = match dialect {
        Dialect::Tei => json!({ "error": text, "error_type": text }),
        Dialect::OpenAi => json!({ "error": {
            "type": "object",
            "properties": { "message": text, "type": text, "code": { "type": "integer" } },
        } }),
        Dialect::Jina => json!({ "detail": text }),
        Dialect::Cohere => json!({ "message": text }),
    };
    json!({ "type": "object", "properties": properties })
}
