//! Puts a process together: model, workers, routes of the role, and the way from SIGTERM to the end.

mod devices;
mod model;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use devices::Devices;
pub use model::{CPU_BATCH_TOKENS, GPU_BATCH_TOKENS};
use tokio_util::sync::CancellationToken;

use crate::args::{Role, Secret, ServeArgs};
use crate::engine::{Engine, PipelineEmbedder};
use crate::format::Reader;
use crate::http::{self, Info, Keys, ModelInfo, Probe, Routes, Served, Shared};
use crate::jobs::{Jobs, Store, Tools};
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::ollama::{self, OllamaConfig, Timing};
use crate::pipeline::PipelineConfig;
use crate::search::Reranker;
use crate::sinks::SinkServers;
use crate::sources::Reach;
use crate::{analyze, gpus, jobs, page, pipeline, search};

/// How long a process that is told to end still takes requests, so that every proxy has heard of it.
const LAME_DUCK: Duration = Duration::from_secs(2);

/// What one process serves.
pub struct Service {
    /// All routes of the role.
    pub router: Router,
    /// Status of the process.
    pub shared: Arc<Shared>,
    /// Computes; absent in the doc-analyzer.
    pub engine: Option<Engine>,
    /// Jobs; absent without a data folder and in other roles than the data-factory.
    pub jobs: Option<Jobs>,
}

/// What a role has of its own.
struct RoleParts {
    routes: Routes,
    engine: Option<Engine>,
    probe: Option<Probe>,
    devices: Devices,
    model: Option<ModelInfo>,
    jobs: Option<Jobs>,
}

/// Loads the model of the role and builds its routes. Blocks: it reads files and may download them.
pub fn build(args: &ServeArgs) -> anyhow::Result<Service> {
    crate::tls::install();
    let metrics = Arc::new(Metrics::default());
    let ollama = ollama_config(args)?;
    let draining = CancellationToken::new();
    let RoleParts { routes, engine, probe, devices, model, jobs } = match args.role {
        Role::DocAnalyzer => {
            let devices = Devices::of(args);
            let reader = Reader::new(args.reader_program.clone());
            let routes = Routes::analyzing(analyze::router(reader, llm(args, ollama)?));
            RoleParts { routes, engine: None, probe: None, devices, model: None, jobs: None }
        }
        Role::DataFactory | Role::Reranker => {
            let devices = Devices::of(args);
            gpus::watch(args.nvml_library.clone(), devices.watched(), &metrics)
                .context("starting the thread that watches the GPUs")?;
            let (served, info) = model::load(args, &devices, &metrics)?;
            let engine = Some(served.engine.clone());
            let probe = Some(Probe::new(&served).context("tokenizing a word")?);
            let (routes, jobs) = model_routes(args, &served, ollama, &metrics, &draining)?;
            RoleParts { routes, engine, probe, devices, model: Some(info), jobs }
        }
    };
    let Devices { given: _, accelerators, info: gpus, missing, temperatures: _ } = devices;
    let accelerated = !accelerators.is_empty() && missing.is_none();
    let no_gpu = "no GPU was given to this process".to_owned();
    let acceleration_message = if accelerated { None } else { Some(missing.unwrap_or(no_gpu)) };
    let needed = args.require_acceleration && args.role != Role::DocAnalyzer && !accelerated;
    let not_ready = acceleration_message.as_ref().filter(|_| needed).map(|reason| {
        format!("acceleration is required, but {reason}: mend the GPU or set requireAcceleration to false")
    });
    if let Some(reason) = &not_ready {
        tracing::error!("{reason}");
    } else if let (Some(reason), false) = (&acceleration_message, gpus.is_empty()) {
        tracing::warn!("computing on the CPU although GPUs were given: {reason}");
    }
    metrics.accelerated.set(f64::from(u8::from(accelerated)));
    let names: Vec<String> = accelerators.iter().map(|it| format!("cuda:{}", it.ordinal)).collect();
    let info = Info {
        role: args.role.name(),
        version: env!("CARGO_PKG_VERSION"),
        sha: None,
        docker_label: None,
        model,
        device: if names.is_empty() { "cpu".to_owned() } else { names.join(",") },
        accelerated,
        acceleration_message,
        gpus,
        analyzer_url: given(args.analyzer_url.as_ref()),
    };
    let shared = Arc::new(Shared { info, not_ready, probe, draining, metrics });
    let (keys, origins) = (keys(args)?, &args.cors_allow_origin);
    let router = http::with_common_routes(routes, Arc::clone(&shared), args.payload_limit, keys, origins);
    Ok(Service { router, shared, engine, jobs })
}

/// The model of `args` with its workers, without a server. Blocks: it reads files and may download them.
pub fn load_model(args: &ServeArgs) -> anyhow::Result<Arc<Served>> {
    let devices = Devices::of(args);
    if let Some(reason) = &devices.missing {
        tracing::warn!("computing on the CPU although GPUs were given: {reason}");
    }
    Ok(model::load(args, &devices, &Arc::new(Metrics::default()))?.0)
}

/// Serves until SIGTERM or SIGINT, then lets running requests end.
pub async fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let for_build = args.clone();
    let Service { router, shared, engine, jobs } =
        tokio::task::spawn_blocking(move || build(&for_build)).await??;
    if let Some(jobs) = jobs {
        jobs.start();
    }
    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listening on {}; is another process there?", args.listen))?;
    // Not the one that was asked for: its port may have been 0, for any.
    let address = listener.local_addr().context("asking for the address that is listened on")?;
    tracing::info!(role = args.role.name(), listen = %address, device = shared.info.device, "serving");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async {
        // A sender that is gone means the same.
        drop(stopped.await);
    });
    let mut server = std::pin::pin!(server.into_future());
    tokio::select! {
        result = &mut server => return result.context("serving HTTP"),
        result = told_to_end() => result?,
    }
    shared.start_draining();
    tracing::info!(seconds = args.drain_seconds, "told to end: letting running requests finish");
    tokio::select! {
        result = &mut server => return result.context("serving HTTP"),
        () = tokio::time::sleep(LAME_DUCK) => {}
    }
    drop(stop);
    if tokio::time::timeout(Duration::from_secs(args.drain_seconds), server).await.is_err() {
        tracing::warn!("some requests did not end in time and are cut off");
    }
    if let Some(engine) = engine {
        engine.stop();
    }
    Ok(())
}

async fn told_to_end() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result.context("listening for SIGINT")?,
    }
    Ok(())
}

/// Variables that the operator leaves empty are not set.
fn given(value: Option<&String>) -> Option<String> {
    value.filter(|value| !value.trim().is_empty()).cloned()
}

/// The keys of the flag, and of the file with one a line.
fn keys(args: &ServeArgs) -> anyhow::Result<Keys> {
    let mut text = given(args.api_keys.as_ref()).unwrap_or_default();
    if let Some(path) = &args.api_keys_file {
        let keys = std::fs::read_to_string(path)
            .with_context(|| format!("reading the API keys in {}", path.display()))?;
        text = format!("{text}\n{keys}");
    }
    let keys = Keys::parse(&text);
    anyhow::ensure!(
        !keys.is_empty() || args.api_keys_file.is_none(),
        "the file of PRINCIPIUM_API_KEYS_FILE has no key, and would open the server to everybody"
    );
    Ok(keys)
}

fn ollama_config(args: &ServeArgs) -> anyhow::Result<Option<OllamaConfig>> {
    let Some(url) = given(args.ollama_url.as_ref()) else { return Ok(None) };
    let hosts = ollama::hosts(&url).map_err(|error| anyhow::anyhow!("PRINCIPIUM_OLLAMA_URL: {error}"))?;
    let model = given(args.ollama_model.as_ref()).with_context(|| {
        format!("PRINCIPIUM_OLLAMA_URL is {url}, but PRINCIPIUM_OLLAMA_MODEL names no model")
    })?;
    let timing = Timing { answer: Duration::from_secs(args.ollama_timeout_seconds), ..Timing::default() };
    Ok(Some(OllamaConfig {
        hosts,
        model,
        context_max_tokens: args.context_max_tokens,
        context_window: args.context_window,
        prompt: given(args.context_prompt.as_ref()),
        ca_file: args.ollama_ca_file.clone(),
        timing,
    }))
}

/// Whom the doc analyzer asks: the pool, else the server with OpenAI's API, else nobody.
fn llm(args: &ServeArgs, ollama: Option<OllamaConfig>) -> anyhow::Result<Option<analyze::Llm>> {
    if let Some(ollama) = ollama {
        return Ok(Some(analyze::Llm::Ollama(ollama)));
    }
    let Some(url) = given(args.llm_url.as_ref()) else { return Ok(None) };
    let parsed = url.parse().with_context(|| format!("PRINCIPIUM_LLM_URL: {url:?} is no URL"))?;
    let model = given(args.llm_model.as_ref())
        .with_context(|| format!("PRINCIPIUM_LLM_URL is {url}, but PRINCIPIUM_LLM_MODEL names no model"))?;
    let key = args.llm_api_key.as_ref().map(|key| key.0.clone()).filter(|key| !key.is_empty());
    Ok(Some(analyze::Llm::OpenAi(analyze::OpenAiConfig { url: parsed, model, key })))
}

fn model_routes(
    args: &ServeArgs,
    served: &Arc<Served>,
    ollama: Option<OllamaConfig>,
    metrics: &Arc<Metrics>,
    draining: &CancellationToken,
) -> anyhow::Result<(Routes, Option<Jobs>)> {
    if args.role == Role::Reranker {
        return Ok((Routes::scoring(Arc::clone(served)), None));
    }
    let routes = Routes::embedding(Arc::clone(served));
    if served.files.heads.dense.is_none() {
        tracing::warn!(
            architecture = served.files.architecture,
            "the model gives no vector for a whole text: documents are not processed"
        );
        return Ok((routes, None));
    }
    anyhow::ensure!(
        args.chunk_overlap < args.chunk_max_tokens,
        "chunks overlap by {} tokens, but hold at most {}: lower PRINCIPIUM_CHUNK_OVERLAP",
        args.chunk_overlap,
        args.chunk_max_tokens
    );
    let prompt = served.files.prompts.document();
    // The prompt takes room from every chunk.
    let prompt_tokens = served.tokenizer.plain().encode(prompt, false);
    let prompt_tokens =
        prompt_tokens.map_err(|error| anyhow::anyhow!("tokenizing the prompt: {error}"))?.len();
    let config = PipelineConfig {
        tokenizer: served.tokenizer.plain(),
        max_tokens: served.tokenizer.maximum().saturating_sub(prompt_tokens),
        model_name: served.name.clone(),
        model_digest: served.files.weights_digest.clone(),
        similarity: served.files.similarity,
        reader: Reader::new(args.reader_program.clone()),
        chunker: args.chunker,
        chunk_max_tokens: args.chunk_max_tokens,
        chunk_overlap: args.chunk_overlap,
        ollama,
        contexts: Arc::default(),
        metrics: Arc::clone(metrics),
    };
    let (engine, tokenizer) = (served.engine.clone(), served.tokenizer.clone());
    let (prompts, similarity) = (served.files.prompts.clone(), served.files.similarity);
    let embedder = PipelineEmbedder { engine, tokenizer, prompts, similarity };
    let (config, embedder) = (Arc::new(config), Arc::new(embedder));
    let jobs = jobs(args, &config, &embedder, metrics)?;
    let mut kept = jobs::routes(jobs.as_ref(), draining);
    if let Some(jobs) = &jobs {
        let key = reranker_key(args)?;
        let reranker = given(args.reranker_url.as_ref()).map(|url| Reranker::new(&url, key)).transpose();
        kept = kept.merge(search::router(jobs.clone(), reranker.context("PRINCIPIUM_RERANKER_URL")?));
    }
    let routes = routes.with_pipeline(pipeline::router(config, embedder)).with_jobs(
        kept,
        page::router(),
        jobs.is_some(),
    );
    Ok((routes, jobs))
}

/// The key for the reranker of searches; of a file with several, the first.
fn reranker_key(args: &ServeArgs) -> anyhow::Result<Option<String>> {
    if let Some(key) = given(args.reranker_api_key.as_ref().map(|key| &key.0)) {
        return Ok(Some(key));
    }
    let Some(file) = args.reranker_api_key_file.as_ref().filter(|file| !file.as_os_str().is_empty()) else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("reading the reranker's API key from {}", file.display()))?;
    Ok(text.split([',', '\n']).map(str::trim).find(|key| !key.is_empty()).map(str::to_owned))
}

/// The jobs of the data folder.
fn jobs(
    args: &ServeArgs,
    config: &Arc<PipelineConfig>,
    embedder: &Arc<PipelineEmbedder>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Option<Jobs>> {
    let Some(folder) = args.data_dir.as_ref().filter(|folder| !folder.as_os_str().is_empty()) else {
        return Ok(None);
    };
    let objects = Objects { volumes: args.volumes.clone().filter(|folder| !folder.as_os_str().is_empty()) };
    let secret = |secret: &Option<Secret>| given(secret.as_ref().map(|secret| &secret.0));
    let servers = SinkServers {
        qdrant_url: given(args.qdrant_url.as_ref()),
        qdrant_api_key: secret(&args.qdrant_api_key),
        postgres_url: secret(&args.postgres_url),
        objects: objects.clone(),
        scratch: folder.clone(),
    };
    let tools = Tools {
        store: Arc::new(Store::open(folder).context("opening the job store")?),
        config: Arc::clone(config),
        embedder: Arc::<PipelineEmbedder>::clone(embedder),
        reach: Reach { objects, hosts: args.http_sources.clone() },
        servers,
        metrics: Arc::clone(metrics),
    };
    Ok(Some(Jobs::new(tools).context("reading the job store")?))
}
