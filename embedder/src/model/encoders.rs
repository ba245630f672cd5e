//! Encoders that are not BERT: from their `config.json` to a plan, with the names of their weights.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::bert_config::heads_fit;
use super::files::parse;
use super::plan::{
    BranchNorms, FeedForward, Layer, Names, Norm, Plan, QueryKeyNorms, Rotation, Stretch, parse_activation,
};

const MODERN_BERT: Names = Names {
    words: "embeddings.tok_embeddings",
    types: None,
    embedding_norm: Some("embeddings.norm"),
    final_norm: Some("final_norm"),
    layers: "layers",
    attention_input: &["attn.Wqkv"],
    attention_output: "attn.Wo",
    query_key_norms: None,
    attention_norms: BranchNorms::pre("attn_norm"),
    feed_forward: FeedForward::GateUp("mlp.Wi"),
    down: "mlp.Wo",
    feed_forward_norms: BranchNorms::pre("mlp_norm"),
};

const GTE: Names = Names {
    words: "embeddings.word_embeddings",
    types: Some("embeddings.token_type_embeddings"),
    embedding_norm: Some("embeddings.LayerNorm"),
    final_norm: None,
    layers: "encoder.layer",
    attention_input: &["attention.qkv_proj"],
    attention_output: "attention.o_proj",
    query_key_norms: None,
    attention_norms: BranchNorms::post("attn_ln"),
    feed_forward: FeedForward::UpGate("mlp.up_gate_proj"),
    down: "mlp.down_proj",
    feed_forward_norms: BranchNorms::post("mlp_ln"),
};

const JINA: Names = Names {
    words: "embeddings.word_embeddings",
    types: Some("embeddings.token_type_embeddings"),
    embedding_norm: Some("embeddings.LayerNorm"),
    final_norm: None,
    layers: "encoder.layer",
    attention_input: &["attention.self.query", "attention.self.key", "attention.self.value"],
    attention_output: "attention.output.dense",
    query_key_norms: None,
    attention_norms: BranchNorms::post("attention.output.LayerNorm"),
    feed_forward: FeedForward::GateUp("mlp.gated_layers"),
    down: "mlp.wo",
    feed_forward_norms: BranchNorms::post("mlp.layernorm"),
};

/// Jina's code model, whose authors call it `qk-post-norm`: norms of queries and keys, and the attention's input added twice.
const JINA_CODE: Names = Names {
    query_key_norms: Some(QueryKeyNorms {
        names: ["attention.self.layer_norm_q", "attention.self.layer_norm_k"],
        each_head: false,
    }),
    attention_norms: BranchNorms {
        before: None,
        after: None,
        inner_sum: Some("attention.output.LayerNorm"),
        sum: Some("layer_norm_1"),
    },
    feed_forward: FeedForward::UpGate("mlp.up_gated_layer"),
    down: "mlp.down_layer",
    feed_forward_norms: BranchNorms::post("layer_norm_2"),
    ..JINA
};

/// Sizes under the names of transformers.
#[derive(Deserialize)]
pub(super) struct Sizes {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    layer_norm_eps: Option<f64>,
    /// ModernBERT's name for it. Files from before transformers 5 have the other one beside it, which says nothing there.
    norm_eps: Option<f64>,
    max_position_embeddings: usize,
}

impl Sizes {
    pub(super) fn plan(&self, activation: &str, layer: Layer, names: &'static Names) -> Result<Plan, String> {
        heads_fit(self.hidden_size, self.num_attention_heads)?;
        let head = self.hidden_size / self.num_attention_heads;
        Ok(Plan {
            width: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_attention_heads,
            head,
            scale: inverse_root(head),
            positions: self.max_position_embeddings,
            embedding_scale: 1.0,
            norm: Norm::Layer,
            epsilon: self.layer_norm_eps.or(self.norm_eps).unwrap_or(1e-12),
            activation: parse_activation(activation)?,
            causal: false,
            alibi: false,
            layers: vec![layer; self.num_hidden_layers],
            names,
        })
    }
}

/// `1 / √width`
#[expect(clippy::cast_precision_loss, reason = "the width of a head is a small number")]
pub(super) fn inverse_root(width: usize) -> f32 {
    1.0 / (width as f32).sqrt()
}

/// The rotation that the newer and the older form of a configuration describe.
pub(super) fn rotation(config: &Value, base: &str, default: f64) -> Result<Rotation, String> {
    let parameters = config.get("rope_parameters").filter(|it| !it.is_null());
    let scaling = config.get("rope_scaling").filter(|it| !it.is_null()).or(parameters);
    let number =
        |value: Option<&Value>, name: &str| value.and_then(|it| it.get(name)).and_then(Value::as_f64);
    let base = number(parameters, "rope_theta").or_else(|| number(Some(config), base)).unwrap_or(default);
    let kind = scaling.and_then(|it| it.get("rope_type").or_else(|| it.get("type"))).and_then(Value::as_str);
    match kind {
        None | Some("default") => Ok(Rotation::plain(base)),
        Some("ntk") => {
            Ok(Rotation { base, stretch: Stretch::Fixed(number(scaling, "factor").unwrap_or(1.0)) })
        }
        Some(other) => Err(format!("the rotary scaling {other:?} (only \"default\" and \"ntk\" are)")),
    }
}

pub(super) fn modern_bert(config: &Value) -> Result<Plan, String> {
    #[derive(Deserialize)]
    struct Modern {
        #[serde(default = "gelu")]
        hidden_activation: String,
        #[serde(default = "local")]
        local_attention: usize,
        #[serde(default = "every_third")]
        global_attn_every_n_layers: usize,
        layer_types: Option<Vec<String>>,
        #[serde(default = "global_base")]
        global_rope_theta: f64,
        #[serde(default = "local_base")]
        local_rope_theta: f64,
        rope_parameters: Option<Value>,
    }
    fn local() -> usize {
        128
    }
    fn every_third() -> usize {
        3
    }
    fn global_base() -> f64 {
        160_000.0
    }
    fn local_base() -> f64 {
        10_000.0
    }
    let modern: Modern = parse(config)?;
    let base = |kind: &str, older: f64| {
        let newer = modern.rope_parameters.as_ref().and_then(|it| it.get(kind)?.get("rope_theta")?.as_f64());
        Rotation::plain(newer.unwrap_or(older))
    };
    let global = Layer {
        rotation: Some(base("full_attention", modern.global_rope_theta)),
        window: None,
        experts: None,
    };
    let local = Layer {
        rotation: Some(base("sliding_attention", modern.local_rope_theta)),
        window: Some(modern.local_attention / 2),
        experts: None,
    };
    let sizes: Sizes = parse(config)?;
    let mut plan = sizes.plan(&modern.hidden_activation, global, &MODERN_BERT)?;
    plan.epsilon = sizes.norm_eps.or(sizes.layer_norm_eps).unwrap_or(1e-5);
    for (index, layer) in plan.layers.iter_mut().enumerate() {
        let is_local = match &modern.layer_types {
            Some(types) => types.get(index).is_some_and(|kind| kind == "sliding_attention"),
            None => !index.is_multiple_of(modern.global_attn_every_n_layers.max(1)),
        };
        *layer = if is_local { local } else { global };
    }
    Ok(plan)
}

pub(super) fn gte(config: &Value) -> Result<Plan, String> {
    #[derive(Deserialize)]
    struct Gte {
        #[serde(default = "gelu")]
        hidden_act: String,
        #[serde(default)]
        logn_attention_scale: bool,
        layer_norm_type: Option<String>,
        position_embedding_type: Option<String>,
    }
    let gte: Gte = parse(config)?;
    if gte.logn_attention_scale {
        return Err("attention scaled by the logarithm of the length".to_owned());
    }
    for (found, expected) in [(&gte.layer_norm_type, "layer_norm"), (&gte.position_embedding_type, "rope")] {
        if let Some(found) = found.as_deref().filter(|found| *found != expected) {
            return Err(format!("{found:?} (only {expected:?} is)"));
        }
    }
    let layer =
        Layer { rotation: Some(rotation(config, "rope_theta", 160_000.0)?), window: None, experts: None };
    parse::<Sizes>(config)?.plan(&gte.hidden_act, layer, &GTE)
}

pub(super) fn jina(config: &Value) -> Result<Plan, String> {
    #[derive(Deserialize)]
    struct Jina {
        #[serde(default = "geglu")]
        feed_forward_type: String,
        position_embedding_type: Option<String>,
        #[serde(default)]
        auto_map: BTreeMap<String, String>,
        #[serde(default, rename = "_name_or_path")]
        name_or_path: String,
    }
    impl Jina {
        /// All of Jina's models have the same class; they differ in the repository that their code is in.
        fn code(&self) -> Option<&str> {
            let mapped = self.auto_map.values().filter_map(|value| value.split("--").next());
            mapped
                .chain([&*self.name_or_path])
                .find_map(|name| name.strip_prefix("jinaai/"))
                .filter(|name| name.starts_with("jina-bert-"))
        }
    }
    fn geglu() -> String {
        "geglu".to_owned()
    }
    let jina: Jina = parse(config)?;
    if jina.position_embedding_type.as_deref() != Some("alibi") {
        return Err(format!("the position embedding {:?} (only \"alibi\" is)", jina.position_embedding_type));
    }
    let layer = Layer { rotation: None, window: None, experts: None };
    let names = match jina.code() {
        None | Some("jina-bert-implementation") => &JINA,
        Some("jina-bert-v2-qk-post-norm") => &JINA_CODE,
        Some(other) => return Err(format!("the code {other:?} of Jina's authors")),
    };
    let plan = parse::<Sizes>(config)?.plan(&jina.feed_forward_type, layer, names)?;
    Ok(Plan { alibi: true, ..plan })
}

fn gelu() -> String {
    "gelu".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_family_reads_its_own_name_of_the_epsilon_first() {
        for (more, modern, other) in [
            (json!({ "layer_norm_eps": 1e-3, "norm_eps": 1e-4 }), 1e-4, 1e-3),
            (json!({ "layer_norm_eps": 1e-3 }), 1e-3, 1e-3),
            (json!({ "norm_eps": 1e-4 }), 1e-4, 1e-4),
            (json!({}), 1e-5, 1e-12),
        ] {
            let mut config = json!({ "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                "max_position_embeddings": 128 });
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let epsilons = [modern_bert(&config), gte(&config)].map(|plan| plan.unwrap().epsilon);
            assert_eq!(epsilons, [modern, other], "{more}");
        }
    }
}
