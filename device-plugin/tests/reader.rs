//! The reader of the GPUs on the simulated driver, which it loads as it loads the real one.
//!
//! One test function, because the driver takes its state file from the environment of the process.

#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use principium_device_plugin::device::{Part, Probe, Reading, Sample, Xid};
use principium_device_plugin::nvml::{Reader, Report};
use principium_gpu_sim::state::{EccErrors, Process, Sensors, State};
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
            Report::Unavailable(_) | Report::Died(_) => None,
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
    sensors_that_a_card_lacks_are_absent_and_sensors_that_fail_are_told(&mut bench);
    a_divided_card_is_read_as_its_parts(&mut bench);
    a_card_that_is_pulled_and_put_back_is_noticed(&mut bench);
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
        gpu.processes = vec![Process { pid: 42, memory_mib: 512, gpu_instance: None }];
        gpu.ecc = Some(EccErrors { corrected: 1, uncorrected: 2 });
    });
    let reading = bench.until_sample("96 °C", |sample| {
        reading(sample, 3).filter(|reading| reading.temperature == Some(96)).cloned()
    });
    assert_eq!(
        (reading.power, reading.utilization, reading.slowdown.hardware_heat),
        (Some(180), Some(70), true)
    );
    assert_eq!((reading.memory_used_mib, reading.memory_free_mib), (512, 7455));
    assert_eq!(
        reading.processes.iter().map(|process| (process.pid, process.used_mib)).collect::<Vec<_>>(),
        [(42, 512)]
    );
    assert_eq!(reading.uncorrectable_errors, Some(2));
}

fn an_xid_comes_with_its_card_even_if_that_is_lost(bench: &mut Bench) {
    bench.change(|state| {
        state.raise_xid(5, None, 79);
        state.gpus[5].lost = true;
    });
    let uuid = State::default_for_node("test").gpus[5].uuid.clone();
    let xids = bench.until_sample("an Xid", |sample| (!sample.xids.is_empty()).then(|| sample.xids.clone()));
    assert_eq!(xids, [Xid { uuid: Some(uuid), gpu_instance: None, code: 79 }]);
}

fn a_lost_card_leaves_the_others_alone_and_returns(bench: &mut Bench) {
    let sample =
        bench.until_sample("lost", |sample| (sample.gpus[5].probe == Probe::Lost).then(|| sample.clone()));
    assert!((0..8).filter(|position| *position != 5).all(|position| reading(&sample, position).is_some()));
    // Xids of the others still arrive.
    bench.change(|state| state.raise_xid(6, None, 48));
    bench.until_sample("an Xid of another card", |sample| {
        sample.xids.iter().any(|xid| xid.code == 48).then_some(())
    });
    bench.change(|state| state.gpus[5].recover());
    let back = bench.until_sample("back", |sample| reading(sample, 5).cloned());
    assert_eq!(back.needs_recovery, Some(false));
}

fn sensors_that_a_card_lacks_are_absent_and_sensors_that_fail_are_told(bench: &mut Bench) {
    bench.change(|state| {
        (state.gpus[1].sensors, state.gpus[1].fan) = (Sensors::Unsupported, None);
        state.gpus[2].sensors = Sensors::Failing;
    });
    let sample = bench.until_sample("no sensors", |sample| {
        reading(sample, 1).is_some_and(|reading| reading.temperature.is_none()).then(|| sample.clone())
    });
    let without = reading(&sample, 1).unwrap();
    assert_eq!((without.power, without.utilization, without.memory_free_mib), (None, None, 7967));
    assert!(matches!(sample.gpus[2].probe, Probe::Silent(_)), "nobody knows how hot it is");
    assert!(reading(&sample, 0).is_some());
    bench.change(|state| {
        state.gpus[1].sensors = Sensors::Working;
        state.gpus[2].sensors = Sensors::Working;
    });
    bench.until_sample("sensors again", |sample| reading(sample, 2).map(drop));
}

fn a_divided_card_is_read_as_its_parts(bench: &mut Bench) {
    bench.change(|state| {
        let profiles = ["1g.2gb", "2g.4gb"].map(|profile| profile.parse().unwrap());
        state.gpus[4].divide(&profiles).unwrap();
        state.gpus[4].temperature = 66;
        state.gpus[4].processes = vec![Process { pid: 44, memory_mib: 1024, gpu_instance: Some(2) }];
    });
    let sample = bench.until_sample("parts", |sample| (sample.gpus.len() == 10).then(|| sample.clone()));
    let card = &sample.gpus[4].identity;
    assert!(card.divided);
    assert_eq!(reading(&sample, 4).unwrap().processes, []);
    for (position, gpu_instance, units, pids) in [(5, 1, 2, vec![]), (6, 2, 4, vec![44])] {
        let identity = &sample.gpus[position].identity;
        let part = Part { of: card.uuid.clone(), gpu_instance, compute_instance: 0 };
        assert_eq!((identity.part.as_ref(), identity.units()), (Some(&part), units));
        assert!(identity.uuid.starts_with("MIG-") && identity.product.contains(" MIG "), "{identity:?}");
        let reading = reading(&sample, position).unwrap();
        assert_eq!(reading.temperature, Some(66), "its card's");
        assert_eq!(reading.processes.iter().map(|process| process.pid).collect::<Vec<_>>(), pids);
    }
    bench.change(|state| state.raise_xid(4, Some(2), 94));
    let xids = bench.until_sample("an Xid", |sample| (!sample.xids.is_empty()).then(|| sample.xids.clone()));
    assert_eq!((xids[0].gpu_instance, xids[0].code), (Some(2), 94));
    bench.change(|state| state.gpus[4].lost = true);
    let lost = |sample: &Sample| sample.gpus.iter().filter(|gpu| gpu.probe == Probe::Lost).count() == 3;
    bench.until_sample("lost with its parts", |sample| lost(sample).then_some(()));
    bench.change(|state| {
        state.gpus[4].recover();
        (state.gpus[4].mig, state.gpus[4].processes) = (None, Vec::new());
    });
    let whole = bench.until_sample("whole", |sample| (sample.gpus.len() == 8).then(|| sample.clone()));
    assert!(!whole.gpus[4].identity.divided);
}

fn a_card_that_is_pulled_and_put_back_is_noticed(bench: &mut Bench) {
    bench.change(|state| state.gpus[5].removed = true);
    bench.until_sample("seven cards", |sample| (sample.gpus.len() == 7).then_some(()));
    bench.change(|state| state.gpus[5].removed = false);
    let sample = bench.until_sample("eight cards", |sample| (sample.gpus.len() == 8).then(|| sample.clone()));
    assert_eq!(sample.session, 1, "the driver was not away");
}

fn a_driver_that_goes_away_is_waited_for(bench: &mut Bench) {
    bench.change(|state| {
        state.driver.loaded = false;
        state.gpus[2].lost = true;
    });
    let reason = bench.until("unavailable", |report| match report {
        Report::Unavailable(reason) => Some(reason.clone()),
        Report::Sample(_) | Report::Died(_) => None,
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
