//! Computes what a `Plan` describes: tokens to hidden states. Texts lie one behind another, without padding.

use candle_core::{Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::masked_attention::{self, Masked};
use super::plan::{self, Activation, BranchNorms, FeedForward, Plan, Rotation};
use super::tokens::Input;

/// Weights of one model on one device.
pub(super) struct Transformer {
    plan: Plan,
    device: Device,
    words: Tensor,
    types: Option<Tensor>,
    embedding_norm: Option<Norm>,
    layers: Vec<Layer>,
    final_norm: Option<Norm>,
    slopes: Vec<f32>,
}

struct Layer {
    attention_input: Linear,
    attention_output: Linear,
    head_norms: Option<[Norm; 2]>,
    attention_norms: Norms,
    gate: Linear,
    up: Linear,
    down: Linear,
    feed_forward_norms: Norms,
    plan: plan::Layer,
}

/// The norms of one branch, as `BranchNorms` names them.
struct Norms {
    before: Option<Norm>,
    after: Option<Norm>,
    sum: Option<Norm>,
}

enum Norm {
    Layer { weight: Tensor, shift: Tensor, epsilon: f32 },
    Rms { weight: Tensor, epsilon: f32 },
}

struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

/// Cosines and sines of the positions of one batch: [tokens, head / 2] each.
struct Angles {
    rotation: Rotation,
    cosines: Tensor,
    sines: Tensor,
}

impl Transformer {
    /// Reads the weights from `vb`, the root of the encoder.
    pub(super) fn load(plan: &Plan, vb: &VarBuilder<'_>, device: &Device) -> Result<Self> {
        let names = plan.names;
        let types = names.types.filter(|name| vb.contains_tensor(&format!("{name}.weight")));
        let optional =
            |name: Option<&str>| name.map(|name| Norm::load(plan, &vb.pp(name), plan.width)).transpose();
        let layers = plan
            .layers
            .iter()
            .enumerate()
            .map(|(index, layer)| Layer::load(plan, *layer, &vb.pp(names.layers).pp(index)));
        Ok(Self {
            words: vb.pp(names.words).get_unchecked("weight")?,
            types: types.map(|name| vb.pp(name).get_unchecked("weight")).transpose()?,
            embedding_norm: optional(names.embedding_norm)?,
            layers: layers.collect::<Result<_>>()?,
            final_norm: optional(names.final_norm)?,
            slopes: if plan.alibi { masked_attention::slopes(plan.heads) } else { Vec::new() },
            device: device.clone(),
            plan: plan.clone(),
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
        let pick = |table: &Tensor, rows: Vec<u32>| table.index_select(&Tensor::new(rows, &self.device)?, 0);
        let mut states = pick(&self.words, words)?;
        if (self.plan.embedding_scale - 1.0).abs() > f64::EPSILON {
            states = (states * self.plan.embedding_scale)?;
        }
        if let Some(table) = &self.types {
            // Some tokenizers number the second text of a pair though the model knows one type.
            let last = u32::try_from(table.dim(0)?.saturating_sub(1)).map_err(candle_core::Error::wrap)?;
            let types =
                inputs.iter().flat_map(|input| &input.type_ids).map(|kind| *kind.min(&last)).collect();
            states = states.add(&pick(table, types)?)?;
        }
        if let Some(norm) = &self.embedding_norm {
            states = norm.forward(&states)?;
        }
        let angles = self.angles(&lengths)?;
        for layer in &self.layers {
            let angles = angles.iter().find(|it| Some(it.rotation) == layer.plan.rotation);
            let masked = Masked {
                heads: self.plan.heads,
                kv_heads: self.plan.kv_heads,
                head: self.plan.head,
                scale: self.plan.scale,
                causal: self.plan.causal,
                window: layer.plan.window,
                slopes: &self.slopes,
                lengths: &lengths,
            };
            states = layer.attention_norms.around(&states, |x| layer.attend(x, &masked, angles))?;
            states =
                layer.feed_forward_norms.around(&states, |x| layer.feed_forward(x, self.plan.activation))?;
        }
        match &self.final_norm {
            Some(norm) => norm.forward(&states),
            None => Ok(states),
        }
    }

    /// The angles of every rotation that a layer asks for, once each.
    fn angles(&self, lengths: &[usize]) -> Result<Vec<Angles>> {
        let mut found: Vec<Angles> = Vec::new();
        for rotation in self.layers.iter().filter_map(|layer| layer.plan.rotation) {
            if found.iter().any(|it| it.rotation == rotation) {
                continue;
            }
            let frequencies = rotation.frequencies(self.plan.head);
            let tokens: usize = lengths.iter().sum();
            let mut cosines = Vec::with_capacity(tokens * frequencies.len());
            let mut sines = Vec::with_capacity(cosines.capacity());
            for position in lengths.iter().flat_map(|length| 0..*length) {
                for frequency in &frequencies {
                    #[expect(clippy::cast_precision_loss, reason = "texts are shorter than 2^53 tokens")]
                    let (sine, cosine) = (position as f64 * frequency).sin_cos();
                    #[expect(clippy::cast_possible_truncation, reason = "the computation is in f32")]
                    {
                        sines.push(sine as f32);
                        cosines.push(cosine as f32);
                    }
                }
            }
            let table = |values| Tensor::from_vec(values, (tokens, frequencies.len()), &self.device);
            found.push(Angles { rotation, cosines: table(cosines)?, sines: table(sines)? });
        }
        Ok(found)
    }
}

impl Layer {
    fn load(plan: &Plan, layer: plan::Layer, vb: &VarBuilder<'_>) -> Result<Self> {
        let names = plan.names;
        let (gate, up) = match names.feed_forward {
            FeedForward::Apart { gate, up } => (Linear::load(&[vb.pp(gate)])?, Linear::load(&[vb.pp(up)])?),
            FeedForward::GateUp(name) => Linear::load_halves(&vb.pp(name))?,
            FeedForward::UpGate(name) => {
                let (up, gate) = Linear::load_halves(&vb.pp(name))?;
                (gate, up)
            }
        };
        let inputs: Vec<_> = names.attention_input.iter().map(|name| vb.pp(name)).collect();
        let head_norms = match names.head_norms {
            Some([queries, keys]) => Some([
                Norm::load(plan, &vb.pp(queries), plan.head)?,
                Norm::load(plan, &vb.pp(keys), plan.head)?,
            ]),
            None => None,
        };
        Ok(Self {
            attention_input: Linear::load(&inputs)?,
            attention_output: Linear::load(&[vb.pp(names.attention_output)])?,
            head_norms,
            attention_norms: Norms::load(plan, &names.attention_norms, vb)?,
            gate,
            up,
            down: Linear::load(&[vb.pp(names.down)])?,
            feed_forward_norms: Norms::load(plan, &names.feed_forward_norms, vb)?,
            plan: layer,
        })
    }

    fn attend(&self, x: &Tensor, masked: &Masked<'_>, angles: Option<&Angles>) -> Result<Tensor> {
        let qkv = self.attention_input.forward(x)?;
        let (width, shared) = (masked.heads * masked.head, masked.kv_heads * masked.head);
        let part = |start, width| qkv.narrow(1, start, width)?.contiguous();
        let (mut queries, mut keys) = (part(0, width)?, part(width, shared)?);
        let values = part(width + shared, shared)?;
        if let Some([query_norm, key_norm]) = &self.head_norms {
            queries = query_norm.forward(&queries.reshape(((), masked.head))?)?;
            keys = key_norm.forward(&keys.reshape(((), masked.head))?)?;
        }
        if let Some(angles) = angles {
            queries = angles.turn(&queries, masked.heads, masked.head)?;
            keys = angles.turn(&keys, masked.kv_heads, masked.head)?;
        }
        let tokens = x.dim(0)?;
        let (queries, keys) = (queries.reshape((tokens, width))?, keys.reshape((tokens, shared))?);
        self.attention_output.forward(&masked.attend(&queries, &keys, &values)?)
    }

    fn feed_forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let gate = self.gate.forward(x)?;
        let gate = match activation {
            Activation::Gelu => gate.gelu_erf(),
            Activation::GeluTanh => gate.gelu(),
            Activation::Silu => gate.silu(),
            Activation::Relu => gate.relu(),
        }?;
        self.down.forward(&gate.mul(&self.up.forward(x)?)?)
    }
}

impl Angles {
    fn turn(&self, x: &Tensor, heads: usize, head: usize) -> Result<Tensor> {
        candle_nn::rotary_emb::rope_thd(&x.reshape((1, (), heads, head))?, &self.cosines, &self.sines)
    }
}

impl Norms {
    fn load(plan: &Plan, names: &BranchNorms, vb: &VarBuilder<'_>) -> Result<Self> {
        let present = |name: &&str| vb.contains_tensor(&format!("{name}.weight"));
        let load = |name: &str| Norm::load(plan, &vb.pp(name), plan.width);
        Ok(Self {
            before: names.before.filter(present).map(load).transpose()?,
            after: names.after.map(load).transpose()?,
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
        let sum = output.add(x)?;
        match &self.sum {
            Some(norm) => norm.forward(&sum),
            None => Ok(sum),
        }
    }
}

impl Norm {
    fn load(plan: &Plan, vb: &VarBuilder<'_>, width: usize) -> Result<Self> {
        let weight = vb.get(width, "weight")?;
        #[expect(clippy::cast_possible_truncation, reason = "the computation is in f32")]
        let epsilon = plan.epsilon as f32;
        Ok(match plan.norm {
            plan::Norm::Rms { less_one: true } => Self::Rms { weight: (weight + 1.0)?, epsilon },
            plan::Norm::Rms { less_one: false } => Self::Rms { weight, epsilon },
            plan::Norm::Layer => {
                let shift =
                    if vb.contains_tensor("bias") { vb.get(width, "bias")? } else { weight.zeros_like()? };
                Self::Layer { weight, shift, epsilon }
            }
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer { weight, shift, epsilon } => candle_nn::ops::layer_norm(x, weight, shift, *epsilon),
            Self::Rms { weight, epsilon } => candle_nn::ops::rms_norm(x, weight, *epsilon),
        }
    }
}

impl Linear {
    /// One product for all `parts`, whose outputs stand beside one another.
    fn load(parts: &[VarBuilder<'_>]) -> Result<Self> {
        let (weight, bias) = read(parts)?;
        Ok(Self { weight, bias })
    }

    /// The two halves of the outputs of one product, each as a product of its own.
    fn load_halves(vb: &VarBuilder<'_>) -> Result<(Self, Self)> {
        let (weight, bias) = read(std::slice::from_ref(vb))?;
        let half = weight.dim(0)? / 2;
        let part = |start: usize| -> Result<Self> {
            let part = |tensor: &Tensor| tensor.narrow(0, start, half)?.contiguous();
            Ok(Self { weight: part(&weight)?, bias: bias.as_ref().map(part).transpose()? })
        };
        Ok((part(0)?, part(half)?))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let product = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

/// Weights and biases of `parts`, one behind another; all or none of them have a bias.
fn read(parts: &[VarBuilder<'_>]) -> Result<(Tensor, Option<Tensor>)> {
    let all = |name: &str| -> Result<Tensor> {
        let tensors = parts.iter().map(|vb| vb.get_unchecked(name)).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&tensors, 0)
    };
    let biased = parts.iter().any(|vb| vb.contains_tensor("bias"));
    Ok((all("weight")?, biased.then(|| all("bias")).transpose()?))
}
