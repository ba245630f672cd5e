//! Decoders that embed: from their `config.json` to a plan, with the names of their weights.

use serde::Deserialize;
use serde_json::Value;

use super::encoders::{inverse_root, rotation};
use super::files::parse;
use super::plan::{
    BranchNorms, FeedForward, Layer, Names, Norm, Plan, QueryKeyNorms, Rotation, parse_activation,
};

const QWEN3: Names = Names {
    words: "embed_tokens",
    types: None,
    embedding_norm: None,
    final_norm: Some("norm"),
    layers: "layers",
    attention_input: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    attention_output: "self_attn.o_proj",
    query_key_norms: Some(QueryKeyNorms { names: ["self_attn.q_norm", "self_attn.k_norm"], each_head: true }),
    attention_norms: BranchNorms::pre("input_layernorm"),
    feed_forward: FeedForward::Apart { gate: "mlp.gate_proj", up: "mlp.up_proj" },
    down: "mlp.down_proj",
    feed_forward_norms: BranchNorms::pre("post_attention_layernorm"),
};

const GEMMA3: Names = Names {
    attention_norms: BranchNorms {
        before: Some("input_layernorm"),
        after: Some("post_attention_layernorm"),
        inner_sum: None,
        sum: None,
    },
    feed_forward_norms: BranchNorms {
        before: Some("pre_feedforward_layernorm"),
        after: Some("post_feedforward_layernorm"),
        inner_sum: None,
        sum: None,
    },
    ..QWEN3
};

#[derive(Deserialize)]
struct Sizes {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    hidden_act: Option<String>,
    /// Gemma's name for it; older files have both.
    hidden_activation: Option<String>,
}

impl Sizes {
    fn plan(&self, activation: &str, layer: Layer, names: &'static Names) -> Result<Plan, String> {
        let (heads, kv_heads) =
            (self.num_attention_heads, self.num_key_value_heads.unwrap_or(self.num_attention_heads));
        if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(format!("{heads} heads over {kv_heads} of the keys"));
        }
        let head = self.head_dim.unwrap_or(self.hidden_size / heads);
        Ok(Plan {
            width: self.hidden_size,
            heads,
            kv_heads,
            head,
            scale: inverse_root(head),
            positions: self.max_position_embeddings,
            embedding_scale: 1.0,
            norm: Norm::Rms { less_one: false },
            epsilon: self.rms_norm_eps,
            activation: parse_activation(activation)?,
            causal: true,
            alibi: false,
            layers: vec![layer; self.num_hidden_layers],
            names,
        })
    }
}

pub(super) fn qwen3(config: &Value) -> Result<Plan, String> {
    if config.get("use_sliding_window").and_then(Value::as_bool) == Some(true) {
        return Err("a sliding window".to_owned());
    }
    let layer =
        Layer { rotation: Some(rotation(config, "rope_theta", 1_000_000.0)?), window: None, experts: None };
    let sizes: Sizes = parse(config)?;
    sizes.plan(sizes.hidden_act.as_deref().unwrap_or("silu"), layer, &QWEN3)
}

pub(super) fn gemma3(config: &Value) -> Result<Plan, String> {
    #[derive(Deserialize)]
    struct Gemma {
        query_pre_attn_scalar: usize,
        sliding_window: usize,
        layer_types: Option<Vec<String>>,
        sliding_window_pattern: Option<usize>,
        /// The name that transformers writes; a file may have both.
        #[serde(rename = "_sliding_window_pattern")]
        written_pattern: Option<usize>,
        #[serde(default)]
        use_bidirectional_attention: bool,
        #[serde(default = "global_base")]
        rope_theta: f64,
        #[serde(default = "local_base")]
        rope_local_base_freq: f64,
        rope_parameters: Option<Value>,
        rope_scaling: Option<Value>,
    }
    fn global_base() -> f64 {
        1_000_000.0
    }
    fn local_base() -> f64 {
        10_000.0
    }
    let gemma: Gemma = parse(config)?;
    if let Some(scaling) = gemma.rope_scaling.filter(|it| !it.is_null()) {
        return Err(format!("the rotary scaling {scaling}"));
    }
    let base = |kind: &str, older: f64| {
        let newer = gemma.rope_parameters.as_ref().and_then(|it| it.get(kind)?.get("rope_theta")?.as_f64());
        Some(Rotation::plain(newer.unwrap_or(older)))
    };
    // A window of n reaches n / 2 tokens to both sides, or to the n - 1 tokens before.
    let reach = if gemma.use_bidirectional_attention {
        gemma.sliding_window / 2
    } else {
        gemma.sliding_window.saturating_sub(1)
    };
    let global = Layer { rotation: base("full_attention", gemma.rope_theta), window: None, experts: None };
    let local = Layer {
        rotation: base("sliding_attention", gemma.rope_local_base_freq),
        window: Some(reach),
        experts: None,
    };
    let sizes: Sizes = parse(config)?;
    let activation = sizes.hidden_activation.as_deref().or(sizes.hidden_act.as_deref());
    let mut plan = sizes.plan(activation.unwrap_or("gelu_pytorch_tanh"), global, &GEMMA3)?;
    let pattern = gemma.sliding_window_pattern.or(gemma.written_pattern).unwrap_or(6);
    for (index, layer) in plan.layers.iter_mut().enumerate() {
        let is_local = match &gemma.layer_types {
            Some(types) => types.get(index).is_some_and(|kind| kind == "sliding_attention"),
            None => !(index + 1).is_multiple_of(pattern.max(1)),
        };
        *layer = if is_local { local } else { global };
    }
    #[expect(clippy::cast_precision_loss, reason = "a width is a small number")]
    let embedding_scale = (sizes.hidden_size as f64).sqrt();
    Ok(Plan {
        scale: inverse_root(gemma.query_pre_attn_scalar),
        embedding_scale,
        norm: Norm::Rms { less_one: true },
        causal: !gemma.use_bidirectional_attention,
        ..plan
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kernels::Activation;
    use serde_json::json;

    #[test]
    fn gemma_may_have_what_it_calls_by_two_names_under_both() {
        let config = json!({ "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 128, "query_pre_attn_scalar": 8, "sliding_window": 12,
            "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window_pattern": 2, "_sliding_window_pattern": 6 });
        let plan = gemma3(&config).unwrap();
        assert_eq!(plan.activation, Activation::GeluTanh);
        let local: Vec<bool> = plan.layers.iter().map(|layer| layer.window.is_some()).collect();
        assert_eq!(local, [true, false, true]);
    }
}
