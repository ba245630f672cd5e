//! The time of one plan of a whole cluster, in the situations that matter. Prints a table in Markdown. A pure function on
//! plain data: no cluster is needed.

use principium_operator::bench::{Fleet, Planned, Size};
use std::time::{Duration, Instant};

const SIZE: Size = Size { nodes: 5000, gpus: 8, resources: 1000 };
const TIMES: usize = 30;

fn main() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let gpus = SIZE.nodes * SIZE.gpus;
    println!("{} nodes, {gpus} GPUs, {} resources, on {cores} cores", SIZE.nodes, SIZE.resources);
    println!(
        "\n| one plan of the whole cluster | p50 | worst of {TIMES} | pods to make | statuses to write |"
    );
    println!("|---|---|---|---|---|");
    let fresh = Fleet::new(SIZE);
    measure("nothing is placed yet", &fresh);

    let mut running = fresh;
    running.settle();
    measure(&format!("{} pods run, nothing to do", running.pods()), &running);

    let mut hot = running.clone();
    hot.wait(10);
    hot.heat(usize::MAX);
    measure("one GPU turned hot", &hot);
    let mut hot = running.clone();
    hot.wait(10);
    hot.heat(10);
    measure("500 GPUs turned hot", &hot);

    let mut restarted = running.clone();
    restarted.lose_pods();
    measure("every pod comes back to its GPU", &restarted);

    let mut scarce = running;
    scarce.leave(500);
    measure("nine of ten nodes are gone, most pods wait", &scarce);
}

/// Measures a situation, unless the command line names another.
fn measure(situation: &str, fleet: &Fleet) {
    let named = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    if named.is_some_and(|named| !situation.contains(&named)) {
        return;
    }
    let mut found = Planned::default();
    let mut times: Vec<Duration> = (0..TIMES)
        .map(|_| {
            let started = Instant::now();
            let planned = fleet.plan();
            let took = started.elapsed();
            // What it said is freed outside of the measured time: it is done first, which takes longer.
            found = planned;
            took
        })
        .collect();
    times.sort();
    let ms = |time: Option<&Duration>| time.map(Duration::as_secs_f64).unwrap_or_default() * 1000.0;
    println!(
        "| {situation} | {:.1} ms | {:.1} ms | {} | {} |",
        ms(times.get(TIMES / 2)),
        ms(times.last()),
        found.creations(),
        found.statuses()
    );
}
