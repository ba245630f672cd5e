//! What a transformer of the newer kinds is made of, as data: `encoders` and `decoders` fill it in from a model's
//! `config.json`, `transformer` computes it. No type here knows a tensor.

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
    /// Instead of one feed-forward part for all tokens.
    pub(super) experts: Option<Experts>,
}

/// Feed-forward parts of which a router chooses some for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Experts {
    pub(super) count: usize,
    /// How many of them a token goes through.
    pub(super) chosen: usize,
}

/// Positions as angles by which queries and keys are turned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rotation {
    pub(super) base: f64,
    pub(super) stretch: Stretch,
}

/// How a rotation reaches beyond the positions that the model was trained on, by NTK scaling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Stretch {
    None,
    /// By so much, for texts of every length: GTE.
    Fixed(f64),
    /// By as much as a text is longer: NomicBERT.
    WithLength {
        factor: f64,
        trained: usize,
    },
}

impl Rotation {
    pub(super) fn plain(base: f64) -> Self {
        Self { base, stretch: Stretch::None }
    }

    /// Whether a text of so many tokens has angles of its own.
    pub(super) fn is_stretched_at(self, length: usize) -> bool {
        matches!(self.stretch, Stretch::WithLength { trained, .. } if length > trained)
    }

    /// Angles of one position in a text of `length` tokens, for each pair of numbers of a head.
    #[expect(clippy::cast_precision_loss, reason = "lengths and the width of a head are small numbers")]
    pub(super) fn frequencies(self, head: usize, length: usize) -> Vec<f64> {
        let head = head as f64;
        let (base, divisor) = match self.stretch {
            Stretch::Fixed(factor) => (self.base * factor, factor.powf(2.0 / head)),
            Stretch::WithLength { factor, trained } if length > trained => {
                let longer = factor * length as f64 / trained as f64 - (factor - 1.0);
                (self.base * longer.powf(head / (head - 2.0)), 1.0)
            }
            Stretch::None | Stretch::WithLength { .. } => (self.base, 1.0),
        };
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
    pub(super) query_key_norms: Option<QueryKeyNorms>,
    pub(super) attention_norms: BranchNorms,
    pub(super) feed_forward: FeedForward,
    pub(super) down: &'static str,
    pub(super) feed_forward_norms: BranchNorms,
}

/// Norms of queries and of keys.
#[derive(Debug)]
pub(super) struct QueryKeyNorms {
    pub(super) names: [&'static str; 2],
    /// Whether each head is normalized by itself; else all of a token's together.
    pub(super) each_head: bool,
}

/// Where the norms of one branch stand. A norm before it that is not among the weights is none: ModernBERT's first.
#[derive(Debug)]
pub(super) struct BranchNorms {
    /// Of what goes in.
    pub(super) before: Option<&'static str>,
    /// Of what comes out, before it is added.
    pub(super) after: Option<&'static str>,
    /// Of what comes out with what goes in, which is then added once more: Jina's code model.
    pub(super) inner_sum: Option<&'static str>,
    /// Of the sum.
    pub(super) sum: Option<&'static str>,
}

impl BranchNorms {
    pub(super) const fn pre(name: &'static str) -> Self {
        Self { before: Some(name), after: None, inner_sum: None, sum: None }
    }

    pub(super) const fn post(name: &'static str) -> Self {
        Self { before: None, after: None, inner_sum: None, sum: Some(name) }
    }
}

/// How the gate and the values beside it are stored.
#[derive(Debug)]
pub(super) enum FeedForward {
    /// Without a gate.
    Plain(&'static str),
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
        let plain = Rotation::plain(10_000.0).frequencies(8, 100);
        assert_eq!(plain.len(), 4);
        for (found, expected) in plain.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((found - expected).abs() < 1e-12, "{found}");
        }
        // base · 2 and 2^(2/8) less, as the authors of the models publish it.
        let fixed = Rotation { base: 10_000.0, stretch: Stretch::Fixed(2.0) };
        let stretched = fixed.frequencies(8, 100);
        for (index, found) in (0_u8..).zip(&stretched) {
            let expected = 20_000_f64.powf(-f64::from(index) / 4.0) / 2_f64.powf(0.25);
            assert!((found - expected).abs() < 1e-12, "{found}");
        }
        // Three times the length with a factor of 2: base · (2 · 3 − 1)^(8/6), and none of it up to the trained length.
        let growing = Rotation { base: 10_000.0, stretch: Stretch::WithLength { factor: 2.0, trained: 50 } };
        assert_eq!(growing.frequencies(8, 50), plain);
        assert!(!growing.is_stretched_at(50) && growing.is_stretched_at(51));
        for (index, found) in (0_u8..).zip(growing.frequencies(8, 150)) {
            let expected = (10_000.0 * 5_f64.powf(8.0 / 6.0)).powf(-f64::from(index) / 4.0);
            assert!((found - expected).abs() < 1e-12, "{found}");
        }
    }
}
