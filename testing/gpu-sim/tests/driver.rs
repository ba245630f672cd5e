//! The driver as programs load it: the built `cdylib`, through nvml-wrapper, while the state file changes.
//!
//! One test function, because the driver takes its state file from the environment of the process.

#![allow(unsafe_code, clippy::unwrap_used, clippy::panic)]

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use principium_gpu_sim::state::{EccErrors, Process, Sensors, State};
use principium_gpu_sim::{load, store, update};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Cargo builds the library beside the test programs.
fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().join("libprincipium_gpu_sim.so")
}

fn open() -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(library().as_os_str()).init()
}

fn change(path: &Path, change: impl FnOnce(&mut State)) {
    update(path, |state| {
        change(state);
        Ok(())
    })
    .unwrap();
}

#[test]
fn programs_see_the_state_file_as_a_driver() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gpus.json");
    // SAFETY: this is the only test of the process, and no other thread reads the environment yet.
    unsafe {
        std::env::set_var(store::STATE_VARIABLE, &path);
        std::env::set_var("NODE_NAME", "test-node");
    }
    let nvml = open().unwrap();

    default_gpus_are_there_without_a_file(&nvml);
    changes_are_seen_at_once(&nvml, &path);
    a_lost_gpu_leaves_its_neighbors_alone(&nvml, &path);
    what_the_card_lacks_is_not_supported(&nvml, &path);
    a_divided_card_has_parts(&nvml, &path);
    a_card_that_is_pulled_is_not_counted(&nvml, &path);
    xids_arrive_while_a_program_waits(&nvml, &path);
    a_corrupt_file_leaves_the_last_good_state(&nvml, &path);
    a_driver_that_hangs_answers_when_it_is_mended(&nvml, &path);
    an_unloaded_driver_answers_nothing(nvml, &path);
}

fn default_gpus_are_there_without_a_file(nvml: &Nvml) {
    assert_eq!(nvml.device_count().unwrap(), 8);
    assert_eq!(nvml.sys_driver_version().unwrap(), "580.95.05");
    assert_eq!(nvml.sys_nvml_version().unwrap(), "13.580.95.05");
    assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 13_000);
    for (position, expected) in State::default_for_node("test-node").gpus.iter().enumerate() {
        let device = nvml.device_by_index(u32::try_from(position).unwrap()).unwrap();
        assert_eq!(device.name().unwrap(), "NVIDIA GeForce RTX 3060 Ti");
        assert_eq!(device.uuid().unwrap(), expected.uuid);
        assert_eq!(device.pci_info().unwrap().bus_id, expected.pci_address);
        assert_eq!(device.minor_number().unwrap() as usize, position);
        assert_eq!(device.temperature(TemperatureSensor::Gpu).unwrap(), expected.temperature);
        assert_eq!(device.temperature_threshold(TemperatureThreshold::Slowdown).unwrap(), 95);
        assert_eq!(device.temperature_threshold(TemperatureThreshold::Shutdown).unwrap(), 98);
        assert_eq!(device.enforced_power_limit().unwrap(), 200_000);
        assert_eq!(nvml.device_by_uuid(expected.uuid.as_str()).unwrap().uuid().unwrap(), expected.uuid);
        let by_address = nvml.device_by_pci_bus_id(expected.pci_address.as_str()).unwrap();
        assert_eq!(by_address.uuid().unwrap(), expected.uuid);
        assert_eq!(device.memory_info().unwrap().total, 8192 << 20);
        assert!(device.running_compute_processes().unwrap().is_empty());
    }
    assert!(matches!(nvml.device_by_index(8), Err(NvmlError::InvalidArg)));
    assert!(matches!(nvml.device_by_uuid("GPU-none"), Err(NvmlError::NotFound)));
}

fn changes_are_seen_at_once(nvml: &Nvml, path: &Path) {
    let device = nvml.device_by_index(3).unwrap();
    change(path, |state| {
        let gpu = &mut state.gpus[3];
        (gpu.temperature, gpu.power, gpu.utilization) = (96, 180, 70);
        gpu.processes = vec![
            Process { pid: 42, memory_mib: 512, gpu_instance: None },
            Process { pid: 43, memory_mib: 1024, gpu_instance: None },
        ];
    });
    assert_eq!(device.temperature(TemperatureSensor::Gpu).unwrap(), 96);
    assert_eq!(device.power_usage().unwrap(), 180_000);
    assert_eq!(device.utilization_rates().unwrap().gpu, 70);
    assert_eq!(device.memory_info().unwrap().used, 1536 << 20);
    assert!(device.current_throttle_reasons().unwrap().contains(ThrottleReasons::HW_THERMAL_SLOWDOWN));
    let processes: Vec<_> = device
        .running_compute_processes()
        .unwrap()
        .into_iter()
        .map(|process| match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => (process.pid, bytes >> 20),
            UsedGpuMemory::Unavailable => (process.pid, 0),
        })
        .collect();
    assert_eq!(processes, [(42, 512), (43, 1024)]);
    assert_eq!(nvml.sys_process_name(42, 64).unwrap(), "simulated-process-42");
}

fn a_lost_gpu_leaves_its_neighbors_alone(nvml: &Nvml, path: &Path) {
    let [lost, neighbor] = [5, 6].map(|index| nvml.device_by_index(index).unwrap());
    change(path, |state| state.gpus[5].lost = true);
    assert!(matches!(lost.temperature(TemperatureSensor::Gpu), Err(NvmlError::GpuLost)));
    assert!(matches!(lost.uuid(), Err(NvmlError::GpuLost)));
    assert!(matches!(nvml.device_by_index(5), Err(NvmlError::GpuLost)));
    assert_eq!(neighbor.temperature(TemperatureSensor::Gpu).unwrap(), 41);
    assert_eq!(nvml.device_count().unwrap(), 8);
    change(path, |state| state.gpus[5].recover());
    assert_eq!(lost.temperature(TemperatureSensor::Gpu).unwrap(), 43);
}

fn what_the_card_lacks_is_not_supported(nvml: &Nvml, path: &Path) {
    let device = nvml.device_by_index(0).unwrap();
    let errors = || device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile);
    assert!(matches!(device.mig_mode(), Err(NvmlError::NotSupported)));
    assert!(matches!(errors(), Err(NvmlError::NotSupported)));
    change(path, |state| state.gpus[0].ecc = Some(EccErrors { corrected: 1, uncorrected: 2 }));
    assert_eq!(errors().unwrap(), 2);
    change(path, |state| {
        state.gpus[0].ecc = None;
        state.gpus[0].fan = None;
    });
    for (sensors, supported) in [(Sensors::Unsupported, false), (Sensors::Failing, true)] {
        change(path, |state| state.gpus[0].sensors = sensors);
        let error = device.temperature(TemperatureSensor::Gpu).unwrap_err();
        assert_eq!(matches!(error, NvmlError::NotSupported), !supported, "{error}");
    }
    change(path, |state| state.gpus[0].sensors = Sensors::Working);
    assert_eq!(device.num_fans().unwrap(), 0);
    assert!(matches!(device.fan_speed(0), Err(NvmlError::NotSupported)));
}

fn a_divided_card_has_parts(nvml: &Nvml, path: &Path) {
    let device = nvml.device_by_index(4).unwrap();
    change(path, |state| {
        let profiles = ["1g.2gb", "2g.4gb"].map(|profile| profile.parse().unwrap());
        state.gpus[4].divide(&profiles).unwrap();
        state.gpus[4].processes = vec![Process { pid: 44, memory_mib: 1024, gpu_instance: Some(2) }];
    });
    let expected = load(path).unwrap().gpus[4].mig.clone().unwrap();
    assert_eq!((device.mig_mode().unwrap().current, device.mig_device_count().unwrap()), (1, 7));
    for (place, (expected, used)) in (0..).zip(expected.iter().zip([0, 1024])) {
        let part = device.mig_device_by_index(place).unwrap();
        assert_eq!(part.uuid().unwrap(), expected.uuid);
        assert!(part.mig_is_mig_device_handle().unwrap() && !device.mig_is_mig_device_handle().unwrap());
        assert_eq!(part.mig_parent_device().unwrap().uuid().unwrap(), device.uuid().unwrap());
        assert_eq!(part.attributes().unwrap().gpu_instance_slice_count, expected.profile.slices);
        let memory = part.memory_info().unwrap();
        assert_eq!((memory.total, memory.used), (expected.profile.memory_gib << 30, used << 20));
        assert!(matches!(part.temperature(TemperatureSensor::Gpu), Err(NvmlError::InvalidArg)));
        assert_eq!(
            nvml.device_by_uuid(expected.uuid.as_str()).unwrap().name().unwrap(),
            part.name().unwrap()
        );
    }
    assert!(matches!(device.mig_device_by_index(2), Err(NvmlError::NotFound)));
    change(path, |state| (state.gpus[4].mig, state.gpus[4].processes) = (None, Vec::new()));
}

fn a_card_that_is_pulled_is_not_counted(nvml: &Nvml, path: &Path) {
    let device = nvml.device_by_index(5).unwrap();
    let uuid = nvml.device_by_index(6).unwrap().uuid().unwrap();
    change(path, |state| state.gpus[5].removed = true);
    assert!(matches!(device.uuid(), Err(NvmlError::GpuLost)));
    assert_eq!((nvml.device_count().unwrap(), nvml.device_by_index(5).unwrap().uuid().unwrap()), (7, uuid));
    change(path, |state| state.gpus[5].removed = false);
    assert_eq!(nvml.device_count().unwrap(), 8);
}

fn xids_arrive_while_a_program_waits(nvml: &Nvml, path: &Path) {
    change(path, |state| state.raise_xid(1, None, 48));
    let mut set = nvml.create_event_set().unwrap();
    for index in [1, 2] {
        let device = nvml.device_by_index(index).unwrap();
        set = device.register_events(EventTypes::CRITICAL_XID_ERROR, set).unwrap();
    }
    let start = Instant::now();
    assert!(matches!(set.wait(120), Err(NvmlError::Timeout)), "an event from before the set is not for it");
    assert!(start.elapsed() >= Duration::from_millis(120));

    let raised = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            change(path, |state| {
                state.raise_xid(7, None, 62);
                state.raise_xid(2, None, 79);
            });
        });
        set.wait(5000).unwrap()
    });
    assert!(start.elapsed() < Duration::from_secs(4));
    assert!(matches!(raised.event_data, Some(XidError::Value(79))));
    assert_eq!(raised.device.minor_number().unwrap(), 2);

    let recovery_action = || {
        let values = nvml.device_by_index(2).unwrap().field_values_for(&[FieldId(230)]).unwrap();
        match values.into_iter().next().unwrap().unwrap().value.unwrap() {
            SampleValue::U32(value) => value,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(recovery_action(), 1);
    change(path, |state| state.gpus[2].recover());
    assert_eq!(recovery_action(), 0);
}

fn a_corrupt_file_leaves_the_last_good_state(nvml: &Nvml, path: &Path) {
    let device = nvml.device_by_index(3).unwrap();
    let good = std::fs::read(path).unwrap();
    std::fs::write(path, "{\"driver\":").unwrap();
    assert_eq!(device.temperature(TemperatureSensor::Gpu).unwrap(), 96);
    std::fs::write(path, good).unwrap();
    change(path, |state| state.gpus[3].temperature = 50);
    assert_eq!(device.temperature(TemperatureSensor::Gpu).unwrap(), 50);
    assert_eq!(load(path).unwrap().gpus[3].temperature, 50);
}

fn a_driver_that_hangs_answers_when_it_is_mended(nvml: &Nvml, path: &Path) {
    change(path, |state| state.driver.hangs = true);
    std::thread::scope(|scope| {
        let (answered, answers) = std::sync::mpsc::channel();
        scope.spawn(move || answered.send(nvml.device_count()).unwrap());
        assert!(answers.recv_timeout(Duration::from_millis(200)).is_err(), "it answered");
        change(path, |state| state.driver.hangs = false);
        assert_eq!(answers.recv().unwrap().unwrap(), 8);
    });
}

fn an_unloaded_driver_answers_nothing(nvml: Nvml, path: &Path) {
    change(path, |state| state.driver.loaded = false);
    assert!(matches!(nvml.device_count(), Err(NvmlError::DriverNotLoaded)));
    drop(nvml);
    assert!(matches!(open(), Err(NvmlError::DriverNotLoaded)));
    change(path, |state| state.driver.loaded = true);
    assert_eq!(open().unwrap().device_count().unwrap(), 8);
}
