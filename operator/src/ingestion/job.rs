//! The jobs of a DataFactory as this operator asks for them: what it sends, what it reads.

use principium_api::ingestion::{FileSink, IngestionSink, IngestionSource, IngestionSpec, Processing};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// What a DataFactory says of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Job(Box<Job>),
    /// It knows no such job.
    Unknown,
    /// It does not answer, for this reason.
    None(String),
}

/// A job, as far as an Ingestion shows it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Job {
    pub state: String,
    pub started_ms: Option<i64>,
    pub finished_ms: Option<i64>,
    pub error: Option<String>,
    #[serde(default)]
    pub failures: Vec<Failure>,
    pub progress: JobProgress,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Failure {
    pub document_id: String,
    pub error: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct JobProgress {
    pub documents_total: u64,
    pub documents_done: u64,
    pub documents_failed: u64,
    pub documents_unchanged: u64,
    pub documents_removed: u64,
    pub chunks: u64,
    pub tokens: u64,
    pub running_ms: u64,
}

/// The body of `POST /v1/jobs`.
pub fn build_request(id: &str, name: &str, spec: &IngestionSpec) -> Value {
    let mut body = json!({
        "id": id,
        "corpus": spec.corpus.as_deref().unwrap_or(name),
        "source": source(&spec.source),
        "prune": spec.prune.unwrap_or(true),
    });
    if let Some(sink) = &spec.sink {
        body["sink"] = self::sink(sink);
    }
    if let Some(Processing { enrich, chunk_max_tokens, chunk_overlap }) = &spec.processing {
        let mut options = Map::new();
        options.extend(enrich.map(|it| ("enrich".to_owned(), json!(it))));
        options.extend(chunk_max_tokens.map(|it| ("chunk_max_tokens".to_owned(), json!(it))));
        options.extend(chunk_overlap.map(|it| ("chunk_overlap".to_owned(), json!(it))));
        body["options"] = options.into();
    }
    body
}

fn source(source: &IngestionSource) -> Value {
    let globs = |include: &Option<Vec<String>>, exclude: &Option<Vec<String>>| {
        (include.clone().unwrap_or_default(), exclude.clone().unwrap_or_default())
    };
    if let Some(folder) = &source.folder {
        let (include, exclude) = globs(&folder.include, &folder.exclude);
        return json!({ "type": "folder", "path": folder.path, "include": include, "exclude": exclude });
    }
    if let Some(s3) = &source.s3 {
        let (include, exclude) = globs(&s3.include, &s3.exclude);
        return json!({ "type": "s3", "url": s3.url, "include": include, "exclude": exclude });
    }
    // The schema's rule lets one of the three pass; without any, the DataFactory says what is missing.
    json!({ "type": "http", "urls": source.http.as_ref().map(|http| http.urls.clone()).unwrap_or_default() })
}

fn sink(sink: &IngestionSink) -> Value {
    let IngestionSink { jsonl, parquet, qdrant, postgres } = sink;
    let file = |kind: &str, file: &FileSink| json!({ "type": kind, "path": file.path });
    let found = [
        jsonl.as_ref().map(|it| file("jsonl", it)),
        parquet.as_ref().map(|it| file("parquet", it)),
        qdrant.as_ref().map(|it| json!({ "type": "qdrant", "collection": it.collection })),
        postgres.as_ref().map(|it| json!({ "type": "postgres", "table": it.table })),
    ];
    found.into_iter().flatten().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_becomes_a_job_as_the_data_factory_reads_it() {
        for (spec, expected) in [
            (
                json!({ "source": { "folder": { "path": "docs", "include": ["*.md"] } } }),
                json!({ "id": "i", "corpus": "name", "prune": true,
                    "source": { "type": "folder", "path": "docs", "include": ["*.md"], "exclude": [] } }),
            ),
            (
                json!({ "corpus": "c", "prune": false, "source": { "http": { "urls": ["https://a/b"] } },
                    "sink": { "postgres": { "table": "t" } },
                    "processing": { "enrich": false, "chunkMaxTokens": 64 } }),
                json!({ "id": "i", "corpus": "c", "prune": false, "source": { "type": "http", "urls": ["https://a/b"] },
                    "sink": { "type": "postgres", "table": "t" },
                    "options": { "enrich": false, "chunk_max_tokens": 64 } }),
            ),
            (
                json!({ "source": { "s3": { "url": "s3://b/p" } }, "sink": { "parquet": { "path": "s3://b/x.parquet" } } }),
                json!({ "id": "i", "corpus": "name", "prune": true,
                    "source": { "type": "s3", "url": "s3://b/p", "include": [], "exclude": [] },
                    "sink": { "type": "parquet", "path": "s3://b/x.parquet" } }),
            ),
        ] {
            let mut spec = spec;
            spec["dataFactoryRef"] = json!({ "name": "df" });
            let spec: IngestionSpec = serde_json::from_value(spec).unwrap();
            assert_eq!(build_request("i", "name", &spec), expected);
        }
    }
}
