//! What the simulated machine has: its driver and its GPUs. Pure data with defaults; reading and writing is in `store`.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// The whole simulated machine, as it stands in the state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The driver.
    pub driver: Driver,
    /// The GPUs in order of their PCI addresses.
    pub gpus: Vec<Gpu>,
    /// The last Xid events, oldest first.
    #[serde(default)]
    pub xids: Vec<XidEvent>,
    /// Number that the next Xid event gets.
    #[serde(default)]
    pub next_event: u64,
}

/// The simulated driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Driver {
    /// `false`: NVML says that no driver is loaded, as during a driver upgrade.
    pub loaded: bool,
    /// `true`: calls don't return, as with a driver that waits for a failing card.
    #[serde(default)]
    pub hangs: bool,
    /// Version of the driver.
    pub version: String,
    /// Newest CUDA version in NVML's form: 13000 is 13.0.
    pub cuda_version: i32,
}

impl Default for Driver {
    /// One that works.
    fn default() -> Self {
        Self { loaded: true, hangs: false, version: "580.95.05".into(), cuda_version: 13_000 }
    }
}

/// One simulated GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Product name.
    pub product: String,
    /// `GPU-…`.
    pub uuid: String,
    /// PCI address in NVML's form, `00000000:01:00.0`.
    pub pci_address: String,
    /// All memory, in MiB.
    pub memory_total_mib: u64,
    /// Memory that the driver keeps for itself, in MiB.
    pub memory_reserved_mib: u64,
    /// Memory in use that belongs to no process of `processes`, in MiB.
    pub memory_used_mib: u64,
    /// Core temperature in °C.
    pub temperature: u32,
    /// Temperature in °C at which the card slows down.
    pub slowdown_temperature: u32,
    /// Temperature in °C at which the card switches itself off.
    pub shutdown_temperature: u32,
    /// Power drawn, in W.
    pub power: u32,
    /// Power limit, in W.
    pub power_limit: u32,
    /// Fan speed in percent; `None` for a card without fans.
    pub fan: Option<u32>,
    /// Share of time in which a kernel ran, in percent.
    pub utilization: u32,
    /// `true`: the card has fallen off the bus.
    #[serde(default)]
    pub lost: bool,
    /// What the driver asks for before the card can be used again.
    #[serde(default)]
    pub recovery_action: RecoveryAction,
    /// ECC error counts; `None` for a card without ECC.
    #[serde(default)]
    pub ecc: Option<EccErrors>,
    /// Compute processes.
    #[serde(default)]
    pub processes: Vec<Process>,
    /// NUMA node of the card.
    #[serde(default)]
    pub numa_node: u32,
    /// How its sensors answer: temperature, power, fan and load.
    #[serde(default)]
    pub sensors: Sensors,
    /// `true`: the card is not in its slot, and the driver doesn't count it.
    #[serde(default)]
    pub removed: bool,
    /// MIG devices, in the driver's order; `None` while MIG mode is off.
    #[serde(default)]
    pub mig: Option<Vec<MigDevice>>,
}

/// How a card's sensors answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Sensors {
    /// With values.
    #[default]
    Working,
    /// That the card has none.
    Unsupported,
    /// With an error.
    Failing,
}

/// A part of a GPU that works as a GPU of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigDevice {
    /// `MIG-…`.
    pub uuid: String,
    /// Number of its GPU instance.
    pub gpu_instance: u32,
    /// Its profile.
    pub profile: MigProfile,
}

/// Size of a MIG device in NVML's form, `1g.5gb`: slices of computing, GiB of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MigProfile {
    /// Of the 7 slices that a GPU has.
    pub slices: u32,
    /// Memory in GiB.
    pub memory_gib: u64,
}

/// What must be done to a GPU before it can be used again, as NVML's field 230 says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecoveryAction {
    /// Nothing.
    #[default]
    None,
    /// Reset the GPU.
    GpuReset,
    /// Reboot the node.
    NodeReboot,
}

/// Memory errors since the driver was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EccErrors {
    /// Errors that ECC corrected.
    pub corrected: u64,
    /// Errors that it could not correct.
    pub uncorrected: u64,
}

/// A process that computes on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Process id on the host.
    pub pid: u32,
    /// GPU memory that it uses, in MiB.
    pub memory_mib: u64,
    /// The GPU instance that it runs in, on a card that is divided.
    #[serde(default)]
    pub gpu_instance: Option<u32>,
}

/// An Xid event of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct XidEvent {
    /// Number of the event; later events have larger numbers.
    pub event: u64,
    /// Position of the GPU in [`State::gpus`].
    pub gpu: u32,
    /// The Xid code.
    pub xid: u64,
    /// The GPU instance that it is about; `None` for the whole card.
    #[serde(default)]
    pub gpu_instance: Option<u32>,
}

/// Xid events that the file keeps. A reader that is further behind misses the oldest.
const KEPT_XIDS: usize = 64;

/// Slices of computing that a GPU has.
const MIG_SLICES: u32 = 7;

/// Xid codes that an application's own mistake causes; after them the card works on without a reset.
const APPLICATION_XIDS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// Idle temperatures in °C of the default GPUs, by position: the middle of a chassis is warmer than its ends.
const IDLE_TEMPERATURES: [u32; 8] = [38, 40, 42, 44, 45, 43, 41, 39];

impl State {
    /// Eight idle RTX 3060 Ti, with UUIDs that depend on the node's name only.
    #[must_use]
    pub fn default_for_node(node: &str) -> Self {
        Self::with_gpus(node, 8)
    }

    /// `count` idle RTX 3060 Ti.
    #[must_use]
    pub fn with_gpus(node: &str, count: u32) -> Self {
        Self {
            driver: Driver::default(),
            gpus: (0..count).map(|position| Gpu::idle(node, position)).collect(),
            xids: Vec::new(),
            next_event: 0,
        }
    }

    /// Records an Xid event of the GPU at `position`, or of one of its instances, with what the driver then asks for.
    pub fn raise_xid(&mut self, position: u32, gpu_instance: Option<u32>, xid: u64) {
        self.xids.push(XidEvent { event: self.next_event, gpu: position, xid, gpu_instance });
        self.next_event += 1;
        let excess = self.xids.len().saturating_sub(KEPT_XIDS);
        self.xids.drain(..excess);
        if let Some(gpu) = self.gpus.get_mut(position as usize)
            && gpu_instance.is_none()
            && !APPLICATION_XIDS.contains(&xid)
        {
            gpu.recovery_action = RecoveryAction::GpuReset;
        }
    }
}

impl Gpu {
    /// An idle RTX 3060 Ti at this position of the node.
    #[must_use]
    pub fn idle(node: &str, position: u32) -> Self {
        Self {
            product: "NVIDIA GeForce RTX 3060 Ti".into(),
            uuid: uuid(node, position),
            pci_address: format!("00000000:{:02X}:00.0", position + 1),
            memory_total_mib: 8192,
            memory_reserved_mib: 225,
            memory_used_mib: 0,
            temperature: IDLE_TEMPERATURES[position as usize % IDLE_TEMPERATURES.len()],
            slowdown_temperature: 95,
            shutdown_temperature: 98,
            power: 15 + position % 4,
            power_limit: 200,
            fan: Some(30),
            utilization: 0,
            lost: false,
            recovery_action: RecoveryAction::None,
            ecc: None,
            processes: Vec::new(),
            numa_node: 0,
            sensors: Sensors::Working,
            removed: false,
            mig: None,
        }
    }

    /// Divides the card into MIG devices of these profiles; none leaves MIG mode on and the card undivided.
    ///
    /// # Errors
    /// If they are more than the card has, in a sentence.
    pub fn divide(&mut self, profiles: &[MigProfile]) -> Result<(), String> {
        let slices: u32 = profiles.iter().map(|profile| profile.slices).sum();
        let memory: u64 = profiles.iter().map(|profile| profile.memory_gib << 10).sum();
        if slices > MIG_SLICES || memory > self.memory_total_mib {
            return Err(format!(
                "MIG devices of {slices} slices and {memory} MiB are more than the card has: {MIG_SLICES} slices and {} MiB",
                self.memory_total_mib
            ));
        }
        // The driver's numbers of GPU instances begin at 1 where the whole card is no instance.
        let device = |(gpu_instance, profile): (u32, &MigProfile)| MigDevice {
            uuid: digest_uuid("MIG", &format!("{} {gpu_instance} {profile}", self.uuid)),
            gpu_instance,
            profile: *profile,
        };
        self.mig = Some((1..).zip(profiles).map(device).collect());
        Ok(())
    }

    /// What programs see of a MIG device: the card with the device's name, memory and processes.
    #[must_use]
    pub fn part(&self, device: &MigDevice) -> Self {
        let mine = |process: &&Process| process.gpu_instance == Some(device.gpu_instance);
        Self {
            product: format!("{} MIG {}", self.product, device.profile),
            uuid: device.uuid.clone(),
            memory_total_mib: device.profile.memory_gib << 10,
            memory_reserved_mib: 0,
            memory_used_mib: 0,
            processes: self.processes.iter().filter(mine).copied().collect(),
            ..self.clone()
        }
    }

    /// Memory in use in MiB, the driver's own reserve not counted.
    #[must_use]
    pub fn used_mib(&self) -> u64 {
        let used = self
            .processes
            .iter()
            .fold(self.memory_used_mib, |sum, process| sum.saturating_add(process.memory_mib));
        used.min(self.memory_total_mib.saturating_sub(self.memory_reserved_mib))
    }

    /// Memory that can still be allocated, in MiB.
    #[must_use]
    pub fn free_mib(&self) -> u64 {
        self.memory_total_mib.saturating_sub(self.memory_reserved_mib) - self.used_mib()
    }

    /// What a reset of the card does: it answers again and has forgotten its errors.
    pub fn recover(&mut self) {
        self.lost = false;
        self.recovery_action = RecoveryAction::None;
        if let Some(ecc) = &mut self.ecc {
            *ecc = EccErrors::default();
        }
    }
}

/// A UUID that the node's name and the position determine.
fn uuid(node: &str, position: u32) -> String {
    digest_uuid("GPU", &format!("principium simulated GPU {position} of {node}"))
}

/// A UUID in NVML's form that follows from `seed`.
fn digest_uuid(prefix: &str, seed: &str) -> String {
    let digest = Sha256::digest(seed);
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{prefix}-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

impl fmt::Display for MigProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}g.{}gb", self.slices, self.memory_gib)
    }
}

impl FromStr for MigProfile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (slices, memory) = text.strip_suffix("gb")?.split_once("g.")?;
            let profile = Self { slices: slices.parse().ok()?, memory_gib: memory.parse().ok()? };
            ((1..=MIG_SLICES).contains(&profile.slices) && profile.memory_gib > 0).then_some(profile)
        };
        parse().ok_or_else(|| format!("{text:?} is no MIG profile: write slices and GiB, for example 1g.2gb"))
    }
}

impl TryFrom<String> for MigProfile {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MigProfile> for String {
    fn from(profile: MigProfile) -> Self {
        profile.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_depend_on_node_and_position_and_nothing_else() {
        let (one, again, other) =
            (State::default_for_node("a"), State::default_for_node("a"), State::default_for_node("b"));
        assert_eq!(one, again);
        let mut all: Vec<_> = one.gpus.iter().chain(&other.gpus).map(|gpu| gpu.uuid.clone()).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 16);
        assert!(all.iter().all(|uuid| uuid.len() == 40 && uuid.starts_with("GPU-")), "{all:?}");
    }

    #[test]
    fn memory_in_use_adds_up_and_never_passes_what_the_card_has() {
        let mut gpu = Gpu::idle("a", 0);
        assert_eq!((gpu.used_mib(), gpu.free_mib()), (0, 7967));
        gpu.memory_used_mib = 1024;
        gpu.processes = vec![Process { pid: 7, memory_mib: 2048, gpu_instance: None }];
        assert_eq!((gpu.used_mib(), gpu.free_mib()), (3072, 4895));
        gpu.memory_used_mib = 9000;
        assert_eq!((gpu.used_mib(), gpu.free_mib()), (7967, 0));
    }

    #[test]
    fn a_critical_xid_asks_for_a_reset_and_an_applications_does_not() {
        for (xid, action) in [(79, RecoveryAction::GpuReset), (13, RecoveryAction::None)] {
            let mut state = State::default_for_node("a");
            state.raise_xid(2, None, xid);
            assert_eq!(state.gpus[2].recovery_action, action, "Xid {xid}");
            state.gpus[2].recover();
            assert_eq!(state.gpus[2].recovery_action, RecoveryAction::None);
        }
    }

    #[test]
    fn only_the_newest_xids_are_kept_and_their_numbers_go_on() {
        let mut state = State::default_for_node("a");
        (0..100).for_each(|xid| state.raise_xid(0, None, xid));
        assert_eq!((state.xids.len(), state.xids[0].event, state.next_event), (64, 36, 100));
    }
    #[test]
    fn a_card_is_divided_into_what_it_has() {
        let mut gpu = Gpu::idle("a", 0);
        let profiles =
            |names: &[&str]| -> Vec<MigProfile> { names.iter().map(|name| name.parse().unwrap()).collect() };
        gpu.divide(&profiles(&["1g.2gb", "2g.4gb"])).unwrap();
        gpu.processes = vec![
            Process { pid: 1, memory_mib: 100, gpu_instance: Some(1) },
            Process { pid: 2, memory_mib: 200, gpu_instance: Some(2) },
        ];
        let devices = gpu.mig.clone().unwrap();
        let part = gpu.part(&devices[1]);
        assert_eq!((part.memory_total_mib, part.used_mib(), part.temperature), (4096, 200, gpu.temperature));
        assert_eq!(part.product, "NVIDIA GeForce RTX 3060 Ti MIG 2g.4gb");
        assert!(devices[0].uuid.starts_with("MIG-") && devices[0].uuid != devices[1].uuid);
        for too_much in [["4g.1gb", "4g.1gb"], ["1g.4gb", "1g.5gb"]] {
            let error = gpu.divide(&profiles(&too_much)).unwrap_err();
            assert!(error.contains("more than the card has"), "{error}");
        }
        for text in ["1g", "0g.1gb", "8g.1gb", "1g.0gb", "g.gb", "1g.5GB"] {
            assert!(text.parse::<MigProfile>().is_err(), "{text}");
        }
    }
}
