//! Reads the GPUs through NVML: the only module that knows that library, on a thread of its own.
//!
//! NVML's calls block, some of them for long when a card is failing, so nothing else runs here and no other thread calls
//! NVML. A driver that is missing, goes away or is replaced is waited for, and a bug that ends a session starts the next
//! one: the thread never ends by itself.

mod cards;
mod events;
mod mig;

use crate::device::{Probe, Sample};
use cards::Cards;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Nvml, cuda_driver_version_major, cuda_driver_version_minor};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Sender;

/// How long to wait for a driver that is not there.
const RETRY: Duration = Duration::from_secs(3);
/// How often to open the driver anew while a card is missing: a handle of a lost card may stay lost for ever.
const REOPEN: Duration = Duration::from_secs(30);
/// The kernel's list of the cards that the driver has taken. NVML counts them only when it is opened.
const BOUND: &str = "/sys/bus/pci/drivers/nvidia";

/// What the thread has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Values of all GPUs.
    Sample(Sample),
    /// Why there are none.
    Unavailable(String),
    /// Reading ended by a bug and starts anew.
    Died(String),
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
    /// To open it anew at once: there are other cards than before, or a card may have come back.
    Reopen,
    /// The driver is not there, or no longer.
    Unavailable(String),
}

impl Reader {
    /// Reads until nobody listens to `reports` any more. Blocks: give it a thread of its own.
    pub fn run(&self, reports: &Sender<Report>) {
        supervise(|session| self.session(session, reports), reports, RETRY);
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
        let bound = bound_cards();
        let driver_version = nvml.sys_driver_version().unwrap_or_default();
        let cuda_version = nvml.sys_cuda_driver_version().ok().map(|version| {
            format!("{}.{}", cuda_driver_version_major(version), cuda_driver_version_minor(version))
        });
        let mut xids = Vec::new();
        let mut events = None;
        let mut missing_since = None;
        loop {
            #[cfg(debug_assertions)]
            break_if_told(&nvml);
            let sample = Sample::begin(session);
            let start = sample.began;
            let gpus = match cards.open_missing().and_then(|()| cards.probe()) {
                Ok(gpus) => gpus,
                Err(error) => return End::Unavailable(self.explain(&error)),
            };
            let missing = cards.are_missing() || gpus.iter().any(|gpu| gpu.probe == Probe::Lost);
            let sample = Sample {
                driver_version: driver_version.clone(),
                cuda_version: cuda_version.clone(),
                gpus,
                xids: std::mem::take(&mut xids),
                ..sample
            };
            if reports.blocking_send(Report::Sample(sample)).is_err() {
                return End::Closed;
            }
            missing_since = missing.then(|| missing_since.unwrap_or(start));
            let overdue = missing_since.is_some_and(|since: Instant| since.elapsed() >= REOPEN);
            if overdue || cards.are_others() || bound_cards() != bound {
                return End::Reopen;
            }
            let time = self.interval.saturating_sub(start.elapsed());
            events = events::wait(&nvml, &cards, events, time, &mut xids);
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

/// Runs one session after the other. A session that panics is reported and followed by the next.
fn supervise(mut run: impl FnMut(u64) -> End, reports: &Sender<Report>, retry: Duration) {
    let mut session = 0;
    let mut driver_was_away = true;
    loop {
        session += u64::from(driver_was_away);
        let report = match catch_unwind(AssertUnwindSafe(|| run(session))) {
            Ok(End::Closed) => return,
            Ok(End::Reopen) => {
                driver_was_away = false;
                continue;
            }
            Ok(End::Unavailable(reason)) => {
                driver_was_away = true;
                Report::Unavailable(reason)
            }
            Err(_) => {
                driver_was_away = false;
                Report::Died(
                    "reading the GPUs failed unexpectedly (the log says where); starting anew".into(),
                )
            }
        };
        if reports.blocking_send(report).is_err() {
            return;
        }
        std::thread::sleep(retry);
    }
}

/// Panics where the driver's version says so: only debug builds have this way to provoke a bug of the reader, for tests.
#[cfg(debug_assertions)]
fn break_if_told(nvml: &Nvml) {
    assert!(!nvml.sys_driver_version().is_ok_and(|version| version == "breaks the reader"), "told to break");
}

/// Number of cards that the driver has taken, where the kernel tells.
fn bound_cards() -> Option<usize> {
    let entries = fs::read_dir(BOUND).ok()?.flatten();
    Some(entries.filter(|entry| entry.file_name().to_string_lossy().contains(':')).count())
}

/// Errors that mean that the driver itself is gone, not one card.
fn ends_session(error: &NvmlError) -> bool {
    matches!(error, NvmlError::DriverNotLoaded | NvmlError::Uninitialized | NvmlError::LibRmVersionMismatch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    #[test]
    fn a_session_that_panics_is_told_and_followed_by_the_next() {
        let (sender, mut reports) = mpsc::channel(8);
        let mut sessions = Vec::new();
        let run = |session| {
            sessions.push(session);
            match sessions.len() {
                1 => panic!("a bug"),
                2 => End::Unavailable("away".into()),
                3 => End::Reopen,
                _ => End::Closed,
            }
        };
        supervise(run, &sender, Duration::ZERO);
        // Only a driver that was away begins a new session: its cards have forgotten their failures.
        assert_eq!(sessions, [1, 1, 2, 2]);
        assert!(matches!(reports.try_recv(), Ok(Report::Died(_))));
        assert_eq!(reports.try_recv(), Ok(Report::Unavailable("away".into())));
    }
}
