//! Pods that are stopped for others, or are not: what their successors wait for, and what is said meanwhile.

use super::cluster::{Cluster, factory, reranker};
use super::rollout::image;
use super::turns::{go_on, pool, replicas, serving};
use crate::observed::{ModelAnswer, ModelStep, WorkerInfo};
use crate::pods::PodView;
use principium_api::gpu_node::{Withheld, WithheldReason};
use principium_api::ollama_pool::OllamaModelState;
use serde_json::json;
use std::sync::Arc;

fn stays(cluster: &Cluster) -> Vec<String> {
    let pods = cluster.pods.values().map(PodView::read);
    pods.filter(|pod| !pod.leaving && !pod.ended()).map(|pod| pod.name).collect()
}

/// Starts a pod that does not get ready, and says under which UID it answers.
fn start(cluster: &mut Cluster, name: &str) -> String {
    let pod = cluster.pods.get_mut(&("demo".to_owned(), name.to_owned())).unwrap();
    pod.spec.as_mut().unwrap().node_name = Some("n0".to_owned());
    pod.status = serde_json::from_value(json!({"phase": "Running", "podIP": "10.0.0.2"})).unwrap();
    pod.metadata.uid.clone().unwrap()
}

#[test]
fn an_instance_serves_until_its_successor_could_have_its_models() {
    let claim = json!({"persistentVolumeClaim": {"claimName": "models"}});
    let folder = json!({"hostPath": {"path": "/srv/models"}});
    let ports = json!({"start": 11434});
    for (store, ports, changes) in [
        (&claim, json!(null), json!({"image": "ollama:2", "models": [{"name": "wrong"}]})),
        (&folder, ports, json!({"nodeSelector": {"host": "n1"}})),
        (&folder, json!(null), json!({"image": "ollama:2"})),
    ] {
        let mut cluster = Cluster::new(&[1, 1]);
        let mut spec =
            json!({"models": [{"name": "tiny"}], "gpu": {"count": 1}, "store": store, "hostPorts": ports});
        cluster.apply("OllamaPool", "pool", spec.clone());
        cluster.settle();
        for (field, value) in changes.as_object().unwrap() {
            spec[field] = value.clone();
        }
        cluster.pulling = true;
        cluster.apply("OllamaPool", "pool", spec);
        go_on(&mut cluster, 20, |cluster| assert_eq!(serving(cluster), 1, "{changes}: {:?}", stays(cluster)));
        assert_eq!(cluster.ready("pool").1, "PullingModels", "{changes}");
        cluster.pulling = false;
        cluster.settle();
        assert_eq!(cluster.ready("pool").0, "True", "{changes}");
        assert!(stays(&cluster).contains(&"pool-0-2".to_owned()), "{changes}: {:?}", stays(&cluster));
    }
}

#[test]
fn no_models_are_pulled_to_a_node_that_gets_no_instance() {
    let mut cluster = Cluster::new(&[2]);
    let store = json!({"hostPath": {"path": "/srv/models"}});
    let spec = json!({"instances": 2, "models": [{"name": "tiny"}], "gpu": {"count": 1}, "store": store,
        "hostPorts": {"start": 11434}});
    cluster.apply("OllamaPool", "pool", spec.clone());
    cluster.settle();
    cluster.restore("n1", 1);
    cluster.apply("OllamaPool", "pool", image(spec, "ollama:2"));
    go_on(&mut cluster, 60, |cluster| {
        let there = |pod: PodView| pod.node.as_deref() == Some("n1");
        assert!(!cluster.pods.values().map(PodView::read).any(there), "{:?}", cluster.pod_names());
    });
    let held = ["pool-0-2 n0 0:8", "pool-1-2 n0 1:8"];
    assert_eq!((cluster.ready("pool").0.as_str(), cluster.held()), ("True", held.map(String::from).to_vec()));
}

#[test]
fn what_may_go_on_where_a_node_does_not_answer_is_not_stopped() {
    let mut cluster = Cluster::new(&[3]);
    cluster.apply("Reranker", "rr", replicas(3));
    cluster.settle();
    cluster.stuck = Some("embedder:bad".to_owned());
    cluster.apply("Reranker", "rr", image(replicas(3), "embedder:bad"));
    go_on(&mut cluster, 20, |_| ());
    let held_back = ["rr-0-2", "rr-1-1", "rr-2-1"];
    assert_eq!(stays(&cluster), held_back);
    for answers in [false, true] {
        cluster.node("n0", |node| node.ready = answers);
        go_on(&mut cluster, 20, |cluster| assert_eq!(stays(cluster), held_back));
        assert_eq!(serving(&cluster), if answers { 2 } else { 0 });
    }
    cluster.apply("Reranker", "rr", image(replicas(3), "embedder:good"));
    cluster.settle();
    assert_eq!(stays(&cluster), ["rr-0-3", "rr-1-2", "rr-2-2"]);
}

#[test]
fn more_memory_is_kept_for_a_pod_that_stops_for_it() {
    for kind in ["DataFactory", "Reranker"] {
        let mut cluster = Cluster::new(&[1]);
        cluster.observed.priorities.by_name.insert("gold".to_owned(), 1000);
        let spec = |memory: &str| {
            let gpu = json!({"count": 1, "memory": memory});
            if kind == "DataFactory" { factory(gpu) } else { reranker(gpu) }
        };
        cluster.apply(kind, "a", spec("4Gi"));
        cluster.settle();
        let mut gold = reranker(json!({"count": 1}));
        gold["priorityClassName"] = json!("gold");
        cluster.apply("Reranker", "gold", gold);
        cluster.settle();
        cluster.apply(kind, "a", spec("6Gi"));
        cluster.pass();
        cluster.apply("Reranker", "late", reranker(json!({"count": 1, "memory": "3Gi"})));
        cluster.settle();
        assert_eq!(cluster.held(), ["a-0-2 n0 0:6"], "{kind}");
        for name in ["gold", "late"] {
            assert_eq!(cluster.ready(name).1, "WaitingForGPU");
        }
    }
}

#[test]
fn more_memory_is_not_taken_from_devices_that_are_kept_for_another() {
    let mut cluster = Cluster::new(&[1]);
    let spec = |memory: &str| factory(json!({"count": 1, "memory": memory}));
    cluster.apply("DataFactory", "a", spec("4Gi"));
    cluster.settle();
    cluster.reranker_on("whole", 0);
    cluster.settle();
    cluster.apply("DataFactory", "a", spec("6Gi"));
    cluster.settle();
    assert_eq!(
        (cluster.held(), cluster.ready("a").1.as_str()),
        (vec!["a-0-1 n0 0:4".to_owned()], "WaitingForGPU")
    );
}

#[test]
fn devices_on_two_nodes_can_be_exchanged() {
    for ports in [json!(null), json!({"start": 11434})] {
        let mut cluster = Cluster::new(&[1, 1]);
        let spec = |devices: [&str; 2]| {
            let devices = devices.map(|uuid| json!({"uuid": uuid}));
            json!({"instances": 2, "models": [{"name": "tiny"}], "gpu": {"devices": devices}, "hostPorts": ports})
        };
        cluster.apply("OllamaPool", "pool", spec(["GPU-0", "GPU-n1-0"]));
        cluster.settle();
        assert_eq!(cluster.held(), ["pool-0-1 n0 0:8", "pool-1-1 n1 0:8"]);
        cluster.apply("OllamaPool", "pool", spec(["GPU-n1-0", "GPU-0"]));
        go_on(&mut cluster, 60, |_| ());
        assert_eq!(cluster.held(), ["pool-0-2 n1 0:8", "pool-1-2 n0 0:8"], "{ports}");
        assert_eq!(cluster.ready("pool").0, "True");
    }
}

#[test]
fn an_instance_is_not_stopped_for_one_that_gains_nothing_by_it() {
    let mut cluster = Cluster::new(&[4]);
    let spec = |devices: &[u32]| {
        let mut spec = pool(devices);
        spec["hostPorts"] = json!({"start": 11434});
        spec
    };
    cluster.apply("OllamaPool", "pool", spec(&[0, 1, 3]));
    cluster.settle();
    cluster.nodes.get_mut("n0").unwrap()[1].withheld =
        Some(Withheld { reason: WithheldReason::ForeignProcess, ..Withheld::default() });
    cluster.fail("pool-0-1", "Evicted");
    cluster.apply("OllamaPool", "pool", spec(&[1, 2, 3]));
    go_on(&mut cluster, 60, |cluster| assert_eq!(serving(cluster), 2, "{:?}", stays(cluster)));
    cluster.nodes.get_mut("n0").unwrap()[1].withheld = None;
    go_on(&mut cluster, 60, |_| ());
    assert_eq!(cluster.ready("pool").0, "True", "{:?}", cluster.held());
}

#[test]
fn a_successor_that_computes_on_the_cpu_is_told_while_the_pod_before_it_serves() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("Reranker", "rr", replicas(1));
    cluster.settle();
    cluster.apply("Reranker", "rr", image(replicas(1), "embedder:cpu"));
    cluster.pass();
    let successor = start(&mut cluster, "rr-0-2");
    let plan = cluster.pass();
    assert!(plan.targets.iter().any(|target| target.uid == successor), "it is asked too");
    let answers = Arc::make_mut(&mut cluster.observed.answers);
    answers.workers.insert(successor, WorkerInfo::default());
    cluster.pass();
    let served = cluster.reranker("rr").status.clone().unwrap().ready_replicas;
    assert_eq!((cluster.ready("rr").1.as_str(), served.as_str()), ("NotAccelerated", "1/1"));
}

#[test]
fn a_successor_that_can_not_load_a_model_is_told_while_the_instance_before_it_serves() {
    let mut cluster = Cluster::new(&[2]);
    let spec = json!({"models": [{"name": "tiny"}], "gpu": {"count": 1}});
    cluster.apply("OllamaPool", "pool", spec.clone());
    cluster.settle();
    cluster.apply("OllamaPool", "pool", image(spec, "ollama:2"));
    cluster.pass();
    let successor = start(&mut cluster, "pool-0-2");
    let failed = ModelAnswer {
        name: "tiny".to_owned(),
        step: ModelStep::Failed,
        message: Some("unknown architecture".to_owned()),
        ..ModelAnswer::default()
    };
    Arc::make_mut(&mut cluster.observed.answers).instances.insert(successor, vec![failed]);
    cluster.pass();
    let told = "failed: model tiny on instance 0: unknown architecture";
    assert_eq!(cluster.ready("pool"), ("False".to_owned(), "ModelFailed".to_owned(), told.to_owned()));
    let status = cluster.pool("pool").status.clone().unwrap();
    assert_eq!(status.ready_instances, "1/1");
    assert_eq!(status.models[0].state, OllamaModelState::Ready, "that of the one that serves");
}

#[test]
fn of_successors_that_came_to_nothing_only_the_last_holds_a_gpu() {
    let mut cluster = Cluster::new(&[4]);
    cluster.apply("Reranker", "rr", replicas(1));
    cluster.settle();
    cluster.stuck = Some("embedder:bad".to_owned());
    for attempt in 2..5 {
        let mut spec = image(replicas(1), "embedder:bad");
        spec["env"] = json!([{"name": "ATTEMPT", "value": attempt.to_string()}]);
        cluster.apply("Reranker", "rr", spec);
        go_on(&mut cluster, 20, |_| ());
        assert_eq!(stays(&cluster), ["rr-0-1".to_owned(), format!("rr-0-{attempt}")]);
    }
    cluster.apply("Reranker", "rr", image(replicas(1), "embedder:good"));
    cluster.settle();
    assert_eq!(stays(&cluster), ["rr-0-5"]);
}

#[test]
fn a_successor_that_did_not_start_on_a_node_that_closed_keeps_no_other_from_starting() {
    let mut cluster = Cluster::new(&[1, 1]);
    cluster.apply("Reranker", "rr", replicas(1));
    cluster.settle();
    cluster.stuck = Some("embedder:bad".to_owned());
    cluster.apply("Reranker", "rr", image(replicas(1), "embedder:bad"));
    go_on(&mut cluster, 10, |_| ());
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8", "rr-0-2 n1 0:8"]);
    cluster.node("n1", |node| node.unschedulable = true);
    cluster.apply("Reranker", "rr", image(replicas(1), "embedder:good"));
    cluster.settle();
    assert_eq!((cluster.held(), cluster.ready("rr").0.as_str()), (vec!["rr-0-3 n0 0:8".to_owned()], "True"));
}
