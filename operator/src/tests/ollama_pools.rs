//! Pools: stores, readiness by models, heat, host ports.

use super::cluster::Cluster;
use crate::observed::{ModelAnswer, ModelStep};
use crate::pods::PodView;
use jiff::SignedDuration;
use principium_api::ollama_pool::OllamaModelState;
use serde_json::json;
use std::sync::Arc;

fn shared(instances: u32) -> serde_json::Value {
    json!({"instances": instances, "models": [{"name": "tiny"}], "store": {"hostPath": {"path": "/srv/models"}}})
}

/// Which instances take requests.
fn open(cluster: &Cluster) -> Vec<bool> {
    cluster.pods.values().filter_map(|pod| PodView::read(pod).gate).collect()
}

#[test]
fn instances_start_after_the_one_puller_of_their_node_is_done() {
    let mut cluster = Cluster::new(&[4]);
    cluster.apply("OllamaPool", "pool", shared(3));
    cluster.pass();
    let names = cluster.pod_names();
    assert!(names.len() == 1 && names[0].starts_with("pool-puller-"), "{names:?}");
    cluster.pass();
    assert_eq!(cluster.pod_names(), names, "one writer");
    assert_eq!(cluster.noted("Pulling"), [format!("Pod {} pulls the models on node n0", names[0])]);
    assert_eq!(cluster.ready("pool").1, "PullingModels");
    assert_eq!(cluster.assignments("pool").len(), 3, "the GPUs are chosen already");
    cluster.settle();
    assert_eq!(cluster.pod_names().len(), 4);
    assert_eq!(cluster.ready("pool").0, "True");
    let status = cluster.pool("pool").status.clone().unwrap();
    assert_eq!((status.ready_instances.as_str(), status.model_names.as_str()), ("3/3", "tiny"));
    assert!(status.models.iter().all(|model| model.state == OllamaModelState::Ready));
}

#[test]
fn another_model_in_a_shared_store_is_pulled_beneath_running_instances() {
    let mut cluster = Cluster::new(&[1]);
    cluster.apply("OllamaPool", "pool", shared(1));
    cluster.settle();
    let mut spec = shared(1);
    spec["models"] = json!([{"name": "tiny"}, {"name": "large"}]);
    cluster.missing = Some("large".to_owned());
    cluster.pulling = true;
    cluster.apply("OllamaPool", "pool", spec);
    for _ in 0..5 {
        cluster.pass();
        cluster.run_pods();
        assert_eq!(open(&cluster), [true], "what it has, it goes on serving");
    }
    assert_eq!(cluster.ready("pool").1, "PullingModels");
    cluster.pulling = false;
    cluster.missing = None;
    cluster.settle();
    assert_eq!(cluster.ready("pool").0, "True");
    let names = cluster.pod_names();
    assert!(names.contains(&"pool-0-1".to_owned()), "{names:?}");
    assert_eq!(cluster.noted("PullingAgain").len(), 1);
    assert_eq!(cluster.pool("pool").status.as_ref().unwrap().models.len(), 2);
}

#[test]
fn two_pools_with_one_store_take_turns_in_filling_it() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("OllamaPool", "a", shared(1));
    cluster.apply("OllamaPool", "b", shared(1));
    cluster.pass();
    assert_eq!(cluster.pod_names().len(), 1);
    assert!(
        cluster.ready("b").2.contains("another pool fills the model store on node n0"),
        "{:?}",
        cluster.ready("b")
    );
    cluster.settle();
    assert_eq!((cluster.ready("a").0, cluster.ready("b").0), ("True".to_owned(), "True".to_owned()));
}

#[test]
fn a_puller_is_removed_with_the_last_instance_of_its_node() {
    let mut cluster = Cluster::new(&[1]);
    cluster.apply("OllamaPool", "pool", shared(1));
    cluster.settle();
    cluster.apply("OllamaPool", "pool", shared(0));
    cluster.settle();
    assert_eq!(cluster.pod_names(), [""; 0]);
    assert_eq!(cluster.ready("pool").1, "ScaledToZero");
    assert_eq!(cluster.noted("ScaledToZero"), ["no instance is wanted"]);
}

#[test]
fn a_reboot_pulls_nothing_again() {
    let mut cluster = Cluster::new(&[1]);
    cluster.apply("OllamaPool", "pool", shared(1));
    cluster.settle();
    let puller = |cluster: &Cluster| -> Vec<String> {
        cluster.pod_names().into_iter().filter(|name| name.starts_with("pool-puller")).collect()
    };
    let before = puller(&cluster);
    cluster.node("n0", |node| node.ready = false);
    cluster.fail("pool-0-1", "UnexpectedAdmissionError");
    for _ in 0..3 {
        cluster.pass();
        cluster.now += SignedDuration::from_secs(5);
    }
    // The registry may be away when the node is back.
    cluster.pulling = true;
    cluster.node("n0", |node| node.ready = true);
    cluster.settle();
    assert_eq!(cluster.ready("pool").0, "True");
    let mut spec = shared(1);
    spec["image"] = json!("ollama:2");
    spec["env"] = json!([{"name": "HTTPS_PROXY", "value": "http://proxy"}]);
    cluster.apply("OllamaPool", "pool", spec);
    cluster.settle();
    assert_eq!((cluster.ready("pool").0.as_str(), puller(&cluster)), ("True", before));
}

#[test]
fn a_pull_that_does_not_succeed_is_tried_anew_with_what_was_changed_for_it() {
    let mut cluster = Cluster::new(&[1]);
    cluster.pulling = true;
    cluster.apply("OllamaPool", "pool", shared(1));
    for _ in 0..3 {
        cluster.pass();
        cluster.run_pods();
    }
    let mut spec = shared(1);
    spec["env"] = json!([{"name": "HTTPS_PROXY", "value": "http://proxy"}]);
    cluster.apply("OllamaPool", "pool", spec);
    for _ in 0..4 {
        cluster.pass();
        cluster.run_pods();
    }
    let said = cluster.noted("PullingAgain");
    assert!(said.len() == 1 && said[0].contains("env.HTTPS_PROXY"), "{said:?}");
    let pod = cluster.pods.values().next().unwrap().spec.clone().unwrap();
    let given = pod.containers[0].env.iter().flatten().any(|variable| variable.name == "HTTPS_PROXY");
    assert!(given, "{:?}", pod.containers[0].env);
}

#[test]
fn an_instance_moves_to_another_node_once_its_models_are_there() {
    let mut cluster = Cluster::new(&[1, 1]);
    let mut spec = shared(1);
    spec["gpu"] = json!({"count": 1, "onOverheat": "Migrate"});
    cluster.apply("OllamaPool", "pool", spec);
    cluster.settle();
    cluster.now += SignedDuration::from_mins(10);
    cluster.heat("n0", 0, 92);
    cluster.pulling = true;
    cluster.settle();
    assert_eq!(cluster.held(), ["pool-0-1 n0 0:8"], "its successor would have no models");
    cluster.pulling = false;
    cluster.settle();
    assert_eq!(cluster.held(), ["pool-0-2 n1 0:8"]);
}

/// Instances with a GPU each, of one claim.
fn of_a_claim(instances: u32) -> serde_json::Value {
    let claim = json!({"persistentVolumeClaim": {"claimName": "models"}});
    json!({"instances": instances, "models": [{"name": "tiny"}], "store": claim, "gpu": {"count": 1}})
}

fn puller(cluster: &Cluster) -> PodView {
    let mut pods = cluster.pods.values().map(PodView::read);
    pods.find(|pod| pod.name.starts_with("pool-puller") && !pod.leaving).unwrap()
}

#[test]
fn the_puller_of_a_claim_starts_on_whichever_node_of_its_pool_can_take_it() {
    let mut cluster = Cluster::new(&[1, 1]);
    cluster.apply("OllamaPool", "pool", of_a_claim(2));
    cluster.pass();
    // The volume may be one of either node's: the scheduler knows.
    assert_eq!(puller(&cluster).meant_for, ["n0", "n1"]);
    cluster.node("n0", |node| node.unschedulable = true);
    for _ in 0..4 {
        cluster.pass();
        cluster.run_pods();
    }
    assert_eq!(puller(&cluster).node.as_deref(), Some("n1"));
    assert_eq!(cluster.noted("PullingAgain"), [""; 0]);
    cluster.node("n0", |node| node.unschedulable = false);
    cluster.settle();
    assert_eq!(cluster.ready("pool").0, "True");
    assert_eq!(puller(&cluster).node.as_deref(), Some("n1"), "what is done is not done again");
}

#[test]
fn a_puller_that_no_node_takes_may_start_where_instances_come_later() {
    let mut cluster = Cluster::new(&[1, 1]);
    cluster.apply("OllamaPool", "pool", of_a_claim(1));
    cluster.pass();
    assert_eq!(puller(&cluster).meant_for, ["n0"]);
    cluster.pass();
    assert_eq!(cluster.noted("PullingAgain"), [""; 0], "there is no other node");
    cluster.apply("OllamaPool", "pool", of_a_claim(2));
    cluster.pass();
    cluster.run_pods();
    cluster.pass();
    assert_eq!(puller(&cluster).meant_for, ["n0", "n1"]);
    cluster.settle();
    assert_eq!(cluster.ready("pool").0, "True");
    let said = cluster.noted("PullingAgain");
    assert!(said.len() == 1 && said[0].ends_with("no node has taken it, and node n1 can"), "{said:?}");
}

#[test]
fn models_are_pulled_again_where_a_newer_instance_misses_them() {
    let mut cluster = Cluster::new(&[1]);
    cluster.apply("OllamaPool", "pool", shared(1));
    cluster.settle();
    // The store lost what it had; the instance was made after the puller was done.
    cluster.missing = Some("tiny".to_owned());
    cluster.now += SignedDuration::from_mins(5);
    cluster.settle();
    let again = cluster.noted("PullingAgain");
    assert!(again.len() == 1 && again[0].ends_with("model tiny is no longer in the store"), "{again:?}");
    // The instance is older than what was pulled by now.
    cluster.now += SignedDuration::from_mins(5);
    cluster.settle();
    assert_eq!(cluster.noted("PullingAgain").len(), 1);
    cluster.missing = None;
    cluster.settle();
    assert_eq!(cluster.ready("pool").0, "True");
}

#[test]
fn an_instance_takes_requests_only_when_its_models_answered() {
    let mut cluster = Cluster::new(&[1]);
    cluster.apply("OllamaPool", "pool", json!({"models": [{"name": "tiny"}]}));
    cluster.pass();
    cluster.run_pods();
    cluster.pass();
    let pod = |cluster: &Cluster| PodView::read(&cluster.pods[&("demo".to_owned(), "pool-0-1".to_owned())]);
    assert!(pod(&cluster).containers_ready && !pod(&cluster).ready, "the model has not answered yet");
    assert_eq!(cluster.ready("pool").0, "False");
    cluster.settle();
    assert!(pod(&cluster).ready);
    assert_eq!(cluster.ready("pool").0, "True");
}

#[test]
fn an_operator_that_takes_over_goes_on_where_the_one_before_was_cut_off() {
    let mut cluster = Cluster::new(&[1]);
    cluster.apply("OllamaPool", "pool", json!({"models": [{"name": "tiny"}]}));
    cluster.pass();
    cluster.run_pods();
    let loading = ModelAnswer {
        name: "tiny".to_owned(),
        step: ModelStep::Loading,
        digest: Some("d1".to_owned()),
        size: Some(5),
        ..ModelAnswer::default()
    };
    let pod = cluster.pods.values().next().unwrap().metadata.uid.clone().unwrap();
    Arc::make_mut(&mut cluster.observed.answers).instances.insert(pod, vec![loading]);
    cluster.pass();
    let half = cluster.pool("pool").status.clone().unwrap();
    assert_eq!(half.models[0].state, OllamaModelState::Loading);
    cluster.observed.answers = Arc::default();
    let plan = cluster.pass();
    assert_eq!((plan.statuses, plan.actions), (Vec::new(), Vec::new()), "nothing new is known");

    // The model answered, the instance was let take requests, and then there was no time for the status.
    cluster.settle();
    let pool = cluster.observed.ollama_pools.iter_mut().next().unwrap();
    Arc::make_mut(pool).status = Some(half);
    cluster.observed.answers = Arc::default();
    let plan = cluster.pass();
    assert_eq!(plan.actions, Vec::new(), "it goes on taking requests");
    cluster.settle();
    assert_eq!(cluster.ready("pool").0, "True");
}

#[test]
fn a_model_that_can_not_be_loaded_is_told() {
    let mut cluster = Cluster::new(&[1]);
    cluster.apply("OllamaPool", "pool", json!({"models": [{"name": "tiny"}]}));
    cluster.pass();
    cluster.run_pods();
    let failed = ModelAnswer {
        name: "tiny".to_owned(),
        step: ModelStep::Failed,
        message: Some("out of memory".to_owned()),
        ..ModelAnswer::default()
    };
    let pod = cluster.pods.values().next().unwrap().metadata.uid.clone().unwrap();
    Arc::make_mut(&mut cluster.observed.answers).instances.insert(pod, vec![failed]);
    cluster.pass();
    let said = "failed: model tiny on instance 0: out of memory";
    assert_eq!(cluster.ready("pool"), ("False".to_owned(), "ModelFailed".to_owned(), said.to_owned()));
    assert_eq!(cluster.noted("ModelFailed"), [said]);
}

#[test]
fn a_hot_instance_rests_while_another_serves_and_the_pool_stays_ready() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("OllamaPool", "pool", json!({"instances": 2, "models": [{"name": "tiny"}]}));
    cluster.settle();
    assert_eq!(open(&cluster), [true, true]);
    cluster.heat("n0", 0, 92);
    cluster.settle();
    assert_eq!(open(&cluster), [false, true]);
    assert_eq!(cluster.ready("pool").0, "True");
    cluster.observed.answers = Arc::default();
    cluster.pass();
    assert_eq!(cluster.ready("pool").0, "True", "an operator that has just started has asked nobody");
    cluster.settle();
    cluster.heat("n0", 0, 50);
    cluster.pass();
    assert_eq!(cluster.ready("pool").0, "True", "it could take requests before, and is let now");
    cluster.heat("n0", 0, 92);
    cluster.settle();
    assert_eq!(open(&cluster), [false, true]);
    cluster.heat("n0", 1, 92);
    cluster.settle();
    assert_eq!(open(&cluster), [true, true], "with every instance hot somebody must serve");
    cluster.heat("n0", 0, 50);
    cluster.heat("n0", 1, 50);
    cluster.settle();
    assert_eq!(open(&cluster), [true, true]);
}

#[test]
fn an_instance_that_rested_takes_requests_again_though_another_model_is_still_to_come() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("OllamaPool", "pool", shared(2));
    cluster.settle();
    let mut spec = shared(2);
    spec["models"] = json!([{"name": "tiny"}, {"name": "wrong"}]);
    cluster.missing = Some("wrong".to_owned());
    cluster.apply("OllamaPool", "pool", spec);
    cluster.settle();
    cluster.heat("n0", 0, 92);
    cluster.settle();
    assert_eq!(open(&cluster), [false, true]);
    cluster.heat("n0", 0, 50);
    cluster.settle();
    assert_eq!(open(&cluster), [true, true]);
}

#[test]
fn models_on_the_cpu_are_not_ready_where_acceleration_is_required() {
    let mut cluster = Cluster::new(&[1]);
    cluster.accelerated = false;
    cluster.apply("OllamaPool", "pool", json!({"models": [{"name": "tiny"}]}));
    cluster.settle();
    assert_eq!(cluster.ready("pool").1, "NotAccelerated");
    cluster.apply("OllamaPool", "pool", json!({"models": [{"name": "tiny"}], "requireAcceleration": false}));
    cluster.settle();
    assert_eq!(cluster.ready("pool").0, "True");
    assert_eq!(cluster.condition("pool", "Accelerated").reason, "ComputesOnCPU");
}

#[test]
fn with_host_ports_an_instance_stops_before_its_successor_starts() {
    let mut cluster = Cluster::new(&[4]);
    let spec = json!({"instances": 2, "hostPorts": {"start": 11434}});
    cluster.apply("OllamaPool", "pool", spec.clone());
    cluster.settle();
    let urls: Vec<_> = cluster
        .pool("pool")
        .status
        .as_ref()
        .unwrap()
        .endpoints
        .iter()
        .map(|found| found.url.clone())
        .collect();
    assert_eq!(
        urls,
        [
            "http://pool.demo.svc:11434",
            "http://pool-0.pool-instances.demo.svc:11434",
            "http://192.0.2.7:11434",
            "http://pool-1.pool-instances.demo.svc:11434",
            "http://192.0.2.7:11435",
        ]
    );
    let mut changed = spec;
    changed["settings"] = json!({"contextLength": 8192});
    cluster.apply("OllamaPool", "pool", changed);
    cluster.pass();
    assert_eq!(cluster.pod_names(), ["pool-0-1", "pool-1-1"]);
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["pool-0-2", "pool-1-2"]);
    assert!(cluster.noted("Restarting")[0].ends_with("settings.contextLength set to 8192"));
}

#[test]
fn two_instances_share_a_gpu_by_exact_devices() {
    let mut cluster = Cluster::new(&[1]);
    let devices = json!([{"index": 0, "memory": "4Gi"}, {"index": 0, "memory": "4Gi"}]);
    cluster.apply("OllamaPool", "pool", json!({"instances": 2, "gpu": {"devices": devices}}));
    cluster.settle();
    assert_eq!(cluster.held(), ["pool-0-1 n0 0:4", "pool-1-1 n0 0:4"]);
}

#[test]
fn a_pool_with_exact_devices_scales_down_to_nothing_and_up_again() {
    let mut cluster = Cluster::new(&[3]);
    let devices = json!([{"index": 2}, {"index": 0}, {"index": 1}]);
    for (instances, held) in
        [(3, "0 n0 2:8; 1 n0 0:8; 2 n0 1:8"), (1, "0 n0 2:8"), (0, ""), (2, "0 n0 2:8; 1 n0 0:8")]
    {
        cluster.apply("OllamaPool", "pool", json!({"instances": instances, "gpu": {"devices": devices}}));
        cluster.settle();
        // Without the revision in the pod's name.
        let words = |line: &String| {
            let (pod, rest) = line.split_once(' ').unwrap();
            format!("{} {rest}", pod.split('-').nth(1).unwrap())
        };
        let found: Vec<String> = cluster.held().iter().map(words).collect();
        assert_eq!(found.join("; "), held, "{instances} instances");
    }
}

#[test]
fn a_gpu_changes_hands_between_a_pool_and_a_data_factory() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("OllamaPool", "pool", json!({"instances": 2, "gpu": {"count": 1}}));
    cluster.settle();
    cluster.apply("DataFactory", "df", super::cluster::factory(json!({"devices": [{"index": 1}]})));
    cluster.settle();
    assert_eq!(cluster.ready("df").1, "WaitingForGPU");
    cluster.apply("OllamaPool", "pool", json!({"instances": 1, "gpu": {"count": 1}}));
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-1 n0 1:8", "pool-0-1 n0 0:8"]);
}

#[test]
fn how_far_a_pull_is_stands_in_the_status_of_every_instance() {
    for store in [json!({"ephemeral": {}}), json!({"persistentVolumeClaim": {"claimName": "models"}})] {
        let mut cluster = Cluster::new(&[2]);
        cluster.pulling = true;
        let models = json!([{"name": "tiny"}, {"name": "other"}]);
        cluster.apply("OllamaPool", "pool", json!({"instances": 2, "models": models, "store": store}));
        for _ in 0..8 {
            cluster.pass();
            cluster.run_pods();
        }
        let status = cluster.pool("pool").status.clone().unwrap();
        let found: Vec<_> = status
            .models
            .iter()
            .map(|model| (model.instance, model.name.as_str(), model.pulled, model.size, model.percent))
            .collect();
        let half = |instance| (instance, "tiny", Some(512), Some(1024), Some(50));
        let not_yet = |instance| (instance, "other", None, None, None);
        if store["ephemeral"].is_object() {
            assert_eq!(found, [half(0), not_yet(0), half(1), not_yet(1)]);
        } else {
            assert!(found.contains(&half(0)) && found.contains(&half(1)), "{found:?}");
        }
        let (_, reason, message) = cluster.ready("pool");
        assert_eq!(reason, "PullingModels");
        if store["ephemeral"].is_object() {
            assert_eq!(message, "being pulled: model tiny on instance 0, 50 % (and 1 more)");
        }
        cluster.pulling = false;
        cluster.settle();
        assert_eq!(cluster.ready("pool").0, "True");
        assert!(
            cluster.pool("pool").status.as_ref().unwrap().models.iter().all(|model| model.percent.is_none())
        );
    }
}
