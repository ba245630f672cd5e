//! candle's own BERT behind the lines of JSON that `peers.py` speaks: `candle-peer <model folder> <corpus.json>`.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use serde_json::{Value, json};
use tokenizers::{Encoding, Tokenizer, TruncationParams};

/// Texts of a batch: the best of 1, 8 and 32 on the machines that were tried.
const BATCH: usize = 8;

struct Peer {
    model: BertModel,
    tokenizer: Tokenizer,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, corpus] = arguments.as_slice() else { anyhow::bail!("candle-peer <model folder> <corpus.json>") };
    let peer = Peer::load(Path::new(folder))?;
    let corpus: Value = serde_json::from_slice(&std::fs::read(corpus)?)?;
    let texts = |name: &str| -> Vec<String> {
        match &corpus[name] {
            Value::Array(texts) => texts.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect(),
            text => text.as_str().map(str::to_owned).into_iter().collect(),
        }
    };
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let answer = match request["task"].as_str() {
            Some("bulk") => {
                let texts = texts("bulk");
                let started = Instant::now();
                peer.embed(&texts)?;
                json!({ "seconds": started.elapsed().as_secs_f64(), "batch": BATCH })
            }
            Some("latency") => {
                let texts = texts(request["text"].as_str().context("no text")?);
                let times: Result<Vec<f64>> = (0..request["count"].as_u64().context("no count")?)
                    .map(|_| {
                        let started = Instant::now();
                        peer.embed(&texts)?;
                        Ok(started.elapsed().as_secs_f64() * 1000.0)
                    })
                    .collect();
                json!({ "milliseconds": times? })
            }
            _ => json!({ "vectors": peer.embed(&texts(request["text"].as_str().context("no text")?))? }),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

impl Peer {
    fn load(folder: &Path) -> Result<Self> {
        let config: Config = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
        let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu)?;
        let model = BertModel::load(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu), &config)?;
        let mut tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).map_err(anyhow::Error::msg)?;
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(TruncationParams { max_length: 256, ..Default::default() }))
            .map_err(anyhow::Error::msg)?;
        Ok(Self { model, tokenizer })
    }

    /// Batches of like lengths, padded to their longest.
    fn embed(&self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        let encodings = self.tokenizer.encode_batch_fast(texts.to_vec(), true).map_err(anyhow::Error::msg)?;
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(encodings[*index].len()));
        let mut vectors = vec![Vec::new(); texts.len()];
        for indices in order.chunks(BATCH) {
            let longest = encodings[indices[0]].len();
            let table = |values: fn(&Encoding) -> &[u32]| -> Result<Tensor> {
                let rows = indices.iter().flat_map(|index| {
                    let row = values(&encodings[*index]);
                    row.iter().copied().chain(std::iter::repeat_n(0, longest - row.len()))
                });
                Ok(Tensor::from_vec(rows.collect::<Vec<u32>>(), (indices.len(), longest), &Device::Cpu)?)
            };
            let (ids, mask) = (table(Encoding::get_ids)?, table(Encoding::get_attention_mask)?);
            let states = self.model.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
            let mask = mask.to_dtype(DType::F32)?.unsqueeze(2)?;
            let means = states.broadcast_mul(&mask)?.sum(1)?.broadcast_div(&mask.sum(1)?)?;
            let lengths = means.sqr()?.sum_keepdim(1)?.sqrt()?;
            for (index, vector) in indices.iter().zip(means.broadcast_div(&lengths)?.to_vec2::<f32>()?) {
                vectors[*index] = vector;
            }
        }
        Ok(vectors)
    }
}
