//! The driver's cards: opened one by one, so that one that fails hides no other, and asked for their values.

use super::{ends_session, mig};
use crate::device::{GpuProcess, Identity, Observation, Probe, Reading, Slowdown};
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::{Device, Nvml};
use std::time::{Duration, Instant};

pub(super) const MIB: u64 = 1 << 20;
/// How often to try to open a card that could not be opened.
const RETRY_CARD: Duration = Duration::from_secs(2);
/// `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`.
const RECOVERY_ACTION: FieldId = FieldId(230);
/// `NVML_AFFINITY_SCOPE_NODE`.
const NODE_SCOPE: u32 = 0;

/// A card that was opened.
pub(super) struct Card<'nvml> {
    pub(super) device: Device<'nvml>,
    pub(super) identity: Identity,
    pub(super) lost: bool,
    /// Its MIG devices, as they were seen last.
    parts: Vec<Identity>,
}

/// The driver's cards in its own order. A place is empty while its card can't be opened.
pub(super) struct Cards<'nvml> {
    nvml: &'nvml Nvml,
    places: Vec<Option<Card<'nvml>>>,
    tried: Instant,
}

impl<'nvml> Cards<'nvml> {
    pub(super) fn new(nvml: &'nvml Nvml) -> Result<Self, NvmlError> {
        let places = (0..nvml.device_count()?).map(|index| open(nvml, index)).collect::<Result<_, _>>()?;
        Ok(Self { nvml, places, tried: Instant::now() })
    }

    pub(super) fn open(&self) -> impl Iterator<Item = &Card<'nvml>> {
        self.places.iter().flatten()
    }

    pub(super) fn are_missing(&self) -> bool {
        self.places.iter().any(Option::is_none)
    }

    /// Whether the driver counts other cards than when it was opened.
    pub(super) fn are_others(&self) -> bool {
        self.nvml.device_count().is_ok_and(|count| count as usize != self.places.len())
    }

    pub(super) fn open_missing(&mut self) -> Result<(), NvmlError> {
        if !self.are_missing() || self.tried.elapsed() < RETRY_CARD {
            return Ok(());
        }
        self.tried = Instant::now();
        for (index, place) in (0..).zip(&mut self.places) {
            if place.is_none() {
                *place = open(self.nvml, index)?;
            }
        }
        Ok(())
    }

    /// Every card and every MIG device, with how it answers.
    pub(super) fn probe(&mut self) -> Result<Vec<Observation>, NvmlError> {
        let mut observations = Vec::with_capacity(self.places.len());
        for card in self.places.iter_mut().flatten() {
            let found = card.probe()?;
            card.lost = found.probe == Probe::Lost;
            let parts = if let Probe::Answer(_) = found.probe {
                let seen = mig::parts(self.nvml, card, &found)?;
                card.identity.divided = seen.is_some();
                let seen = seen.unwrap_or_default();
                card.parts = seen.iter().map(|part| part.identity.clone()).collect();
                seen
            } else {
                // What is wrong with a card is wrong with all of its parts.
                let part = |identity: &Identity| Observation {
                    identity: identity.clone(),
                    probe: found.probe.clone(),
                };
                card.parts.iter().map(part).collect()
            };
            let mut probe = found.probe;
            if card.identity.divided
                && let Probe::Answer(reading) = &mut probe
            {
                // They are told with the parts that they run on.
                reading.processes.clear();
            }
            let identity = card.identity.clone();
            observations.push(Observation { identity, probe });
            observations.extend(parts);
        }
        Ok(observations)
    }
}

/// Opens one card; an error only where the whole driver is gone: one card that fails must not hide the others.
fn open(nvml: &Nvml, index: u32) -> Result<Option<Card<'_>>, NvmlError> {
    let card = nvml.device_by_index(index).and_then(|device| {
        let identity = identity(&device)?;
        Ok(Card { device, identity, lost: false, parts: Vec::new() })
    });
    match card {
        Ok(card) => Ok(Some(card)),
        Err(error) if ends_session(&error) => Err(error),
        Err(error) => {
            tracing::debug!(index, %error, "cannot open a GPU; the others go on");
            Ok(None)
        }
    }
}

fn identity(device: &Device<'_>) -> Result<Identity, NvmlError> {
    let threshold = |kind| device.temperature_threshold(kind).ok();
    Ok(Identity {
        uuid: device.uuid()?,
        pci_address: device.pci_info()?.bus_id,
        product: device.name()?,
        memory_total_mib: device.memory_info()?.total / MIB,
        minor: device.minor_number().ok(),
        numa_node: numa_node(device),
        slowdown_temperature: threshold(TemperatureThreshold::Slowdown),
        shutdown_temperature: threshold(TemperatureThreshold::Shutdown),
        ..Identity::default()
    })
}

/// The node, where the card is near exactly one.
fn numa_node(device: &Device<'_>) -> Option<u32> {
    let words = device.memory_affinity(4, NODE_SCOPE).ok()?;
    let mut nodes = (0..u64::BITS * 4).filter(|node| {
        let word = words.get((node / u64::BITS) as usize).copied().unwrap_or_default();
        word & (1 << (node % u64::BITS)) != 0
    });
    nodes.next().filter(|_| nodes.next().is_none())
}

impl Card<'_> {
    /// How the card answers now; an error only where the whole driver is gone.
    fn probe(&self) -> Result<Observation, NvmlError> {
        let probe = match self.read() {
            Ok(reading) => Probe::Answer(reading),
            Err(NvmlError::GpuLost) => Probe::Lost,
            Err(error) if ends_session(&error) => return Err(error),
            Err(error) => Probe::Silent(error.to_string()),
        };
        Ok(Observation { identity: self.identity.clone(), probe })
    }

    fn read(&self) -> Result<Reading, NvmlError> {
        let device = &self.device;
        let memory = device.memory_info()?;
        let throttle = optional(device.current_throttle_reasons())?.unwrap_or(ThrottleReasons::empty());
        // A failing sensor may say anything.
        let watts = |milliwatts: u32| milliwatts.saturating_add(500) / 1000;
        Ok(Reading {
            temperature: supported(device.temperature(TemperatureSensor::Gpu))?,
            memory_used_mib: memory.used / MIB,
            memory_free_mib: memory.free / MIB,
            power: optional(device.power_usage())?.map(watts),
            utilization: optional(device.utilization_rates())?.map(|rates| rates.gpu),
            slowdown: Slowdown {
                hardware_heat: throttle.contains(ThrottleReasons::HW_THERMAL_SLOWDOWN),
                software_heat: throttle.contains(ThrottleReasons::SW_THERMAL_SLOWDOWN),
                power: throttle
                    .intersects(ThrottleReasons::SW_POWER_CAP | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN),
            },
            uncorrectable_errors: optional(
                device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile),
            )?,
            needs_recovery: needs_recovery(device)?,
            processes: processes(device)?,
        })
    }
}

/// A sensor that a card doesn't have is absent. One that it has and that fails is an error: nobody knows how hot it is.
fn supported<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_) | NvmlError::NoPermission) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a card doesn't tell is absent, and no error, unless the card is gone.
fn optional<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error @ NvmlError::GpuLost) => Err(error),
        Err(error) if ends_session(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

fn needs_recovery(device: &Device<'_>) -> Result<Option<bool>, NvmlError> {
    let Some(values) = optional(device.field_values_for(&[RECOVERY_ACTION]))? else { return Ok(None) };
    let action =
        values.into_iter().next().and_then(Result::ok).and_then(|sample| match sample.value.ok()? {
            SampleValue::U32(action) => Some(u64::from(action)),
            SampleValue::U64(action) => Some(action),
            _ => None,
        });
    // 0 is nothing and 3 is to drain peer-to-peer traffic; the others are a reset or a reboot.
    Ok(action.map(|action| !matches!(action, 0 | 3)))
}

fn processes(device: &Device<'_>) -> Result<Vec<GpuProcess>, NvmlError> {
    let compute = optional(device.running_compute_processes())?.unwrap_or_default();
    let graphics = optional(device.running_graphics_processes())?.unwrap_or_default();
    let mut processes: Vec<GpuProcess> = Vec::with_capacity(compute.len());
    for ProcessInfo { pid, used_gpu_memory, gpu_instance_id, .. } in compute.into_iter().chain(graphics) {
        let used_mib = match used_gpu_memory {
            UsedGpuMemory::Used(bytes) => bytes / MIB,
            UsedGpuMemory::Unavailable => 0,
        };
        // A process that computes and draws is in both lists, with the same memory.
        let same = |other: &&mut GpuProcess| (other.pid, other.gpu_instance) == (pid, gpu_instance_id);
        match processes.iter_mut().find(same) {
            Some(process) => process.used_mib = process.used_mib.max(used_mib),
            None => processes.push(GpuProcess { pid, gpu_instance: gpu_instance_id, used_mib }),
        }
    }
    Ok(processes)
}
