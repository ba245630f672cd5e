//! NomicBERT, from its `config.json` in the words of its authors or of transformers to a plan. The authors' code is the
//! reference for long texts and for experts.

use serde::Deserialize;
use serde_json::Value;

use super::encoders::{Sizes, rotation};
use super::files::parse;
use super::plan::{BranchNorms, Experts, FeedForward, Layer, Names, Plan, Rotation, Stretch};

const GATED: Names = Names {
    words: "embeddings.word_embeddings",
    types: Some("embeddings.token_type_embeddings"),
    embedding_norm: Some("emb_ln"),
    final_norm: None,
    layers: "encoder.layers",
    attention_input: &["attn.Wqkv"],
    attention_output: "attn.out_proj",
    query_key_norms: None,
    attention_norms: BranchNorms::post("norm1"),
    feed_forward: FeedForward::Apart { gate: "mlp.fc12", up: "mlp.fc11" },
    down: "mlp.fc2",
    feed_forward_norms: BranchNorms::post("norm2"),
};

const PLAIN: Names = Names { feed_forward: FeedForward::Plain("mlp.fc1"), ..GATED };

/// What the authors call by other names than transformers. Their newer files have both.
const OLDER: [(&str, &str); 5] = [
    ("n_embd", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
    ("layer_norm_epsilon", "layer_norm_eps"),
    ("activation_function", "hidden_act"),
];

#[derive(Deserialize)]
struct Nomic {
    #[serde(default = "swiglu")]
    hidden_act: String,
    #[serde(default)]
    prenorm: bool,
    #[serde(default)]
    use_rms_norm: bool,
    #[serde(default)]
    rotary_emb_interleaved: bool,
    #[serde(default = "whole")]
    rotary_emb_fraction: f64,
    rotary_emb_scale_base: Option<f64>,
    /// How the angles of longer texts than the model was trained on are stretched; not at all where it is missing.
    rotary_scaling_factor: Option<f64>,
    max_trained_positions: Option<usize>,
    n_positions: Option<usize>,
    max_position_embeddings: Option<usize>,
    #[serde(default)]
    num_experts: usize,
    #[serde(default)]
    moe_top_k: usize,
    #[serde(default)]
    moe_every_n_layers: usize,
    #[serde(default)]
    moe_normalize_expert_weights: bool,
    #[serde(default)]
    expert_choice_router: bool,
    #[serde(default)]
    num_shared_experts: usize,
}

fn swiglu() -> String {
    "swiglu".to_owned()
}

fn whole() -> f64 {
    1.0
}

pub(super) fn nomic_bert(config: &Value) -> Result<Plan, String> {
    let config = in_one_language(config);
    let nomic: Nomic = parse(&config)?;
    let strange = [
        (nomic.prenorm, "norms before the branches"),
        (nomic.use_rms_norm, "RMS norms"),
        (nomic.rotary_emb_interleaved, "interleaved rotary positions"),
        (nomic.rotary_emb_scale_base.is_some(), "rotary positions that fade with the distance"),
        ((nomic.rotary_emb_fraction - 1.0).abs() > f64::EPSILON, "rotary positions for a part of each head"),
        (nomic.moe_normalize_expert_weights, "weights of experts that are normalized"),
        (nomic.expert_choice_router, "experts that choose their tokens"),
        (nomic.num_shared_experts > 0, "experts for all tokens"),
    ];
    if let Some((_, what)) = strange.iter().find(|(is, _)| *is) {
        return Err((*what).to_owned());
    }
    let longest = nomic.n_positions.or(nomic.max_position_embeddings).unwrap_or(0);
    let trained = nomic.max_trained_positions.or(nomic.max_position_embeddings).unwrap_or(longest);
    let (rotation, positions) = positions(&config, nomic.rotary_scaling_factor, trained, longest)?;
    let gated = nomic.hidden_act.ends_with("glu") || nomic.hidden_act == "silu";
    let layer = Layer { rotation: Some(rotation), window: None, experts: None };
    let names = if gated { &GATED } else { &PLAIN };
    let mut plan = parse::<Sizes>(&config)?.plan(&nomic.hidden_act, layer, names)?;
    plan.positions = positions;
    if nomic.num_experts > 0 {
        if gated {
            return Err(format!("experts with the activation {:?} (only \"gelu\" is)", nomic.hidden_act));
        }
        if nomic.moe_top_k == 0 || nomic.moe_top_k > nomic.num_experts {
            return Err(format!("{} of {} experts for a token", nomic.moe_top_k, nomic.num_experts));
        }
        let experts = Experts { count: nomic.num_experts, chosen: nomic.moe_top_k };
        let every = nomic.moe_every_n_layers;
        for (index, layer) in plan.layers.iter_mut().enumerate() {
            layer.experts = Some(experts).filter(|_| every > 0 && index % every == 1);
        }
    }
    Ok(plan)
}

/// The same configuration with transformers' names for everything but positions, which the two do not mean alike.
fn in_one_language(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        for (older, newer) in OLDER {
            if let Some(value) = fields.remove(older) {
                fields.insert(newer.to_owned(), value);
            }
        }
        // What a text may have is said below, and this name is wanted of every model.
        if let Some(value) = fields.get("n_positions").cloned() {
            fields.entry("max_position_embeddings").or_insert(value);
        }
    }
    config
}

/// How positions become angles, and for how many: for no more than the model was trained on where nothing says how to go on.
fn positions(
    config: &Value,
    authors: Option<f64>,
    trained: usize,
    longest: usize,
) -> Result<(Rotation, usize), String> {
    let newer = config.get("rope_parameters").filter(|it| it.get("rope_type") == Some(&"dynamic".into()));
    let factor = newer.and_then(|it| it.get("factor")).and_then(Value::as_f64).or(authors);
    let Some(factor) = factor else {
        return Ok((rotation(config, "rotary_emb_base", 1000.0)?, trained.min(longest)));
    };
    let base = newer.and_then(|it| it.get("rope_theta")).or_else(|| config.get("rotary_emb_base"));
    let base = base.and_then(Value::as_f64).unwrap_or(1000.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let positions = if longest > trained { longest } else { (trained as f64 * factor.max(1.0)) as usize };
    Ok((Rotation { stretch: Stretch::WithLength { factor, trained }, ..Rotation::plain(base) }, positions))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The authors' names; newer files have those of transformers beside them.
    fn config(more: &Value) -> Value {
        let mut config = json!({
            "n_embd": 32, "n_layer": 4, "n_head": 4, "layer_norm_epsilon": 1e-5, "activation_function": "swiglu",
            "n_positions": 8192, "max_trained_positions": 2048, "rotary_emb_base": 1000,
            "rotary_emb_fraction": 1.0, "rotary_scaling_factor": null,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    }

    #[test]
    fn texts_are_as_long_as_the_angles_reach() {
        let stretched = |factor| Stretch::WithLength { factor, trained: 2048 };
        let both = json!({ "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
            "max_position_embeddings": 2048, "rope_parameters": { "rope_type": "default", "rope_theta": 1000.0 } });
        let newer = json!({ "n_positions": 2048, "max_position_embeddings": 2048,
            "rope_parameters": { "rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0 } });
        for (name, more, positions, stretch) in [
            ("nothing says how to go on", json!({}), 2048, Stretch::None),
            ("in both languages", both, 2048, Stretch::None),
            ("a factor of the authors", json!({ "rotary_scaling_factor": 2 }), 8192, stretched(2.0)),
            ("a factor of transformers", newer, 4096, stretched(2.0)),
        ] {
            let plan = nomic_bert(&config(&more)).unwrap();
            let rotation = plan.layers[0].rotation.unwrap();
            assert_eq!(
                (plan.positions, rotation.stretch, rotation.base),
                (positions, stretch, 1000.0),
                "{name}"
            );
        }
    }

    #[test]
    fn every_so_many_layers_have_experts() {
        let moe = json!({ "activation_function": "gelu", "num_experts": 8, "moe_top_k": 2, "moe_every_n_layers": 2 });
        let plan = nomic_bert(&config(&moe)).unwrap();
        let has: Vec<bool> = plan.layers.iter().map(|layer| layer.experts.is_some()).collect();
        assert_eq!(has, [false, true, false, true]);
        for (field, value, says) in [
            ("moe_top_k", json!(9), "9 of 8 experts"),
            ("activation_function", json!("swiglu"), "experts with the activation \"swiglu\""),
            ("num_shared_experts", json!(1), "experts for all tokens"),
        ] {
            let mut config = config(&moe);
            config[field] = value;
            let error = nomic_bert(&config).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
