//! Which GPUs a process was given, and which of them it computes on.

use crate::args::{Gpu, Gpus, Role, ServeArgs};
use crate::gpus::{self, Temperature, Watched};
use crate::http::GpuInfo;
use crate::model::{Accelerator, Card, accelerators, visible};

/// Which devices are used for what was given.
pub(super) struct Devices {
    /// The GPUs of this process.
    pub(super) given: Vec<Gpu>,
    /// Those of the first so many of them.
    pub(super) accelerators: Vec<Accelerator>,
    pub(super) info: Vec<GpuInfo>,
    /// Of each GPU that was given.
    pub(super) temperatures: Vec<Temperature>,
    /// Why not every GPU that was given is used.
    pub(super) missing: Option<String>,
}

impl Devices {
    /// Opens what `args` give, or all that CUDA shows.
    pub(super) fn of(args: &ServeArgs) -> Self {
        let given: Vec<Gpu> = match &args.gpus {
            // The analyzer computes nothing.
            _ if args.role == Role::DocAnalyzer => Vec::new(),
            Some(Gpus(gpus)) => gpus.clone(),
            None => (0..)
                .zip(visible())
                .map(|(index, Card { uuid, memory_mib })| Gpu { index, uuid, memory_mib })
                .collect(),
        };
        let mut names = gpus::names(&args.nvml_library, &given).into_iter();
        let (mut accelerators, mut missing) = accelerators(given.len());
        let shown: Vec<String> = visible().take(accelerators.len()).map(|card| card.uuid).collect();
        if let Some((position, reason)) = exchanged(&given, &shown) {
            // Another's card, of whose memory no share is this process's.
            accelerators.truncate(position);
            missing = Some(reason);
        }
        let used = accelerators.len();
        let info = given.iter().enumerate().map(|(position, gpu)| GpuInfo {
            index: gpu.index,
            uuid: gpu.uuid.clone(),
            name: names.next().flatten(),
            memory_mib: gpu.memory_mib,
            used: position < used,
        });
        let temperatures = given.iter().map(|_| Temperature::default()).collect();
        Self { info: info.collect(), given, accelerators, missing, temperatures }
    }

    /// What the thread that watches the GPUs looks at.
    pub(super) fn watched(&self) -> Vec<Watched> {
        let watched = |(gpu, temperature): (&Gpu, &Temperature)| Watched {
            gpu: gpu.clone(),
            temperature: temperature.clone(),
        };
        self.given.iter().zip(&self.temperatures).map(watched).collect()
    }
}

/// The position of the first GPU in whose place CUDA shows another card, and what to say of it. CUDA counts the cards in the
/// order of `CUDA_VISIBLE_DEVICES`, which is that of the list. Of MIG devices CUDA gives no name that could be compared.
fn exchanged(given: &[Gpu], shown: &[String]) -> Option<(usize, String)> {
    let other = |(_, (gpu, shown)): &(usize, (&Gpu, &String))| {
        !gpu.uuid.starts_with("MIG-") && !gpu.uuid.eq_ignore_ascii_case(shown)
    };
    let (position, (gpu, shown)) = given.iter().zip(shown).enumerate().find(other)?;
    let Gpu { index, uuid, .. } = gpu;
    Some((position, format!("GPU {index} was given as {uuid}, but CUDA shows {shown} in its place")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_that_is_not_the_given_one_is_told_by_its_place() {
        for (given, shown, expected) in [
            (&[][..], &[][..], None),
            (&["GPU-a"], &["GPU-a"], None),
            (&["GPU-A"], &["GPU-a"], None),
            (&["GPU-a", "GPU-b"], &["GPU-a", "GPU-b"], None),
            (&["GPU-a"], &["GPU-a", "GPU-b"], None),
            // What could not be opened is told elsewhere.
            (&["GPU-a", "GPU-b"], &["GPU-a"], None),
            (&["GPU-a", "GPU-b"], &[], None),
            (
                &["GPU-a"],
                &["GPU-c"],
                Some((0, "GPU 4 was given as GPU-a, but CUDA shows GPU-c in its place")),
            ),
            (
                &["GPU-a", "GPU-b"],
                &["GPU-a", "GPU-c"],
                Some((1, "GPU 5 was given as GPU-b, but CUDA shows GPU-c in its place")),
            ),
            (
                &["GPU-a", "GPU-b"],
                &["GPU-b", "GPU-a"],
                Some((0, "GPU 4 was given as GPU-a, but CUDA shows GPU-b in its place")),
            ),
            (&["MIG-a"], &["GPU-c"], None),
            (
                &["MIG-a", "GPU-b"],
                &["GPU-c", "GPU-d"],
                Some((1, "GPU 5 was given as GPU-b, but CUDA shows GPU-d in its place")),
            ),
        ] {
            let gpu = |(index, uuid): (u32, &&str)| Gpu { index, uuid: (*uuid).to_owned(), memory_mib: 1 };
            let gpus: Vec<Gpu> = (4..).zip(given).map(gpu).collect();
            let cards: Vec<String> = shown.iter().map(ToString::to_string).collect();
            let found = exchanged(&gpus, &cards);
            let found = found.as_ref().map(|(position, reason)| (*position, reason.as_str()));
            assert_eq!(found, expected, "{given:?} {shown:?}");
        }
    }
}
