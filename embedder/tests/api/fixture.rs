//! The small models with random weights that `fixtures/make_models.py` writes, and what their reference implementations make of
//! some texts. A test says on which device and in which number format one is loaded.

use principium_embedder::model::{
    Accelerator, Input, Model, ModelFiles, Output, Precision, Side, TextTokenizer, Truncation, Wants,
    load_tokenizer,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The largest difference of a number that is of the order of one.
pub const TOLERANCE: f64 = 1e-4;

/// One model of each way to compute hidden states.
pub const FAMILIES: [&str; 14] = [
    "bert",
    "bert-unprompted",
    "roberta",
    "bge-m3",
    "distilbert",
    "nomic-bert",
    "nomic-bert-long",
    "nomic-experts",
    "modernbert",
    "gte",
    "jina-v2",
    "jina-v2-code",
    "qwen3",
    "gemma3",
];

/// Models that score labels, with these.
pub const CLASSIFIERS: [(&str, &[&str]); 7] = [
    ("bert-classifier", &["calm", "warm", "hot"]),
    ("roberta-classifier", &["calm", "warm", "hot"]),
    ("xlm-roberta-reranker", &["LABEL_0"]),
    ("distilbert-classifier", &["LABEL_0", "LABEL_1"]),
    ("modernbert-reranker", &["LABEL_0"]),
    ("gte-reranker", &["LABEL_0"]),
    ("jina-reranker", &["LABEL_0"]),
];

/// Models that weigh words.
pub const WORDS: [&str; 7] = [
    "splade-bert",
    "splade-distilbert",
    "splade-roberta",
    "splade-modernbert",
    "splade-sum",
    "splade-log",
    "bge-m3",
];

/// Models with a vector for each token of a query or a document, which are marked as such.
pub const MARKED: [&str; 3] = ["colbert", "pylate", "pylate-unseen"];

/// A model and its references.
pub struct Fixture {
    pub name: &'static str,
    pub files: ModelFiles,
    pub tokenizer: TextTokenizer,
    pub model: Model,
    pub references: Vec<Value>,
}

/// The folder of a fixture.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models").join(name)
}

impl Fixture {
    /// As the references were computed: in f32, and on the CPU.
    pub fn load(name: &'static str) -> Self {
        Self::on(None, name, Precision::F32)
    }

    pub fn on(accelerator: Option<&Accelerator>, name: &'static str, precision: Precision) -> Self {
        let files = ModelFiles::read(&folder(name)).unwrap();
        let expected = std::fs::read_to_string(folder(name).join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&expected).unwrap();
        let tokenizer = load_tokenizer(&files).unwrap();
        let model = Model::load(&files, accelerator, precision).unwrap();
        let references = expected["references"].as_array().unwrap().clone();
        assert!(references.len() >= 3);
        Self { name, files, tokenizer, model, references }
    }

    /// Tokens of the references' texts, which must be those of the reference.
    pub fn inputs(&self, wants: Wants) -> Vec<Input> {
        let input = |row: &Value| {
            let mut input = match row.get("pair") {
                Some(pair) => {
                    let text = |index: usize| pair[index].as_str().unwrap();
                    self.tokenizer.pair(text(0), text(1), Truncation::DropEnd).unwrap()
                }
                None => self.tokenizer.text(row["text"].as_str().unwrap(), Truncation::DropEnd).unwrap(),
            };
            assert_eq!(json!(input.ids), row["ids"], "{}: the tokens of {row}", self.name);
            input.wants = wants;
            input
        };
        self.references.iter().map(input).collect()
    }

    /// The same for vectors: sentence-transformers puts the default prompt before every text.
    pub fn prompted(&self) -> Vec<Input> {
        let prompts = &self.files.prompts;
        let prompt = prompts.default.as_ref().map_or("", |name| &prompts.by_name[name]);
        self.references
            .iter()
            .map(|row| row["text"].as_str().unwrap())
            .map(|text| self.tokenizer.prompted(prompt, text, Truncation::DropEnd).unwrap())
            .collect()
    }

    /// The vectors of those tokens that count, of each of the references' texts as one of this side.
    pub fn tokens(&self, side: Side) -> Vec<Vec<f32>> {
        // All in one batch: what one query is filled with is nothing to the others.
        let marked = |row: &Value| {
            let text = row["text"].as_str().unwrap();
            let input = self.tokenizer.marked("", text, side, Truncation::DropEnd).unwrap();
            Input { wants: Wants::MULTI, ..input }
        };
        let inputs: Vec<Input> = self.references.iter().map(marked).collect();
        let counts = |id: u32| side == Side::Query || !self.tokenizer.is_skipped(id);
        let kept = |(output, input): (Output, &Input)| -> Vec<f32> {
            let rows = output.multi.into_iter().zip(&input.ids);
            rows.filter(|(_, id)| counts(**id)).flat_map(|(vector, _)| vector).collect()
        };
        self.run(&inputs).into_iter().zip(&inputs).map(kept).collect()
    }

    pub fn run(&self, inputs: &[Input]) -> Vec<Output> {
        self.model.run(&inputs.iter().collect::<Vec<_>>()).unwrap()
    }

    #[track_caller]
    pub fn close(&self, what: &str, found: &[f32], expected: &Value) {
        let expected: Vec<f64> =
            expected.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
        assert_eq!(found.len(), expected.len(), "{}: {what}", self.name);
        let off = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(off < TOLERANCE, "{}: {what} are off by {off}", self.name);
    }
}
