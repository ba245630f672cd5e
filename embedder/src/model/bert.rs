//! The BERT encoder: tokens to hidden states. Texts lie one behind another, without padding. What is made of the states is
//! decided in `heads`.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::attention;
use super::bert_config::BertConfig;
use super::ops::{AddLayerNorm, Bias};
use super::tokens::Input;

/// Weights of one model on one device.
pub(super) struct Bert {
    device: Device,
    words: Tensor,
    positions: Tensor,
    /// Absent in DistilBERT.
    types: Option<Tensor>,
    embedding_norm: AddLayerNorm,
    layers: Vec<Layer>,
    heads: usize,
    /// Row of a text's first token in the table of positions.
    first_position: u32,
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

impl Bert {
    /// Reads the weights from `bert`, the root of the encoder, under BERT's own names.
    pub(super) fn load(config: &BertConfig, bert: &VarBuilder<'_>, device: &Device) -> Result<Self> {
        let width = config.hidden_size;
        let table = |name: &str| bert.pp("embeddings").pp(name).get_unchecked("weight");
        let norm = |vb: &VarBuilder<'_>, bias: Tensor| {
            let vb = vb.pp("LayerNorm");
            AddLayerNorm::new(bias, vb.get(width, "weight")?, vb.get(width, "bias")?, config.layer_norm_eps)
        };
        let embedding_norm = norm(&bert.pp("embeddings"), Tensor::zeros(width, DType::F32, device)?)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(&bert.pp("encoder.layer").pp(index), width, &norm))
            .collect::<Result<_>>()?;
        Ok(Self {
            words: table("word_embeddings")?,
            positions: table("position_embeddings")?,
            types: (config.type_vocab_size > 0).then(|| table("token_type_embeddings")).transpose()?,
            embedding_norm,
            layers,
            heads: config.num_attention_heads,
            first_position: u32::try_from(config.first_position).map_err(candle_core::Error::wrap)?,
            device: device.clone(),
        })
    }

    /// The table of words: [vocabulary, width].
    pub(super) fn words(&self) -> &Tensor {
        &self.words
    }

    /// Hidden states of all tokens of all inputs: [tokens, width].
    pub(super) fn encode(&self, inputs: &[&Input]) -> Result<Tensor> {
        let lengths: Vec<usize> = inputs.iter().map(|input| input.len()).collect();
        let words: Vec<u32> = inputs.iter().flat_map(|input| input.ids.iter().copied()).collect();
        let positions: Vec<u32> =
            inputs.iter().flat_map(|input| (self.first_position..).take(input.len())).collect();
        let pick = |table: &Tensor, rows: Vec<u32>| table.index_select(&Tensor::new(rows, &self.device)?, 0);
        let words = pick(&self.words, words)?;
        let mut others = pick(&self.positions, positions)?;
        if let Some(table) = &self.types {
            // Some tokenizers number the second text of a pair though the model knows one type.
            let last = u32::try_from(table.dim(0)?.saturating_sub(1)).map_err(candle_core::Error::wrap)?;
            let types =
                inputs.iter().flat_map(|input| &input.type_ids).map(|kind| *kind.min(&last)).collect();
            others = others.add(&pick(table, types)?)?;
        }
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
