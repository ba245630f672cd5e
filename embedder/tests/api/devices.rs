//! Several devices under one model, with stand-ins that do as they are told: whether all of them are used at once, what they are
//! given to compute, and what is said when none of them computes any more.

use crate::program::Program;
use crate::server::minilm;
use principium_embedder::args::Role;
use principium_embedder::batch::Budget;
use principium_embedder::engine::{Engine, EngineLimits, PipelineEmbedder, Replica, Worker};
use principium_embedder::format::Reader;
use principium_embedder::gpus::Temperature;
use principium_embedder::http::{Info, Keys, Origins, Probe, Routes, Served, Shared, with_common_routes};
use principium_embedder::metrics::Metrics;
use principium_embedder::model::{
    Input, ModelError, ModelFiles, Output, Similarity, TextTokenizer, Truncation, load_tokenizer,
};
use principium_embedder::pipeline::{Chunker, EmbedTexts, PipelineConfig, Purpose, router};
use principium_embedder::serve::GPU_BATCH_TOKENS;
use principium_gpu_sim::state::State;
use principium_gpu_sim::{store, update};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const DEVICES: usize = 8;

/// Where devices meet: in each of its rounds the batch of a device ends only when every device has one. After
/// the last round nobody waits any more.
struct Meeting {
    devices: usize,
    rounds: usize,
    gathering: Mutex<Gathering>,
    came: Condvar,
}

/// What has come of a meeting.
#[derive(Debug, Default)]
struct Gathering {
    /// Devices that have a batch in this round.
    present: BTreeSet<usize>,
    /// Rounds that are over.
    rounds: usize,
    /// Batches that were begun in the rounds.
    batches: usize,
    /// Whether a device waited in vain: then none of the others waits as long again.
    in_vain: bool,
}

impl Meeting {
    fn new(devices: usize, rounds: usize) -> Arc<Self> {
        Arc::new(Self { devices, rounds, gathering: Mutex::default(), came: Condvar::new() })
    }

    fn replicas(self: &Arc<Self>) -> impl Iterator<Item = Met> {
        (0..self.devices).map(move |number| Met { number, meeting: Arc::clone(self) })
    }

    /// Whether all come within a minute, as they did in every round before.
    fn wait(&self, device: usize) -> bool {
        let mut gathering = self.gathering.lock().unwrap();
        if gathering.in_vain || gathering.rounds == self.rounds {
            return !gathering.in_vain;
        }
        let round = gathering.rounds;
        gathering.batches += 1;
        gathering.present.insert(device);
        if gathering.present.len() == self.devices {
            gathering.present.clear();
            gathering.rounds += 1;
            self.came.notify_all();
            return true;
        }
        let alone = |it: &mut Gathering| it.rounds == round && !it.in_vain;
        gathering = self.came.wait_timeout_while(gathering, Duration::from_secs(60), alone).unwrap().0;
        if gathering.rounds == round {
            gathering.in_vain = true;
            self.came.notify_all();
        }
        gathering.rounds > round
    }
}

/// A device whose batches end as its meeting says.
struct Met {
    number: usize,
    meeting: Arc<Meeting>,
}

impl Replica for Met {
    fn run(&self, inputs: &[&Input]) -> Result<Vec<Output>, ModelError> {
        let met = self.meeting.wait(self.number);
        assert!(met, "not all devices had work: {:?}", self.meeting.gathering.lock().unwrap());
        Ok(vec![Output { vector: vec![1.0], ..Output::default() }; inputs.len()])
    }

    fn padding(&self, _: &[usize]) -> usize {
        0
    }
}

/// A device that keeps what it was given, and fails while it is broken.
#[derive(Clone, Default)]
struct Kept {
    inputs: Arc<Mutex<Vec<Input>>>,
    broken: Arc<AtomicBool>,
}

impl Replica for Kept {
    fn run(&self, inputs: &[&Input]) -> Result<Vec<Output>, ModelError> {
        self.inputs.lock().unwrap().extend(inputs.iter().map(|input| (*input).clone()));
        if self.broken.load(Ordering::Relaxed) {
            return Err(ModelError::MissingFile { path: "the device".into() });
        }
        Ok(vec![Output { vector: vec![1.0], ..Output::default() }; inputs.len()])
    }

    fn padding(&self, _: &[usize]) -> usize {
        0
    }
}

fn engine<R: Replica>(replicas: impl IntoIterator<Item = R>) -> Engine {
    engine_of(Budget { tokens: GPU_BATCH_TOKENS, inputs: 1024 }, replicas)
}

fn engine_of<R: Replica>(budget: Budget, replicas: impl IntoIterator<Item = R>) -> Engine {
    let workers = replicas.into_iter().map(|replica| Worker {
        replica,
        budget,
        temperature: Temperature::default(),
        express: false,
    });
    let limits = EngineLimits { queue_inputs: 16_384 };
    Engine::start(workers.collect(), limits, Arc::new(Metrics::default())).unwrap()
}

fn model() -> (ModelFiles, TextTokenizer) {
    let files = ModelFiles::read(Path::new(&minilm())).unwrap();
    let tokenizer = load_tokenizer(&files).unwrap();
    (files, tokenizer)
}

fn info() -> Info {
    Info {
        role: Role::DataFactory.name(),
        version: "0",
        sha: None,
        docker_label: None,
        model: None,
        device: "cuda:0".to_owned(),
        accelerated: true,
        acceleration_message: None,
        gpus: Vec::new(),
        analyzer_url: None,
    }
}

fn with_routes(routes: Routes, shared: Shared) -> axum::Router {
    with_common_routes(routes, Arc::new(shared), 1 << 20, Keys::parse(""), &Origins::None)
}

async fn serve(router: axum::Router) -> String {
    principium_embedder::tls::install();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// The chunks of a job over one document of so many words.
async fn process(engine: Engine, words: usize) -> u64 {
    let (files, tokenizer) = model();
    let config = PipelineConfig {
        tokenizer: tokenizer.plain(),
        max_tokens: tokenizer.maximum(),
        model_name: "m".into(),
        model_digest: "d".into(),
        similarity: files.similarity,
        reader: Reader::new(None),
        chunker: Chunker::Fixed,
        chunk_max_tokens: 200,
        chunk_overlap: 0,
        ollama: None,
        contexts: Arc::default(),
        metrics: Arc::default(),
    };
    let embedder =
        PipelineEmbedder { engine, tokenizer, prompts: files.prompts, similarity: files.similarity };
    let url = serve(router(Arc::new(config), Arc::new(embedder))).await;
    let text: String = (0..words).map(|word| format!("word{} ", word % 97)).collect();
    let request = reqwest::Client::new()
        .post(format!("{url}/v1/process"))
        .json(&json!({ "documents": [{ "text": text }] }));
    let answer = request.send().await.unwrap().text().await.unwrap();
    let summary: Value = serde_json::from_str(answer.lines().last().unwrap()).unwrap();
    assert_eq!((&summary["documents"], &summary["failed"]), (&json!(1), &json!(0)), "{summary}");
    summary["chunks"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_job_has_all_devices_of_a_data_factory_compute_at_once() {
    // Batches of any size: what waits is shared out among the devices that are free.
    let meeting = Meeting::new(DEVICES, 1);
    let chunks = process(engine(meeting.replicas()), 40_000).await;
    assert!(chunks > 300, "{chunks}");
}

/// Devices of one pace are through with a round together: n of them compute n times as much meanwhile as one.
#[tokio::test(flavor = "multi_thread")]
async fn n_devices_compute_n_batches_in_the_time_of_one_in_every_round() {
    const ROUNDS: usize = 10;
    // One chunk in each: then no batch takes the work of another device.
    let budget = Budget { tokens: GPU_BATCH_TOKENS, inputs: 1 };
    for devices in [1, 2, 4, DEVICES] {
        let meeting = Meeting::new(devices, ROUNDS);
        let chunks = process(engine_of(budget, meeting.replicas()), 16_000).await;
        assert!(chunks >= 100, "{chunks} are too few for {ROUNDS} rounds");
        let gathering = meeting.gathering.lock().unwrap();
        assert_eq!((gathering.rounds, gathering.batches), (ROUNDS, devices * ROUNDS), "{gathering:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_and_queries_are_embedded_with_the_prompts_that_the_model_has_for_them() {
    let (_, tokenizer) = model();
    let device = Kept::default();
    let prompts = json!({ "prompts": { "query": "query: ", "passage": "passage: " } });
    let prompts = serde_json::from_value(prompts).unwrap();
    let embedder = PipelineEmbedder {
        engine: engine([device.clone()]),
        tokenizer: tokenizer.clone(),
        prompts,
        similarity: Similarity::Cosine,
    };
    for (purpose, prompt) in [(Purpose::Query, "query: "), (Purpose::Document, "passage: ")] {
        embedder.embed(vec!["heat".to_owned()], purpose).await.unwrap();
        let expected = tokenizer.prompted(prompt, "heat", Truncation::DropEnd).unwrap();
        assert_eq!(device.inputs.lock().unwrap().pop().unwrap(), expected, "{purpose:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_computes_nothing_any_more_says_so_and_is_restarted() {
    let (files, tokenizer) = model();
    let device = Kept::default();
    let (engine, files) = (engine([device.clone()]), Arc::new(files));
    let model = Arc::new(Served { engine, tokenizer, files, name: "m".to_owned() });
    let probe = Some(Probe::new(&model).unwrap());
    let metrics = Arc::new(Metrics::default());
    let shared = Shared { info: info(), not_ready: None, probe, draining: CancellationToken::new(), metrics };
    let url = serve(with_routes(Routes::embedding(model), shared)).await;
    let client = reqwest::Client::new();
    let get = async |path: &str| {
        let answer = client.get(format!("{url}{path}")).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let embed = async || {
        let request = client.post(format!("{url}/embed")).json(&json!({ "inputs": "heat" }));
        request.send().await.unwrap().status().as_u16()
    };
    // What was never asked for is not tried either.
    assert_eq!((get("/health").await.0, get("/ready").await.0), (200, 200));
    assert!(device.inputs.lock().unwrap().is_empty());
    device.broken.store(true, Ordering::Relaxed);
    assert_eq!(embed().await, 424);
    for path in ["/health", "/ready"] {
        let (status, text) = get(path).await;
        assert_eq!(status, 503, "{text}");
        assert!(text.contains("the model computes nothing any more: "), "{text}");
    }
    device.broken.store(false, Ordering::Relaxed);
    assert_eq!((get("/health").await.0, get("/ready").await.0), (200, 200));
    assert_eq!(embed().await, 200);
}

/// A device that waits with each batch until it is let go on.
struct Held {
    inputs: Arc<AtomicUsize>,
    go_on: mpsc::Receiver<()>,
}

impl Replica for Held {
    fn run(&self, inputs: &[&Input]) -> Result<Vec<Output>, ModelError> {
        self.inputs.fetch_add(inputs.len(), Ordering::Relaxed);
        // Whoever lets go of the sender lets everything go on.
        let _ = self.go_on.recv();
        let vector = |input: &&Input| vec![1.0, input.len() as f32];
        Ok(inputs.iter().map(|input| Output { vector: vector(input), ..Output::default() }).collect())
    }

    fn padding(&self, lengths: &[usize]) -> usize {
        2 * lengths.len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_vertex_ai_come_to_the_device_by_and_by_and_go_back_in_their_order() {
    const AT_ONCE: i64 = 64;
    let (files, tokenizer) = model();
    let given = Arc::new(AtomicUsize::new(0));
    let (go_on, held) = mpsc::channel();
    let metrics = Arc::new(Metrics::default());
    let replica = Held { inputs: Arc::clone(&given), go_on: held };
    let budget = Budget { tokens: GPU_BATCH_TOKENS, inputs: 1024 };
    let worker = Worker { replica, budget, temperature: Temperature::default(), express: false };
    let limits = EngineLimits { queue_inputs: 16_384 };
    let engine = Engine::start(vec![worker], limits, Arc::clone(&metrics)).unwrap();
    let model = Arc::new(Served { engine, tokenizer, files: Arc::new(files), name: "m".to_owned() });
    let shared = Shared {
        info: info(),
        not_ready: None,
        probe: None,
        draining: CancellationToken::new(),
        metrics: Arc::clone(&metrics),
    };
    let routes = Routes::embedding(model);
    let url = serve(with_routes(routes, shared)).await;
    let instances: Vec<Value> = (0..1000)
        .map(|number| json!({ "inputs": "hot ".repeat(1 + number % 7), "normalize": false }))
        .collect();
    let request =
        reqwest::Client::new().post(format!("{url}/vertex")).json(&json!({ "instances": instances }));
    let answer = tokio::spawn(async move { request.send().await.unwrap().json::<Value>().await.unwrap() });
    let waiting = || metrics.queue_inputs.get() + i64::try_from(given.load(Ordering::Relaxed)).unwrap();
    while waiting() < AT_ONCE {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(waiting(), AT_ONCE);
    drop(go_on);
    let expected: Vec<Value> =
        (0..1000_u32).map(|number| json!([[1.0, f64::from(3 + number % 7)]])).collect();
    assert_eq!(answer.await.unwrap()["predictions"], json!(expected));
    let told = self::metrics(&reqwest::Client::new(), &url).await;
    assert!(told.contains("principium_embedder_padding_total{worker=\"0\"} 2000\n"), "{told}");
}

async fn metrics(client: &reqwest::Client, url: &str) -> String {
    client.get(format!("{url}/metrics")).send().await.unwrap().text().await.unwrap()
}

/// Tokens that each of two workers has computed.
fn tokens(metrics: &str) -> [u64; 2] {
    [0, 1].map(|worker| {
        let name = format!("principium_embedder_tokens_total{{worker=\"{worker}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |value| value.parse().unwrap())
    })
}

#[tokio::test]
async fn work_goes_to_the_gpu_that_the_driver_calls_the_cooler_one() {
    principium_embedder::tls::install();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gpus.json");
    let mut state = State::default_for_node("test");
    let heat = |state: &mut State, celsius: [u32; 2]| {
        [state.gpus[6].temperature, state.gpus[7].temperature] = celsius;
    };
    heat(&mut state, [70, 45]);
    state.gpus[7].product = "NVIDIA L4".to_owned();
    std::fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
    let gpus: Vec<Value> = [6, 7]
        .map(|index| json!({ "index": index, "uuid": state.gpus[index].uuid, "memoryMiB": 1024 }))
        .into();
    // Cargo builds the library beside the test programs.
    let library = std::env::current_exe().unwrap().parent().unwrap().join("libprincipium_gpu_sim.so");
    let program = Program::start_with(folder.path(), |command| {
        command.env(store::STATE_VARIABLE, &path).env("PRINCIPIUM_GPUS", json!(gpus).to_string());
        command.arg("--nvml-library").arg(&library)
    });
    let client = reqwest::Client::new();
    let info = program.ask(client.get(format!("{}/info", program.url))).await;
    for (place, index) in [(0, 6), (1, 7)] {
        assert_eq!(info["gpus"][place]["name"], state.gpus[index].product, "{info}");
    }
    for (celsius, cooler) in [([70, 45], 1), ([50, 65], 0)] {
        update(&path, |state| {
            heat(state, celsius);
            Ok(())
        })
        .unwrap();
        let gpu = 6 + cooler;
        let labels = format!("{{gpu=\"{gpu}\",uuid=\"{}\"}}", state.gpus[gpu].uuid);
        let shown = format!("principium_embedder_gpu_temperature_celsius{labels} {}\n", celsius[cooler]);
        let give_up = Instant::now() + Duration::from_secs(30);
        while !metrics(&client, &program.url).await.contains(&shown) {
            assert!(Instant::now() < give_up, "{shown} never came");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let before = tokens(&metrics(&client, &program.url).await);
        for _ in 0..20 {
            let request = client.post(format!("{}/embed", program.url)).json(&json!({ "inputs": "heat" }));
            assert_eq!(request.send().await.unwrap().status(), 200);
            // A worker is free again a moment after its answer, on a busy machine a longer one.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let after = tokens(&metrics(&client, &program.url).await);
        let [cool, warm] = [cooler, 1 - cooler].map(|worker| after[worker] - before[worker]);
        assert!(cool > 4 * warm, "{cool} tokens on the cooler GPU, {warm} on the other one");
    }
}
