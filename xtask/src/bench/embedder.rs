//! Sets the embedder's bench up, runs it, and writes its figures as a table and a plot. What they have to reach is in `targets`.

mod targets;

use anyhow::{Context, Result};
use principium_local_cluster::progress::step;
use principium_local_cluster::{Cache, models, python};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::plot;
use targets::{Table, cell};

const PEERS: [&str; 5] =
    ["numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.32.0", "safetensors==0.8.0", "tokenizers==0.23.3"];
/// Brings PyTorch: some gigabytes.
const PYTORCH: &str = "sentence-transformers==6.2.0";
/// The part of docs/benchmarks.md that is written here.
const BEGIN: &str = "<!-- begin: cargo xtask bench embedder -->\n";
const END: &str = "<!-- end: cargo xtask bench embedder -->\n";
/// Whom the others are compared with.
const BASELINE: &str = "ONNX Runtime f32";
/// Whose figures docs/ has, as the bench calls them.
const COMPARED: [&str; 4] = [BASELINE, "ONNX Runtime int8", "sentence-transformers", "candle BertModel"];

/// Options of `cargo xtask bench embedder`.
#[derive(clap::Args)]
pub struct Embedder {
    /// Rounds that are counted; each contender has its turn in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Leave sentence-transformers out, which needs PyTorch, and docs/ as it is.
    #[arg(long)]
    no_pytorch: bool,
    /// Leave candle's own model out, which takes minutes to compile, and docs/ as it is.
    #[arg(long)]
    no_candle: bool,
    /// Nothing but so many minutes of load on the server: fails where its memory does not stay flat.
    #[arg(long)]
    load: Option<u32>,
    /// Print alone, and leave docs/ as it is.
    #[arg(long)]
    no_docs: bool,
}

/// What the bench writes.
#[derive(Deserialize)]
struct Figures {
    texts: usize,
    tokens: usize,
    short_tokens: usize,
    long_tokens: usize,
    rounds: usize,
    kernels: BTreeMap<String, String>,
    throughput: Vec<Throughput>,
    latency: Vec<Latency>,
    quality: Vec<Quality>,
    server: Server,
}

#[derive(Deserialize)]
struct Throughput {
    name: String,
    tokens_per_second: f64,
    slowest: f64,
    fastest: f64,
}

#[derive(Deserialize)]
struct Latency {
    name: String,
    text: String,
    p50: f64,
    p99: f64,
}

#[derive(Deserialize)]
struct Quality {
    name: String,
    queries: usize,
    cosine_mean: f64,
    cosine_min: f64,
    recall_1: f64,
    recall_10: f64,
    ndcg_10: f64,
}

#[derive(Deserialize)]
struct Server {
    alone: Percentiles,
    beside_bulk: Percentiles,
}

#[derive(Deserialize)]
struct Percentiles {
    p50: f64,
    p99: f64,
}

impl Embedder {
    /// Measures, prints the tables, and writes them with a plot to docs/ where every peer took part. Fails after that with the
    /// names of the targets that were missed.
    pub fn run(&self) -> Result<()> {
        let cache = Cache::from_environment()?;
        let root = crate::root();
        let model = step("the models", || models::fetch(cache.root(), &root, |_| {}))?.minilm;
        let python = step("the peers", || {
            let pytorch = (!self.no_pytorch && self.load.is_none()).then_some(PYTORCH);
            let name = if pytorch.is_some() { "peers-pytorch" } else { "peers" };
            let requirements: Vec<&str> = PEERS.into_iter().chain(pytorch).collect();
            python::environment(cache.root(), name, &requirements)
        })?;
        let work = cache.root().join("bench-embedder");
        fs::create_dir_all(&work)?;
        let peers = root.join("embedder/benches/peers.py");
        step("the texts", || {
            let corpus = work.join("corpus.json");
            crate::run(Command::new(&python).arg(&peers).arg("corpus").arg(&model).arg(corpus))
        })?;
        let candle = if self.no_candle || self.load.is_some() {
            None
        } else {
            Some(step("candle's own model", || candle_peer(&root))?)
        };
        let output = work.join("figures.json");
        let mut cargo = super::optimized("bench", &["principium-embedder"]);
        cargo.args(["--bench", "embedder", "--", "--rounds", &self.rounds.to_string()]);
        cargo.arg("--model").arg(&model).arg("--work").arg(&work).arg("--python").arg(&python);
        cargo.arg("--peers").arg(&peers).arg("--output").arg(&output);
        if let Some(candle) = &candle {
            cargo.arg("--candle").arg(candle);
        }
        if let Some(minutes) = self.load {
            cargo.arg("--load").arg(minutes.to_string());
            return crate::run(&mut cargo);
        }
        crate::run(&mut cargo)?;
        let figures: Figures = serde_json::from_slice(&fs::read(&output)?).context("reading the figures")?;
        let text = figures.markdown();
        println!("{text}");
        if !self.no_docs {
            figures.document(&root, &text)?;
        }
        targets::judge(&figures.targets())
    }
}

impl Figures {
    /// Writes table and plot to docs/, unless a peer is missing whose figures stand there.
    fn document(&self, root: &Path, text: &str) -> Result<()> {
        let took_part = |peer: &&str| self.throughput.iter().any(|it| it.name == *peer);
        let missing: Vec<&str> = COMPARED.into_iter().filter(|peer| !took_part(peer)).collect();
        if !missing.is_empty() {
            println!("docs/ is left as it is, because it has the figures of {}, too", missing.join(" and "));
            return Ok(());
        }
        let bars: Vec<_> = self
            .throughput
            .iter()
            .map(|it| plot::Bar {
                name: &it.name,
                value: it.tokens_per_second,
                ours: it.name.starts_with("principium"),
            })
            .collect();
        fs::write(
            root.join("docs/embedder-throughput.svg"),
            plot::bars("tokens per second, all-MiniLM-L6-v2", &bars),
        )?;
        replace(&root.join("docs/benchmarks.md"), text)
    }
}

/// Compiles candle's own model for this very processor, which is the best that can be said for it.
fn candle_peer(root: &Path) -> Result<PathBuf> {
    let target = root.join("target/peers");
    let mut cargo = crate::cargo();
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "--manifest-path",
        "embedder/benches/candle_peer/Cargo.toml",
    ]);
    cargo.arg("--target-dir").arg(&target).env("RUSTFLAGS", "-C target-cpu=native");
    crate::run(&mut cargo)?;
    Ok(target.join("release/candle-peer"))
}

fn replace(path: &Path, text: &str) -> Result<()> {
    let file = fs::read_to_string(path)?;
    let (before, rest) =
        file.split_once(BEGIN).with_context(|| format!("{} has no {BEGIN}", path.display()))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{} has no {END}", path.display()))?;
    Ok(fs::write(path, format!("{before}{BEGIN}\n{text}\n{END}{after}"))?)
}

impl Figures {
    fn markdown(&self) -> String {
        let targets = self.targets();
        let mut text = String::new();
        let line = |text: &mut String, row: &str| {
            text.push_str(row);
            text.push('\n');
        };
        let base =
            |name: &str| self.throughput.iter().find(|it| it.name == name).map(|it| it.tokens_per_second);
        let baseline = base(BASELINE);
        let _ = writeln!(
            text,
            "{} texts of {} tokens on average, medians of {} rounds in which everyone has a turn. Kernels: {}.\n",
            self.texts,
            self.tokens / self.texts.max(1),
            self.rounds,
            self.kernels
                .iter()
                .map(|(format, name)| format!("{format} {name}"))
                .collect::<Vec<_>>()
                .join(", ")
        );
        line(&mut text, "| | tokens/s | slowest–fastest | against ONNX Runtime f32 | target |");
        line(&mut text, "|---|---|---|---|---|");
        for Throughput { name, tokens_per_second, slowest, fastest } in &self.throughput {
            let ratio = baseline.map_or_else(String::new, |base| format!("{:.2}×", tokens_per_second / base));
            let target = cell(&targets, Table::Throughput, name);
            let range = format!("{slowest:.0}–{fastest:.0}");
            line(&mut text, &format!("| {name} | {tokens_per_second:.0} | {range} | {ratio} | {target} |"));
        }
        line(&mut text, "\n![tokens per second](embedder-throughput.svg)\n");
        line(
            &mut text,
            &format!(
                "One text at a time, milliseconds: a short one of {} tokens and a long one of {}.\n",
                self.short_tokens, self.long_tokens
            ),
        );
        line(&mut text, "| | short p50 | short p99 | long p50 | long p99 | target |");
        line(&mut text, "|---|---|---|---|---|---|");
        for contender in &self.throughput {
            let of = |kind: &str| self.latency.iter().find(|it| it.name == contender.name && it.text == kind);
            if let (Some(short), Some(long)) = (of("short"), of("long")) {
                line(
                    &mut text,
                    &format!(
                        "| {} | {:.1} | {:.1} | {:.1} | {:.1} | {} |",
                        contender.name,
                        short.p50,
                        short.p99,
                        long.p50,
                        long.p99,
                        cell(&targets, Table::Latency, &contender.name)
                    ),
                );
            }
        }
        let queries = self.quality.first().map_or(0, |it| it.queries);
        line(
            &mut text,
            &format!(
                "\nQuality: {queries} first sentences of docstrings of Python's standard library look for the rest of their \
                 docstring. Cosines are those of the passages to principium's f32.\n"
            ),
        );
        line(&mut text, "| | recall@1 | recall@10 | nDCG@10 | cosine, mean | cosine, lowest | target |");
        line(&mut text, "|---|---|---|---|---|---|---|");
        for it in &self.quality {
            line(
                &mut text,
                &format!(
                    "| {} | {:.4} | {:.4} | {:.4} | {:.5} | {:.5} | {} |",
                    it.name,
                    it.recall_1,
                    it.recall_10,
                    it.ndcg_10,
                    it.cosine_mean,
                    it.cosine_min,
                    cell(&targets, Table::Quality, &it.name)
                ),
            );
        }
        let Server { alone, beside_bulk } = &self.server;
        let _ = write!(
            text,
            "\nOver HTTP, f32, one short text a request: alone p50 {:.1} ms and p99 {:.1} ms; beside two clients that send {} \
             texts a request without pause, p50 {:.1} ms and p99 {:.1} ms.",
            alone.p50, alone.p99, self.texts, beside_bulk.p50, beside_bulk.p99
        );
        line(&mut text, "");
        text
    }
}
