//! Encoders that are not BERT: from their `config.json` to a plan, with the names of their weights.

use serde::Deserialize;
use serde_json::Value;

use super::bert_config::heads_fit;
use super::files::parse;
use super::plan::{BranchNorms, FeedForward, Layer, Names, Norm, Plan, Rotation, parse_activation};

const NOMIC_BERT: Names = Names {
    words: "embeddings.word_embeddings",
    types: Some("embeddings.token_type_embeddings"),
    embedding_norm: Some("emb_ln"),
    final_norm: None,
    layers: "encoder.layers",
    attention_input: &["attn.Wqkv"],
    attention_output: "attn.out_proj",
    head_norms: None,
    attention_norms: BranchNorms::post("norm1"),
    feed_forward: FeedForward::Apart { gate: "mlp.fc12", up: "mlp.fc11" },
    down: "mlp.fc2",
    feed_forward_norms: BranchNorms::post("norm2"),
};

const MODERN_BERT: Names = Names {
    words: "embeddings.tok_embeddings",
    types: None,
    embedding_norm: Some("embeddings.norm"),
    final_norm: Some("final_norm"),
    layers: "layers",
    attention_input: &["attn.Wqkv"],
    attention_output: "attn.Wo",
    head_norms: None,
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
    head_norms: None,
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
    head_norms: None,
    attention_norms: BranchNorms::post("attention.output.LayerNorm"),
    feed_forward: FeedForward::GateUp("mlp.gated_layers"),
    down: "mlp.wo",
    feed_forward_norms: BranchNorms::post("mlp.layernorm"),
};

/// Sizes under the names of transformers and, for NomicBERT, of its authors.
#[derive(Deserialize)]
struct Sizes {
    #[serde(alias = "n_embd")]
    hidden_size: usize,
    #[serde(alias = "n_layer")]
    num_hidden_layers: usize,
    #[serde(alias = "n_head")]
    num_attention_heads: usize,
    #[serde(alias = "layer_norm_epsilon", alias = "norm_eps", default = "bert_epsilon")]
    layer_norm_eps: f64,
    #[serde(alias = "n_positions")]
    max_position_embeddings: usize,
}

fn bert_epsilon() -> f64 {
    1e-12
}

impl Sizes {
    fn plan(&self, activation: &str, layer: Layer, names: &'static Names) -> Result<Plan, String> {
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
            epsilon: self.layer_norm_eps,
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
        Some("ntk") => Ok(Rotation { base, stretch: number(scaling, "factor").unwrap_or(1.0) }),
        Some(other) => Err(format!("the rotary scaling {other:?} (only \"default\" and \"ntk\" are)")),
    }
}

pub(super) fn nomic_bert(config: &Value) -> Result<Plan, String> {
    #[derive(Deserialize)]
    struct Nomic {
        #[serde(alias = "activation_function", default = "swiglu")]
        hidden_act: String,
        #[serde(default)]
        prenorm: bool,
        #[serde(default)]
        use_rms_norm: bool,
        #[serde(default)]
        num_experts: usize,
        #[serde(default)]
        rotary_emb_interleaved: bool,
        #[serde(default = "whole")]
        rotary_emb_fraction: f64,
        max_trained_positions: Option<usize>,
    }
    fn swiglu() -> String {
        "swiglu".to_owned()
    }
    fn whole() -> f64 {
        1.0
    }
    let nomic: Nomic = parse(config)?;
    let strange = [
        (nomic.prenorm, "norms before the branches"),
        (nomic.use_rms_norm, "RMS norms"),
        (nomic.num_experts > 0, "experts"),
        (nomic.rotary_emb_interleaved, "interleaved rotary positions"),
        ((nomic.rotary_emb_fraction - 1.0).abs() > f64::EPSILON, "rotary positions for a part of each head"),
    ];
    if let Some((_, what)) = strange.iter().find(|(is, _)| *is) {
        return Err((*what).to_owned());
    }
    let rotation = rotation(config, "rotary_emb_base", 1000.0)?;
    let layer = Layer { rotation: Some(rotation), window: None };
    let plan = parse::<Sizes>(config)?.plan(&nomic.hidden_act, layer, &NOMIC_BERT)?;
    // Beyond these the authors stretch the angles text by text; nothing here does, so that longer texts are cut.
    Ok(Plan { positions: plan.positions.min(nomic.max_trained_positions.unwrap_or(usize::MAX)), ..plan })
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
    let global = Layer { rotation: Some(base("full_attention", modern.global_rope_theta)), window: None };
    let local = Layer {
        rotation: Some(base("sliding_attention", modern.local_rope_theta)),
        window: Some(modern.local_attention / 2),
    };
    let mut plan = parse::<Sizes>(config)?.plan(&modern.hidden_activation, global, &MODERN_BERT)?;
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
    let layer = Layer { rotation: Some(rotation(config, "rope_theta", 160_000.0)?), window: None };
    parse::<Sizes>(config)?.plan(&gte.hidden_act, layer, &GTE)
}

pub(super) fn jina(config: &Value) -> Result<Plan, String> {
    #[derive(Deserialize)]
    struct Jina {
        #[serde(default = "geglu")]
        feed_forward_type: String,
        position_embedding_type: Option<String>,
    }
    fn geglu() -> String {
        "geglu".to_owned()
    }
    let jina: Jina = parse(config)?;
    if jina.position_embedding_type.as_deref() != Some("alibi") {
        return Err(format!("the position embedding {:?} (only \"alibi\" is)", jina.position_embedding_type));
    }
    let layer = Layer { rotation: None, window: None };
    let plan = parse::<Sizes>(config)?.plan(&jina.feed_forward_type, layer, &JINA)?;
    Ok(Plan { alibi: true, ..plan })
}

fn gelu() -> String {
    "gelu".to_owned()
}
