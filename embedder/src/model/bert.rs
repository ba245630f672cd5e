//! The BERT encoder: tokens to hidden states. Texts lie one behind another, without padding. What is made of the states is
//! decided in `heads`.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::attention::{Attention, Texts};
use super::bert_config::BertConfig;
use super::linear::Linear;
use super::ops::{Activation, Normalization, Table};
use super::precision::Place;
use super::tokens::Input;

/// Weights of one model at one place.
pub(super) struct Bert {
    words: Table,
    positions: Table,
    /// Absent in DistilBERT.
    types: Option<Table>,
    embedding_norm: Normalization,
    layers: Vec<Layer>,
    /// Row of a text's first token in the table of positions.
    first_position: u32,
}

struct Layer {
    /// Queries, keys and values side by side.
    qkv: Linear,
    attention: Attention,
    output: Linear,
    output_norm: Normalization,
    up: Linear,
    down: Linear,
    down_norm: Normalization,
}

impl Bert {
    /// Reads the weights from `bert`, the root of the encoder, under BERT's own names.
    pub(super) fn load(config: &BertConfig, bert: &VarBuilder<'_>, place: &Place) -> Result<Self> {
        let embeddings = bert.pp("embeddings");
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(&bert.pp("encoder.layer").pp(index), config, place))
            .collect::<Result<_>>()?;
        Ok(Self {
            words: Table::load(&embeddings.pp("word_embeddings"))?,
            positions: Table::load(&embeddings.pp("position_embeddings"))?,
            types: (config.type_vocab_size > 0)
                .then(|| Table::load(&embeddings.pp("token_type_embeddings")))
                .transpose()?,
            embedding_norm: Normalization::layer(
                &embeddings.pp("LayerNorm"),
                config.hidden_size,
                config.layer_norm_eps,
            )?,
            layers,
            first_position: u32::try_from(config.first_position).map_err(candle_core::Error::wrap)?,
        })
    }

    /// The table of words: [vocabulary, width].
    pub(super) fn words(&self) -> &Tensor {
        self.words.tensor()
    }

    /// Hidden states of all tokens of all inputs: [tokens, width].
    pub(super) fn encode(&self, inputs: &[&Input]) -> Result<Tensor> {
        let texts = Texts::of(inputs);
        let positions =
            texts.lengths.iter().flat_map(|length| (self.first_position..).take(*length)).collect();
        let words = inputs.iter().flat_map(|input| input.ids.iter().copied()).collect();
        let mut embedded = self.positions.add_rows(self.words.rows(words)?, positions)?;
        if let Some(types) = &self.types {
            embedded = types.add_types(embedded, inputs)?;
        }
        let mut states = self.embedding_norm.forward(&embedded)?;
        for layer in &self.layers {
            states = layer.forward(&states, &texts)?;
        }
        Ok(states)
    }
}

impl Layer {
    fn load(vb: &VarBuilder<'_>, config: &BertConfig, place: &Place) -> Result<Self> {
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        let own = vb.pp("attention.self");
        let norm =
            |vb: &VarBuilder<'_>| Normalization::layer(&vb.pp("LayerNorm"), width, config.layer_norm_eps);
        let attention = vb.pp("attention.output");
        let down = vb.pp("output");
        Ok(Self {
            qkv: Linear::load(&[own.pp("query"), own.pp("key"), own.pp("value")], place)?,
            attention: Attention::new(heads, width / heads, place),
            output: Linear::load(&[attention.pp("dense")], place)?,
            output_norm: norm(&attention)?,
            up: Linear::load(&[vb.pp("intermediate.dense")], place)?,
            down: Linear::load(&[down.pp("dense")], place)?,
            down_norm: norm(&down)?,
        })
    }

    fn forward(&self, states: &Tensor, texts: &Texts) -> Result<Tensor> {
        let attended = self.attention.forward(&self.qkv.forward(states)?, texts)?;
        let states = self.output_norm.forward_residual(self.output.forward(&attended)?, states)?;
        let inner = self.up.forward_with(&states, Activation::Gelu)?;
        self.down_norm.forward_residual(self.down.forward(&inner)?, &states)
    }
}
