//! The BERT encoder with its two heads: pooled vectors and one logit. Texts lie one behind another, without padding.

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Linear, VarBuilder};

use super::attention;
use super::files::{ModelFiles, Pooling, Task};
use super::ops::{AddLayerNorm, Bias};
use super::tokens::Input;

/// Weights of one model on one device.
pub(super) struct Bert {
    device: Device,
    words: Tensor,
    positions: Tensor,
    types: Tensor,
    embedding_norm: AddLayerNorm,
    layers: Vec<Layer>,
    heads: usize,
    classifier: Option<Classifier>,
}

struct Layer {
    /// Queries, keys and values in one product: [3 · width, width].
    qkv: Tensor,
    qkv_bias: Bias,
    output: Tensor,
    output_norm: AddLayerNorm,
    up: Tensor,
    up_bias: Bias,
    down: Tensor,
    down_norm: AddLayerNorm,
}

struct Classifier {
    pooler: Linear,
    output: Linear,
}

impl Bert {
    pub(super) fn load(files: &ModelFiles, device: &Device) -> Result<Self> {
        let root = weights(files, device)?;
        let config = &files.config;
        let width = config.hidden_size;
        // Sequence classifiers keep the encoder under its name; sentence-transformers saves it bare.
        let prefixed = root.contains_tensor("bert.embeddings.word_embeddings.weight");
        let bert = if prefixed { root.pp("bert") } else { root.clone() };
        let table = |name: &str| bert.pp("embeddings").pp(name).get_unchecked("weight");
        let norm = |vb: &VarBuilder<'_>, bias: Tensor| {
            let vb = vb.pp("LayerNorm");
            AddLayerNorm::new(bias, vb.get(width, "weight")?, vb.get(width, "bias")?, config.layer_norm_eps)
        };
        let embedding_norm = norm(&bert.pp("embeddings"), Tensor::zeros(width, DType::F32, device)?)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(&bert.pp("encoder.layer").pp(index), width, &norm))
            .collect::<Result<_>>()?;
        let classifier = match files.task {
            Task::Embedding(_) => None,
            Task::Reranker(_) => Some(Classifier {
                pooler: candle_nn::linear(width, width, bert.pp("pooler.dense"))?,
                output: candle_nn::linear(width, 1, root.pp("classifier"))?,
            }),
        };
        Ok(Self {
            words: table("word_embeddings")?,
            positions: table("position_embeddings")?,
            types: table("token_type_embeddings")?,
            embedding_norm,
            layers,
            heads: config.num_attention_heads,
            classifier,
            device: device.clone(),
        })
    }

    pub(super) fn run(&self, inputs: &[&Input], task: &Task) -> Result<Vec<Vec<f32>>> {
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let states = self.encode(inputs)?;
        match (task, &self.classifier) {
            (Task::Embedding(pooling), _) => pool(&states, inputs, *pooling)?.to_vec2(),
            (Task::Reranker(_), Some(classifier)) => {
                let first = first_tokens(&states, inputs)?;
                let pooled = classifier.pooler.forward(&first)?.tanh()?;
                classifier.output.forward(&pooled)?.to_vec2()
            }
            (Task::Reranker(_), None) => candle_core::bail!("the model was loaded without its classifier"),
        }
    }

    /// Hidden states of all tokens of all inputs: [tokens, width].
    fn encode(&self, inputs: &[&Input]) -> Result<Tensor> {
        let lengths: Vec<usize> = inputs.iter().map(|input| input.len()).collect();
        let words: Vec<u32> = inputs.iter().flat_map(|input| input.ids.iter().copied()).collect();
        let types: Vec<u32> = inputs.iter().flat_map(|input| input.type_ids.iter().copied()).collect();
        let positions: Vec<u32> = inputs.iter().flat_map(|input| (0..).take(input.len())).collect();
        let pick = |table: &Tensor, rows: Vec<u32>| table.index_select(&Tensor::new(rows, &self.device)?, 0);
        let words = pick(&self.words, words)?;
        let others = pick(&self.positions, positions)?.add(&pick(&self.types, types)?)?;
        let mut states = self.embedding_norm.forward(words, &others)?;
        for layer in &self.layers {
            states = layer.forward(&states, &lengths, self.heads)?;
        }
        Ok(states)
    }
}

impl Layer {
    fn load(
        vb: &VarBuilder<'_>,
        width: usize,
        norm: &impl Fn(&VarBuilder<'_>, Tensor) -> Result<AddLayerNorm>,
    ) -> Result<Self> {
        let heads: Vec<_> =
            ["query", "key", "value"].iter().map(|name| vb.pp("attention.self").pp(name)).collect();
        let weights = heads.iter().map(|vb| vb.get((width, width), "weight")).collect::<Result<Vec<_>>>()?;
        let biases = heads.iter().map(|vb| vb.get(width, "bias")).collect::<Result<Vec<_>>>()?;
        let attention = vb.pp("attention.output");
        let up = vb.pp("intermediate.dense");
        let down = vb.pp("output");
        Ok(Self {
            qkv: Tensor::cat(&weights, 0)?,
            qkv_bias: Bias::new(Tensor::cat(&biases, 0)?)?,
            output: attention.pp("dense").get((width, width), "weight")?,
            output_norm: norm(&attention, attention.pp("dense").get(width, "bias")?)?,
            up: up.get_unchecked("weight")?,
            up_bias: Bias::new(up.get_unchecked("bias")?)?,
            down: down.pp("dense").get_unchecked("weight")?,
            down_norm: norm(&down, down.pp("dense").get(width, "bias")?)?,
        })
    }

    fn forward(&self, states: &Tensor, lengths: &[usize], heads: usize) -> Result<Tensor> {
        let qkv = self.qkv_bias.add(states.matmul(&self.qkv.t()?)?)?;
        let attended = attention::attend(&qkv, lengths, heads)?;
        let states = self.output_norm.forward(attended.matmul(&self.output.t()?)?, states)?;
        let inner = self.up_bias.add_and_gelu(states.matmul(&self.up.t()?)?)?;
        self.down_norm.forward(inner.matmul(&self.down.t()?)?, &states)
    }
}

/// Weights are computed in f32, whatever type they are stored in.
#[allow(unsafe_code, reason = "mapping a file into memory")]
fn weights(files: &ModelFiles, device: &Device) -> Result<VarBuilder<'static>> {
    let path = files.folder.join("model.safetensors");
    // SAFETY: the file belongs to a model folder that nobody writes to while it is served: an image volume, a read-only
    // mount or a finished download.
    unsafe { VarBuilder::from_mmaped_safetensors(&[path], DType::F32, device) }
}

fn pool(states: &Tensor, inputs: &[&Input], pooling: Pooling) -> Result<Tensor> {
    if pooling == Pooling::Cls {
        return first_tokens(states, inputs);
    }
    let mut start = 0;
    let mut means = Vec::with_capacity(inputs.len());
    for input in inputs {
        means.push(states.narrow(0, start, input.len())?.mean(0)?);
        start += input.len();
    }
    Tensor::stack(&means, 0)
}

/// The state of each input's first token, `[CLS]`: [inputs, width].
fn first_tokens(states: &Tensor, inputs: &[&Input]) -> Result<Tensor> {
    let mut rows = Vec::with_capacity(inputs.len());
    let mut start = 0_u32;
    for input in inputs {
        rows.push(start);
        start += u32::try_from(input.len()).map_err(candle_core::Error::wrap)?;
    }
    states.index_select(&Tensor::new(rows, states.device())?, 0)
}
