//! The command line that shows and changes the simulated GPUs, the same for every program that offers it.

use crate::amount::{Memory, readable};
use crate::state::{Driver, EccErrors, Gpu, MigProfile, Process, Sensors, State};
use crate::store::{self, SimError};
use crate::table;
use clap::{Args, Subcommand};
use std::io::Write;
use std::path::Path;
use std::str::FromStr;

/// What to do with the simulated GPUs.
#[derive(Clone, Debug, Subcommand)]
pub enum GpuCommand {
    /// Print the GPUs as they are.
    List {
        /// Print the state file's JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Change GPUs while everything runs.
    Set(SetArgs),
    /// Create the state file where there is none, and leave one that is there alone.
    Init {
        /// How many GPUs the new file has.
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=64))]
        gpus: u32,
    },
    /// Put GPUs back to idle and healthy; without a GPU, everything. The cards stay the same cards. A file that is not
    /// valid is started anew.
    Reset {
        /// Index of the GPU, or `all`.
        gpu: Option<Selection>,
    },
    /// Load or unload the driver, or let it hang: NVML answers nothing then.
    Driver {
        /// What to do with it.
        #[arg(value_enum)]
        change: DriverChange,
    },
}

/// What `driver` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DriverChange {
    /// NVML answers.
    Load,
    /// NVML says that no driver is loaded.
    Unload,
    /// NVML's calls don't return until the driver is loaded anew or unloaded.
    Hang,
}

/// What `set` changes. Options that are not given leave their value alone.
#[derive(Clone, Debug, Args)]
#[group(skip)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true)))]
pub struct SetArgs {
    /// Index of the GPU as `list` prints it, or `all`.
    gpu: Selection,
    /// Core temperature in °C.
    #[arg(long, value_name = "C", value_parser = clap::value_parser!(u32).range(0..=150), group = "change")]
    temperature: Option<u32>,
    /// Memory in use that belongs to no listed process, for example 3GiB or 512MiB.
    #[arg(long, value_name = "AMOUNT", group = "change")]
    memory_used: Option<Memory>,
    /// Power drawn, in W.
    #[arg(long, value_name = "W", value_parser = clap::value_parser!(u32).range(0..=1000), group = "change")]
    power: Option<u32>,
    /// Share of time in which the GPU computes, in percent.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100), group = "change")]
    utilization: Option<u32>,
    /// Raise an Xid event with this code; 79 is a card that fell off the bus.
    #[arg(long, value_name = "CODE", group = "change")]
    xid: Option<u64>,
    /// Let the card fall off the bus: every call about it fails.
    #[arg(long, conflicts_with = "recover", group = "change")]
    lost: bool,
    /// Reset the card as an administrator would: it answers again and has forgotten its errors.
    #[arg(long, group = "change")]
    recover: bool,
    /// Add a compute process, or change the one with this id: PID:MEMORY, for example 4242:2GiB (no unit: MiB). Repeatable.
    #[arg(long, value_name = "PID:MEMORY", group = "change")]
    process: Vec<ProcessArg>,
    /// Remove all processes first.
    #[arg(long, group = "change")]
    clear_processes: bool,
    /// Give the card ECC memory with this many uncorrectable errors.
    #[arg(long, value_name = "COUNT", group = "change")]
    ecc_uncorrected: Option<u64>,
    /// How the sensors answer: temperature, power, fan and load.
    #[arg(long, value_enum, group = "change")]
    sensors: Option<Sensors>,
    /// Pull the card out of its slot.
    #[arg(long, conflicts_with = "insert", group = "change")]
    remove: bool,
    /// Put it back.
    #[arg(long, group = "change")]
    insert: bool,
    /// Divide the card into MIG devices of these profiles, for example 1g.2gb,2g.4gb; `off` ends MIG mode.
    #[arg(long, value_name = "PROFILES", group = "change")]
    mig: Option<MigArg>,
    /// With --process or --xid: the GPU instance that it is about, as on a card that is divided.
    #[arg(long, value_name = "NUMBER")]
    gpu_instance: Option<u32>,
}

/// One GPU, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Every GPU.
    All,
    /// The one with this index.
    One(usize),
}

impl FromStr for Selection {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            _ => text
                .parse()
                .map(Self::One)
                .map_err(|_| format!("{text:?} is no GPU: give its index as `list` prints it, or `all`")),
        }
    }
}

/// Profiles of the MIG devices; `None` is `off`.
#[derive(Clone, Debug)]
struct MigArg(Option<Vec<MigProfile>>);

impl FromStr for MigArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let profiles = |text: &str| text.split(',').map(str::parse).collect::<Result<_, _>>();
        if text == "off" { Ok(Self(None)) } else { profiles(text).map(|profiles| Self(Some(profiles))) }
    }
}

#[derive(Clone, Copy, Debug)]
struct ProcessArg(Process);

impl FromStr for ProcessArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (pid, memory) = text.split_once(':').ok_or_else(|| {
            format!("{text:?} is no process: write its id and its memory, for example 4242:2GiB")
        })?;
        let pid = pid.parse().map_err(|_| format!("{pid:?} is no process id: it is a whole number"))?;
        let memory: Memory = memory.parse()?;
        Ok(Self(Process { pid, memory_mib: memory.mib, gpu_instance: None }))
    }
}

impl GpuCommand {
    /// Does it on the state in `path` and prints the outcome on standard output.
    ///
    /// # Errors
    /// If the state cannot be read or written, or if the command names a GPU that is not there.
    pub fn run(&self, path: &Path) -> Result<(), SimError> {
        self.run_to(path, &mut std::io::stdout().lock())
    }

    /// Does it on the state in `path` and prints the outcome to `out`.
    ///
    /// # Errors
    /// As [`GpuCommand::run`], or if `out` cannot be written.
    pub fn run_to(&self, path: &Path, out: &mut impl Write) -> Result<(), SimError> {
        let text = match self {
            Self::List { json: false } => table::render(&store::load(path)?),
            Self::List { json: true } => json(path, &store::load(path)?)?,
            Self::Set(change) => {
                let state = store::update(path, |state| {
                    for position in positions(state, change.gpu)? {
                        change.apply(state, position)?;
                    }
                    Ok(())
                })?;
                table::render(&state)
            }
            Self::Init { gpus } => init(path, *gpus)?,
            Self::Reset { gpu: None } => {
                let state = reset_all(path)?;
                table::render(&state)
            }
            Self::Reset { gpu: Some(selection) } => {
                let state = store::update(path, |state| {
                    for position in positions(state, *selection)? {
                        reset(&mut state.gpus[position], position);
                    }
                    Ok(())
                })?;
                table::render(&state)
            }
            Self::Driver { change } => {
                store::update(path, |state| {
                    state.driver.hangs = *change == DriverChange::Hang;
                    state.driver.loaded = *change != DriverChange::Unload;
                    Ok(())
                })?;
                let outcome = match change {
                    DriverChange::Load => "is loaded",
                    DriverChange::Unload => "is unloaded",
                    DriverChange::Hang => "hangs",
                };
                format!("The simulated driver {outcome}.")
            }
        };
        writeln!(out, "{text}").map_err(SimError::file("write to", Path::new("standard output")))
    }
}

impl SetArgs {
    fn apply(&self, state: &mut State, position: usize) -> Result<(), SimError> {
        let gpu = &mut state.gpus[position];
        if let Some(temperature) = self.temperature {
            gpu.temperature = temperature;
        }
        if let Some(power) = self.power {
            gpu.power = power;
        }
        if let Some(utilization) = self.utilization {
            gpu.utilization = utilization;
        }
        if self.clear_processes {
            gpu.processes.clear();
        }
        if let Some(memory) = self.memory_used {
            gpu.memory_used_mib = memory.mib;
        }
        for ProcessArg(process) in &self.process {
            gpu.processes.retain(|other| other.pid != process.pid);
            gpu.processes.push(Process { gpu_instance: self.gpu_instance, ..*process });
        }
        if self.memory_used.is_some() || !self.process.is_empty() {
            check_memory(gpu, position)?;
        }
        if let Some(uncorrected) = self.ecc_uncorrected {
            gpu.ecc = Some(EccErrors { uncorrected, ..gpu.ecc.unwrap_or_default() });
        }
        if let Some(sensors) = self.sensors {
            gpu.sensors = sensors;
        }
        match &self.mig {
            Some(MigArg(Some(profiles))) => gpu
                .divide(profiles)
                .map_err(|error| SimError::Command(format!("GPU {position} can't be divided: {error}")))?,
            Some(MigArg(None)) => gpu.mig = None,
            None => {}
        }
        if self.remove || self.insert {
            gpu.removed = self.remove;
        }
        if self.recover {
            gpu.recover();
        }
        if self.lost {
            gpu.lost = true;
        }
        if let (Some(xid), Ok(position)) = (self.xid, u32::try_from(position)) {
            state.raise_xid(position, self.gpu_instance, xid);
        }
        Ok(())
    }
}

fn check_memory(gpu: &Gpu, position: usize) -> Result<(), SimError> {
    let asked =
        gpu.processes.iter().fold(gpu.memory_used_mib, |sum, process| sum.saturating_add(process.memory_mib));
    let usable = gpu.memory_total_mib.saturating_sub(gpu.memory_reserved_mib);
    if asked <= usable {
        return Ok(());
    }
    Err(SimError::Command(format!(
        "GPU {position} can't have {} in use: it has {}, of which the driver keeps {}",
        readable(asked),
        readable(gpu.memory_total_mib),
        readable(gpu.memory_reserved_mib)
    )))
}

fn reset(gpu: &mut Gpu, position: usize) {
    // The identity stays: a card that is reset is the same card.
    let idle = Gpu::idle("", u32::try_from(position).unwrap_or_default());
    *gpu = Gpu {
        product: std::mem::take(&mut gpu.product),
        uuid: std::mem::take(&mut gpu.uuid),
        pci_address: std::mem::take(&mut gpu.pci_address),
        memory_total_mib: gpu.memory_total_mib,
        memory_reserved_mib: gpu.memory_reserved_mib,
        numa_node: gpu.numa_node,
        ..idle
    };
}

fn reset_all(path: &Path) -> Result<State, SimError> {
    let reset_state = |state: &mut State| {
        state.driver = Driver::default();
        state.xids.clear();
        state.gpus.iter_mut().enumerate().for_each(|(position, gpu)| reset(gpu, position));
        Ok(())
    };
    match store::update(path, reset_state) {
        Err(SimError::Corrupt { .. } | SimError::Impossible { .. }) => {
            let state = State::default_for_node(&store::node_name());
            store::replace(path, &state)?;
            Ok(state)
        }
        outcome => outcome,
    }
}

fn init(path: &Path, gpus: u32) -> Result<String, SimError> {
    if path.exists() {
        let state = store::load(path)?;
        return Ok(format!(
            "{} is there already, with {} GPUs; it was left alone.",
            path.display(),
            state.gpus.len()
        ));
    }
    store::replace(path, &State::with_gpus(&store::node_name(), gpus))?;
    Ok(format!("{} was created with {gpus} GPUs.", path.display()))
}

fn positions(state: &State, selection: Selection) -> Result<Vec<usize>, SimError> {
    match selection {
        Selection::All => Ok((0..state.gpus.len()).collect()),
        Selection::One(position) if position < state.gpus.len() => Ok(vec![position]),
        Selection::One(position) => Err(SimError::Command(match state.gpus.len() {
            0 => format!("there is no GPU {position}: the simulated node has none"),
            1 => format!("there is no GPU {position}: the simulated node has only GPU 0"),
            count => format!("there is no GPU {position}: the simulated node has GPUs 0 to {}", count - 1),
        })),
    }
}

fn json(path: &Path, state: &State) -> Result<String, SimError> {
    serde_json::to_string_pretty(state).map_err(|source| SimError::Corrupt { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: GpuCommand,
    }

    /// Runs command lines one after another on a fresh file; gives the state and the last output or error.
    fn run(lines: &[&str]) -> (State, Result<String, String>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gpus.json");
        let mut last = Ok(String::new());
        for line in lines {
            last = Cli::try_parse_from(std::iter::once("gpu").chain(line.split(' ')))
                .map_err(|error| error.to_string())
                .and_then(|cli| {
                    let mut out = Vec::new();
                    cli.command.run_to(&path, &mut out).map_err(|error| error.to_string())?;
                    Ok(String::from_utf8(out).unwrap())
                });
        }
        (store::load(&path).unwrap(), last)
    }

    #[test]
    fn set_changes_what_it_names_and_nothing_else() {
        let (state, out) =
            run(&["set 3 --temperature 92 --memory-used 3GiB --process 42:512 --process 43:1GiB"]);
        assert_eq!(state.gpus[3].temperature, 92);
        assert_eq!(state.gpus[3].used_mib(), 3072 + 512 + 1024);
        assert!(out.unwrap().contains("92 °C"));
        let untouched = State::default_for_node(&store::node_name());
        assert_eq!(state.gpus[2], untouched.gpus[2]);
    }

    #[test]
    fn a_card_is_divided_pulled_and_put_back() {
        let (state, out) =
            run(&["set 3 --mig 1g.2gb,2g.4gb --process 42:512 --gpu-instance 2", "set 3 --remove"]);
        let gpu = &state.gpus[3];
        assert_eq!((gpu.mig.as_ref().map(Vec::len), gpu.removed), (Some(2), true));
        assert_eq!(gpu.processes[0].gpu_instance, Some(2));
        assert!(out.unwrap().contains("removed"));
        let (state, _) = run(&["set 3 --mig 1g.2gb --remove", "set 3 --mig off --insert"]);
        assert_eq!((&state.gpus[3].mig, state.gpus[3].removed), (&None, false));
    }

    #[test]
    fn a_failed_card_recovers_and_a_reset_card_keeps_its_identity() {
        let (state, _) = run(&["set 3 --lost --xid 79", "set 3 --recover --temperature 70", "reset 3"]);
        let untouched = State::default_for_node(&store::node_name());
        assert_eq!(state.gpus, untouched.gpus);
        assert_eq!(state.xids.len(), 1);
    }

    #[test]
    fn a_reset_of_everything_keeps_the_cards_and_mends_a_corrupt_file() {
        let (state, _) =
            run(&["init --gpus 2", "set all --temperature 90 --xid 79", "driver unload", "reset"]);
        assert_eq!(state.gpus, State::with_gpus(&store::node_name(), 2).gpus);
        assert!(state.driver.loaded && state.xids.is_empty());

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gpus.json");
        std::fs::write(&path, "{").unwrap();
        GpuCommand::Reset { gpu: None }.run_to(&path, &mut Vec::new()).unwrap();
        assert_eq!(store::load(&path).unwrap().gpus.len(), 8);
    }

    #[test]
    fn all_means_all() {
        let (state, _) = run(&["set all --temperature 60"]);
        assert!(state.gpus.iter().all(|gpu| gpu.temperature == 60));
    }

    #[test]
    fn wrong_commands_say_what_is_right() {
        for (line, part) in [
            ("set 9 --temperature 50", "GPUs 0 to 7"),
            ("set x --temperature 50", "give its index"),
            ("set 3", "--temperature"),
            ("set 3 --temperature hot", "invalid digit"),
            ("set 3 --temperature 500", "150"),
            ("set 3 --memory-used 9GiB", "it has 8.0 GiB"),
            ("set 3 --memory-used 3XB", "3GiB"),
            ("set 3 --process 42", "4242:2GiB"),
            ("set 3 --lost --recover", "cannot be used with"),
            ("set 3 --mig 1g", "1g.2gb"),
            ("set 3 --mig 4g.4gb,4g.4gb", "7 slices"),
        ] {
            let error = run(&[line]).1.unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn init_leaves_a_file_that_is_there_alone() {
        let (state, out) = run(&["init --gpus 2", "set 1 --temperature 50", "init --gpus 4"]);
        assert_eq!((state.gpus.len(), state.gpus[1].temperature), (2, 50));
        assert!(out.unwrap().contains("left alone"));
    }

    #[test]
    fn the_driver_can_be_unloaded_hang_and_be_loaded() {
        let driver = |lines: &[&str]| {
            let driver = run(lines).0.driver;
            (driver.loaded, driver.hangs)
        };
        assert_eq!(driver(&["driver unload"]), (false, false));
        assert_eq!(driver(&["driver unload", "driver load"]), (true, false));
        assert_eq!(driver(&["driver hang"]), (true, true));
        assert_eq!(driver(&["driver hang", "driver load"]), (true, false));
        assert_eq!(driver(&["driver hang", "reset"]), (true, false));
    }
}
