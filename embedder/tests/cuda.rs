//! The small models on a real card, against the same references as on the CPU; and what happens when its memory runs out.
//!
//! Run with the feature `cuda` alone: `cargo test --package principium-embedder --features cuda --test cuda`, where a card and
//! NVIDIA's toolkit are (images/README.md). Without it they are compiled and ignored, so that a change of what they call is seen
//! everywhere. Everything is computed on the first card that CUDA shows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "the tests of the CPU use the rest")]
#[path = "api/fixture.rs"]
mod fixture;
#[allow(dead_code, reason = "the tests of the API use the rest")]
#[path = "api/server.rs"]
mod server;

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use principium_embedder::batch::Budget;
use principium_embedder::engine::{Engine, EngineLimits, Replica, Worker};
use principium_embedder::gpus::Temperature;
use principium_embedder::metrics::Metrics;
use principium_embedder::model::{
    Accelerator, Input, Model, ModelError, Output, Precision, Side, Truncation, Wants, accelerators,
    normalize, visible,
};
use serde_json::{Value, json};

use fixture::{CLASSIFIERS, FAMILIES, Fixture, MARKED, TOLERANCE, WORDS, folder};
use server::{cosine, floats, start};

/// One test at a time: one of them leaves no memory to the others.
static CARD: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// More words than a fixture has.
const VOCABULARY: usize = 4096;

/// What is left of the card's memory to a batch: less than five times the 16 MiB of its states, while attention makes the next ones of
/// queries, keys and values.
const ROOM: usize = 64 << 20;

fn card() -> Accelerator {
    let (found, error) = accelerators(1);
    *found.first().unwrap_or_else(|| panic!("no card to compute on: {error:?}"))
}

/// Every fixture with references, each once.
fn names() -> Vec<&'static str> {
    let labelled = CLASSIFIERS.map(|(name, _)| name);
    let mut names: Vec<&str> = FAMILIES.into_iter().chain(labelled).chain(WORDS).chain(MARKED).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// What a model made of a text, beside what its reference made of it.
struct Pair {
    what: &'static str,
    found: Vec<f64>,
    expected: Vec<f64>,
}

/// Everything that the references tell, and what the model makes of the same texts.
fn pairs(fixture: &Fixture) -> Vec<Pair> {
    let outputs = |wants| fixture.run(&fixture.inputs(wants)).into_iter();
    let has = |field: &str| fixture.references[0].get(field).is_some();
    let mut made: Vec<(&'static str, Vec<Vec<f32>>)> = Vec::new();
    if has("states") {
        made.push(("states", outputs(Wants::STATES).map(|output| output.states.concat()).collect()));
    }
    if has("vector") {
        let mut vectors: Vec<Vec<f32>> =
            fixture.run(&fixture.prompted()).into_iter().map(|output| output.vector).collect();
        vectors.iter_mut().for_each(|vector| normalize(vector));
        made.push(("vector", vectors));
    }
    if has("logits") {
        made.push(("logits", outputs(Wants::VECTOR).map(|output| output.vector).collect()));
    }
    if has("sparse") {
        let weights = |output: Output| {
            let mut weights = vec![0.0; VOCABULARY];
            output.sparse.into_iter().for_each(|(id, weight)| weights[id as usize] = weight);
            weights
        };
        made.push(("sparse", outputs(Wants::SPARSE).map(weights).collect()));
    }
    if has("multi") {
        made.push(("multi", outputs(Wants::MULTI).map(|output| output.multi.concat()).collect()));
    }
    for (what, side) in [("query", Side::Query), ("document", Side::Document)] {
        if has(what) {
            made.push((what, fixture.tokens(side)));
        }
    }
    let mut pairs = Vec::new();
    for (what, rows) in made {
        assert_eq!(rows.len(), fixture.references.len(), "{}: {what}", fixture.name);
        for (row, reference) in rows.into_iter().zip(&fixture.references) {
            let found = row.into_iter().map(f64::from).collect();
            pairs.push(Pair { what, found, expected: expected(what, &reference[what]) });
        }
    }
    assert!(!pairs.is_empty(), "{} has no references", fixture.name);
    pairs
}

fn expected(what: &str, reference: &Value) -> Vec<f64> {
    if what != "sparse" {
        return floats(reference);
    }
    let mut weights = vec![0.0; VOCABULARY];
    for pair in reference.as_array().unwrap() {
        weights[usize::try_from(pair[0].as_u64().unwrap()).unwrap()] = pair[1].as_f64().unwrap();
    }
    weights
}

/// The largest difference.
fn off(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
#[cfg_attr(not(feature = "cuda"), ignore = "needs a card and the feature `cuda`")]
fn every_model_computes_in_f32_what_its_reference_does() {
    let _alone = CARD.blocking_lock();
    for name in names() {
        let fixture = Fixture::on(Some(&card()), name, Precision::F32);
        assert_eq!((fixture.model.kernel_name(), fixture.model.precision()), ("cuda", Precision::F32));
        for Pair { what, found, expected } in pairs(&fixture) {
            let off = off(&found, &expected);
            assert!(off < TOLERANCE, "{name}: {what} are off by {off}");
        }
    }
}

#[test]
#[cfg_attr(not(feature = "cuda"), ignore = "needs a card and the feature `cuda`")]
fn every_model_keeps_its_directions_in_16_bits() {
    let _alone = CARD.blocking_lock();
    for precision in [Precision::F16, Precision::Bf16] {
        for name in names() {
            let fixture = Fixture::on(Some(&card()), name, precision);
            for Pair { what, found, expected } in pairs(&fixture) {
                let cosine = cosine(&found, &expected);
                assert!(cosine >= 0.999, "{name} in {}: {what} with a cosine of {cosine}", precision.name());
                // One label has no direction.
                let off = off(&found, &expected);
                assert!(what != "logits" || off < 0.05, "{name} in {}: off by {off}", precision.name());
            }
        }
    }
}

#[tokio::test]
#[cfg_attr(not(feature = "cuda"), ignore = "needs a card and the feature `cuda`")]
async fn a_server_says_that_it_computes_on_the_card_and_does_with_any_share_of_it() {
    let _alone = CARD.lock().await;
    let model = folder("bert").display().to_string();
    let card = visible().next().unwrap();
    let text = "the operator moves the workload to the coolest healthy card ".repeat(20);
    for (share, smallest) in [(1024, false), (1, true)] {
        let gpus = json!([{ "index": 0, "uuid": card.uuid, "memoryMiB": share }]).to_string();
        let server = start(&["--model", &model, "--gpus", &gpus, "--require-acceleration", "true"]);
        let info = server.get("/info").await.json();
        for (field, value) in [
            ("accelerated", json!(true)),
            ("acceleration_message", json!(null)),
            ("device", json!("cuda:0")),
            ("kernel", json!("cuda")),
            ("workers", json!(1)),
            ("model_dtype", json!("bfloat16")),
        ] {
            assert_eq!(info[field], value, "{field} in {info}");
        }
        assert_eq!((&info["gpus"][0]["used"], &info["gpus"][0]["uuid"]), (&json!(true), &json!(card.uuid)));
        assert_eq!(info["max_batch_tokens"] == 64, smallest, "{info}");
        assert_eq!(server.get("/ready").await.status, 200);
        assert!(server.metric("principium_embedder_accelerated").await > 0.5);
        let answer = server.post("/embed", &json!({ "inputs": vec![&text; 100] })).await;
        assert_eq!(answer.headers["x-compute-type"], "gpu+optimized");
        assert_eq!(answer.json().as_array().unwrap().len(), 100);
        for row in Fixture::load("bert").references {
            let found = server.post("/embed", &json!({ "inputs": row["text"] })).await.json();
            let cosine = cosine(&floats(&found[0]), &floats(&row["vector"]));
            assert!(cosine >= 0.999, "{cosine} of {}", row["text"]);
        }
    }
    let other = json!([{ "index": 0, "uuid": "GPU-another", "memoryMiB": 1024 }]).to_string();
    let server = start(&["--model", &model, "--gpus", &other, "--require-acceleration", "true"]);
    let says = format!("GPU 0 was given as GPU-another, but CUDA shows {} in its place", card.uuid);
    server.get("/ready").await.refused(503, "Unhealthy", &says);
    let info = server.get("/info").await.json();
    assert_eq!((&info["device"], &info["gpus"][0]["used"]), (&json!("cpu"), &json!(false)), "{info}");
}

/// How many inputs a batch had, and why it failed where it did.
type Batch = (usize, Option<String>);

/// A model on the card that keeps what became of each batch.
struct Watched {
    model: Model,
    batches: Arc<Mutex<Vec<Batch>>>,
}

impl Replica for Watched {
    fn run(&self, inputs: &[&Input]) -> Result<Vec<Output>, ModelError> {
        let outputs = self.model.run(inputs);
        let error = outputs.as_ref().err();
        assert!(error.is_none_or(ModelError::is_out_of_memory), "{error:?}");
        self.batches.lock().unwrap().push((inputs.len(), error.map(ToString::to_string)));
        outputs
    }

    fn padding(&self, lengths: &[usize]) -> usize {
        self.model.padding(lengths)
    }
}

/// Takes all memory of the card but [`ROOM`], until what is returned is dropped.
fn fill(accelerator: Accelerator) -> Vec<Tensor> {
    let device = Device::new_cuda(accelerator.ordinal).unwrap();
    let take = |bytes: usize| Tensor::zeros(bytes, DType::U8, &device);
    let room = take(ROOM).unwrap();
    let (mut taken, mut bytes) = (Vec::new(), 1 << 40);
    while bytes >= 1 << 20 {
        match take(bytes) {
            Ok(tensor) => taken.push(tensor),
            Err(_) => bytes /= 2,
        }
    }
    drop(room);
    // Memory is given back only once the card is asked to.
    device.synchronize().unwrap();
    taken
}

#[tokio::test]
#[cfg_attr(not(feature = "cuda"), ignore = "needs a card and the feature `cuda`")]
async fn a_batch_that_does_not_fit_is_halved_and_goes_on() {
    let _alone = CARD.lock().await;
    let accelerator = card();
    let fixture = Fixture::on(Some(&accelerator), "bert", Precision::F32);
    let text = "the operator moves the workload to the coolest healthy card ".repeat(20);
    let input = fixture.tokenizer.text(&text, Truncation::DropEnd).unwrap();
    assert_eq!(input.len(), fixture.files.max_input_length);
    let inputs = vec![input; 1024];
    // The driver loads each kernel when it is first needed, and wants memory for it: all of them are, while there is some.
    let mut alone = Vec::new();
    for count in std::iter::successors(Some(inputs.len()), |count| Some(count / 2)).take_while(|it| *it > 0) {
        alone = fixture.run(&inputs[..count]);
    }
    let alone: Vec<f64> = alone[0].vector.iter().copied().map(f64::from).collect();

    let batches = Arc::default();
    let replica = Watched { model: fixture.model.clone(), batches: Arc::clone(&batches) };
    let budget = Budget { tokens: 1 << 20, inputs: inputs.len() };
    let worker = Worker { replica, budget, temperature: Temperature::default(), express: false };
    let limits = EngineLimits { queue_inputs: 16_384 };
    let engine = Engine::start(vec![worker], limits, Arc::new(Metrics::default())).unwrap();
    let filled = fill(accelerator);
    let outputs = engine.run(inputs.clone()).await;
    drop(filled);
    engine.stop();
    let batches = batches.lock().unwrap().clone();
    let outputs = outputs.unwrap_or_else(|error| panic!("{error}: {batches:?}"));
    assert_eq!(outputs.len(), inputs.len());
    for output in &outputs {
        let vector: Vec<f64> = output.vector.iter().copied().map(f64::from).collect();
        let off = off(&vector, &alone);
        assert!(off < TOLERANCE, "off by {off}: {batches:?}");
    }
    let (first, error) = &batches[0];
    assert!(*first == inputs.len() && error.is_some(), "it had room: {batches:?}");
    let computed: usize = batches.iter().filter(|(_, error)| error.is_none()).map(|(inputs, _)| inputs).sum();
    assert_eq!(computed, inputs.len(), "{batches:?}");
}
