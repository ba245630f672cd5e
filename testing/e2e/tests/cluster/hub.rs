//! A model by its name on a hub: downloaded with the revision and the token that the resource names, and taken from the cache
//! while the hub is away.

use crate::pods::{reranker, serves};
use crate::sources::with_model;
use anyhow::{Context, Result, ensure};
use axum::extract::{self, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::header::{AUTHORIZATION, RANGE};
use http::{HeaderMap, StatusCode};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt;
use kube::api::{DeleteParams, LogParams};
use principium_api::Reranker;
use principium_api::names::RERANKER_PORT;
use principium_e2e::run;
use principium_local_cluster::cluster::paths::ADDRESS;
use principium_local_cluster::{Cache, models, repository};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Name of the model on the hub, a revision of it, and the commit that this is.
const MODEL: &str = "group/ranker";
const REVISION: &str = "v1";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "open-sesame";

/// What was asked for, with what was shown for the right to it.
type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// A hub with one revision of one model, on an address that pods reach.
struct Hub {
    url: String,
    asked: Asked,
    server: JoinHandle<std::io::Result<()>>,
}

impl Hub {
    /// Starts one that serves the files of a folder.
    async fn start(folder: PathBuf) -> Result<Self> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            files.push(json!({"rfilename": entry?.file_name().to_string_lossy()}));
        }
        let info = json!({"sha": COMMIT, "siblings": files});
        let asked = Asked::default();
        let router = Router::new()
            .route(&about(), get(Json(info)))
            .route(&format!("{}{{file}}", files_of_the_commit()), get(file))
            .layer(from_fn_with_state(Arc::clone(&asked), note))
            .with_state(folder);
        let listener = TcpListener::bind((ADDRESS, 0)).await.context("listening on the node's address")?;
        let url = format!("http://{}", listener.local_addr()?);
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { url, asked, server })
    }

    fn asked(&self) -> Vec<(String, String)> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on nothing listens there.
    async fn stop(self) {
        self.server.abort();
        // Until then it may accept one more.
        let _ = self.server.await;
    }
}

/// Where the hub says which commit the revision is.
fn about() -> String {
    format!("/api/models/{MODEL}/revision/{REVISION}")
}

/// Where the files lie that are to be downloaded.
fn files_of_the_commit() -> String {
    format!("/{MODEL}/resolve/{COMMIT}/")
}

/// Takes note of a request, also of one for what the hub does not have.
async fn note(State(asked): State<Asked>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let what = (request.uri().path().to_owned(), shown.unwrap_or_default().to_owned());
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    next.run(request).await
}

/// A part of a file, with the headers that the real hub sends.
async fn file(
    State(folder): State<PathBuf>,
    extract::Path(name): extract::Path<String>,
    headers: HeaderMap,
) -> Response {
    let range = headers.get(RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Ok((bytes, which)) = part(&folder.join(&name), range) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let headers = [
        ("x-repo-commit", COMMIT.to_owned()),
        ("etag", format!("\"{}\"", name.replace('.', "-"))),
        ("content-range", which),
    ];
    (StatusCode::PARTIAL_CONTENT, headers, bytes).into_response()
}

/// The bytes that a range names, and which of how many they are.
fn part(path: &Path, range: &str) -> Result<(Vec<u8>, String)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let named = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let (first, last) = named.context("no range")?;
    let first: u64 = first.parse()?;
    let end = last.parse::<u64>().map_or(length, |last| length.min(last + 1));
    file.seek(SeekFrom::Start(first))?;
    let mut bytes = Vec::new();
    file.take(end.saturating_sub(first)).read_to_end(&mut bytes)?;
    Ok((bytes, format!("bytes {first}-{}/{length}", end.saturating_sub(1))))
}

/// A folder of the node, which is this machine, that nobody has made yet.
struct Downloads(PathBuf);

impl Drop for Downloads {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A reranker on the CPU whose model is that of the hub.
fn of_the_hub(url: &str, downloads: &Downloads) -> String {
    let source = format!(
        "{{hub: {{name: {MODEL}, revision: {REVISION}, cache: {{hostPath: {{path: {}}}}}}}}}",
        downloads.0.display()
    );
    let env = format!(
        r"  env:
    - {{name: HF_ENDPOINT, value: '{url}'}}
    - {{name: HF_TOKEN, valueFrom: {{secretKeyRef: {{name: hub, key: token}}}}}}
"
    );
    with_model(&reranker("ranker", "{count: 0}"), &source) + &env
}

/// The model of a pod prefers the passage that answers the question.
async fn ranks(pod: &Pod) -> Result<()> {
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).context("no address")?;
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build()?;
    let question = json!({
        "query": "How many people live in Berlin?",
        "texts": ["New York City is famous for its museums.", "Berlin has about 3.7 million inhabitants."],
    });
    let asked = client.post(format!("http://{ip}:{RERANKER_PORT}/rerank")).json(&question).send().await?;
    let ranks: Value = asked.error_for_status()?.json().await?;
    ensure!(ranks[0]["index"] == 1, "{ranks}");
    Ok(())
}

#[test]
fn a_model_of_a_hub_is_fetched_as_the_resource_says_and_kept_while_the_hub_is_away() -> Result<()> {
    run("hub", |world| async move {
        let model = models::fetch(Cache::from_environment()?.root(), &repository(), |_| {})?.cross_encoder;
        let hub = Hub::start(model).await?;
        let place = format!("principium-e2e-hub-{}", std::process::id());
        let downloads = Downloads(std::env::temp_dir().join(place));
        let secret = format!(
            "{{apiVersion: v1, kind: Secret, metadata: {{name: hub}}, stringData: {{token: {TOKEN}}}}}"
        );
        world.apply::<Secret>(&secret).await?;
        world.apply::<Reranker>(&of_the_hub(&hub.url, &downloads)).await?;
        world.ready::<Reranker>("ranker").await?;
        let told =
            || async { Ok(world.api::<Reranker>().get("ranker").await?.status.unwrap_or_default().model) };
        assert_eq!(world.eventually("the status tells the model", told).await?.name, MODEL);
        let first = world.pods_of("ranker").await?.pop().context("no pod")?;
        ranks(&first).await?;

        let (asked, files) = (hub.asked(), files_of_the_commit());
        let weights = format!("{files}model.safetensors");
        assert!(asked.iter().any(|(what, _)| *what == weights), "{asked:?}");
        for (what, shown) in asked {
            assert!(what == about() || what.starts_with(&files), "another revision: {what}");
            assert_eq!(shown, format!("Bearer {TOKEN}"), "{what}");
        }

        hub.stop().await;
        let killed = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        world.api::<Pod>().delete(&first.name_any(), &killed).await?;
        let second = world
            .eventually("another pod serves while the hub is away", || async {
                let pods = world.pods_of("ranker").await?;
                Ok(pods.into_iter().find(|pod| serves(pod) && pod.uid() != first.uid()))
            })
            .await?;
        world.ready::<Reranker>("ranker").await?;
        ranks(&second).await?;
        let log = world.api::<Pod>().logs(&second.name_any(), &LogParams::default()).await?;
        let kept = log.lines().find(|line| line.contains("taking what is in the cache"));
        assert!(kept.is_some_and(|line| line.contains(COMMIT)) && !log.contains(TOKEN), "{log}");
        // Before its cache goes.
        world.delete::<Reranker>("ranker").await
    })
}
