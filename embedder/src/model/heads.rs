//! What stands on top of an encoder: hidden states to vectors, logits, weights of words and vectors of tokens.

use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Device, IndexOp, Module, Result, Tensor};
use candle_nn::{LayerNorm, VarBuilder};

use super::architecture::Family;
use super::files::{ModelFiles, Projection, SparseHead};
use super::ops::{first_of_texts, means_of_texts};
use super::output::{Output, normalize};
use super::sentence::{Dense, Pooling, SparsePooling, Squash};
use super::tokens::Input;

/// Ids of XLM-RoBERTa's special tokens, which have no weight as words: `<s>`, `<pad>`, `</s>`, `<unk>`.
const NO_WORDS: u32 = 4;

/// Tokens whose scores of all words are in memory at once. Those of a long text are gigabytes: a vocabulary has up to 250,000
/// words. With fewer tokens the product would mostly read weights.
pub(super) const BLOCK: usize = 64;

/// Weights of all heads of one model on one device.
pub(super) struct Heads {
    /// Poolings, and the layers behind them.
    vector: Option<(Vec<Pooling>, Vec<Layer>)>,
    sparse: Option<Sparse>,
    multi: Option<Multi>,
}

enum Sparse {
    MaskedLm { transform: Layer, decoder: Tensor, bias: Tensor, pooling: SparsePooling },
    Tokens(Layer),
}

struct Multi {
    layers: Vec<Layer>,
    /// Whether the first token has no vector.
    skip_first: bool,
}

/// `norm(squash(x · weight + bias))`
struct Layer {
    weight: Tensor,
    bias: Option<Tensor>,
    squash: Squash,
    norm: Option<LayerNorm>,
}

impl Heads {
    /// Reads the weights from `root`; `encoder` is where the encoder's lie, `words` its table of words.
    pub(super) fn load(
        files: &ModelFiles,
        root: &VarBuilder<'_>,
        encoder: &VarBuilder<'_>,
        words: &Tensor,
    ) -> Result<Self> {
        let device = root.device();
        let vector = if files.heads.labels.is_some() {
            Some(classifier(files, root, encoder)?)
        } else {
            match &files.heads.dense {
                Some(head) => Some((head.pooling.clone(), dense_layers(&head.layers, device)?)),
                None => None,
            }
        };
        let sparse = match &files.heads.sparse {
            Some(SparseHead::MaskedLm(pooling)) => Some(masked_lm(files, root, words, *pooling)?),
            Some(SparseHead::Tokens(path)) => Some(Sparse::Tokens(pickled_layer(path, device)?)),
            None => None,
        };
        let multi = match files.heads.multi.as_ref().map(|head| &head.layers) {
            Some(Projection::Linear) => Some(Multi {
                layers: vec![Layer::load(&root.pp("linear"), Squash::Nothing)?],
                skip_first: false,
            }),
            Some(Projection::Dense(layers)) => {
                Some(Multi { layers: dense_layers(layers, device)?, skip_first: false })
            }
            Some(Projection::File(path)) => {
                Some(Multi { layers: vec![pickled_layer(path, device)?], skip_first: true })
            }
            None => None,
        };
        Ok(Self { vector, sparse, multi })
    }

    /// What each input wants, from the hidden states of all of them ([tokens, width]).
    pub(super) fn outputs(&self, states: &Tensor, inputs: &[&Input]) -> Result<Vec<Output>> {
        let mut outputs = vec![Output::default(); inputs.len()];
        if let Some((poolings, layers)) =
            self.vector.as_ref().filter(|_| inputs.iter().any(|input| input.wants.vector))
        {
            let pooled =
                poolings.iter().map(|mode| pool(states, inputs, *mode)).collect::<Result<Vec<_>>>()?;
            let vectors = run(layers, Tensor::cat(&pooled, 1)?)?.to_dtype(DType::F32)?.to_vec2()?;
            for (output, vector) in outputs.iter_mut().zip(vectors) {
                output.vector = vector;
            }
        }
        let mut start = 0;
        for (output, input) in outputs.iter_mut().zip(inputs) {
            let wants = input.wants;
            if !wants.vector {
                output.vector = Vec::new();
            }
            let own = states.narrow(0, start, input.len())?;
            start += input.len();
            if wants.states {
                output.states = own.to_dtype(DType::F32)?.to_vec2()?;
            }
            if let (true, Some(sparse)) = (wants.sparse, &self.sparse) {
                // Functions and comparisons behind it would make zeros of what is no number.
                let sum: f32 = own.sum_all()?.to_scalar()?;
                output.sparse =
                    if sum.is_finite() { sparse.weights(&own, input)? } else { vec![(0, f32::NAN)] };
            }
            if let (true, Some(multi)) = (wants.multi, &self.multi) {
                output.multi = multi.vectors(&own)?;
            }
        }
        Ok(outputs)
    }
}

impl Sparse {
    fn weights(&self, states: &Tensor, input: &Input) -> Result<Vec<(u32, f32)>> {
        match self {
            Self::MaskedLm { transform, decoder, bias, pooling } => {
                let decoder = decoder.t()?;
                let weigh = |scores: &Tensor| {
                    let weights = (scores.broadcast_add(bias)?.relu()? + 1.0)?.log()?;
                    if pooling.twice { (weights + 1.0)?.log() } else { Ok(weights) }
                };
                let pool = |states: &Tensor| {
                    let scores = transform.forward(states)?.matmul(&decoder)?;
                    // A weight never falls where its score grows: the largest score has the largest weight.
                    if pooling.sum { weigh(&scores)?.sum(0) } else { scores.max(0) }
                };
                let pooled =
                    in_blocks(states, pool, |a, b| if pooling.sum { a.add(b) } else { a.maximum(b) })?;
                let weights = if pooling.sum { pooled } else { weigh(&pooled)? };
                let weights: Vec<f32> = weights.to_dtype(DType::F32)?.to_vec1()?;
                Ok((0..).zip(weights).filter(|(_, weight)| *weight > 0.0).collect())
            }
            Self::Tokens(layer) => {
                let weights: Vec<f32> =
                    layer.forward(states)?.relu()?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
                let mut best = std::collections::BTreeMap::new();
                for (id, weight) in input.ids.iter().zip(weights) {
                    if *id >= NO_WORDS && weight > 0.0 {
                        let entry = best.entry(*id).or_insert(weight);
                        *entry = weight.max(*entry);
                    }
                }
                Ok(best.into_iter().collect())
            }
        }
    }
}

/// What `each` makes of [`BLOCK`] rows after another, put together by `join`.
fn in_blocks(
    rows: &Tensor,
    each: impl Fn(&Tensor) -> Result<Tensor>,
    join: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let count = rows.dim(0)?;
    let mut all = each(&rows.narrow(0, 0, count.min(BLOCK))?)?;
    for start in (BLOCK..count).step_by(BLOCK) {
        let block = rows.narrow(0, start, BLOCK.min(count - start))?;
        all = join(&all, &each(&block)?)?;
    }
    Ok(all)
}

impl Multi {
    fn vectors(&self, states: &Tensor) -> Result<Vec<Vec<f32>>> {
        let skipped = usize::from(self.skip_first);
        let states = states.narrow(0, skipped, states.dim(0)?.saturating_sub(skipped))?;
        let mut vectors: Vec<Vec<f32>> = run(&self.layers, states)?.to_dtype(DType::F32)?.to_vec2()?;
        for vector in &mut vectors {
            normalize(vector);
        }
        Ok(vectors)
    }
}

impl Layer {
    fn load(vb: &VarBuilder<'_>, squash: Squash) -> Result<Self> {
        let bias = vb.contains_tensor("bias").then(|| vb.get_unchecked("bias")).transpose()?;
        Ok(Self { weight: vb.get_unchecked("weight")?, bias, squash, norm: None })
    }

    fn with_norm(self, vb: &VarBuilder<'_>, epsilon: f64) -> Result<Self> {
        let weight = vb.get_unchecked("weight")?;
        let shift =
            if vb.contains_tensor("bias") { vb.get_unchecked("bias")? } else { weight.zeros_like()? };
        Ok(Self { norm: Some(LayerNorm::new(weight, shift, epsilon)), ..self })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.matmul(&self.weight.t()?)?;
        if let Some(bias) = &self.bias {
            x = x.broadcast_add(bias)?;
        }
        x = match self.squash {
            Squash::Nothing => x,
            Squash::Tanh => x.tanh()?,
            Squash::Relu => x.relu()?,
            Squash::Gelu => x.gelu_erf()?,
        };
        match &self.norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }
}

fn run(layers: &[Layer], x: Tensor) -> Result<Tensor> {
    layers.iter().try_fold(x, |x, layer| layer.forward(&x))
}

/// The layers of a classifier, as each family names them.
fn classifier(
    files: &ModelFiles,
    root: &VarBuilder<'_>,
    encoder: &VarBuilder<'_>,
) -> Result<(Vec<Pooling>, Vec<Layer>)> {
    let last = |name: &str| Layer::load(&root.pp(name), Squash::Nothing);
    let first = |vb: VarBuilder<'_>, squash| Layer::load(&vb, squash);
    let layers = match files.family {
        Family::Roberta => {
            vec![first(root.pp("classifier.dense"), Squash::Tanh)?, last("classifier.out_proj")?]
        }
        Family::DistilBert => vec![first(root.pp("pre_classifier"), Squash::Relu)?, last("classifier")?],
        Family::ModernBert => {
            let head = first(root.pp("head.dense"), Squash::Gelu)?;
            vec![head.with_norm(&root.pp("head.norm"), files.backbone.epsilon())?, last("classifier")?]
        }
        _ => {
            let pooler = encoder.pp("pooler.dense");
            // A checkpoint without a pooler has its first state classified as it is.
            let pooler = pooler.contains_tensor("weight").then(|| first(pooler, Squash::Tanh)).transpose()?;
            pooler.into_iter().chain([last("classifier")?]).collect()
        }
    };
    let labels = files.heads.labels.as_ref().map_or(0, Vec::len);
    let outputs = layers.last().map_or(Ok(0), |layer| layer.weight.dim(0))?;
    if outputs != labels {
        candle_core::bail!("the classifier has {outputs} outputs for {labels} labels");
    }
    Ok((files.classifier_pooling.map_or_else(|| vec![Pooling::Cls], |pooling| vec![pooling]), layers))
}

/// The head of a masked language model; its decoder is the table of words where it has no weights of its own.
fn masked_lm(
    files: &ModelFiles,
    root: &VarBuilder<'_>,
    words: &Tensor,
    pooling: SparsePooling,
) -> Result<Sparse> {
    let (dense, norm, decoder, biases): (_, _, _, &[&str]) = match files.family {
        Family::Roberta => (
            "lm_head.dense",
            "lm_head.layer_norm",
            "lm_head.decoder",
            &["lm_head.bias", "lm_head.decoder.bias"],
        ),
        Family::DistilBert => {
            ("vocab_transform", "vocab_layer_norm", "vocab_projector", &["vocab_projector.bias"])
        }
        Family::ModernBert => ("head.dense", "head.norm", "decoder", &["decoder.bias"]),
        _ => (
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.decoder",
            &["cls.predictions.bias", "cls.predictions.decoder.bias"],
        ),
    };
    let transform =
        Layer::load(&root.pp(dense), Squash::Gelu)?.with_norm(&root.pp(norm), files.backbone.epsilon())?;
    let decoder = root.pp(decoder);
    let decoder =
        if decoder.contains_tensor("weight") { decoder.get_unchecked("weight")? } else { words.clone() };
    match biases.iter().find(|name| root.contains_tensor(name)) {
        Some(name) => Ok(Sparse::MaskedLm { transform, decoder, bias: root.get_unchecked(name)?, pooling }),
        None => candle_core::bail!("the weights have none of {}", biases.join(" and ")),
    }
}

fn dense_layers(layers: &[Dense], device: &Device) -> Result<Vec<Layer>> {
    let load = |layer: &Dense| {
        let vb = super::weights::open(std::slice::from_ref(&layer.weights), DType::F32, device)?;
        Layer::load(&vb.pp("linear"), layer.squash)
    };
    layers.iter().map(load).collect()
}

/// A linear layer as PyTorch pickles it: `weight` and `bias`.
fn pickled_layer(path: &Path, device: &Device) -> Result<Layer> {
    let vb = VarBuilder::from_pth(path, DType::F32, device)?;
    Layer::load(&vb, Squash::Nothing)
}

/// One row for each input: [inputs, width].
fn pool(states: &Tensor, inputs: &[&Input], pooling: Pooling) -> Result<Tensor> {
    let lengths: Vec<usize> = inputs.iter().map(|input| input.len()).collect();
    let whole = inputs.iter().all(|input| input.unpooled == 0);
    #[expect(clippy::cast_precision_loss, reason = "texts are shorter than 2^24 tokens")]
    match pooling {
        Pooling::Cls if whole => first_of_texts(states, &lengths),
        Pooling::Mean if whole => means_of_texts(states, &lengths),
        Pooling::Cls => of_each_text(states, inputs, |own, _| own.i(0)),
        Pooling::Mean => of_each_text(states, inputs, |own, _| own.mean(0)),
        Pooling::LastToken => of_each_text(states, inputs, |own, places| own.i(places.len() - 1)),
        Pooling::Max => of_each_text(states, inputs, |own, _| own.max(0)),
        Pooling::MeanSqrtLength => {
            of_each_text(states, inputs, |own, places| own.sum(0)? / (places.len() as f64).sqrt())
        }
        Pooling::WeightedMean => of_each_text(states, inputs, |own, places| {
            let weights: Vec<f32> = places.map(|place| (place + 1) as f32).collect();
            let total: f32 = weights.iter().sum();
            let weights = Tensor::from_vec(weights, (own.dim(0)?, 1), own.device())?.to_dtype(own.dtype())?;
            own.broadcast_mul(&weights)?.sum(0)? / f64::from(total)
        }),
    }
}

/// What `row` makes of the states of each text that are pooled and their places in the text, one below another.
fn of_each_text(
    states: &Tensor,
    inputs: &[&Input],
    row: impl Fn(&Tensor, Range<usize>) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut start = 0;
    let mut rows = Vec::with_capacity(inputs.len());
    for input in inputs {
        let places = input.unpooled..input.len();
        rows.push(row(&states.narrow(0, start + places.start, places.len())?, places)?);
        start += input.len();
    }
    Tensor::stack(&rows, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Wants;

    #[test]
    fn weights_of_words_are_no_numbers_where_the_states_are_none() {
        let weight = Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
        let layer = Layer { weight, bias: None, squash: Squash::Nothing, norm: None };
        let heads = Heads { vector: None, sparse: Some(Sparse::Tokens(layer)), multi: None };
        let input =
            |id| Input { ids: vec![id], type_ids: vec![0], unpooled: 0, unseen: 0, wants: Wants::SPARSE };
        let states = Tensor::new(&[[1.0_f32, 2.0], [f32::NAN, 1.0]], &Device::Cpu).unwrap();
        let outputs = heads.outputs(&states, &[&input(7), &input(8)]).unwrap();
        assert_eq!(outputs[0].sparse, [(7, 3.0)]);
        assert!(outputs[0].is_finite() && !outputs[1].is_finite());
    }

    #[test]
    fn the_scores_of_a_long_text_are_never_in_memory_all_at_once() {
        let rows = Tensor::ones((2 * BLOCK + 1, 3), DType::F32, &Device::Cpu).unwrap();
        let seen = std::cell::RefCell::new(Vec::new());
        let each = |block: &Tensor| {
            seen.borrow_mut().push(block.dim(0)?);
            block.sum(0)
        };
        let sums = in_blocks(&rows, each, Tensor::add).unwrap();
        assert_eq!(seen.into_inner(), [BLOCK, BLOCK, 1]);
        assert_eq!(sums.to_vec1::<f32>().unwrap(), [129.0; 3]);
    }

    #[test]
    fn words_weigh_the_same_however_many_blocks_a_text_has() {
        // The score of the first word is largest at the end of the text, that of the second at its beginning.
        let places: Vec<f32> = (0..150_u8).map(f32::from).collect();
        let states: Vec<[f32; 2]> = places.iter().map(|place| [place / 149.0, 1.0 - place / 149.0]).collect();
        let (decoder, bias) = ([[2.0_f32, -1.0], [-1.0, 3.0], [-1.0, -1.0]], [0.5_f32, 0.0, 0.25]);
        let tensor =
            |rows: &[[f32; 2]]| Tensor::from_vec(rows.concat(), (rows.len(), 2), &Device::Cpu).unwrap();
        let input = Input {
            ids: vec![7; states.len()],
            type_ids: vec![0; states.len()],
            unpooled: 0,
            unseen: 0,
            wants: Wants::SPARSE,
        };
        for (sum, twice) in [(false, false), (false, true), (true, false), (true, true)] {
            let weight = tensor(&[[1.0, 0.0], [0.0, 1.0]]);
            let head = Sparse::MaskedLm {
                transform: Layer { weight, bias: None, squash: Squash::Nothing, norm: None },
                decoder: tensor(&decoder),
                bias: Tensor::new(&bias, &Device::Cpu).unwrap(),
                pooling: SparsePooling { sum, twice },
            };
            let expected = (0..3).map(|word| {
                let weights = states.iter().map(|state| {
                    let score = state[0] * decoder[word][0] + state[1] * decoder[word][1] + bias[word];
                    let weight = score.max(0.0).ln_1p();
                    if twice { weight.ln_1p() } else { weight }
                });
                weights.fold(0.0, |all: f32, one| if sum { all + one } else { all.max(one) })
            });
            let found = head.weights(&tensor(&states), &input).unwrap();
            assert_eq!(
                found.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
                [0, 1],
                "no word has a score below 0"
            );
            for ((_, found), expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5 * expected.max(1.0), "{found} instead of {expected}");
            }
        }
    }
}
