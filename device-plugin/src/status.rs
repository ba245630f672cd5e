//! Words the `GPUNode` status, and keeps noise out of it. Pure.

use crate::device::{Identity, Part, Reading};
use crate::health::{Limits, Verdict};
use crate::processes::PodName;
use crate::smooth::Smooth;
use principium_api::gpu_node::{
    Allocation, Disagreement, ForeignProcess, Gpu, GpuMemoryStatus, GpuNodeStatus, GpuNodeSummary, GpuView,
    Health, Injection, MigDevice, Overuse, TemperatureLimits, Withheld, WithheldReason,
};
use principium_api::names;
use std::collections::BTreeMap;

/// Least change of a temperature, in °C, that is worth a write.
const TEMPERATURE_STEP: u32 = 3;
/// Least change of power, in W.
const POWER_STEP: u32 = 30;
/// Memory is told in multiples of this many MiB.
const MEMORY_STEP: u64 = 256;
/// MiB in a unit.
const UNIT_MIB: u64 = 1024;

/// What is known of the node's GPUs at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeView {
    /// Version of the driver.
    pub driver_version: Option<String>,
    /// Newest CUDA version that the driver supports.
    pub cuda_version: Option<String>,
    /// Whether the GPUs are simulated.
    pub simulated: bool,
    /// How containers receive their GPUs.
    pub injection: Injection,
    /// What keeps the plugin from measuring.
    pub message: Option<String>,
    /// Contradictions about who holds what.
    pub disagreements: Vec<Disagreement>,
    /// Every GPU, in order of index.
    pub gpus: Vec<GpuState>,
}

/// What is known of one GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuState {
    /// Index.
    pub index: u32,
    /// The card.
    pub identity: Identity,
    /// The view that it stands in.
    pub view: GpuView,
    /// The limits in force.
    pub limits: Limits,
    /// The newest values; absent while it doesn't answer.
    pub reading: Option<Reading>,
    /// Its temperature and power without their noise.
    pub steady: Smooth,
    /// What was decided about it.
    pub verdict: Verdict,
    /// Who holds how much of it.
    pub allocations: Vec<Allocation>,
    /// Units that a pod could be given now.
    pub free_units: u32,
    /// Units that are free and held back.
    pub withheld_units: u32,
    /// Processes that belong to no pod that holds it.
    pub foreign: Vec<ForeignProcess>,
    /// Memory of the pods that hold it, in order of namespace and name.
    pub pods: Vec<PodMemory>,
}

/// What a pod holds of a GPU and what it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodMemory {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// What it holds, in MiB.
    pub share: u64,
    /// What its processes use, in MiB; a pod whose processes are not seen uses nothing.
    pub used: u64,
}

/// What each holder of a GPU holds and uses.
#[must_use]
pub fn pod_memory(allocations: &[Allocation], used: &BTreeMap<PodName, u64>) -> Vec<PodMemory> {
    let mut shares: BTreeMap<PodName, u64> = BTreeMap::new();
    for Allocation { namespace, pod, units, .. } in allocations {
        *shares.entry((namespace.clone(), pod.clone())).or_default() += u64::from(*units) * UNIT_MIB;
    }
    let of_pod = |(name, share): (PodName, u64)| {
        let used = used.get(&name).copied().unwrap_or_default();
        PodMemory { namespace: name.0, pod: name.1, share, used }
    };
    shares.into_iter().map(of_pod).collect()
}

/// The status of this view: the last one again where nothing meaningful has changed, whatever a sensor's flicker; else
/// the present values of all GPUs, so that one write spares those that their drift would have asked for.
#[must_use]
pub fn status(view: &NodeView, last: Option<&GpuNodeStatus>) -> GpuNodeStatus {
    let kept = worded(view, last, Values::Kept);
    if last.is_none_or(|last| *last == kept) { kept } else { worded(view, last, Values::Present) }
}

/// Which of two values that differ by no more than noise is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    /// The last one.
    Kept,
    /// The present one.
    Present,
}

fn worded(view: &NodeView, last: Option<&GpuNodeStatus>, values: Values) -> GpuNodeStatus {
    let last_of = |uuid: &str| last.and_then(|last| last.gpus.iter().find(|gpu| gpu.uuid == uuid));
    let gpus: Vec<Gpu> =
        view.gpus.iter().map(|gpu| settled(gpu, last_of(&gpu.identity.uuid), values)).collect();
    let summary = summary(&gpus, view);
    GpuNodeStatus {
        driver_version: view.driver_version.clone(),
        cuda_version: view.cuda_version.clone(),
        simulated: view.simulated,
        injection: view.injection,
        gpus,
        disagreements: view.disagreements.clone(),
        summary,
        message: view.message.clone(),
    }
}

/// Whether the step from one status to the next must be told at once: everything but the slow drift of measured values.
#[must_use]
pub fn urgent(last: &GpuNodeStatus, next: &GpuNodeStatus) -> bool {
    let without_drift = |status: &GpuNodeStatus| {
        let mut status = status.clone();
        status.summary = GpuNodeSummary::default();
        for gpu in &mut status.gpus {
            (gpu.temperature, gpu.power) = (None, None);
            gpu.memory = GpuMemoryStatus { total: gpu.memory.total, ..GpuMemoryStatus::default() };
            gpu.foreign_processes.clear();
            gpu.overuse.iter_mut().for_each(|pod| pod.used = 0);
        }
        status
    };
    without_drift(last) != without_drift(next)
}

fn settled(gpu: &GpuState, last: Option<&Gpu>, values: Values) -> Gpu {
    let GpuState { index, identity, view, limits, reading, steady, verdict, allocations, foreign, .. } = gpu;
    let temperature = reading.as_ref().and_then(|reading| reading.temperature);
    let power = reading.as_ref().and_then(|reading| reading.power);
    // With a decision comes the value that it was made from.
    let decided = last.is_none_or(|last| {
        let reason = |withheld: &Option<Withheld>| withheld.as_ref().map(|withheld| withheld.reason);
        reason(&last.withheld) != reason(&verdict.withheld)
    });
    let temperature =
        if decided { temperature } else { temperature.and(steady.temperature()).or(temperature) };
    let power = if decided { power } else { power.and(steady.power()).or(power) };
    let present = values == Values::Present;
    Gpu {
        index: *index,
        uuid: identity.uuid.clone(),
        product: identity.product.clone(),
        pci_address: identity.pci_address.clone(),
        memory: memory(gpu, last, values),
        units: identity.units(),
        temperature: keep(temperature, last.and_then(|last| last.temperature), |now, then| {
            present || decided || now.abs_diff(then) >= TEMPERATURE_STEP
        }),
        temperature_limits: Some(TemperatureLimits {
            withhold: limits.withhold,
            restore: limits.restore,
            slowdown: identity.slowdown_temperature,
            shutdown: identity.shutdown_temperature,
        }),
        power: keep(power, last.and_then(|last| last.power), |now, then| {
            present || now.abs_diff(then) >= POWER_STEP
        }),
        mig: mig(*index, identity),
        view: *view,
        health: verdict.health,
        withheld: verdict.withheld.clone(),
        allocations: allocations.clone(),
        foreign_processes: foreign.iter().map(|process| rounded(process, last, values)).collect(),
        overuse: gpu.pods.iter().filter_map(|pod| overuse(pod, last, values)).collect(),
    }
}

fn mig(index: u32, identity: &Identity) -> Option<MigDevice> {
    let Part { gpu_instance, compute_instance, .. } = identity.part.as_ref()?;
    let (parent, _) = names::mig_place(index)?;
    Some(MigDevice { parent, gpu_instance: *gpu_instance, compute_instance: *compute_instance })
}

/// The last value, unless there is a new one that differs enough.
fn keep(now: Option<u32>, last: Option<u32>, differs: impl Fn(u32, u32) -> bool) -> Option<u32> {
    match (now, last) {
        (Some(now), Some(last)) if !differs(now, last) => Some(last),
        (now, _) => now,
    }
}

fn memory(gpu: &GpuState, last: Option<&Gpu>, values: Values) -> GpuMemoryStatus {
    let total = gpu.identity.memory_total_mib;
    let Some(reading) = &gpu.reading else {
        // A card that doesn't answer: what was known last, and no free memory that nobody can vouch for.
        let used = last.map_or(0, |last| last.memory.used);
        return GpuMemoryStatus { total, used, free: 0 };
    };
    match last {
        Some(last)
            if values == Values::Kept
                && last.memory.total == total
                && last.memory.free > 0
                && reading.memory_used_mib.abs_diff(last.memory.used) < MEMORY_STEP
                && (reading.memory_used_mib < MEMORY_STEP) == (last.memory.used == 0) =>
        {
            last.memory.clone()
        }
        // Used is rounded to the nearest step, free is never more than what is there.
        _ => GpuMemoryStatus {
            total,
            used: (reading.memory_used_mib + MEMORY_STEP / 2) / MEMORY_STEP * MEMORY_STEP,
            free: reading.memory_free_mib / MEMORY_STEP * MEMORY_STEP,
        },
    }
}

/// Told from the first MiB above the share on, until the pod is clearly back within it.
fn overuse(pod: &PodMemory, last: Option<&Gpu>, values: Values) -> Option<Overuse> {
    let last = last.and_then(|last| {
        last.overuse.iter().find(|other| other.namespace == pod.namespace && other.pod == pod.pod)
    });
    let tolerated = if last.is_some() { pod.share.saturating_sub(MEMORY_STEP) } else { pod.share };
    let now = || Overuse {
        namespace: pod.namespace.clone(),
        pod: pod.pod.clone(),
        share: pod.share,
        used: pod.used,
    };
    (pod.used > tolerated).then(|| match last {
        Some(last)
            if values == Values::Kept
                && last.share == pod.share
                && last.used.abs_diff(pod.used) < MEMORY_STEP =>
        {
            last.clone()
        }
        _ => now(),
    })
}

fn rounded(process: &ForeignProcess, last: Option<&Gpu>, values: Values) -> ForeignProcess {
    let last = last.and_then(|last| last.foreign_processes.iter().find(|other| other.pid == process.pid));
    match last {
        Some(last)
            if values == Values::Kept
                && last.name == process.name
                && last.used.abs_diff(process.used) < MEMORY_STEP =>
        {
            last.clone()
        }
        _ => process.clone(),
    }
}

fn summary(gpus: &[Gpu], view: &NodeView) -> GpuNodeSummary {
    let divided =
        |gpu: &Gpu| gpu.withheld.as_ref().is_some_and(|held| held.reason == WithheldReason::Divided);
    // MIG devices are parts of the GPUs that are counted, and a divided GPU's memory is that of its parts.
    let whole: Vec<&Gpu> = gpus.iter().filter(|gpu| gpu.mig.is_none()).collect();
    let offered = || gpus.iter().filter(|gpu| !divided(gpu));
    let mut products: Vec<&str> = whole.iter().map(|gpu| gpu.product.as_str()).collect();
    products.sort_unstable();
    products.dedup();
    let free: u32 = view.gpus.iter().map(|gpu| gpu.free_units).sum();
    let all: u32 = offered().map(|gpu| gpu.units).sum();
    let temperature =
        |gpu: &&Gpu| gpu.temperature.map_or_else(|| "-".to_owned(), |celsius| celsius.to_string());
    let name = |index: u32| {
        let resource = names::gpu_resource(index);
        resource.trim_start_matches(names::GENERIC_GPU_RESOURCE).trim_start_matches('-').to_owned()
    };
    let withheld = offered()
        .filter_map(|gpu| gpu.withheld.as_ref().map(|held| format!("{}:{:?}", name(gpu.index), held.reason)));
    let there = whole.iter().filter(|gpu| gpu.health != Health::Lost).count();
    GpuNodeSummary {
        gpus: u32::try_from(there).unwrap_or(u32::MAX),
        product: products.join(", "),
        free: format!("{free}/{all}"),
        temperatures: whole.iter().map(temperature).collect::<Vec<_>>().join(" "),
        withheld: withheld.collect::<Vec<_>>().join(" "),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::device::Probe;
    use crate::health::{Evidence, State, step, tests as health};

    pub(crate) fn gpu(index: u32, temperature: u32, used: u64) -> GpuState {
        GpuState {
            index,
            identity: Identity {
                uuid: format!("GPU-{index}"),
                product: "NVIDIA GeForce RTX 3060 Ti".into(),
                memory_total_mib: 8192,
                ..Identity::default()
            },
            view: GpuView::Exact,
            limits: health::limits(),
            reading: Some(Reading {
                temperature: Some(temperature),
                memory_used_mib: used,
                memory_free_mib: 7967 - used,
                power: Some(15),
                ..Reading::default()
            }),
            verdict: Verdict::default(),
            allocations: Vec::new(),
            free_units: 8,
            withheld_units: 0,
            foreign: Vec::new(),
            pods: Vec::new(),
            steady: Smooth::default(),
        }
    }

    pub(crate) fn node(gpus: Vec<GpuState>) -> NodeView {
        NodeView { driver_version: Some("580".into()), gpus, ..NodeView::default() }
    }

    #[test]
    fn noise_gives_the_same_status_again() {
        let first = status(&node(vec![gpu(0, 50, 1000)]), None);
        for (temperature, used, changed) in [
            (52, 1000, false),
            (48, 1000, false),
            (53, 1000, true),
            (47, 1000, true),
            (50, 1200, false),
            (50, 1300, true),
        ] {
            let next = status(&node(vec![gpu(0, temperature, used)]), Some(&first));
            assert_eq!(next != first, changed, "{temperature} °C, {used} MiB");
            assert!(!urgent(&first, &next));
        }
    }

    #[test]
    fn one_write_tells_the_present_values_of_all_gpus() {
        let first = status(&node(vec![gpu(0, 50, 1000), gpu(1, 50, 1000)]), None);
        let next = status(&node(vec![gpu(0, 52, 1200), gpu(1, 53, 1000)]), Some(&first));
        let told = |status: &GpuNodeStatus| {
            status.gpus.iter().map(|gpu| (gpu.temperature, gpu.memory.used)).collect::<Vec<_>>()
        };
        assert_eq!(told(&next), [(Some(52), 1280), (Some(53), 1024)]);
        let later = status(&node(vec![gpu(0, 54, 1200), gpu(1, 51, 1000)]), Some(&next));
        assert_eq!(later, next, "noise about the values that were told");
    }

    #[test]
    fn a_decision_comes_with_the_value_that_it_was_made_from() {
        for (then, now, withheld) in [(84, 85, true), (75, 74, false)] {
            let state = |celsius: u32, withheld: bool| GpuState {
                verdict: Verdict { withheld: withheld.then(Withheld::default), ..Verdict::default() },
                steady: Smooth::default().step(Some(then), None),
                ..gpu(0, celsius, 0)
            };
            let first = status(&node(vec![state(then, !withheld)]), None);
            let next = status(&node(vec![state(now, withheld)]), Some(&first));
            assert_eq!(next.gpus[0].temperature, Some(now));
            assert_eq!(status(&node(vec![state(then, withheld)]), Some(&next)), next, "noise afterwards");
        }
    }

    #[test]
    fn mig_devices_are_parts_of_the_gpus_that_are_counted() {
        let part = |index: u32, units: u32| {
            let mut part = gpu(index, 50, 0);
            part.identity.part =
                Some(Part { of: "GPU-1".into(), gpu_instance: index % 100, compute_instance: 0 });
            part.identity.memory_total_mib = u64::from(units) * 1024;
            GpuState { free_units: units, ..part }
        };
        let withheld = Some(Withheld { reason: WithheldReason::Divided, ..Withheld::default() });
        let divided =
            GpuState { verdict: Verdict { withheld, ..Verdict::default() }, free_units: 0, ..gpu(1, 50, 0) };
        let hot = GpuState {
            verdict: Verdict { withheld: Some(Withheld::default()), ..Verdict::default() },
            ..part(201, 4)
        };
        let status = status(&node(vec![gpu(0, 40, 0), divided, part(200, 2), hot]), None);
        assert_eq!(status.gpus[2].mig, Some(MigDevice { parent: 1, gpu_instance: 0, compute_instance: 0 }));
        let GpuNodeSummary { gpus, free, temperatures, withheld, .. } = status.summary;
        assert_eq!((gpus, free.as_str(), temperatures.as_str()), (2, "14/14", "40 50"));
        assert_eq!(withheld, "1-mig-1:Overheated");
    }

    #[test]
    fn memory_that_became_free_is_told_even_if_little() {
        let first = status(&node(vec![gpu(0, 50, 300)]), None);
        assert_eq!(first.gpus[0].memory, GpuMemoryStatus { total: 8192, used: 256, free: 7424 });
        let next = status(&node(vec![gpu(0, 50, 0)]), Some(&first));
        assert_eq!(next.gpus[0].memory, GpuMemoryStatus { total: 8192, used: 0, free: 7936 });
    }

    #[test]
    fn what_matters_is_urgent() {
        let first = status(&node(vec![gpu(0, 50, 0), gpu(1, 50, 0)]), None);
        let hot = {
            let mut gpu = gpu(1, 92, 0);
            let probe = Probe::Answer(gpu.reading.clone().unwrap());
            let evidence = Evidence { probe: &probe, xids: &[], foreign_mib: 0, session: 1 };
            gpu.verdict = step(&State::default(), &evidence, &health::limits(), health::at(0)).verdict();
            gpu.free_units = 0;
            status(&node(vec![super::tests::gpu(0, 50, 0), gpu]), Some(&first))
        };
        assert!(urgent(&first, &hot));
        assert_eq!(hot.summary.withheld, "1:Overheated");
        assert_eq!(hot.summary.free, "8/16");
        assert_eq!(hot.summary.temperatures, "50 92");

        let held = {
            let mut gpu = gpu(0, 50, 0);
            gpu.allocations = vec![Allocation { pod: "a".into(), units: 8, ..Allocation::default() }];
            status(&node(vec![gpu, super::tests::gpu(1, 50, 0)]), Some(&first))
        };
        assert!(urgent(&first, &held));
    }

    #[test]
    fn more_than_the_share_is_told_until_it_is_clearly_less() {
        let held = |container: &str, units| Allocation {
            namespace: "ai".into(),
            pod: "a".into(),
            container: container.into(),
            units,
        };
        let using = |used, last: Option<&GpuNodeStatus>| {
            let used = BTreeMap::from([(("ai".to_owned(), "a".to_owned()), used)]);
            let pods = pod_memory(&[held("main", 2), held("sidecar", 1)], &used);
            status(&node(vec![GpuState { pods, ..gpu(0, 50, 0) }]), last)
        };
        let told = |status: &GpuNodeStatus| status.gpus[0].overuse.first().map(|pod| (pod.share, pod.used));
        let within = using(3072, None);
        assert_eq!(told(&within), None);
        let above = using(3073, Some(&within));
        assert_eq!(told(&above), Some((3072, 3073)));
        assert!(urgent(&within, &above));
        let drifted = using(3300, Some(&above));
        assert_eq!(told(&drifted), Some((3072, 3073)), "noise");
        let more = using(4000, Some(&above));
        assert_eq!(told(&more), Some((3072, 4000)));
        assert!(!urgent(&above, &more), "drift");
        assert!(told(&using(3000, Some(&more))).is_some(), "not clearly less");
        assert_eq!(told(&using(2816, Some(&more))), None);
    }

    #[test]
    fn a_card_that_does_not_answer_has_no_temperature_and_no_free_memory() {
        let first = status(&node(vec![gpu(0, 50, 1024)]), None);
        let silent = GpuState { reading: None, ..gpu(0, 50, 1024) };
        let next = status(&node(vec![silent]), Some(&first));
        assert_eq!(next.gpus[0].temperature, None);
        assert_eq!(next.gpus[0].memory, GpuMemoryStatus { total: 8192, used: 1024, free: 0 });
        assert_eq!(next.summary.temperatures, "-");
        let back = status(&node(vec![gpu(0, 50, 1024)]), Some(&next));
        assert_eq!(back.gpus[0].memory.free, 6912);
    }
}
