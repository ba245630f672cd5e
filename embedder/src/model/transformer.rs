//! Computes what a `Plan` describes: tokens to hidden states. Texts lie one behind another, without padding.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::attention::{self, Attention, Reach, Texts};
use super::experts::Experts;
use super::linear::Linear;
use super::ops::{self, Activation, Normalization, Table};
use super::plan::{self, BranchNorms, FeedForward, Plan, Rotation};
use super::precision::Place;
use super::rotary::Rotary;
use super::tokens::Input;

/// Weights of one model at one place.
pub(super) struct Transformer {
    words: Table,
    embedding_scale: f64,
    types: Option<Table>,
    embedding_norm: Option<Normalization>,
    layers: Vec<Layer>,
    final_norm: Option<Normalization>,
}

struct Layer {
    heads: usize,
    kv_heads: usize,
    /// Width of a head.
    head: usize,
    attention_input: Linear,
    attention: Attention,
    attention_output: Linear,
    query_key_norms: Option<[Normalization; 2]>,
    /// Width of what these normalize.
    normalized: usize,
    rotary: Option<Arc<Rotary>>,
    attention_norms: Norms,
    feed_forward: Inner,
    feed_forward_norms: Norms,
}

/// What stands between the norms of the second branch.
enum Inner {
    Plain {
        up: Linear,
        activation: Activation,
        down: Linear,
    },
    Gated {
        /// Gate and up side by side.
        gate_up: Linear,
        gate_first: bool,
        activation: Activation,
        down: Linear,
    },
    Experts(Experts),
}

/// The norms of one branch, as `BranchNorms` names them.
struct Norms {
    before: Option<Normalization>,
    after: Option<Normalization>,
    inner_sum: Option<Normalization>,
    sum: Option<Normalization>,
}

impl Transformer {
    /// Reads the weights from `vb`, the root of the encoder.
    pub(super) fn load(plan: &Plan, vb: &VarBuilder<'_>, place: &Place) -> Result<Self> {
        let names = plan.names;
        let types = names.types.filter(|name| vb.contains_tensor(&format!("{name}.weight")));
        let optional = |name: Option<&str>| name.map(|name| norm(plan, &vb.pp(name), plan.width)).transpose();
        let mut rotaries: Vec<(Rotation, Arc<Rotary>)> = Vec::new();
        let mut layers = Vec::with_capacity(plan.layers.len());
        for (index, layer) in plan.layers.iter().enumerate() {
            let rotary =
                layer.rotation.map(|rotation| rotary(plan, rotation, &mut rotaries, place)).transpose()?;
            layers.push(Layer::load(plan, *layer, rotary, &vb.pp(names.layers).pp(index), place)?);
        }
        Ok(Self {
            words: Table::load(&vb.pp(names.words))?,
            embedding_scale: plan.embedding_scale,
            types: types.map(|name| Table::load(&vb.pp(name))).transpose()?,
            embedding_norm: optional(names.embedding_norm)?,
            layers,
            final_norm: optional(names.final_norm)?,
        })
    }

    /// The table of words: [vocabulary, width].
    pub(super) fn words(&self) -> &Tensor {
        self.words.tensor()
    }

    /// Hidden states of all tokens of all inputs: [tokens, width].
    pub(super) fn encode(&self, inputs: &[&Input]) -> Result<Tensor> {
        let texts = Texts::of(inputs);
        let mut states =
            self.words.rows(inputs.iter().flat_map(|input| input.ids.iter().copied()).collect())?;
        if (self.embedding_scale - 1.0).abs() > f64::EPSILON {
            states = (states * self.embedding_scale)?;
        }
        if let Some(types) = &self.types {
            states = types.add_types(states, inputs)?;
        }
        if let Some(norm) = &self.embedding_norm {
            states = norm.forward(&states)?;
        }
        for layer in &self.layers {
            states = layer.attention_norms.around(&states, |x| layer.attend(x, &texts))?;
            states = layer.feed_forward_norms.around(&states, |x| layer.feed_forward.forward(x))?;
        }
        match &self.final_norm {
            Some(norm) => norm.forward(&states),
            None => Ok(states),
        }
    }
}

/// The table of a rotation, which all layers with the same one share.
fn rotary(
    plan: &Plan,
    rotation: Rotation,
    known: &mut Vec<(Rotation, Arc<Rotary>)>,
    place: &Place,
) -> Result<Arc<Rotary>> {
    if let Some((_, rotary)) = known.iter().find(|(other, _)| *other == rotation) {
        return Ok(Arc::clone(rotary));
    }
    let rotary = Arc::new(Rotary::new(rotation, plan.head, plan.positions, place)?);
    known.push((rotation, Arc::clone(&rotary)));
    Ok(rotary)
}

fn norm(plan: &Plan, vb: &VarBuilder<'_>, width: usize) -> Result<Normalization> {
    match plan.norm {
        plan::Norm::Rms { less_one } => {
            Normalization::rms(vb, width, plan.epsilon, if less_one { 1.0 } else { 0.0 })
        }
        plan::Norm::Layer => Normalization::layer(vb, width, plan.epsilon),
    }
}

impl Layer {
    fn load(
        plan: &Plan,
        layer: plan::Layer,
        rotary: Option<Arc<Rotary>>,
        vb: &VarBuilder<'_>,
        place: &Place,
    ) -> Result<Self> {
        let names = plan.names;
        let inputs: Vec<_> = names.attention_input.iter().map(|name| vb.pp(name)).collect();
        let normalized = match &names.query_key_norms {
            Some(norms) if !norms.each_head => plan.heads * plan.head,
            _ => plan.head,
        };
        let query_key_norms = match names.query_key_norms.as_ref().map(|norms| norms.names) {
            Some([queries, keys]) => {
                Some([norm(plan, &vb.pp(queries), normalized)?, norm(plan, &vb.pp(keys), normalized)?])
            }
            None => None,
        };
        let reach = match (plan.causal, layer.window) {
            (false, None) => Reach::All,
            (true, None) => Reach::Before,
            (false, Some(window)) => Reach::Within(window),
            (true, Some(window)) => Reach::Window(window),
        };
        let slopes = if plan.alibi { attention::slopes(plan.heads) } else { Vec::new() };
        Ok(Self {
            heads: plan.heads,
            kv_heads: plan.kv_heads,
            head: plan.head,
            attention_input: Linear::load(&inputs, place)?,
            attention: Attention::new(plan.heads, plan.head, place)
                .with_key_heads(plan.kv_heads)
                .with_scale(plan.scale)
                .with_reach(reach)
                .with_slopes(slopes),
            attention_output: Linear::load(&[vb.pp(names.attention_output)], place)?,
            query_key_norms,
            normalized,
            rotary,
            attention_norms: Norms::load(plan, &names.attention_norms, vb)?,
            feed_forward: Inner::load(plan, layer.experts, vb, place)?,
            feed_forward_norms: Norms::load(plan, &names.feed_forward_norms, vb)?,
        })
    }

    fn attend(&self, x: &Tensor, texts: &Texts) -> Result<Tensor> {
        let mut qkv = self.attention_input.forward(x)?;
        if let Some([query_norm, key_norm]) = &self.query_key_norms {
            let (tokens, heads) = (x.dim(0)?, self.heads * self.head);
            let part = |start: usize, width: usize| qkv.narrow(1, start, width)?.contiguous();
            let normalized = |norm: &Normalization, part: Tensor, heads: usize| {
                norm.forward(&part.reshape(((), self.normalized))?)?.reshape((tokens, heads * self.head))
            };
            let shared = self.kv_heads * self.head;
            let queries = normalized(query_norm, part(0, heads)?, self.heads)?;
            let keys = normalized(key_norm, part(heads, shared)?, self.kv_heads)?;
            qkv = Tensor::cat(&[queries, keys, part(heads + shared, shared)?], 1)?;
        }
        if let Some(rotary) = &self.rotary {
            qkv = rotary.forward(qkv, &texts.lengths, self.heads + self.kv_heads)?;
        }
        self.attention_output.forward(&self.attention.forward(&qkv, texts)?)
    }
}

impl Inner {
    fn load(plan: &Plan, experts: Option<plan::Experts>, vb: &VarBuilder<'_>, place: &Place) -> Result<Self> {
        let activation = plan.activation;
        if let Some(experts) = experts {
            return Ok(Self::Experts(Experts::load(experts, activation, &vb.pp("mlp"), place)?));
        }
        let (gate_up, gate_first) = match plan.names.feed_forward {
            FeedForward::Plain(name) => {
                let down = Linear::load(&[vb.pp(plan.names.down)], place)?;
                return Ok(Self::Plain { up: Linear::load(&[vb.pp(name)], place)?, activation, down });
            }
            FeedForward::Apart { gate, up } => (vec![vb.pp(gate), vb.pp(up)], true),
            FeedForward::GateUp(name) => (vec![vb.pp(name)], true),
            FeedForward::UpGate(name) => (vec![vb.pp(name)], false),
        };
        Ok(Self::Gated {
            gate_up: Linear::load(&gate_up, place)?,
            gate_first,
            activation,
            down: Linear::load(&[vb.pp(plan.names.down)], place)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain { up, activation, down } => down.forward(&up.forward_with(x, *activation)?),
            Self::Gated { gate_up, gate_first, activation, down } => {
                down.forward(&ops::gate(&gate_up.forward(x)?, *activation, *gate_first)?)
            }
            Self::Experts(experts) => experts.forward(x),
        }
    }
}

impl Norms {
    fn load(plan: &Plan, names: &BranchNorms, vb: &VarBuilder<'_>) -> Result<Self> {
        let present = |name: &&str| vb.contains_tensor(&format!("{name}.weight"));
        let load = |name: &str| norm(plan, &vb.pp(name), plan.width);
        Ok(Self {
            before: names.before.filter(present).map(load).transpose()?,
            after: names.after.map(load).transpose()?,
            inner_sum: names.inner_sum.map(load).transpose()?,
            sum: names.sum.map(load).transpose()?,
        })
    }

    /// `x` plus what `branch` makes of it, each normalized where the model has it so.
    fn around(&self, x: &Tensor, branch: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let mut output = match &self.before {
            Some(norm) => branch(&norm.forward(x)?)?,
            None => branch(x)?,
        };
        if let Some(norm) = &self.after {
            output = norm.forward(&output)?;
        }
        if let Some(norm) = &self.inner_sum {
            output = norm.forward_residual(output, x)?;
        }
        match &self.sum {
            Some(norm) => norm.forward_residual(output, x),
            None => ops::add(output, x),
        }
    }
}
