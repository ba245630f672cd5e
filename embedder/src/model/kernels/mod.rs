//! What the processor computes: loops over rows, products of matrices, attention. Chosen when the program runs, by the
//! instruction sets that the processor has. Slices in, slices out; no tensors.

mod attention;
mod dot;
mod level;
mod math;
mod matrix;
mod output;
mod panels;
mod reduce;
mod rows;

pub(super) use attention::{Extent, Heads, Reach, Strided, attend};
pub(super) use dot::{Format, Microkernel};
pub(super) use matrix::Matrix;
pub(super) use rows::{Activation, Norm, add_layer_norm, add_rms_norm, gate_row};
