//! Metrics by Prometheus' conventions. Labels are indices, UUIDs and constants, never a formatted error.

use crate::device::Slowdown;
use crate::status::{GpuState, NodeView, PodMemory};
use principium_api::gpu_node::{DisagreementKind, WithheldReason};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

const MIB: f64 = 1_048_576.0;
const REASONS: [WithheldReason; 8] = [
    WithheldReason::Overheated,
    WithheldReason::Xid,
    WithheldReason::Lost,
    WithheldReason::Ecc,
    WithheldReason::ForeignProcess,
    WithheldReason::Unreadable,
    WithheldReason::Divided,
    WithheldReason::Moving,
];
const KINDS: [DisagreementKind; 3] =
    [DisagreementKind::RequestDiffers, DisagreementKind::HeldTwice, DisagreementKind::InjectionDiffers];

type Value = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfGpu {
    gpu: u32,
    uuid: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfGpuState {
    gpu: u32,
    uuid: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfGpuReason {
    gpu: u32,
    uuid: String,
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfGpuXid {
    gpu: u32,
    uuid: String,
    xid: u64,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfResource {
    resource: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct OfPod {
    gpu: u32,
    uuid: String,
    namespace: String,
    pod: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfKind {
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfOutcome {
    outcome: &'static str,
}

#[derive(Debug, Default)]
struct Shown {
    pods: BTreeSet<OfPod>,
    gpus: BTreeSet<(u32, String)>,
}

/// Everything that the plugin counts and measures.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    temperature: Family<OfGpu, Value>,
    temperature_limit: Family<OfGpuState, Value>,
    memory: Family<OfGpuState, Value>,
    power: Family<OfGpu, Value>,
    utilization: Family<OfGpu, Value>,
    foreign_memory: Family<OfGpu, Value>,
    pod_memory: Family<OfPod, Value>,
    slowdown: Family<OfGpuState, Gauge>,
    disagreements: Family<OfKind, Gauge>,
    reader_restarts: Counter,
    /// What is shown, so that pods and GPUs that are gone are taken out of it.
    shown: Mutex<Shown>,
    units: Family<OfGpuState, Gauge>,
    withheld: Family<OfGpuReason, Gauge>,
    xids: Family<OfGpuXid, Counter>,
    driver_up: Gauge,
    registered: Gauge,
    registrations: Family<OfResource, Counter>,
    allocations: Family<OfResource, Counter>,
    status_writes: Family<OfOutcome, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("principium");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("device_plugin_build", "Version of the device plugin", build);
        let mut metrics = Self {
            registry,
            temperature: Family::default(),
            temperature_limit: Family::default(),
            memory: Family::default(),
            power: Family::default(),
            utilization: Family::default(),
            foreign_memory: Family::default(),
            pod_memory: Family::default(),
            slowdown: Family::default(),
            disagreements: Family::default(),
            reader_restarts: Counter::default(),
            shown: Mutex::default(),
            units: Family::default(),
            withheld: Family::default(),
            xids: Family::default(),
            driver_up: Gauge::default(),
            registered: Gauge::default(),
            registrations: Family::default(),
            allocations: Family::default(),
            status_writes: Family::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register_with_unit(
            "gpu_temperature",
            "Core temperature",
            Unit::Celsius,
            self.temperature.clone(),
        );
        registry.register_with_unit(
            "gpu_temperature_limit",
            "Temperature at which free units are withheld, and below which they are offered again",
            Unit::Celsius,
            self.temperature_limit.clone(),
        );
        registry.register_with_unit(
            "gpu_memory",
            "Memory: total, used and free",
            Unit::Bytes,
            self.memory.clone(),
        );
        registry.register_with_unit(
            "gpu_power",
            "Power drawn",
            Unit::Other("watts".into()),
            self.power.clone(),
        );
        registry.register_with_unit(
            "gpu_utilization",
            "Share of time in which a kernel ran",
            Unit::Ratios,
            self.utilization.clone(),
        );
        registry.register_with_unit(
            "gpu_foreign_memory",
            "Memory of processes that belong to no pod that holds the GPU",
            Unit::Bytes,
            self.foreign_memory.clone(),
        );
        registry.register_with_unit(
            "gpu_pod_memory",
            "Memory of a GPU that a pod holds (share) and that its processes use (used)",
            Unit::Bytes,
            self.pod_memory.clone(),
        );
        registry.register("gpu_units", "Units of 1 GiB: free, held by pods, withheld", self.units.clone());
        registry.register(
            "gpu_withheld",
            "1 for the reason for which free units are withheld",
            self.withheld.clone(),
        );
        registry.register(
            "gpu_slowdown",
            "1 while the card slows itself down: hardware_heat, software_heat (the driver's target), power",
            self.slowdown.clone(),
        );
        registry.register(
            "allocation_disagreements",
            "Contradictions between pods' requests, the kubelet's list and what was put into containers",
            self.disagreements.clone(),
        );
        registry.register(
            "nvml_reader_restarts",
            "Times that reading the GPUs ended by a bug and was started anew",
            self.reader_restarts.clone(),
        );
        registry.register("gpu_xid_events", "Xid events", self.xids.clone());
        registry.register("driver_up", "1 while the NVIDIA driver answers", self.driver_up.clone());
        registry.register(
            "kubelet_registered",
            "1 while every resource is registered",
            self.registered.clone(),
        );
        registry.register(
            "kubelet_registrations",
            "Registrations with the kubelet",
            self.registrations.clone(),
        );
        registry.register("allocations", "Answered Allocate calls", self.allocations.clone());
        registry.register("gpunode_writes", "Writes of the GPUNode status", self.status_writes.clone());
    }

    /// Takes over what is known of the node.
    pub fn observe(&self, view: &NodeView) {
        self.driver_up.set(i64::from(view.message.is_none()));
        view.gpus.iter().for_each(|gpu| self.observe_gpu(gpu));
        for kind in KINDS {
            let count = view.disagreements.iter().filter(|disagreement| disagreement.kind == kind).count();
            let labels = OfKind { kind: format!("{kind:?}") };
            self.disagreements.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.pods = self.observe_pods(&view.gpus, &shown.pods);
        let now = view.gpus.iter().map(|gpu| (gpu.index, gpu.identity.uuid.clone())).collect();
        shown.gpus.difference(&now).for_each(|(gpu, uuid)| self.remove_gpu(*gpu, uuid));
        shown.gpus = now;
    }

    /// Takes a GPU out that is gone for good: another card in its slot, or a MIG device that was taken apart.
    fn remove_gpu(&self, gpu: u32, uuid: &str) {
        let of_gpu = OfGpu { gpu, uuid: uuid.to_owned() };
        for family in [&self.temperature, &self.power, &self.utilization, &self.foreign_memory] {
            family.remove(&of_gpu);
        }
        let in_state = |state| OfGpuState { gpu, uuid: uuid.to_owned(), state };
        for state in ["total", "used", "free", "withhold", "restore"] {
            self.memory.remove(&in_state(state));
            self.temperature_limit.remove(&in_state(state));
        }
        for state in ["free", "held", "withheld"] {
            self.units.remove(&in_state(state));
        }
        for (state, _) in slowdowns(Slowdown::default()) {
            self.slowdown.remove(&in_state(state));
        }
        for reason in REASONS {
            self.withheld.remove(&OfGpuReason { gpu, uuid: uuid.to_owned(), reason: format!("{reason:?}") });
        }
    }

    fn observe_pods(&self, gpus: &[GpuState], shown: &BTreeSet<OfPod>) -> BTreeSet<OfPod> {
        let mut now = BTreeSet::new();
        for gpu in gpus {
            for PodMemory { namespace, pod, share, used } in &gpu.pods {
                for (state, mib) in [("share", *share), ("used", *used)] {
                    let labels = OfPod {
                        gpu: gpu.index,
                        uuid: gpu.identity.uuid.clone(),
                        namespace: namespace.clone(),
                        pod: pod.clone(),
                        state,
                    };
                    self.pod_memory.get_or_create(&labels).set(bytes(mib));
                    now.insert(labels);
                }
            }
        }
        for gone in shown.difference(&now) {
            self.pod_memory.remove(gone);
        }
        now
    }

    fn observe_gpu(&self, gpu: &GpuState) {
        let of_gpu = || OfGpu { gpu: gpu.index, uuid: gpu.identity.uuid.clone() };
        let in_state = |state| OfGpuState { gpu: gpu.index, uuid: gpu.identity.uuid.clone(), state };
        // A value that is not known is not shown, rather than an old one.
        let set = |family: &Family<OfGpu, Value>, value: Option<f64>| {
            if let Some(value) = value {
                family.get_or_create(&of_gpu()).set(value);
            } else {
                family.remove(&of_gpu());
            }
        };
        let reading = gpu.reading.as_ref();
        set(&self.temperature, reading.and_then(|reading| reading.temperature).map(f64::from));
        set(&self.power, reading.and_then(|reading| reading.power).map(f64::from));
        set(
            &self.utilization,
            reading.and_then(|reading| reading.utilization).map(|percent| f64::from(percent) / 100.0),
        );
        let slowdown = reading.map(|reading| reading.slowdown).unwrap_or_default();
        for (state, active) in slowdowns(slowdown) {
            self.slowdown.get_or_create(&in_state(state)).set(i64::from(active));
        }
        let foreign: u64 = gpu.foreign.iter().map(|process| process.used).sum();
        set(&self.foreign_memory, Some(bytes(foreign)));
        self.memory.get_or_create(&in_state("total")).set(bytes(gpu.identity.memory_total_mib));
        if let Some(reading) = reading {
            self.memory.get_or_create(&in_state("used")).set(bytes(reading.memory_used_mib));
            self.memory.get_or_create(&in_state("free")).set(bytes(reading.memory_free_mib));
        }
        self.temperature_limit.get_or_create(&in_state("withhold")).set(f64::from(gpu.limits.withhold));
        self.temperature_limit.get_or_create(&in_state("restore")).set(f64::from(gpu.limits.restore));
        let held: u32 = gpu.allocations.iter().map(|allocation| allocation.units).sum();
        for (state, units) in [("free", gpu.free_units), ("held", held), ("withheld", gpu.withheld_units)] {
            self.units.get_or_create(&in_state(state)).set(i64::from(units));
        }
        let active = gpu.verdict.withheld.as_ref().map(|withheld| withheld.reason);
        for reason in REASONS {
            let labels = OfGpuReason {
                gpu: gpu.index,
                uuid: gpu.identity.uuid.clone(),
                reason: format!("{reason:?}"),
            };
            self.withheld.get_or_create(&labels).set(i64::from(active == Some(reason)));
        }
    }

    /// Counts a restart of the thread that reads the GPUs.
    pub fn reader_restarted(&self) {
        self.reader_restarts.inc();
    }

    /// Counts an Xid event.
    pub fn xid(&self, gpu: u32, uuid: &str, xid: u64) {
        self.xids.get_or_create(&OfGpuXid { gpu, uuid: uuid.to_owned(), xid }).inc();
    }

    /// Counts a registration.
    pub fn registered(&self, resource: &str) {
        self.registrations.get_or_create(&OfResource { resource: resource.to_owned() }).inc();
    }

    /// Says whether all resources are registered.
    pub fn set_registered(&self, registered: bool) {
        self.registered.set(i64::from(registered));
    }

    /// Counts an answered `Allocate` call.
    pub fn allocated(&self, resource: &str) {
        self.allocations.get_or_create(&OfResource { resource: resource.to_owned() }).inc();
    }

    /// Counts a write of the status.
    pub fn status_written(&self, succeeded: bool) {
        let outcome = if succeeded { "success" } else { "failure" };
        self.status_writes.get_or_create(&OfOutcome { outcome }).inc();
    }

    /// All of it in Prometheus' text format.
    ///
    /// # Errors
    /// If a value cannot be written as text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn slowdowns(slowdown: Slowdown) -> [(&'static str, bool); 3] {
    let Slowdown { hardware_heat, software_heat, power } = slowdown;
    [("hardware_heat", hardware_heat), ("software_heat", software_heat), ("power", power)]
}

// Exact up to 8 PiB, more than any GPU has.
#[allow(clippy::cast_precision_loss)]
fn bytes(mib: u64) -> f64 {
    mib as f64 * MIB
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{gpu, node};

    #[test]
    fn metrics_tell_values_and_drop_what_is_no_longer_known() {
        let metrics = Metrics::default();
        metrics.observe(&node(vec![gpu(3, 50, 1024)]));
        metrics.xid(3, "GPU-3", 79);
        let text = metrics.text().unwrap();
        for line in [
            "principium_gpu_temperature_celsius{gpu=\"3\",uuid=\"GPU-3\"} 50",
            "principium_gpu_memory_bytes{gpu=\"3\",uuid=\"GPU-3\",state=\"used\"} 1073741824",
            "principium_gpu_units{gpu=\"3\",uuid=\"GPU-3\",state=\"free\"} 8",
            "principium_gpu_withheld{gpu=\"3\",uuid=\"GPU-3\",reason=\"Overheated\"} 0",
            "principium_gpu_xid_events_total{gpu=\"3\",uuid=\"GPU-3\",xid=\"79\"} 1",
            "principium_gpu_slowdown{gpu=\"3\",uuid=\"GPU-3\",state=\"power\"} 0",
            "principium_allocation_disagreements{kind=\"RequestDiffers\"} 0",
            "principium_nvml_reader_restarts_total 0",
            "principium_driver_up 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        let pod = PodMemory { namespace: "ai".into(), pod: "a".into(), share: 1024, used: 2048 };
        metrics.observe(&node(vec![GpuState { pods: vec![pod], ..gpu(3, 50, 1024) }]));
        let line = "principium_gpu_pod_memory_bytes{gpu=\"3\",uuid=\"GPU-3\",namespace=\"ai\",pod=\"a\",state=\"used\"} 2147483648";
        let text = metrics.text().unwrap();
        assert!(text.contains(line), "{text}");
        metrics.observe(&node(vec![GpuState { reading: None, ..gpu(3, 50, 1024) }]));
        assert!(!metrics.text().unwrap().contains("pod=\"a\""), "the pod is gone");
        assert!(!metrics.text().unwrap().contains("principium_gpu_temperature_celsius{"));
        metrics.observe(&node(Vec::new()));
        let text = metrics.text().unwrap();
        let left: Vec<_> = text.lines().filter(|line| line.contains("GPU-3")).collect();
        assert_eq!(left, ["principium_gpu_xid_events_total{gpu=\"3\",uuid=\"GPU-3\",xid=\"79\"} 1"]);
    }
}
