//! `/v1/jobs` and `/v1/corpora`.

use super::corpus::{CorpusRecord, DocumentRecord};
use super::record::JobRecord;
use super::request::JobRequest;
use super::{Asked, Jobs, Store, StoreError};
use crate::http::{ApiError, Dialect, answer, parse};
use crate::sinks::Chunk;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;

/// Largest request, in bytes.
const BODY_LIMIT: usize = 64 << 20;
/// Entries of a page, where the client names no number, and at most.
const PAGE: (usize, usize) = (50, 1000);
/// Shortest time between two events of a job.
const EVENTS_APART: Duration = Duration::from_millis(200);
/// Documents that are read at once when a corpus is sent.
const DOCUMENTS_AT_ONCE: usize = 16;

/// The routes; without jobs they say what is missing. Events end with `draining`: a job may take longer than the process waits for
/// its requests.
pub fn routes(jobs: Option<&Jobs>, draining: &CancellationToken) -> Router {
    let Some(jobs) = jobs else {
        let missing = ["/v1/jobs", "/v1/corpora", "/v1/search"];
        return missing.into_iter().fold(Router::new(), |routes, path| routes.route(path, any(no_jobs)));
    };
    let draining = draining.clone();
    let events = move |jobs: State<Jobs>, id: Path<String>| events(jobs, id, draining);
    Router::new()
        .route("/v1/jobs", post(submit).get(list))
        .route("/v1/jobs/{id}", get(show).delete(remove))
        .route("/v1/jobs/{id}/cancel", post(cancel))
        .route("/v1/jobs/{id}/events", get(events))
        .route("/v1/corpora", get(corpora))
        .route("/v1/corpora/{corpus}", get(corpus))
        .route("/v1/corpora/{corpus}/documents", get(documents))
        .route("/v1/corpora/{corpus}/chunks", get(chunks))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(jobs.clone())
}

async fn no_jobs() -> Response {
    let missing =
        "there is no folder for jobs: set PRINCIPIUM_DATA_DIR to a folder that outlives the process";
    ApiError::unhealthy(missing).response(Dialect::Tei)
}

/// Which jobs are listed.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobsPage {
    /// Most jobs.
    #[schemars(range(min = 1, max = PAGE.1), extend("default" = PAGE.0))]
    limit: Option<usize>,
    /// Only jobs that were taken before the one with this id.
    before: Option<String>,
}

/// Which documents are listed.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DocumentsPage {
    /// Most documents.
    #[schemars(range(min = 1, max = PAGE.1), extend("default" = PAGE.0))]
    limit: Option<usize>,
    /// Only documents whose id comes after this one.
    after: Option<String>,
}

/// Which chunks are sent, and what of them.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WhichChunks {
    /// Only those of the document with this id.
    document: Option<String>,
    /// `false` leaves the vectors out.
    #[schemars(extend("default" = true))]
    vectors: Option<bool>,
}

/// Some jobs.
#[derive(Serialize, JsonSchema)]
pub struct JobList {
    /// The newest first.
    jobs: Vec<JobRecord>,
    /// What to list before for the next page; null after the last.
    next: Option<String>,
}

/// What jobs have made.
#[derive(Serialize, JsonSchema)]
pub struct CorpusList {
    /// By name.
    corpora: BTreeMap<String, CorpusRecord>,
}

/// Some documents of a corpus.
#[derive(Serialize, JsonSchema)]
pub struct DocumentList {
    /// By id.
    documents: Vec<DocumentEntry>,
    /// What to list after for the next page; null after the last.
    next: Option<String>,
}

/// A document of a corpus.
#[derive(Serialize, JsonSchema)]
struct DocumentEntry {
    document_id: String,
    /// The file or upload that it is in, by its id.
    file: String,
    title: Option<String>,
    metadata: Option<serde_json::Map<String, serde_json::Value>>,
    /// How many chunks it has.
    chunks: usize,
    /// How many of them should have been put in context and were not.
    without_context: u64,
    model: String,
    chunker: String,
    /// The job that processed it.
    job: String,
}

impl DocumentEntry {
    fn new(document_id: String, record: DocumentRecord) -> Self {
        let DocumentRecord {
            file,
            job,
            title,
            metadata,
            model,
            model_digest: _,
            chunker,
            without_context,
            chunks,
        } = record;
        let chunks = chunks.len();
        Self { document_id, file, title, metadata, chunks, without_context, model, chunker, job }
    }
}

async fn submit(State(jobs): State<Jobs>, body: Result<Bytes, BytesRejection>) -> Response {
    let taken = async {
        let request: JobRequest = parse(body)?;
        let id = request.id.clone();
        let (spec, documents) = request.validate(&jobs.tools().config)?;
        let (status, job) = match jobs.ask(id.clone(), spec, documents).await? {
            Asked::Taken(job) => (StatusCode::ACCEPTED, job),
            Asked::Known(job) => (StatusCode::OK, job),
            Asked::Conflict => {
                let id = id.unwrap_or_default();
                return Err(ApiError::conflict(format!("there is another job with the id {id:?}")));
            }
            Asked::Full => {
                return Err(ApiError::overloaded("too many jobs are waiting already: come back later"));
            }
        };
        let location = format!("/v1/jobs/{}", job.id);
        Ok((status, [(header::LOCATION, location)], Json(job)))
    };
    answer(taken.await, Dialect::Tei)
}

async fn list(State(jobs): State<Jobs>, page: Result<Query<JobsPage>, QueryRejection>) -> Response {
    let listed = async {
        let Query(JobsPage { limit, before }) = page.map_err(query)?;
        let limit = page_size(limit)?;
        let unknown = before.clone().unwrap_or_default();
        let found = jobs.list(before, limit).await?;
        let found =
            found.ok_or_else(|| ApiError::not_found(format!("there is no job {unknown:?} to list from")))?;
        let next = (found.len() == limit).then(|| found.last().map(|job| job.id.clone())).flatten();
        Ok(Json(JobList { jobs: found, next }))
    };
    answer(listed.await, Dialect::Tei)
}

async fn show(State(jobs): State<Jobs>, Path(id): Path<String>) -> Response {
    answer(find(&jobs, &id).await.map(Json), Dialect::Tei)
}

async fn cancel(State(jobs): State<Jobs>, Path(id): Path<String>) -> Response {
    let cancelled = async {
        find(&jobs, &id).await?;
        jobs.cancel(&id).await?;
        Ok((StatusCode::ACCEPTED, Json(find(&jobs, &id).await?)))
    };
    answer(cancelled.await, Dialect::Tei)
}

/// Ends a job that goes on, and forgets one that has ended. The corpus keeps what it made.
async fn remove(State(jobs): State<Jobs>, Path(id): Path<String>) -> Response {
    let removed = async {
        if !find(&jobs, &id).await?.state.ended() {
            jobs.cancel(&id).await?;
            return Ok((StatusCode::ACCEPTED, Json(find(&jobs, &id).await?)).into_response());
        }
        jobs.store().blocking(move |store| store.forget(&id)).await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    };
    answer(removed.await, Dialect::Tei)
}

/// The job as it is and as it changes, until it has ended or the process is told to.
async fn events(State(jobs): State<Jobs>, Path(id): Path<String>, draining: CancellationToken) -> Response {
    let job = match find(&jobs, &id).await {
        Ok(job) => job,
        Err(error) => return error.response(Dialect::Tei),
    };
    let records: BoxStream<'static, JobRecord> = match jobs.find(&id) {
        Some(live) => WatchStream::new(live.watch()).boxed(),
        None => stream::once(async { job }).boxed(),
    };
    let until_end = records.scan(false, |ended, record| {
        let go_on = !*ended;
        *ended = record.state.ended();
        futures::future::ready(go_on.then_some(record))
    });
    let events = until_end.then(|record| async move {
        let ended = record.state.ended();
        if !ended {
            // What changes meanwhile comes as one change.
            tokio::time::sleep(EVENTS_APART).await;
        }
        let event = Event::default().event(if ended { "end" } else { "progress" });
        event.json_data(&record).map_err(|error| std::io::Error::other(error.to_string()))
    });
    Sse::new(events.take_until(draining.cancelled_owned())).keep_alive(KeepAlive::default()).into_response()
}

async fn corpora(State(jobs): State<Jobs>) -> Response {
    let found = jobs.store().blocking(Store::corpora).await.map_err(ApiError::from);
    answer(found.map(|corpora| Json(CorpusList { corpora })), Dialect::Tei)
}

async fn corpus(State(jobs): State<Jobs>, Path(corpus): Path<String>) -> Response {
    let found = async {
        let name = corpus.clone();
        let found = jobs.store().blocking(move |store| store.corpus(&name)).await?;
        found.map(Json).ok_or_else(|| no_corpus(&corpus))
    };
    answer(found.await, Dialect::Tei)
}

async fn documents(
    State(jobs): State<Jobs>,
    Path(corpus): Path<String>,
    page: Result<Query<DocumentsPage>, QueryRejection>,
) -> Response {
    let listed = async {
        let Query(DocumentsPage { limit, after }) = page.map_err(query)?;
        let limit = page_size(limit)?;
        let read = move |store: &Store| store.documents(&corpus, after.as_deref(), limit);
        let found = jobs.store().blocking(read).await?;
        let next = (found.len() == limit).then(|| found.last().map(|(id, _)| id.clone())).flatten();
        let documents = found.into_iter().map(|(id, record)| DocumentEntry::new(id, record)).collect();
        Ok(Json(DocumentList { documents, next }))
    };
    answer(listed.await, Dialect::Tei)
}

/// All chunks of a corpus, or of one document, as JSON lines: what a JSONL file would have.
async fn chunks(
    State(jobs): State<Jobs>,
    Path(corpus): Path<String>,
    which: Result<Query<WhichChunks>, QueryRejection>,
) -> Response {
    let sent = async {
        let Query(WhichChunks { document, vectors }) = which.map_err(query)?;
        let name = corpus.clone();
        if jobs.store().blocking(move |store| store.corpus(&name)).await?.is_none() {
            return Err(no_corpus(&corpus));
        }
        let vectors = vectors.unwrap_or(true);
        let store = jobs.store().clone();
        let lines: BoxStream<'static, Result<Bytes, StoreError>> = match document {
            Some(id) => {
                let text = store.blocking(move |store| document_lines(store, &corpus, &id, vectors)).await?;
                let missing = || ApiError::not_found("there is no such document in this corpus");
                let text = text.ok_or_else(missing)?;
                stream::once(async { Ok(text) }).boxed()
            }
            None => stream::try_unfold(None, move |after| {
                let (store, corpus) = (store.clone(), corpus.clone());
                async move { pages(&store, corpus, after, vectors).await }
            })
            .boxed(),
        };
        Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)))
    };
    answer(sent.await, Dialect::Tei)
}

/// The lines of some documents after one, and the last of these.
async fn pages(
    store: &Arc<Store>,
    corpus: String,
    after: Option<String>,
    vectors: bool,
) -> Result<Option<(Bytes, Option<String>)>, StoreError> {
    store
        .blocking(move |store| {
            let mut page = store.document_ids(&corpus, after.as_deref(), DOCUMENTS_AT_ONCE)?;
            let mut text = Vec::new();
            for id in &page {
                write_lines(store.chunks(&corpus, id)?.unwrap_or_default(), vectors, &mut text);
            }
            Ok(page.pop().map(|last| (text.into(), Some(last))))
        })
        .await
}

fn document_lines(store: &Store, corpus: &str, id: &str, vectors: bool) -> Result<Option<Bytes>, StoreError> {
    let Some(chunks) = store.chunks(corpus, id)? else { return Ok(None) };
    let mut text = Vec::new();
    write_lines(chunks, vectors, &mut text);
    Ok(Some(text.into()))
}

fn write_lines(chunks: Vec<Chunk>, vectors: bool, text: &mut Vec<u8>) {
    for mut chunk in chunks {
        if !vectors {
            chunk.vector.clear();
        }
        // Chunks always serialize: their maps have strings for keys.
        text.extend(serde_json::to_vec(&chunk).unwrap_or_default());
        text.push(b'\n');
    }
}

async fn find(jobs: &Jobs, id: &str) -> Result<JobRecord, ApiError> {
    let found = jobs.job(id).await?;
    found.ok_or_else(|| ApiError::not_found(format!("there is no job {id:?}; GET /v1/jobs lists them")))
}

fn no_corpus(corpus: &str) -> ApiError {
    ApiError::not_found(format!("there is no corpus {corpus:?}; GET /v1/corpora lists them"))
}

fn page_size(limit: Option<usize>) -> Result<usize, ApiError> {
    match limit.unwrap_or(PAGE.0) {
        limit if (1..=PAGE.1).contains(&limit) => Ok(limit),
        limit => Err(ApiError::validation(format!("limit is {limit}: it can be 1 to {}", PAGE.1))),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
fn query(rejection: QueryRejection) -> ApiError {
    ApiError::validation(rejection.body_text())
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::storage(error.to_string())
    }
}
