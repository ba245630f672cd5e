//! `GET /openapi.json`, the description of this process's routes, and `GET /docs`, a page that shows it. Both are made from
//! the table of operations that the router is made from, and need nothing from anywhere else.

use axum::routing::MethodRouter;
use schemars::generate::{Contract, SchemaSettings};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::App;
use super::error::Dialect;

/// The page that shows the description.
pub(super) const PAGE: &str = include_str!("docs.html");
/// What bodies are where nothing else is said.
pub(super) const JSON: &str = "application/json";
/// Headers of answers: name, type, what they say.
const HEADERS: [(&str, &str, &str); 12] = [
    ("location", "string", "The path of the job."),
    ("retry-after", "integer", "Seconds after which to come back."),
    ("www-authenticate", "string", "`Bearer`"),
    ("x-request-id", "string", "The request's name: the client's own, or one that was made for it."),
    ("x-compute-type", "string", "What computed: `cpu+optimized` or `gpu+optimized`."),
    ("x-compute-time", "integer", "The same as `x-total-time`."),
    ("x-compute-characters", "integer", "Characters of all inputs."),
    ("x-compute-tokens", "integer", "Tokens of all inputs."),
    ("x-total-time", "integer", "Milliseconds for everything."),
    ("x-tokenization-time", "integer", "Milliseconds that an input took to become tokens, on average."),
    ("x-queue-time", "integer", "Milliseconds that an input waited, on average."),
    ("x-inference-time", "integer", "Milliseconds that an input was computed, on average."),
];

/// One route: how it is served and what it takes and gives.
#[derive(Clone, Copy)]
pub(super) struct Operation {
    pub(super) method: &'static str,
    /// As axum writes it: `/v1/jobs/{id}`, `/v1/models/{*model}`.
    pub(super) path: &'static str,
    pub(super) summary: &'static str,
    /// What its query is read into.
    pub(super) query: Option<SchemaOf>,
    /// What the body of a request may be.
    pub(super) request: &'static [Content],
    /// The statuses of success, and what each means.
    pub(super) successes: &'static [(u16, &'static str)],
    /// The body of every success but 204; none where it is empty.
    pub(super) response: Option<Content>,
    /// Names of the headers that every success has.
    pub(super) headers: &'static [&'static str],
    /// The statuses of refusals, which come in the dialect of the path.
    pub(super) refusals: &'static [u16],
    /// Who serves it; `None` for routes that another module brings along.
    pub(super) handler: Option<fn() -> MethodRouter<App>>,
}

/// A content type, and what comes in it: of lines and events, one.
pub(super) type Content = (&'static str, SchemaOf);
/// Describes a type.
pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// The schema of `T`, by reference.
pub(super) fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// The schema of `T` itself.
pub(super) fn fields<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

/// A form with a file for each document, under any name.
pub(super) fn files(_: &mut SchemaGenerator) -> Schema {
    let file = json!({ "type": "string", "contentMediaType": "application/octet-stream" });
    json_schema!({
        "type": "object",
        "properties": {
            "file": { "type": "array", "items": file, "description": "The documents; any other name does as well." },
        },
        "additionalProperties": file,
    })
}

/// A description such as this one.
pub(super) fn description(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["openapi", "info", "paths", "components"],
        "properties": {
            "openapi": { "const": "3.1.0" },
            "info": { "type": "object" },
            "paths": { "type": "object" },
            "components": { "type": "object" },
        },
    })
}

/// The description of `operations`, which want an API key where they are `guarded`, and of those that are `open` to everybody.
pub(super) fn document(operations: &[&Operation], open: &[&Operation], guarded: bool) -> Value {
    let mut schemas = Schemas::default();
    let mut paths: Map<String, Value> = Map::new();
    let all = operations.iter().map(|it| (*it, guarded)).chain(open.iter().map(|it| (*it, false)));
    for (operation, guarded) in all {
        // OpenAPI has no kind of variable for those that may hold slashes.
        let path = paths.entry(operation.path.replace("{*", "{")).or_insert_with(|| json!({}));
        path[operation.method] = schemas.describe(operation, guarded);
    }
    let headers = HEADERS.into_iter();
    let headers =
        headers.map(|(name, kind, says)| (name, json!({ "description": says, "schema": { "type": kind } })));
    let headers: Value = headers.collect();
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "principium embedder",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "description": "A request may name itself in `x-request-id`, and its trace in `traceparent`.",
        },
        "paths": paths,
        "components": { "schemas": schemas.all(), "headers": headers },
    });
    if guarded {
        let key = json!({ "type": "http", "scheme": "bearer", "description": "An API key of this server." });
        document["components"]["securitySchemes"] = json!({ "key": key });
    }
    document
}

/// The types that operations take and give.
struct Schemas {
    /// As they are read.
    asked: SchemaGenerator,
    /// As they are written: a field that is left out at times is not required.
    answered: SchemaGenerator,
    refusals: Map<String, Value>,
}

impl Default for Schemas {
    fn default() -> Self {
        let generator = |contract| {
            let mut settings = SchemaSettings::draft2020_12();
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
            settings.contract = contract;
            settings.into_generator()
        };
        Self {
            asked: generator(Contract::Deserialize),
            answered: generator(Contract::Serialize),
            refusals: Map::new(),
        }
    }
}

impl Schemas {
    fn describe(&mut self, operation: &Operation, guarded: bool) -> Value {
        let mut described = json!({ "summary": operation.summary });
        let parameters = self.parameters(operation);
        if !parameters.is_empty() {
            described["parameters"] = json!(parameters);
        }
        if !operation.request.is_empty() {
            let content = content(operation.request, &mut self.asked);
            described["requestBody"] = json!({ "required": true, "content": content });
        }
        if guarded {
            described["security"] = json!([{ "key": [] }]);
        }
        described["responses"] = self.responses(operation, guarded);
        described
    }

    fn parameters(&mut self, operation: &Operation) -> Vec<Value> {
        let variable = |name| {
            json!({
                "name": name, "in": "path", "required": true, "description": variable(name),
                "schema": { "type": "string" },
            })
        };
        let query = operation.query.map(|query| query(&mut self.asked).to_value()).unwrap_or_default();
        let required =
            |name: &str| query["required"].as_array().is_some_and(|it| it.iter().any(|it| it == name));
        let field = |(name, schema): (&String, &Value)| {
            let mut schema = schema.clone();
            // There is no null in a query: what may be one is left out.
            if let Some(kind) = schema.pointer("/type/0").cloned() {
                schema["type"] = kind;
            }
            let description = schema.as_object_mut().and_then(|it| it.remove("description"));
            json!({
                "name": name, "in": "query", "required": required(name.as_str()), "description": description,
                "schema": schema,
            })
        };
        let fields = query["properties"].as_object().into_iter().flatten().map(field);
        variables(operation.path).map(variable).chain(fields).collect()
    }

    fn responses(&mut self, operation: &Operation, guarded: bool) -> Value {
        let mut responses: Map<String, Value> = Map::new();
        if variables(operation.path).next().is_some() {
            let text = json!({ "text/plain": { "schema": { "type": "string" } } });
            responses.insert("400".to_owned(), response("The path is not UTF-8.", &[], Some(text)));
        }
        for (status, means) in operation.successes {
            let body = operation.response.filter(|_| *status != 204);
            let body = body.map(|body| content(&[body], &mut self.answered));
            responses.insert(status.to_string(), response(means, operation.headers, body));
        }
        let dialect = Dialect::of(operation.path);
        let name = format!("{dialect:?}Error");
        let refused = json!({ JSON: { "schema": { "$ref": format!("#/components/schemas/{name}") } } });
        for status in operation.refusals.iter().copied().chain(guarded.then_some(401)) {
            let (means, headers) = refusal(status);
            responses.insert(status.to_string(), response(means, headers, Some(refused.clone())));
            self.refusals.entry(name.as_str()).or_insert_with(|| refusal_in(dialect));
        }
        responses.into()
    }

    /// Every type by its name. What is both asked and answered is the same, as a test holds it to be.
    fn all(mut self) -> Map<String, Value> {
        let mut all = self.asked.take_definitions(true);
        all.extend(self.answered.take_definitions(true));
        all.extend(self.refusals);
        all
    }
}

fn content(bodies: &[Content], generator: &mut SchemaGenerator) -> Value {
    bodies.iter().map(|(kind, schema)| (*kind, json!({ "schema": schema(generator) }))).collect()
}

fn response(means: &str, headers: &[&str], content: Option<Value>) -> Value {
    let names = headers.iter().chain(&["x-request-id"]);
    let headers: Value =
        names.map(|name| (*name, json!({ "$ref": format!("#/components/headers/{name}") }))).collect();
    let mut response = json!({ "description": means, "headers": headers });
    if let Some(content) = content {
        response["content"] = content;
    }
    response
}

/// The names of the variables in a path.
fn variables(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|part| {
        Some(part.strip_prefix('{')?.strip_suffix('}')?).map(|name| name.trim_start_matches('*'))
    })
}

fn variable(name: &str) -> &'static str {
    match name {
        "id" => "The id of a job.",
        "corpus" => "The name of a corpus.",
        _ => "The name of the model.",
    }
}

/// What a refusal means, and its headers.
fn refusal(status: u16) -> (&'static str, &'static [&'static str]) {
    match status {
        400 => ("There is no input, or the body broke off.", &[]),
        401 => ("The API key is missing or unknown.", &["www-authenticate"]),
        404 => ("What the request names is not there.", &[]),
        409 => ("There is another job with this id.", &[]),
        413 => ("The body is too large, or the answer would be, or an input is too long.", &[]),
        422 => ("A field or parameter is wrong.", &[]),
        424 => ("The model, or a server that is asked, failed or can't do this.", &[]),
        429 => ("Too much waits already: come back, as Retry-After says.", &["retry-after"]),
        503 => ("The process can't answer now: come back, as Retry-After says.", &["retry-after"]),
        _ => ("The folder of the jobs fails or is full.", &[]),
    }
}

/// The body of a refusal.
fn refusal_in(dialect: Dialect) -> Value {
    let text = json!({ "type": "string" });
    let object = |fields: Value| {
        let required: Vec<&String> = fields.as_object().into_iter().flat_map(Map::keys).collect();
        json!({ "type": "object", "required": required, "properties": fields })
    };
    match dialect {
        Dialect::Tei => object(json!({ "error": text, "error_type": text })),
        Dialect::OpenAi => {
            let code = json!({ "type": "integer" });
            object(json!({ "error": object(json!({ "message": text, "type": text, "code": code })) }))
        }
        Dialect::Jina => object(json!({ "detail": text })),
        Dialect::Cohere => object(json!({ "message": text })),
    }
}

#[cfg(test)]
mod tests {
    use super::super::operations;
    use super::*;

    #[test]
    fn a_type_is_read_as_it_is_written() {
        let mut schemas = Schemas::default();
        for operation in operations::all() {
            schemas.describe(operation, true);
        }
        let answered = schemas.answered.take_definitions(true);
        for (name, asked) in schemas.asked.take_definitions(true) {
            let otherwise = answered.get(&name).filter(|answered| **answered != asked);
            assert_eq!(otherwise, None, "{name} is asked as {asked}: two forms want two names");
        }
    }

    #[test]
    fn every_header_is_described() {
        for operation in operations::all() {
            let refusals = operation.refusals.iter().flat_map(|status| refusal(*status).1);
            for name in operation.headers.iter().chain(refusals) {
                assert!(HEADERS.iter().any(|(known, ..)| known == name), "{name}");
            }
        }
    }
}
