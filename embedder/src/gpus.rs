//! What the cards of this process say of themselves, where there is a driver to ask: names once, temperature and memory
//! again and again. It looks at the cards that were given and at no other, and decides nothing.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;

use crate::args::Gpu;
use crate::metrics::{GpuLabels, Metrics};

/// Time between two readings: heat and memory don't change faster in a way that matters.
const INTERVAL: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;

/// The temperature of a card in °C as last read; clones share it.
#[derive(Debug, Clone)]
pub struct Temperature(Arc<AtomicI32>);

impl Temperature {
    const UNKNOWN: i32 = i32::MIN;

    /// °C; `None` for a card that does not answer, or is no card at all.
    pub fn get(&self) -> Option<i32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|celsius| *celsius != Self::UNKNOWN)
    }

    /// Takes note of a reading.
    pub fn set(&self, celsius: Option<i32>) {
        self.0.store(celsius.unwrap_or(Self::UNKNOWN), Ordering::Relaxed);
    }
}

impl Default for Temperature {
    fn default() -> Self {
        Self(Arc::new(AtomicI32::new(Self::UNKNOWN)))
    }
}

/// A card that was given, and what is known of its heat.
#[derive(Debug, Clone)]
pub struct Watched {
    /// The card.
    pub gpu: Gpu,
    /// Kept up to date.
    pub temperature: Temperature,
}

/// Opens the driver's library and gives the product name of each card, in their order; `None` where it can't be had.
pub fn names(library: &Path, gpus: &[Gpu]) -> Vec<Option<String>> {
    if gpus.is_empty() {
        return Vec::new();
    }
    match Nvml::builder().lib_path(library.as_os_str()).init() {
        Ok(nvml) => gpus.iter().map(|gpu| nvml.device_by_uuid(gpu.uuid.as_str()).ok()?.name().ok()).collect(),
        Err(error) => {
            tracing::warn!(library = %library.display(), %error, "no driver to ask about the GPUs");
            vec![None; gpus.len()]
        }
    }
}

/// Keeps temperatures and metrics of `gpus` up to date from a thread of its own, for as long as somebody holds `metrics`.
pub fn watch(library: PathBuf, gpus: Vec<Watched>, metrics: &Arc<Metrics>) -> std::io::Result<()> {
    for Watched { gpu, .. } in &gpus {
        metrics.gpu_share.get_or_create(&GpuLabels::of(gpu)).set(signed(gpu.memory_mib * MIB));
    }
    if gpus.is_empty() {
        return Ok(());
    }
    let metrics = Arc::downgrade(metrics);
    std::thread::Builder::new()
        .name("gpus".to_owned())
        .spawn(move || run(&library, &gpus, &metrics))
        .map(drop)
}

fn run(library: &Path, gpus: &[Watched], metrics: &Weak<Metrics>) {
    // A driver that is not there yet, or is being replaced, is asked again with the next reading.
    let mut nvml = None;
    while let Some(metrics) = metrics.upgrade() {
        if nvml.is_none() {
            nvml = Nvml::builder().lib_path(library.as_os_str()).init().ok();
        }
        for Watched { gpu, temperature } in gpus {
            let celsius = nvml.as_ref().and_then(|nvml| read(nvml, gpu, &metrics).ok());
            temperature.set(celsius);
            if celsius.is_none() {
                // Values of a card that does not answer would look like a card that is well.
                let labels = GpuLabels::of(gpu);
                metrics.gpu_temperature.remove(&labels);
                metrics.gpu_memory_used.remove(&labels);
            }
        }
        drop(metrics);
        std::thread::sleep(INTERVAL);
    }
}

/// Takes the card's numbers into the metrics; its temperature in °C.
fn read(nvml: &Nvml, gpu: &Gpu, metrics: &Metrics) -> Result<i32, nvml_wrapper::error::NvmlError> {
    let device = nvml.device_by_uuid(gpu.uuid.as_str())?;
    let temperature = device.temperature(TemperatureSensor::Gpu)?;
    let memory = device.memory_info()?;
    let labels = GpuLabels::of(gpu);
    metrics.gpu_temperature.get_or_create(&labels).set(i64::from(temperature));
    metrics.gpu_memory_used.get_or_create(&labels).set(signed(memory.used));
    Ok(i32::try_from(temperature).unwrap_or(i32::MAX))
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
