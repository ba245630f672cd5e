//! The time of one plan of a whole cluster, in the situations that matter. Prints a table in Markdown. A pure function on
//! plain data: no cluster is needed.

use principium_operator::bench::{Fleet, Size};
use std::time::{Duration, Instant};

const SIZE: Size = Size { nodes: 5000, gpus: 8, resources: 1000 };
const TIMES: usize = 30;

fn main() {
    println!("{} nodes, {} GPUs, {} resources", SIZE.nodes, SIZE.nodes * SIZE.gpus, SIZE.resources);
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

fn measure(situation: &str, fleet: &Fleet) {
    let mut found = fleet.plan();
    let mut times: Vec<Duration> = (0..TIMES)
        .map(|_| {
            let started = Instant::now();
            found = fleet.plan();
            started.elapsed()
        })
        .collect();
    times.sort();
    let ms = |time: Option<&Duration>| time.map(Duration::as_secs_f64).unwrap_or_default() * 1000.0;
    println!(
        "| {situation} | {:.1} ms | {:.1} ms | {} | {} |",
        ms(times.get(TIMES / 2)),
        ms(times.last()),
        found.creations,
        found.statuses
    );
}
