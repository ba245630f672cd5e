//! A feed-forward part that is many, of which each token goes through the few that a router gives the most weight.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::VarBuilder;

use super::linear::Linear;
use super::ops::Activation;
use super::plan;
use super::precision::Place;

/// Weights of one layer's experts.
pub(super) struct Experts {
    /// [experts, width], in f32: a token that goes to another expert is another token.
    router: Tensor,
    chosen: usize,
    experts: Vec<Expert>,
    bias: Tensor,
    activation: Activation,
}

struct Expert {
    up: Linear,
    down: Linear,
}

impl Experts {
    /// Reads the weights as NomicBERT's authors store them: those of all experts one below another.
    pub(super) fn load(
        plan: plan::Experts,
        activation: Activation,
        vb: &VarBuilder<'_>,
        place: &Place,
    ) -> Result<Self> {
        let all = vb.pp("experts");
        let (up, down) = (all.get_unchecked("mlp.w1")?, all.get_unchecked("mlp.w2")?);
        let router = vb.get_unchecked("router.layer.weight")?.to_dtype(DType::F32)?;
        if router.dim(0)? != plan.count || up.dims() != down.dims() || up.dim(0)? % plan.count != 0 {
            candle_core::bail!(
                "{} experts of {:?} and {:?}, with a router of {:?}",
                plan.count,
                up.shape(),
                down.shape(),
                router.shape()
            );
        }
        let inner = up.dim(0)? / plan.count;
        let experts = (0..plan.count)
            .map(|index| {
                let own = |all: &Tensor| all.narrow(0, index * inner, inner);
                Ok(Expert {
                    up: Linear::new(&own(&up)?, None, place)?,
                    down: Linear::new(&own(&down)?.t()?.contiguous()?, None, place)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { router, chosen: plan.chosen, experts, bias: all.get_unchecked("bias")?, activation })
    }

    /// `Σ weight · down(activation(up(x))) + bias` over the chosen experts of each token, whose weights are those of the softmax
    /// over all: [tokens, width].
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let scores = x.to_dtype(DType::F32)?.matmul(&self.router.t()?)?;
        let weights: Vec<Vec<f32>> = candle_nn::ops::softmax(&scores, D::Minus1)?.to_vec2()?;
        let mut tokens: Vec<(Vec<u32>, Vec<f32>)> = vec![Default::default(); self.experts.len()];
        for (token, weights) in (0_u32..).zip(&weights) {
            let mut order: Vec<usize> = (0..weights.len()).collect();
            // Stable: of equal weights the first.
            order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
            for expert in order.into_iter().take(self.chosen) {
                tokens[expert].0.push(token);
                tokens[expert].1.push(weights[expert]);
            }
        }
        let mut sums = self.bias.broadcast_as(x.shape())?.contiguous()?;
        for (expert, (rows, weights)) in self.experts.iter().zip(tokens) {
            if rows.is_empty() {
                continue;
            }
            let weights = Tensor::new(weights, x.device())?.unsqueeze(1)?.to_dtype(x.dtype())?;
            let rows = Tensor::new(rows, x.device())?;
            let inner = expert.up.forward_with(&x.index_select(&rows, 0)?, self.activation)?;
            let output = expert.down.forward(&inner)?.broadcast_mul(&weights)?;
            sums = sums.index_add(&rows, &output, 0)?;
        }
        Ok(sums)
    }
}
