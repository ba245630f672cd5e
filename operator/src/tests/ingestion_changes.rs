//! Ingestions whose spec changes while a run is under way: the run is ended first, however long that takes, and then what the spec
//! says is done.

use super::cluster::{Cluster, factory};
use super::ingestions::{finish, runs, spec, work};
use jiff::SignedDuration;
use principium_api::ingestion::RunState;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A DataFactory that keeps its jobs when its pod is lost.
fn kept(image: &str) -> Value {
    let mut made = factory(json!({"count": 1}));
    made["image"] = json!(image);
    made["storage"] = json!({"persistentVolumeClaim": {"claimName": "c"}});
    made
}

/// With a run under way.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new(&[2]);
    cluster.jobs.kept = true;
    cluster.apply("DataFactory", "df", kept("embedder:1"));
    cluster.settle();
    cluster.apply("Ingestion", "x", spec(&json!({})));
    work(&mut cluster);
    assert_eq!(states(&cluster), [RunState::Running]);
    cluster
}

fn change(cluster: &mut Cluster) {
    cluster.apply("Ingestion", "x", spec(&json!({"prune": false})));
}

fn take_back(cluster: &mut Cluster) {
    cluster.apply("Ingestion", "x", spec(&json!({})));
}

/// Long enough for a pod that failed to be made anew.
fn wait(cluster: &mut Cluster) {
    for _ in 0..5 {
        cluster.now += SignedDuration::from_secs(3);
        work(cluster);
    }
}

/// The DataFactory's pod is lost, and the next one does not start.
fn lose(cluster: &mut Cluster) {
    cluster.stuck = Some("embedder:1".to_owned());
    cluster.fail("df-0-1", "Evicted");
    wait(cluster);
}

fn states(cluster: &Cluster) -> Vec<RunState> {
    runs(cluster).iter().map(|run| run.state).collect()
}

#[test]
fn a_run_of_a_former_spec_is_waited_for_while_its_data_factory_is_not_ready() {
    let mut cluster = cluster();
    lose(&mut cluster);
    change(&mut cluster);
    wait(&mut cluster);
    assert_eq!(states(&cluster), [RunState::Running], "its job goes on when the DataFactory is back");
    let (_, reason, message) = cluster.ready("x");
    assert_eq!(reason, "Updating");
    let waits = "is being ended; it waits for DataFactory demo/df, which is not ready";
    assert!(message.contains(waits), "{message}");
    cluster.stuck = None;
    wait(&mut cluster);
    assert_eq!(states(&cluster), [RunState::Running, RunState::Cancelled]);
    assert_eq!((cluster.jobs.made.len(), cluster.jobs.running()), (2, 1), "one after the other");
    finish(&mut cluster, "succeeded");
    assert_eq!(cluster.ready("x").1, "Completed");
}

#[test]
fn a_spec_that_comes_back_while_its_run_is_being_ended_is_another_run() {
    for passes in [1, 2] {
        let mut cluster = cluster();
        change(&mut cluster);
        for _ in 0..passes {
            cluster.pass();
            cluster.run_pods();
        }
        take_back(&mut cluster);
        work(&mut cluster);
        work(&mut cluster);
        assert_eq!(cluster.ready("x").1, "Running", "{passes}: nothing has been done yet");
        assert_eq!(states(&cluster), [RunState::Running, RunState::Cancelled], "{passes}");
        let made: BTreeSet<&String> = cluster.jobs.made.iter().collect();
        assert_eq!((made.len(), cluster.jobs.running()), (2, 1), "{passes}");
    }
}

#[test]
fn that_a_run_is_to_be_ended_is_written_down_before_it_is_ended() {
    let mut cluster = cluster();
    change(&mut cluster);
    let before = cluster.observed.ingestions.clone();
    cluster.pass();
    // The write of the status is lost, and the former spec comes back.
    cluster.observed.ingestions = before;
    cluster.run_pods();
    take_back(&mut cluster);
    work(&mut cluster);
    assert_eq!((states(&cluster), cluster.jobs.running()), (vec![RunState::Running], 1));
}

#[test]
fn a_run_is_not_waited_for_where_the_spec_names_another_data_factory_or_its_own_is_gone() {
    let mut moved = cluster();
    moved.apply("DataFactory", "other", kept("embedder:2"));
    moved.settle();
    lose(&mut moved);
    moved.apply("Ingestion", "x", spec(&json!({"dataFactoryRef": {"name": "other"}})));
    wait(&mut moved);
    assert_eq!(states(&moved), [RunState::Running, RunState::Cancelled]);
    assert_eq!(runs(&moved)[0].data_factory, "other");
    let mut orphaned = cluster();
    orphaned.delete("df");
    wait(&mut orphaned);
    assert_eq!(states(&orphaned), [RunState::Running], "a DataFactory of its name may go on with it");
    change(&mut orphaned);
    wait(&mut orphaned);
    assert_eq!(states(&orphaned), [RunState::Cancelled]);
    assert_eq!(orphaned.ready("x").1, "DataFactoryMissing");
}
