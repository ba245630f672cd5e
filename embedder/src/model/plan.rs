//! What a transformer of the newer kinds is made of, as data: `encoders` and `decoders` fill it in from a model's
//! `config.json`, `transformer` computes it. All of them have a gated feed-forward part; no type here knows a tensor.

use super::kernels::Activation;

/// Everything that tells one transformer from another.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Width of the hidden states.
    pub(super) width: usize,
    /// Heads of the queries.
    pub(super) heads: usize,
    /// Heads of the keys and values; each serves as many heads of the queries.
    pub(super) kv_heads: usize,
    /// Width of a head.
    pub(super) head: usize,
    /// Factor of the scores before the softmax.
    pub(super) scale: f32,
    /// The most tokens of a text that the model was made for.
    pub(super) positions: usize,
    /// Factor of the word embeddings.
    pub(super) embedding_scale: f64,
    pub(super) norm: Norm,
    /// Added to the variance in every normalization.
    pub(super) epsilon: f64,
    pub(super) activation: Activation,
    /// Whether a token sees the tokens before it alone.
    pub(super) causal: bool,
    /// Whether scores fall with the distance of the tokens, by a slope for each head.
    pub(super) alibi: bool,
    pub(super) layers: Vec<Layer>,
    pub(super) names: &'static Names,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Layer {
    pub(super) rotation: Option<Rotation>,
    /// The largest distance of two tokens that see each other.
    pub(super) window: Option<usize>,
}

/// Positions as angles by which queries and keys are turned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rotation {
    pub(super) base: f64,
    /// By how much the range of the trained positions is stretched, with fixed NTK scaling.
    pub(super) stretch: f64,
}

impl Rotation {
    pub(super) fn plain(base: f64) -> Self {
        Self { base, stretch: 1.0 }
    }

    /// Angles of one position, for each pair of numbers of a head.
    pub(super) fn frequencies(self, head: usize) -> Vec<f64> {
        let base = self.base * self.stretch;
        #[expect(clippy::cast_precision_loss, reason = "the width of a head is a small number")]
        let head = head as f64;
        let divisor = self.stretch.powf(2.0 / head);
        std::iter::successors(Some(0.0), |i| Some(i + 2.0))
            .take_while(|i| *i < head)
            .map(|i| base.powf(-i / head) / divisor)
            .collect()
    }
}

/// How states are normalized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Norm {
    /// By mean and variance; the shift is zero where the weights have none.
    Layer,
    /// By the mean square. Gemma stores its weights less one.
    Rms { less_one: bool },
}

/// What the gate goes through, by transformers' name; in words what is not known.
pub(super) fn parse_activation(name: &str) -> Result<Activation, String> {
    match name {
        // The exact one, with erf.
        "gelu" | "geglu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "silu" | "swish" | "swiglu" => Ok(Activation::Silu),
        "relu" | "reglu" => Ok(Activation::Relu),
        other => Err(format!("the activation {other:?}")),
    }
}

/// Names of the weights in a checkpoint, without `.weight` and `.bias`. A bias that is not there is none.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) words: &'static str,
    pub(super) types: Option<&'static str>,
    pub(super) embedding_norm: Option<&'static str>,
    pub(super) final_norm: Option<&'static str>,
    /// The list of layers.
    pub(super) layers: &'static str,
    /// Queries, keys and values: one name, or one each.
    pub(super) attention_input: &'static [&'static str],
    pub(super) attention_output: &'static str,
    /// Norms of each head's queries and keys.
    pub(super) head_norms: Option<[&'static str; 2]>,
    pub(super) attention_norms: BranchNorms,
    pub(super) feed_forward: FeedForward,
    pub(super) down: &'static str,
    pub(super) feed_forward_norms: BranchNorms,
}

/// Where the norms of one branch stand. A norm before it that is not among the weights is none: ModernBERT's first.
#[derive(Debug)]
pub(super) struct BranchNorms {
    /// Of what goes in.
    pub(super) before: Option<&'static str>,
    /// Of what comes out, before it is added.
    pub(super) after: Option<&'static str>,
    /// Of the sum.
    pub(super) sum: Option<&'static str>,
}

impl BranchNorms {
    pub(super) const fn pre(name: &'static str) -> Self {
        Self { before: Some(name), after: None, sum: None }
    }

    pub(super) const fn post(name: &'static str) -> Self {
        Self { before: None, after: None, sum: Some(name) }
    }
}

/// How the gate and the values beside it are stored.
#[derive(Debug)]
pub(super) enum FeedForward {
    Apart {
        gate: &'static str,
        up: &'static str,
    },
    /// In one matrix, the gate first.
    GateUp(&'static str),
    /// In one matrix, the gate last.
    UpGate(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretched_rotation_turns_slower() {
        let plain = Rotation::plain(10_000.0).frequencies(8);
        assert_eq!(plain.len(), 4);
        for (found, expected) in plain.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((found - expected).abs() < 1e-12, "{found}");
        }
        // base · 2 and 2^(2/8) less, as the authors of the models publish it.
        let stretched = Rotation { base: 10_000.0, stretch: 2.0 }.frequencies(8);
        for (index, found) in (0_u8..).zip(&stretched) {
            let expected = 20_000_f64.powf(-f64::from(index) / 4.0) / 2_f64.powf(0.25);
            assert!((found - expected).abs() < 1e-12, "{found}");
        }
    }
}
