//! Instances of a pool that rest on hot GPUs: what their reason says, and who takes the requests meanwhile.

use super::cluster::Cluster;
use super::rollout::image;
use super::turns::{go_on, serving};
use crate::pods::PodView;
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use std::sync::Arc;

fn pool(instances: u32, model: &str) -> Value {
    json!({"instances": instances, "models": [{"name": model}], "gpu": {"count": 1}})
}

/// Which pods rest, by what their gates say.
fn resting(cluster: &Cluster) -> Vec<String> {
    let pods = cluster.pods.values().map(PodView::read);
    pods.filter(|pod| pod.rests).map(|pod| pod.name).collect()
}

#[test]
fn a_resting_instance_that_does_not_have_the_new_model_is_replaced() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("OllamaPool", "pool", pool(2, "tiny"));
    cluster.settle();
    cluster.heat("n0", 0, 92);
    cluster.settle();
    assert_eq!(resting(&cluster), ["pool-0-1"]);
    cluster.missing = Some("big".to_owned());
    cluster.apply("OllamaPool", "pool", pool(2, "big"));
    cluster.settle();
    assert_eq!(resting(&cluster), [""; 0], "what does not answer does not only rest");
    cluster.heat("n0", 0, 50);
    cluster.settle();
    assert_eq!(cluster.held(), ["pool-0-2 n0 0:8", "pool-1-2 n0 1:8"]);
    cluster.missing = None;
    cluster.settle();
    assert_eq!(cluster.ready("pool").0, "True");
}

#[test]
fn a_resting_instance_goes_on_resting_until_an_operator_that_takes_over_has_asked_it() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("OllamaPool", "pool", pool(2, "tiny"));
    cluster.settle();
    cluster.heat("n0", 0, 92);
    cluster.settle();
    // The operator before it did not come to the status.
    let pool = cluster.observed.ollama_pools.iter_mut().next().unwrap();
    Arc::make_mut(pool).status.as_mut().unwrap().models.clear();
    cluster.observed.answers = Arc::default();
    let plan = cluster.pass();
    assert_eq!((plan.actions, resting(&cluster)), (Vec::new(), vec!["pool-0-1".to_owned()]));
}

/// A pool whose images change, with a successor of its first instance that runs on the last GPU, which turns hot.
fn with_a_hot_successor(instances: u32) -> Cluster {
    let mut cluster = Cluster::new(&[instances + 1]);
    cluster.apply("OllamaPool", "pool", pool(instances, "tiny"));
    cluster.settle();
    cluster.apply("OllamaPool", "pool", image(pool(instances, "tiny"), "ollama:2"));
    cluster.pass();
    cluster.run_pods();
    assert!(cluster.held().contains(&format!("pool-0-2 n0 {instances}:8")), "{:?}", cluster.held());
    cluster.heat("n0", instances, 92);
    cluster
}

#[test]
fn an_instance_serves_until_its_successor_on_a_hot_gpu_takes_requests() {
    let mut cluster = with_a_hot_successor(1);
    go_on(&mut cluster, 20, |cluster| assert!(serving(cluster) >= 1, "{:?}", cluster.held()));
    cluster.settle();
    assert_eq!((cluster.held(), serving(&cluster)), (vec!["pool-0-2 n0 1:8".to_owned()], 1));
    assert_eq!(cluster.ready("pool").0, "True");
}

#[test]
fn a_successor_on_a_hot_gpu_rests_for_another_instance_and_the_change_goes_on() {
    let mut cluster = with_a_hot_successor(2);
    go_on(&mut cluster, 60, |cluster| assert!(serving(cluster) >= 1, "{:?}", cluster.held()));
    cluster.settle();
    assert_eq!(cluster.held(), ["pool-0-2 n0 2:8", "pool-1-2 n0 0:8"]);
    assert_eq!((resting(&cluster), cluster.ready("pool").0.as_str()), (vec!["pool-0-2".to_owned()], "True"));
}

#[test]
fn an_operator_that_takes_over_closes_no_instance_whose_node_has_a_clock_that_is_ahead() {
    let mut cluster = Cluster::new(&[1]);
    cluster.apply("OllamaPool", "pool", pool(1, "tiny"));
    cluster.pass();
    cluster.run_pods();
    let ahead = Time(cluster.now + SignedDuration::from_mins(10));
    let pod = cluster.pods.get_mut(&("demo".to_owned(), "pool-0-1".to_owned())).unwrap();
    for container in pod.status.as_mut().unwrap().container_statuses.iter_mut().flatten() {
        container.state.as_mut().unwrap().running.as_mut().unwrap().started_at = Some(ahead.clone());
    }
    cluster.settle();
    assert_eq!((serving(&cluster), cluster.ready("pool").0.as_str()), (1, "True"));
    cluster.observed.answers = Arc::default();
    let plan = cluster.pass();
    assert_eq!(plan.actions, Vec::new(), "it goes on taking requests");
}
