//! In which number format a model computes: what a user may ask for, and what a device does.

use candle_core::{DType, Device};

use super::ModelError;
use super::device::{computes_bf16, has_own_kernels};
use super::kernels::{Format, Microkernel};

/// What a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// f32 on the CPU, where it gives the numbers of the reference implementations; on a GPU bf16, or f16 where the card has no bf16.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit floats; on GPUs only.
    F16,
    /// The upper half of 32-bit floats, with sums in f32; on GPUs from compute capability 8.0 on.
    Bf16,
    /// Weights in bytes with a scale a column, inputs of each product with a scale a token; sums are exact. On the CPU only.
    Int8,
}

impl Precision {
    /// Bytes of a number on a GPU.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::Auto | Self::F32 | Self::Int8 => 4,
        }
    }

    /// The name in `/info`, as text-embeddings-inference writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::Int8 => "int8",
        }
    }
}

/// Where and how one replica of a model computes. Every op is made for a place.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) device: Device,
    /// What is computed in: never `Auto`, and f32 where bf16 was asked for and is slower.
    pub(super) precision: Precision,
    /// What multiplies weights on the CPU.
    pub(super) microkernel: Microkernel,
    /// What multiplies activations with one another on the CPU: bytes would be too coarse for scores.
    pub(super) attention_microkernel: Microkernel,
}

impl Place {
    /// What `wanted` means on `device`.
    pub(super) fn new(device: Device, wanted: Precision) -> Result<Self, ModelError> {
        Self::choosing(device, wanted, Microkernel::best_for_16_bits)
    }

    /// The same, with what finds out how a processor computes best where bf16 is wanted.
    fn choosing(
        device: Device,
        wanted: Precision,
        best_for_16_bits: impl FnOnce() -> Microkernel,
    ) -> Result<Self, ModelError> {
        let own_kernels = has_own_kernels(&device);
        let precision = match (wanted, own_kernels) {
            (Precision::Auto, true) => Precision::F32,
            (Precision::Auto, false) if computes_bf16(&device)? => Precision::Bf16,
            (Precision::Auto, false) => Precision::F16,
            (Precision::Bf16, false) if !computes_bf16(&device)? => {
                return Err(ModelError::Precision {
                    wanted: wanted.name(),
                    device: "a GPU of a compute capability below 8.0",
                    instead: "f16 or f32",
                });
            }
            (Precision::F16, true) => {
                return Err(ModelError::Precision {
                    wanted: wanted.name(),
                    device: "the CPU",
                    instead: "f32, bf16 or int8",
                });
            }
            (Precision::Int8, false) => {
                return Err(ModelError::Precision {
                    wanted: wanted.name(),
                    device: "a GPU",
                    instead: "f32, f16 or bf16",
                });
            }
            (wanted, _) => wanted,
        };
        let (microkernel, attention_microkernel) = match precision {
            Precision::Int8 => (Microkernel::best(Format::Int8), best_for_16_bits()),
            Precision::Bf16 => {
                let best = best_for_16_bits();
                (best, best)
            }
            Precision::Auto | Precision::F32 | Precision::F16 => {
                (Microkernel::best(Format::F32), Microkernel::best(Format::F32))
            }
        };
        // What is told is what is computed. On a GPU no microkernel computes, so that its format says nothing.
        let precision = match (precision, microkernel.format) {
            (Precision::Bf16, Format::F32) if own_kernels => Precision::F32,
            (precision, _) => precision,
        };
        Ok(Self { device, precision, microkernel, attention_microkernel })
    }

    /// The type of the tensors between the ops, and of the weights before they are packed.
    pub(super) fn dtype(&self) -> DType {
        match (has_own_kernels(&self.device), self.precision) {
            (false, Precision::F16) => DType::F16,
            (false, Precision::Bf16) => DType::BF16,
            _ => DType::F32,
        }
    }

    /// Instruction set or library, as `/info` shows it.
    pub(super) fn kernel_name(&self) -> &'static str {
        if has_own_kernels(&self.device) { self.microkernel.name } else { "cuda" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::device::tests::generally;

    fn told(wanted: Precision, best: Format) -> &'static str {
        let place = Place::choosing(Device::Cpu, wanted, || Microkernel::best(best)).unwrap();
        place.precision.name()
    }

    #[test]
    fn the_number_format_that_is_told_is_the_one_that_is_computed_in() {
        for (wanted, best, expected) in [
            (Precision::Bf16, Format::Bf16, "bfloat16"),
            (Precision::Bf16, Format::F32, "float32"),
            (Precision::Int8, Format::F32, "int8"),
            (Precision::F32, Format::Bf16, "float32"),
            (Precision::Auto, Format::Bf16, "float32"),
        ] {
            assert_eq!(told(wanted, best), expected, "{wanted:?} where {best:?} is the fastest");
        }
        let on_a_gpu = generally(|| told(Precision::Bf16, Format::F32));
        assert_eq!(on_a_gpu, "bfloat16", "what the CPU is good at says nothing of a GPU");
    }
}
