//! The jobs of a DataFactory as this operator asks for them: what it sends, what it reads, what it asks.

use principium_api::data_factory::Chunking;
use principium_api::ingestion::{
    CorpusSize, FileSink, IngestionSink, IngestionSource, IngestionSpec, Processing, RunState,
};
use principium_api::pod::SecretKeyRef;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// What is to become of a job, and whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobQuestion {
    pub job: String,
    pub namespace: String,
    pub pod_uid: String,
    /// The key that the DataFactory wants to be shown.
    pub key: Option<SecretKeyRef>,
    pub wish: JobWish,
}

/// What is to become of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobWish {
    /// It is done; where it is not known, this request makes it.
    Done(Value),
    Ended,
}

/// What was last heard of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobAnswer {
    pub job: String,
    /// The pod that was asked.
    pub pod_uid: String,
    pub said: JobSaid,
}

#[derive(Clone, Debug, PartialEq)]
pub enum JobSaid {
    Is(Box<Job>),
    /// It was to be ended, and is not known.
    Gone,
    /// It is not taken as it is, for this reason.
    Refused(String),
    /// Nothing that helps, for this reason.
    Silent(String),
}

impl JobAnswer {
    /// What the corpus has, where it was told.
    pub fn corpus(&self) -> Option<CorpusSize> {
        match &self.said {
            JobSaid::Is(job) => job.corpus,
            _ => None,
        }
    }

    /// Whether the job may be under way, as far as is known.
    pub fn may_run(&self) -> bool {
        match &self.said {
            JobSaid::Is(job) => !job.state.run().ended(),
            JobSaid::Silent(_) => true,
            JobSaid::Gone | JobSaid::Refused(_) => false,
        }
    }
}

/// A job, as far as an Ingestion shows it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Job {
    pub state: JobState,
    #[serde(default)]
    pub started_ms: Option<i64>,
    #[serde(default)]
    pub finished_ms: Option<i64>,
    #[serde(default)]
    pub error: Option<String>,
    #[serde(default)]
    pub failures: Vec<Failure>,
    #[serde(default)]
    pub progress: JobProgress,
    /// What its corpus has, where it was asked for.
    #[serde(skip)]
    pub corpus: Option<CorpusSize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl JobState {
    pub fn run(self) -> RunState {
        match self {
            Self::Queued => RunState::Queued,
            Self::Running => RunState::Running,
            Self::Succeeded => RunState::Succeeded,
            Self::Failed => RunState::Failed,
            Self::Cancelled => RunState::Cancelled,
        }
    }
}

/// A document that could not be processed.
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

/// Digest of what a run does, as the spec says it: of its words and not of the defaults behind them, so that an operator whose
/// defaults changed begins nothing.
pub fn spec_hash(spec: &IngestionSpec) -> String {
    let IngestionSpec {
        data_factory_ref,
        corpus,
        source,
        sink,
        processing,
        prune,
        schedule: _,
        suspend: _,
        history_limit: _,
    } = spec;
    // Only maps with keys that are no strings fail, and no spec has one.
    let work = serde_json::to_string(&(data_factory_ref, corpus, source, sink, processing, prune));
    let work = work.unwrap_or_default();
    // FNV-1a: a digest that is the same in every version, of what nobody gains by forging.
    let hash = work.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// The body of `POST /v1/jobs` for an Ingestion of this namespace and name. These name its source, so that Ingestions which fill
/// one corpus leave each other's documents alone. The UID does not: an Ingestion that is made anew goes on with its documents.
pub fn build_request(id: &str, namespace: &str, name: &str, spec: &IngestionSpec) -> Value {
    let mut body = json!({
        "id": id,
        "corpus": spec.corpus.as_deref().unwrap_or(name),
        "source": source(&spec.source),
        "source_id": format!("{namespace}/{name}"),
        "prune": spec.prune.unwrap_or(true),
    });
    if let Some(sink) = &spec.sink {
        body["sink"] = self::sink(sink);
    }
    if let Some(processing) = &spec.processing {
        body["options"] = options(processing);
    }
    body
}

fn options(processing: &Processing) -> Value {
    let Processing { enrich, chunking } = processing;
    let Chunking { strategy, max_tokens, overlap } = chunking.clone().unwrap_or_default();
    let all = [
        ("enrich", enrich.map(|enrich| json!(enrich))),
        ("chunker", strategy.map(|strategy| json!(strategy.name()))),
        ("chunk_max_tokens", max_tokens.map(|tokens| json!(tokens))),
        ("chunk_overlap", overlap.map(|tokens| json!(tokens))),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<Map<_, _>>().into()
}

fn source(source: &IngestionSource) -> Value {
    let IngestionSource { folder, s3, http } = source;
    let chosen = |include: &Option<Vec<String>>, exclude: &Option<Vec<String>>| {
        (include.clone().unwrap_or_default(), exclude.clone().unwrap_or_default())
    };
    if let Some(folder) = folder {
        let (include, exclude) = chosen(&folder.include, &folder.exclude);
        return json!({"type": "folder", "path": folder.path, "include": include, "exclude": exclude});
    }
    if let Some(s3) = s3 {
        let (include, exclude) = chosen(&s3.include, &s3.exclude);
        return json!({"type": "s3", "url": s3.url, "include": include, "exclude": exclude});
    }
    // The schema's rule lets one of the three pass; without any, the DataFactory says what is missing.
    json!({"type": "http", "urls": http.as_ref().map(|http| http.urls.clone()).unwrap_or_default()})
}

fn sink(sink: &IngestionSink) -> Value {
    let IngestionSink { jsonl, parquet, qdrant, postgres } = sink;
    let file = |kind: &str, file: &FileSink| json!({"type": kind, "path": file.path});
    let found = [
        jsonl.as_ref().map(|sink| file("jsonl", sink)),
        parquet.as_ref().map(|sink| file("parquet", sink)),
        qdrant.as_ref().map(|sink| json!({"type": "qdrant", "collection": sink.collection})),
        postgres.as_ref().map(|sink| json!({"type": "postgres", "table": sink.table})),
    ];
    found.into_iter().flatten().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(more: Value) -> IngestionSpec {
        let mut spec = more;
        spec["dataFactoryRef"] = json!({"name": "df"});
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn a_spec_becomes_a_job_as_the_data_factory_reads_it() {
        for (more, expected) in [
            (
                json!({"source": {"folder": {"path": "docs", "include": ["*.md"]}}}),
                json!({"id": "i", "corpus": "name", "prune": true, "source_id": "demo/name",
                    "source": {"type": "folder", "path": "docs", "include": ["*.md"], "exclude": []}}),
            ),
            (
                json!({"corpus": "c", "prune": false, "source": {"http": {"urls": ["https://a/b"]}},
                    "sink": {"postgres": {"table": "t"}},
                    "processing": {"enrich": false, "chunking": {"strategy": "fixed", "maxTokens": 64, "overlap": 8}}}),
                json!({"id": "i", "corpus": "c", "prune": false, "source_id": "demo/name",
                    "source": {"type": "http", "urls": ["https://a/b"]},
                    "sink": {"type": "postgres", "table": "t"},
                    "options": {"enrich": false, "chunker": "fixed", "chunk_max_tokens": 64, "chunk_overlap": 8}}),
            ),
            (
                json!({"source": {"s3": {"url": "s3://b/p"}}, "sink": {"parquet": {"path": "s3://b/x.parquet"}}}),
                json!({"id": "i", "corpus": "name", "prune": true, "source_id": "demo/name",
                    "source": {"type": "s3", "url": "s3://b/p", "include": [], "exclude": []},
                    "sink": {"type": "parquet", "path": "s3://b/x.parquet"}}),
            ),
        ] {
            assert_eq!(build_request("i", "demo", "name", &spec(more)), expected);
        }
    }

    #[test]
    fn the_digest_of_a_spec_never_changes() {
        // Another one here would begin every run of every cluster anew with the next version.
        for (more, hash) in [
            (json!({"source": {"folder": {"path": "docs"}}}), "33534b242a44d914"),
            (
                json!({"corpus": "c", "prune": false, "source": {"s3": {"url": "s3://b/p", "include": ["*.md"], "exclude": ["x"]}},
                    "sink": {"jsonl": {"path": "out/a"}}, "schedule": "0 3 * * *", "suspend": true, "historyLimit": 3,
                    "processing": {"enrich": true, "chunking": {"strategy": "code", "maxTokens": 64, "overlap": 8}}}),
                "e8e660e01cde7acd",
            ),
        ] {
            assert_eq!(spec_hash(&spec(more.clone())), hash, "{more}");
        }
    }
}
