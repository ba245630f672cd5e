//! The reader of the GPUs on the simulated driver, which it loads as it loads the real one.
//!
//! One test function, because the driver takes its state file from the environment of the process.

#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use principium_device_plugin::device::{Probe, Reading, Sample, Xid};
use principium_device_plugin::nvml::{Reader, Report};
use principium_gpu_sim::state::{EccErrors, Process, State};
use principium_gpu_sim::{store, update};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Cargo builds the library beside the test programs.
fn library() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().join("libprincipium_gpu_sim.so")
}

struct Bench {
    path: PathBuf,
    reports: mpsc::Receiver<Report>,
}

impl Bench {
    fn start(path: &Path, library: PathBuf) -> Self {
        let (sender, reports) = mpsc::channel(1);
        let reader = Reader { library, interval: Duration::from_millis(100) };
        std::thread::spawn(move || reader.run(&sender));
        Self { path: path.to_owned(), reports }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        update(&self.path, |state| {
            change(state);
            Ok(())
        })
        .unwrap();
    }

    fn next(&mut self) -> Report {
        self.reports.blocking_recv().unwrap()
    }

    /// The first report, within some seconds, that is as wanted.
    fn until<T>(&mut self, what: &str, wanted: impl Fn(&Report) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = wanted(&self.next()) {
                return found;
            }
            assert!(start.elapsed() < Duration::from_secs(15), "never {what}");
        }
    }

    fn until_sample<T>(&mut self, what: &str, wanted: impl Fn(&Sample) -> Option<T>) -> T {
        self.until(what, |report| match report {
            Report::Sample(sample) => wanted(sample),
            Report::Unavailable(_) => None,
        })
    }
}

fn reading(sample: &Sample, position: usize) -> Option<&Reading> {
    match &sample.gpus.get(position)?.probe {
        Probe::Answer(reading) => Some(reading),
        Probe::Lost | Probe::Silent(_) => None,
    }
}

#[test]
fn the_reader_tells_what_the_driver_says_and_outlives_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gpus.json");
    // SAFETY: this is the only test of the process, and no other thread reads the environment yet.
    unsafe { std::env::set_var(store::STATE_VARIABLE, &path) };
    std::fs::write(&path, serde_json::to_vec(&State::default_for_node("test")).unwrap()).unwrap();

    let mut bench = Bench::start(&path, library());
    cards_are_described(&mut bench);
    values_and_processes_are_read(&mut bench);
    an_xid_comes_with_its_card_even_if_that_is_lost(&mut bench);
    a_lost_card_leaves_the_others_alone_and_returns(&mut bench);
    a_driver_that_goes_away_is_waited_for(&mut bench);
    a_missing_library_is_explained(&path);
}

fn cards_are_described(bench: &mut Bench) {
    let sample = bench.until_sample("a sample", |sample| Some(sample.clone()));
    let expected = State::default_for_node("test");
    assert_eq!((sample.driver_version.as_str(), sample.cuda_version.as_deref()), ("580.95.05", Some("13.0")));
    assert_eq!((sample.session, sample.gpus.len()), (1, 8));
    let identity = &sample.gpus[3].identity;
    assert_eq!(
        (&identity.uuid, &identity.pci_address),
        (&expected.gpus[3].uuid, &expected.gpus[3].pci_address)
    );
    assert_eq!((identity.units(), identity.minor, identity.numa_node), (8, Some(3), Some(0)));
    assert_eq!((identity.slowdown_temperature, identity.shutdown_temperature), (Some(95), Some(98)));
    let reading = reading(&sample, 3).unwrap();
    assert_eq!((reading.uncorrectable_errors, reading.needs_recovery), (None, Some(false)));
}

fn values_and_processes_are_read(bench: &mut Bench) {
    bench.change(|state| {
        let gpu = &mut state.gpus[3];
        (gpu.temperature, gpu.power, gpu.utilization) = (96, 180, 70);
        gpu.processes = vec![Process { pid: 42, memory_mib: 512 }];
        gpu.ecc = Some(EccErrors { corrected: 1, uncorrected: 2 });
    });
    let reading = bench.until_sample("96 °C", |sample| {
        reading(sample, 3).filter(|reading| reading.temperature == Some(96)).cloned()
    });
    assert_eq!((reading.power, reading.utilization, reading.thermal_slowdown), (Some(180), Some(70), true));
    assert_eq!((reading.memory_used_mib, reading.memory_free_mib), (512, 7455));
    assert_eq!(
        reading.processes.iter().map(|process| (process.pid, process.used_mib)).collect::<Vec<_>>(),
        [(42, 512)]
    );
    assert_eq!(reading.uncorrectable_errors, Some(2));
}

fn an_xid_comes_with_its_card_even_if_that_is_lost(bench: &mut Bench) {
    bench.change(|state| {
        state.raise_xid(5, 79);
        state.gpus[5].lost = true;
    });
    let uuid = State::default_for_node("test").gpus[5].uuid.clone();
    let xids = bench.until_sample("an Xid", |sample| (!sample.xids.is_empty()).then(|| sample.xids.clone()));
    assert_eq!(xids, [Xid { uuid: Some(uuid), code: 79 }]);
}

fn a_lost_card_leaves_the_others_alone_and_returns(bench: &mut Bench) {
    let sample =
        bench.until_sample("lost", |sample| (sample.gpus[5].probe == Probe::Lost).then(|| sample.clone()));
    assert!((0..8).filter(|position| *position != 5).all(|position| reading(&sample, position).is_some()));
    // Xids of the others still arrive.
    bench.change(|state| state.raise_xid(6, 48));
    bench.until_sample("an Xid of another card", |sample| {
        sample.xids.iter().any(|xid| xid.code == 48).then_some(())
    });
    bench.change(|state| state.gpus[5].recover());
    let back = bench.until_sample("back", |sample| reading(sample, 5).cloned());
    assert_eq!(back.needs_recovery, Some(false));
}

fn a_driver_that_goes_away_is_waited_for(bench: &mut Bench) {
    bench.change(|state| {
        state.driver.loaded = false;
        state.gpus[2].lost = true;
    });
    let reason = bench.until("unavailable", |report| match report {
        Report::Unavailable(reason) => Some(reason.clone()),
        Report::Sample(_) => None,
    });
    assert!(reason.contains("not loaded"), "{reason}");
    bench.change(|state| state.driver.loaded = true);
    let sample = bench.until_sample("a sample", |sample| Some(sample.clone()));
    assert_eq!(
        (sample.session, sample.gpus.len()),
        (2, 7),
        "a card that can't be opened doesn't hide the others"
    );
    bench.change(|state| state.gpus[2].recover());
    bench.until_sample("all cards", |sample| (sample.gpus.len() == 8).then_some(()));
}

fn a_missing_library_is_explained(path: &Path) {
    let mut bench = Bench::start(path, PathBuf::from("/nowhere/libnvidia-ml.so.1"));
    let Report::Unavailable(reason) = bench.next() else { panic!("there is no driver") };
    assert!(reason.contains("/nowhere/libnvidia-ml.so.1") && reason.contains("--nvml-library"), "{reason}");
}
