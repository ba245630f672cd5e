//! What can be had of one input, and what was computed of it. Plain numbers: no tensors.

use std::ops::BitOr;

/// Which results of an input are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wants {
    /// The pooled vector, or the logits of a classifier.
    pub vector: bool,
    /// The hidden state of every token.
    pub states: bool,
    /// Weights of words.
    pub sparse: bool,
    /// One vector a token.
    pub multi: bool,
}

impl Wants {
    const NOTHING: Self = Self { vector: false, states: false, sparse: false, multi: false };
    /// The pooled vector alone.
    pub const VECTOR: Self = Self { vector: true, ..Self::NOTHING };
    /// The hidden states alone.
    pub const STATES: Self = Self { states: true, ..Self::NOTHING };
    /// The sparse vector alone.
    pub const SPARSE: Self = Self { sparse: true, ..Self::NOTHING };
    /// The vectors of the tokens alone.
    pub const MULTI: Self = Self { multi: true, ..Self::NOTHING };
}

impl BitOr for Wants {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            vector: self.vector || other.vector,
            states: self.states || other.states,
            sparse: self.sparse || other.sparse,
            multi: self.multi || other.multi,
        }
    }
}

/// What was computed of one input; what was not wanted is empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Output {
    /// The pooled vector, not normalized, or the logits of a classifier.
    pub vector: Vec<f32>,
    /// The hidden state of every token, special ones included.
    pub states: Vec<Vec<f32>>,
    /// Token ids with their weights, ascending by id; none of the weights is zero. One weight that is no number where the states
    /// are none.
    pub sparse: Vec<(u32, f32)>,
    /// One vector of length one for each token that counts.
    pub multi: Vec<Vec<f32>>,
}

impl Output {
    /// Whether every value is a number, and none infinite.
    pub fn is_finite(&self) -> bool {
        let rows = self.states.iter().chain(&self.multi).flatten();
        self.vector.iter().chain(rows).all(|value| value.is_finite())
            && self.sparse.iter().all(|(_, weight)| weight.is_finite())
    }
}

/// Scales a vector to length one; a vector of zeros stays what it is.
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if length > 0.0 {
        #[expect(clippy::cast_possible_truncation, reason = "vectors are f32")]
        let scale = (1.0 / length) as f32;
        for value in vector {
            *value *= scale;
        }
    }
}
