//! What `/info` and `/metrics` say of the cards, on the simulated driver, which is loaded as the real one is.
//!
//! One test function, because the driver takes its state file from the environment of the process.

#![allow(unsafe_code, clippy::unwrap_used, clippy::panic)]

use principium_embedder::args::Gpu;
use principium_embedder::gpus::{self, Temperature, Watched};
use principium_embedder::metrics::Metrics;
use principium_gpu_sim::state::State;
use principium_gpu_sim::{store, update};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Waits until the metrics have `line`, or no longer have it.
fn until(metrics: &Metrics, line: &str, there: bool) {
    let start = Instant::now();
    loop {
        let text = metrics.render().unwrap();
        if text.contains(line) == there {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{line} (there: {there}) never came:\n{text}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn names_heat_and_memory_are_those_of_the_given_cards_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gpus.json");
    // SAFETY: this is the only test of the process, and no other thread reads the environment yet.
    unsafe { std::env::set_var(store::STATE_VARIABLE, &path) };
    let mut state = State::default_for_node("test");
    (state.gpus[6].temperature, state.gpus[6].memory_used_mib) = (61, 1000);
    std::fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
    // Cargo builds the library beside the test programs.
    let library = std::env::current_exe().unwrap().parent().unwrap().join("libprincipium_gpu_sim.so");
    let uuid = state.gpus[6].uuid.clone();
    let given = vec![
        Gpu { index: 6, uuid: uuid.clone(), memory_mib: 5120 },
        Gpu { index: 9, uuid: "GPU-unknown".to_owned(), memory_mib: 1024 },
    ];
    let names = gpus::names(&library, &given);
    assert_eq!(names, [Some(state.gpus[6].product.clone()), None]);
    assert_eq!(gpus::names(Path::new("/nowhere/libnvidia-ml.so.1"), &given), [None, None]);

    let metrics = Arc::new(Metrics::default());
    let temperatures = [Temperature::default(), Temperature::default()];
    let watched = given.into_iter().zip(temperatures.clone());
    let watched = watched.map(|(gpu, temperature)| Watched { gpu, temperature }).collect();
    gpus::watch(library, watched, &metrics).unwrap();
    let labels = format!(r#"{{gpu="6",uuid="{uuid}"}}"#);
    until(&metrics, &format!("principium_embedder_gpu_temperature_celsius{labels} 61\n"), true);
    assert_eq!(temperatures.clone().map(|it| it.get()), [Some(61), None]);
    // It is read after the temperature.
    until(&metrics, &format!("principium_embedder_gpu_memory_used_bytes{labels} {}\n", 1000_u64 << 20), true);
    let text = metrics.render().unwrap();
    assert!(
        text.contains(&format!("principium_embedder_gpu_memory_share_bytes{labels} {}\n", 5120_u64 << 20))
    );
    assert!(
        text.contains(r#"gpu_memory_share_bytes{gpu="9""#)
            && !text.contains(r#"temperature_celsius{gpu="9""#)
            && !text.contains(r#"memory_used_bytes{gpu="9""#),
        "{text}"
    );
    for other in state.gpus.iter().filter(|gpu| gpu.uuid != uuid) {
        assert!(!text.contains(&other.uuid), "a card of somebody else is there:\n{text}");
    }
    let change = |lost: bool, temperature: u32, used_mib: u64| {
        let changed = update(&path, |state| {
            let gpu = &mut state.gpus[6];
            (gpu.lost, gpu.temperature, gpu.memory_used_mib) = (lost, temperature, used_mib);
            Ok(())
        });
        changed.unwrap();
    };
    change(true, 61, 1000);
    until(&metrics, &format!("gpu_temperature_celsius{labels}"), false);
    until(&metrics, &format!("gpu_memory_used_bytes{labels}"), false);
    assert_eq!(temperatures[0].get(), None, "a card that does not answer is not cool");
    change(false, 40, 2000);
    until(&metrics, &format!("gpu_temperature_celsius{labels} 40\n"), true);
    until(&metrics, &format!("gpu_memory_used_bytes{labels} {}\n", 2000_u64 << 20), true);
}
