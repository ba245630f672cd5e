//! `config.json` of BERT, and of RoBERTa, XLM-RoBERTa and DistilBERT, which are BERT with other names and positions.

use serde::Deserialize;
use serde_json::Value;

use super::files::parse;

/// What `bert.rs` needs to know.
#[derive(Debug, Clone)]
pub(super) struct BertConfig {
    /// Width of the hidden states.
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    /// Added to the variance in layer normalization.
    pub(super) layer_norm_eps: f64,
    /// Rows of the position table.
    pub(super) max_position_embeddings: usize,
    /// Row of an input's first token in it: RoBERTa begins behind the padding's.
    pub(super) first_position: usize,
    /// Rows of the table of token types; DistilBERT has none.
    pub(super) type_vocab_size: usize,
    /// The checkpoint's name for a tensor of BERT's.
    pub(super) stored_name: fn(&str) -> String,
}

#[derive(Deserialize)]
struct BertFile {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    max_position_embeddings: usize,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default)]
    pad_token_id: Option<usize>,
}

fn two() -> usize {
    2
}

#[derive(Deserialize)]
struct DistilBertFile {
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    activation: String,
    max_position_embeddings: usize,
}

pub(super) fn bert(config: &Value) -> Result<BertConfig, String> {
    let file: BertFile = parse(config)?;
    exact_gelu(&file.hidden_act)?;
    if let Some(kind) = file.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
        return Err(format!("the position embedding {kind:?} (only \"absolute\" is)"));
    }
    heads_fit(file.hidden_size, file.num_attention_heads)?;
    Ok(BertConfig {
        hidden_size: file.hidden_size,
        num_hidden_layers: file.num_hidden_layers,
        num_attention_heads: file.num_attention_heads,
        layer_norm_eps: file.layer_norm_eps,
        max_position_embeddings: file.max_position_embeddings,
        first_position: 0,
        type_vocab_size: file.type_vocab_size,
        stored_name: str::to_owned,
    })
}

pub(super) fn roberta(config: &Value) -> Result<BertConfig, String> {
    let padding = parse::<BertFile>(config)?.pad_token_id.unwrap_or(1);
    let config = bert(config)?;
    if padding + 1 >= config.max_position_embeddings {
        return Err(format!(
            "the padding {padding} in a table of {} positions",
            config.max_position_embeddings
        ));
    }
    Ok(BertConfig { first_position: padding + 1, ..config })
}

pub(super) fn distilbert(config: &Value) -> Result<BertConfig, String> {
    let file: DistilBertFile = parse(config)?;
    exact_gelu(&file.activation)?;
    heads_fit(file.dim, file.n_heads)?;
    Ok(BertConfig {
        hidden_size: file.dim,
        num_hidden_layers: file.n_layers,
        num_attention_heads: file.n_heads,
        // transformers has it in the code, not in the configuration.
        layer_norm_eps: 1e-12,
        max_position_embeddings: file.max_position_embeddings,
        first_position: 0,
        type_vocab_size: 0,
        stored_name: distilbert_name,
    })
}

fn distilbert_name(name: &str) -> String {
    const NAMES: &[(&str, &str)] = &[
        ("encoder.layer.", "transformer.layer."),
        ("attention.self.query", "attention.q_lin"),
        ("attention.self.key", "attention.k_lin"),
        ("attention.self.value", "attention.v_lin"),
        ("attention.output.dense", "attention.out_lin"),
        ("attention.output.LayerNorm", "sa_layer_norm"),
        ("intermediate.dense", "ffn.lin1"),
        ("output.dense", "ffn.lin2"),
        ("output.LayerNorm", "output_layer_norm"),
    ];
    NAMES.iter().fold(name.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs))
}

fn exact_gelu(activation: &str) -> Result<(), String> {
    if activation == "gelu" {
        return Ok(());
    }
    Err(format!("the activation {activation:?} (only \"gelu\" is)"))
}

/// Refuses a width that the heads can't divide among them.
pub(super) fn heads_fit(width: usize, heads: usize) -> Result<(), String> {
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(format!("{heads} heads for a width of {width}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distilbert_names_are_those_of_transformers() {
        for (ours, theirs) in [
            ("embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"),
            ("encoder.layer.3.attention.self.query.bias", "transformer.layer.3.attention.q_lin.bias"),
            ("encoder.layer.3.attention.output.dense.weight", "transformer.layer.3.attention.out_lin.weight"),
            ("encoder.layer.3.attention.output.LayerNorm.weight", "transformer.layer.3.sa_layer_norm.weight"),
            ("encoder.layer.3.output.dense.weight", "transformer.layer.3.ffn.lin2.weight"),
            ("encoder.layer.3.output.LayerNorm.bias", "transformer.layer.3.output_layer_norm.bias"),
        ] {
            assert_eq!(distilbert_name(ours), theirs);
        }
    }
}
