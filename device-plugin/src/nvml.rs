//! Reads the GPUs through NVML: the only module that knows that library, on a thread of its own.
//!
//! NVML's calls block, some of them for long when a card is failing, so nothing else runs here and no other thread calls
//! NVML. A driver that is missing, goes away or is replaced is waited for; the thread never ends by itself.

use crate::device::{GpuProcess, Identity, Observation, Probe, Reading, Sample, Xid};
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::{Device, Nvml, cuda_driver_version_major, cuda_driver_version_minor};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Sender;

const MIB: u64 = 1 << 20;
/// How long to wait for a driver that is not there.
const RETRY: Duration = Duration::from_secs(3);
/// How often to open the driver anew while a card is missing: a handle of a lost card may stay lost for ever.
const REOPEN: Duration = Duration::from_secs(30);
/// How often to try to open a card that could not be opened.
const RETRY_CARD: Duration = Duration::from_secs(2);
/// `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`.
const RECOVERY_ACTION: FieldId = FieldId(230);
/// `NVML_AFFINITY_SCOPE_NODE`.
const NODE_SCOPE: u32 = 0;

/// What the thread has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Values of all GPUs.
    Sample(Sample),
    /// Why there are none.
    Unavailable(String),
}

/// How the thread works.
#[derive(Clone, Debug)]
pub struct Reader {
    /// The driver's library.
    pub library: PathBuf,
    /// Time between two samples.
    pub interval: Duration,
}

/// Why a session with the driver ended.
enum End {
    /// Nobody listens any more.
    Closed,
    /// To open it anew at once: a card may have come back.
    Reopen,
    /// The driver is not there, or no longer.
    Unavailable(String),
}

impl Reader {
    /// Reads until nobody listens to `reports` any more. Blocks: give it a thread of its own.
    pub fn run(&self, reports: &Sender<Report>) {
        let mut session = 0;
        let mut driver_was_away = true;
        loop {
            session += u64::from(driver_was_away);
            let end =
                catch_unwind(AssertUnwindSafe(|| self.session(session, reports))).unwrap_or_else(|_| {
                    End::Unavailable("reading the GPUs failed unexpectedly; starting anew".into())
                });
            driver_was_away = match end {
                End::Closed => return,
                End::Reopen => false,
                End::Unavailable(reason) => {
                    if reports.blocking_send(Report::Unavailable(reason)).is_err() {
                        return;
                    }
                    std::thread::sleep(RETRY);
                    true
                }
            };
        }
    }

    /// Opens the driver and reads until it goes away.
    fn session(&self, session: u64, reports: &Sender<Report>) -> End {
        let nvml = match Nvml::builder().lib_path(self.library.as_os_str()).init() {
            Ok(nvml) => nvml,
            Err(error) => return End::Unavailable(self.explain(&error)),
        };
        let mut cards = match Cards::new(&nvml) {
            Ok(cards) => cards,
            Err(error) => return End::Unavailable(self.explain(&error)),
        };
        let driver_version = nvml.sys_driver_version().unwrap_or_default();
        let cuda_version = nvml.sys_cuda_driver_version().ok().map(|version| {
            format!("{}.{}", cuda_driver_version_major(version), cuda_driver_version_minor(version))
        });
        let mut xids = Vec::new();
        let mut events = None;
        let mut missing_since = None;
        loop {
            let start = Instant::now();
            let gpus = match cards.open_missing(&nvml).and_then(|()| cards.probe()) {
                Ok(gpus) => gpus,
                Err(error) => return End::Unavailable(self.explain(&error)),
            };
            let missing = cards.are_missing() || gpus.iter().any(|gpu| gpu.probe == Probe::Lost);
            let sample = Sample {
                driver_version: driver_version.clone(),
                cuda_version: cuda_version.clone(),
                session,
                gpus,
                xids: std::mem::take(&mut xids),
            };
            if reports.blocking_send(Report::Sample(sample)).is_err() {
                return End::Closed;
            }
            missing_since = missing.then(|| missing_since.unwrap_or(start));
            if missing_since.is_some_and(|since: Instant| since.elapsed() >= REOPEN) {
                return End::Reopen;
            }
            events = wait(&nvml, &cards, events, self.interval.saturating_sub(start.elapsed()), &mut xids);
        }
    }

    fn explain(&self, error: &NvmlError) -> String {
        let library = self.library.display();
        match error {
            NvmlError::LibloadingError(error) => format!(
                "the NVIDIA driver's library {library} can't be loaded ({error}): install the driver on this node, or \
                 tell with --nvml-library where the library is"
            ),
            NvmlError::DriverNotLoaded => {
                "the NVIDIA driver is not loaded: no GPUs until the kernel module is there".to_owned()
            }
            NvmlError::LibRmVersionMismatch => format!(
                "{library} and the loaded kernel module have different versions: a driver upgrade is not finished, \
                 reload the module or reboot the node"
            ),
            other => format!("the NVIDIA driver answers with an error: {other}"),
        }
    }
}

struct Card<'nvml> {
    device: Device<'nvml>,
    identity: Identity,
    lost: bool,
}

/// The driver's cards in its own order. A place is empty while its card can't be opened.
struct Cards<'nvml> {
    places: Vec<Option<Card<'nvml>>>,
    tried: Instant,
}

impl<'nvml> Cards<'nvml> {
    fn new(nvml: &'nvml Nvml) -> Result<Self, NvmlError> {
        let places = (0..nvml.device_count()?).map(|index| open(nvml, index)).collect::<Result<_, _>>()?;
        Ok(Self { places, tried: Instant::now() })
    }

    fn open(&self) -> impl Iterator<Item = &Card<'nvml>> {
        self.places.iter().flatten()
    }

    fn are_missing(&self) -> bool {
        self.places.iter().any(Option::is_none)
    }

    fn open_missing(&mut self, nvml: &'nvml Nvml) -> Result<(), NvmlError> {
        if !self.are_missing() || self.tried.elapsed() < RETRY_CARD {
            return Ok(());
        }
        self.tried = Instant::now();
        for (index, place) in (0..).zip(&mut self.places) {
            if place.is_none() {
                *place = open(nvml, index)?;
            }
        }
        Ok(())
    }

    fn probe(&mut self) -> Result<Vec<Observation>, NvmlError> {
        self.places
            .iter_mut()
            .flatten()
            .map(|card| {
                let probe = card.probe()?;
                card.lost = probe == Probe::Lost;
                Ok(Observation { identity: card.identity.clone(), probe })
            })
            .collect()
    }
}

/// Opens one card; an error only where the whole driver is gone: one card that fails must not hide the others.
fn open(nvml: &Nvml, index: u32) -> Result<Option<Card<'_>>, NvmlError> {
    let card = nvml.device_by_index(index).and_then(|device| {
        let identity = identity(&device)?;
        Ok(Card { device, identity, lost: false })
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

/// Errors that mean that the driver itself is gone, not one card.
fn ends_session(error: &NvmlError) -> bool {
    matches!(error, NvmlError::DriverNotLoaded | NvmlError::Uninitialized | NvmlError::LibRmVersionMismatch)
}

impl Card<'_> {
    /// How the card answers now; an error only where the whole driver is gone.
    fn probe(&self) -> Result<Probe, NvmlError> {
        match self.read() {
            Ok(reading) => Ok(Probe::Answer(reading)),
            Err(NvmlError::GpuLost) => Ok(Probe::Lost),
            Err(error) if ends_session(&error) => Err(error),
            Err(error) => Ok(Probe::Silent(error.to_string())),
        }
    }

    fn read(&self) -> Result<Reading, NvmlError> {
        let device = &self.device;
        let memory = device.memory_info()?;
        let throttle = optional(device.current_throttle_reasons())?.unwrap_or(ThrottleReasons::empty());
        let watts = |milliwatts: u32| (milliwatts + 500) / 1000;
        Ok(Reading {
            temperature: optional(device.temperature(TemperatureSensor::Gpu))?,
            memory_used_mib: memory.used / MIB,
            memory_free_mib: memory.free / MIB,
            power: optional(device.power_usage())?.map(watts),
            utilization: optional(device.utilization_rates())?.map(|rates| rates.gpu),
            thermal_slowdown: throttle.contains(ThrottleReasons::HW_THERMAL_SLOWDOWN),
            uncorrectable_errors: optional(
                device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile),
            )?,
            needs_recovery: needs_recovery(device)?,
            processes: processes(device)?,
        })
    }
}

/// What a card doesn't support is absent, and no error.
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
    for ProcessInfo { pid, used_gpu_memory, .. } in compute.into_iter().chain(graphics) {
        let used_mib = match used_gpu_memory {
            UsedGpuMemory::Used(bytes) => bytes / MIB,
            UsedGpuMemory::Unavailable => 0,
        };
        // A process that computes and draws is in both lists, with the same memory.
        match processes.iter_mut().find(|process| process.pid == pid) {
            Some(process) => process.used_mib = process.used_mib.max(used_mib),
            None => processes.push(GpuProcess { pid, used_mib }),
        }
    }
    Ok(processes)
}

/// Waits until the next sample is due, or less: an Xid event ends the wait.
fn wait<'nvml>(
    nvml: &'nvml Nvml,
    cards: &Cards<'nvml>,
    events: Option<EventSet<'nvml>>,
    time: Duration,
    xids: &mut Vec<Xid>,
) -> Option<EventSet<'nvml>> {
    let until = Instant::now() + time;
    let Some(events) = events.or_else(|| watch(nvml, cards)) else {
        std::thread::sleep(time);
        return None;
    };
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // After the first event only those that are there already are taken.
        let left = if xids.is_empty() { left } else { Duration::ZERO };
        match events.wait(u32::try_from(left.as_millis()).unwrap_or(u32::MAX)) {
            Ok(event) => {
                if let Some(XidError::Value(code)) = event.event_data {
                    let uuid = card_of(&event.device, cards).map(|card| card.identity.uuid.clone());
                    tracing::warn!(code, uuid, "Xid event");
                    xids.push(Xid { uuid, code });
                }
            }
            Err(NvmlError::Timeout) => return Some(events),
            // For example because a card of the set is lost: wait the rest, then watch those that are left.
            Err(error) => {
                tracing::debug!(%error, "waiting for events failed");
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
                return None;
            }
        }
    }
}

/// Watches every card that can be watched. A card that can't spoils the set, so it is made anew without that one.
fn watch<'nvml>(nvml: &'nvml Nvml, cards: &Cards<'nvml>) -> Option<EventSet<'nvml>> {
    let mut watched: Vec<_> = cards
        .open()
        .filter(|card| !card.lost)
        .filter(|card| {
            card.device
                .supported_event_types()
                .is_ok_and(|types| types.contains(EventTypes::CRITICAL_XID_ERROR))
        })
        .collect();
    while !watched.is_empty() {
        let mut set = nvml.create_event_set().ok()?;
        let mut spoiled = None;
        for (position, card) in watched.iter().enumerate() {
            match card.device.register_events(EventTypes::CRITICAL_XID_ERROR, set) {
                Ok(same) => set = same,
                Err(_) => {
                    spoiled = Some(position);
                    break;
                }
            }
            if position + 1 == watched.len() {
                return Some(set);
            }
        }
        watched.remove(spoiled?);
    }
    None
}

/// The card that an event is about. A lost card no longer tells its UUID, so the handles are compared.
#[allow(unsafe_code)]
fn card_of<'card, 'nvml>(device: &Device<'nvml>, cards: &'card Cards<'nvml>) -> Option<&'card Card<'nvml>> {
    // SAFETY: the handles are only compared, and nothing is made of them.
    cards.open().find(|card| unsafe { card.device.handle() == device.handle() })
}
