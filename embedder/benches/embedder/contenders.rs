//! Who is measured: the embedder in each of its number formats, and programs that answer lines of JSON.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use principium_embedder::batch::Budget;
use principium_embedder::engine::{Engine, EngineLimits, Worker};
use principium_embedder::gpus::Temperature;
use principium_embedder::metrics::Metrics;
use principium_embedder::model::{
    self, Input, Model, ModelFiles, Output, Precision, TextTokenizer, Truncation, normalize,
};
use principium_embedder::serve;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::Arguments;

/// Which single text is embedded again and again.
#[derive(Clone, Copy)]
pub enum Latency {
    Short,
    Long,
}

impl Latency {
    pub fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Long => "long",
        }
    }
}

/// Tokens of the texts.
pub struct Tokens {
    pub bulk: Vec<usize>,
    pub short: usize,
    pub long: usize,
}

/// Someone who turns texts into vectors of length one. Tokenizing is part of the work.
pub enum Contender {
    Ours(Box<Ours>),
    Peer(Peer),
}

/// The embedder without HTTP.
pub struct Ours {
    name: String,
    engine: Engine,
    tokenizer: TextTokenizer,
    runtime: tokio::runtime::Runtime,
    texts: Value,
}

/// One engine of another program.
pub struct Peer {
    name: &'static str,
    engine: &'static str,
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// Everyone who can take part here; says who can't.
pub fn all(arguments: &Arguments, corpus: &Path, texts: &Value) -> Result<Vec<Contender>> {
    let mut contenders = Vec::new();
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        contenders.push(Contender::Ours(Box::new(Ours::start(&arguments.model, precision, texts)?)));
    }
    for (name, engine) in [
        ("ONNX Runtime f32", "onnxruntime"),
        ("ONNX Runtime int8", "onnxruntime-int8"),
        ("sentence-transformers", "sentence-transformers"),
    ] {
        let mut command = Command::new(&arguments.python);
        command.arg(&arguments.peers).arg("serve").arg(&arguments.model).arg(corpus).arg(&arguments.work);
        contenders.extend(Peer::start(name, engine, command)?.map(Contender::Peer));
    }
    if let Some(program) = &arguments.candle {
        let mut command = Command::new(program);
        command.arg(&arguments.model).arg(corpus);
        contenders.extend(Peer::start("candle BertModel", "candle", command)?.map(Contender::Peer));
    }
    Ok(contenders)
}

/// Tokens of the texts that are measured.
pub fn tokens(model: &str, texts: &Value) -> Result<Tokens> {
    let files = ModelFiles::read(Path::new(model))?;
    let tokenizer = model::load_tokenizer(&files)?;
    let count = |text: &Value| -> Result<usize> {
        Ok(tokenizer.text(text.as_str().unwrap_or_default(), Truncation::DropEnd)?.len())
    };
    Ok(Tokens {
        bulk: list(&texts["bulk"]).map(count).collect::<Result<_>>()?,
        short: count(&texts["short"])?,
        long: count(&texts["long"])?,
    })
}

/// The instruction set of each number format.
pub fn kernels(model: &str) -> Result<Value> {
    let files = ModelFiles::read(Path::new(model))?;
    let name =
        |precision| -> Result<&'static str> { Ok(Model::load(&files, None, precision)?.kernel_name()) };
    Ok(
        json!({ "f32": name(Precision::F32)?, "bf16": name(Precision::Bf16)?, "int8": name(Precision::Int8)? }),
    )
}

pub fn list(texts: &Value) -> impl Iterator<Item = &Value> {
    texts.as_array().into_iter().flatten()
}

impl Contender {
    pub fn name(&self) -> &str {
        match self {
            Self::Ours(ours) => &ours.name,
            Self::Peer(peer) => peer.name,
        }
    }

    /// Seconds for all bulk texts, given at once.
    pub fn bulk(&mut self) -> Result<f64> {
        match self {
            Self::Ours(ours) => {
                let started = Instant::now();
                ours.embed(&ours.texts["bulk"])?;
                Ok(started.elapsed().as_secs_f64())
            }
            Self::Peer(peer) => {
                peer.ask(&json!({ "task": "bulk" }))?["seconds"].as_f64().context("an answer without seconds")
            }
        }
    }

    /// Milliseconds of one text after another.
    pub fn singles(&mut self, text: Latency, count: usize) -> Result<Vec<f64>> {
        match self {
            Self::Ours(ours) => (0..count)
                .map(|_| {
                    let started = Instant::now();
                    ours.embed(&json!([ours.texts[text.name()]]))?;
                    Ok(started.elapsed().as_secs_f64() * 1000.0)
                })
                .collect(),
            Self::Peer(peer) => {
                let answer = peer.ask(&json!({ "task": "latency", "text": text.name(), "count": count }))?;
                Ok(list(&answer["milliseconds"]).filter_map(Value::as_f64).collect())
            }
        }
    }

    /// Vectors of all texts of a list.
    pub fn vectors(&mut self, name: &str) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Ours(ours) => ours.embed(&ours.texts[name]),
            Self::Peer(peer) => {
                let answer = peer.ask(&json!({ "task": "vectors", "text": name }))?;
                Ok(serde_json::from_value(answer["vectors"].clone())?)
            }
        }
    }
}

impl Ours {
    fn start(folder: &str, precision: Precision, texts: &Value) -> Result<Self> {
        let files = ModelFiles::read(Path::new(folder))?;
        let tokenizer = model::load_tokenizer(&files)?;
        let budget = Budget { tokens: serve::CPU_BATCH_TOKENS, inputs: 1024 };
        let limits = EngineLimits { queue_inputs: 16_384 };
        let replica = Model::load(&files, None, precision)?;
        let worker = Worker { replica, budget, temperature: Temperature::default(), express: false };
        Ok(Self {
            name: format!("principium {}", short_name(precision)),
            engine: Engine::start(vec![worker], limits, Arc::new(Metrics::default()))?,
            tokenizer,
            runtime: tokio::runtime::Builder::new_current_thread().build()?,
            texts: texts.clone(),
        })
    }

    fn embed(&self, texts: &Value) -> Result<Vec<Vec<f32>>> {
        let texts: Vec<&str> = list(texts).filter_map(Value::as_str).collect();
        let inputs: Vec<Input> = texts
            .into_par_iter()
            .map(|text| self.tokenizer.text(text, Truncation::DropEnd))
            .collect::<std::result::Result<_, _>>()?;
        let outputs = self.runtime.block_on(self.engine.run(inputs))?;
        let normalized = |Output { mut vector, .. }: Output| {
            normalize(&mut vector);
            vector
        };
        Ok(outputs.into_iter().map(normalized).collect())
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

fn short_name(precision: Precision) -> &'static str {
    match precision {
        Precision::Bf16 => "bf16",
        Precision::Int8 => "int8",
        _ => "f32",
    }
}

impl Peer {
    /// `None` where the engine is not installed.
    fn start(name: &'static str, engine: &'static str, mut command: Command) -> Result<Option<Self>> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            bail!("{name} has no pipes");
        };
        let mut peer = Self { name, engine, process, input, output: BufReader::new(output) };
        let proof = peer.ask(&json!({ "task": "latency", "text": "short", "count": 1 }));
        if let Err(error) = proof {
            eprintln!("{name} does not take part: {error:#}");
            return Ok(None);
        }
        Ok(Some(peer))
    }

    fn ask(&mut self, request: &Value) -> Result<Value> {
        let mut request = request.clone();
        request["engine"] = self.engine.into();
        writeln!(self.input, "{request}").with_context(|| format!("asking {}", self.name))?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line)
            .with_context(|| format!("{} ended or answered {line:?}", self.name))?;
        match answer["error"].as_str() {
            Some(error) => bail!("{}: {error}", self.name),
            None => Ok(answer),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It would end by itself at the end of its input; nothing is lost by not waiting for that.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
