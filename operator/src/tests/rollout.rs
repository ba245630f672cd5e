//! Changes of running resources: what restarts, in which order, and what is said.

use super::cluster::{Cluster, factory, reranker};
use crate::actions::{AT_MOST, Action, Plan, Write};
use jiff::SignedDuration;
use serde_json::json;
use std::sync::Arc;

/// The spec with another image.
pub fn image(mut spec: serde_json::Value, image: &str) -> serde_json::Value {
    spec["image"] = json!(image);
    spec
}

#[test]
fn a_data_factory_stops_before_its_successor_starts_and_the_difference_is_named() {
    let mut cluster = Cluster::new(&[2]);
    let spec = factory(json!({"count": 1}));
    cluster.apply("DataFactory", "df", spec.clone());
    cluster.settle();
    cluster.apply("DataFactory", "df", image(spec, "embedder:2"));
    cluster.pass();
    assert_eq!(cluster.pod_names(), ["df-0-1"], "nothing is made before the old pod is gone");
    let expected = "Pod df-0-1 is stopped for its successor: image changed from embedder:1 to embedder:2";
    assert_eq!(cluster.noted("Restarting"), [expected]);
    assert_eq!(cluster.ready("df").1, "Updating");
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-2 n0 0:8"], "on the same GPU");
    assert_eq!(cluster.ready("df").0, "True");
    assert_eq!(cluster.noted("Ready").last(), Some(&"it takes documents"));
    assert_eq!(cluster.factory("df").status.as_ref().unwrap().revisions, [2]);
}

#[test]
fn a_reranker_starts_its_successor_first_where_a_gpu_is_free() {
    let mut cluster = Cluster::new(&[2]);
    let spec = reranker(json!({"count": 1}));
    cluster.apply("Reranker", "rr", spec.clone());
    cluster.settle();
    cluster.apply("Reranker", "rr", image(spec, "embedder:2"));
    cluster.pass();
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8", "rr-0-2 n0 1:8"]);
    let expected = "Pod rr-0-1 gets a successor beside it: image changed from embedder:1 to embedder:2";
    assert_eq!(cluster.noted("Replacing"), [expected]);
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-2 n0 1:8"]);
}

#[test]
fn with_every_gpu_taken_the_old_pod_goes_first_and_its_gpu_is_kept_for_it() {
    let mut cluster = Cluster::new(&[1]);
    let spec = reranker(json!({"count": 1}));
    cluster.apply("Reranker", "rr", spec.clone());
    cluster.settle();
    cluster.apply("Reranker", "thief", reranker(json!({"count": 1})));
    cluster.apply("Reranker", "rr", image(spec, "embedder:2"));
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-2 n0 0:8"]);
    assert_eq!(cluster.ready("thief").1, "WaitingForGPU");
}

#[test]
fn pods_are_replaced_one_at_a_time() {
    let mut cluster = Cluster::new(&[4]);
    let spec = json!({"instances": 3, "models": [{"name": "tiny"}]});
    cluster.apply("OllamaPool", "pool", spec.clone());
    cluster.settle();
    cluster.apply("OllamaPool", "pool", image(spec, "ollama:2"));
    let mut least = 3;
    for _ in 0..30 {
        cluster.pass();
        let pods = cluster.pods.values().map(crate::pods::PodView::read);
        least = least.min(pods.filter(|pod| pod.ready && !pod.leaving).count());
        cluster.run_pods();
        cluster.now += SignedDuration::from_secs(1);
    }
    assert_eq!(cluster.pod_names(), ["pool-0-2", "pool-1-2", "pool-2-2"]);
    assert_eq!(least, 3, "a successor serves before an instance stops");
}

#[test]
fn an_operator_with_other_defaults_restarts_nothing_but_what_uses_its_image() {
    let mut cluster = Cluster::new(&[4]);
    cluster.apply("Reranker", "own", image(reranker(json!({"count": 1})), "mine:1"));
    cluster.apply("Reranker", "default", reranker(json!({"count": 1})));
    cluster.settle();
    let settings = Arc::make_mut(&mut cluster.observed.settings);
    settings.require_acceleration = false;
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["default-0-1", "own-0-1"]);
    Arc::make_mut(&mut cluster.observed.settings).embedder_image = "embedder:2".to_owned();
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["default-0-2", "own-0-1"]);
}

#[test]
fn changes_that_a_running_pod_can_take_on_restart_nothing() {
    let mut cluster = Cluster::new(&[4]);
    let spec = reranker(json!({"devices": [{"index": 2}]}));
    cluster.apply("Reranker", "rr", spec.clone());
    cluster.settle();
    let mut same = spec;
    same["gpu"] = json!({"devices": [{"uuid": "GPU-2", "memory": "8Gi"}]});
    same["port"] = json!(9300);
    same["nodeSelector"] = json!({"host": "n0"});
    cluster.apply("Reranker", "rr", same);
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-1 n0 2:8"]);
    assert_eq!(cluster.observed.services[0].spec.as_ref().unwrap().ports.as_ref().unwrap()[0].port, 9300);
    assert_eq!(cluster.ready("rr").0, "True");
}

#[test]
fn other_devices_move_the_pod() {
    let mut cluster = Cluster::new(&[4]);
    cluster.reranker_on("rr", 2);
    cluster.settle();
    cluster.reranker_on("rr", 3);
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-2 n0 3:8"]);
}

#[test]
fn scaling_down_takes_the_last_and_scaling_up_never_uses_a_revision_twice() {
    let mut cluster = Cluster::new(&[4]);
    let spec = |replicas: u32| {
        let mut spec = reranker(json!({"count": 1}));
        spec["replicas"] = json!(replicas);
        spec
    };
    cluster.apply("Reranker", "rr", spec(3));
    cluster.settle();
    assert_eq!(cluster.reranker("rr").status.as_ref().unwrap().ready_replicas, "3/3");
    cluster.apply("Reranker", "rr", spec(1));
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["rr-0-1"]);
    let told = cluster.noted("ScalingDown");
    assert_eq!(told, ["Pod rr-1-1 is no longer wanted", "Pod rr-2-1 is no longer wanted"]);
    cluster.apply("Reranker", "rr", spec(2));
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["rr-0-1", "rr-1-2"]);
    assert_eq!(cluster.reranker("rr").status.as_ref().unwrap().revisions, [1, 2, 1]);
}

#[test]
fn a_failed_pod_is_replaced_on_the_same_gpu_and_ever_slower() {
    let mut cluster = Cluster::new(&[4]);
    cluster.apply("Reranker", "rr", reranker(json!({"count": 1})));
    cluster.settle();
    let gpu = cluster.held()[0].split(' ').next_back().unwrap().to_owned();
    let mut waits = Vec::new();
    for revision in 1..5 {
        cluster.fail(&format!("rr-0-{revision}"), "UnexpectedAdmissionError");
        let failed = cluster.now;
        let next = format!("rr-0-{}", revision + 1);
        while !cluster.pod_names().contains(&next) {
            let plan = cluster.pass();
            cluster.now += plan.requeue_after.unwrap();
        }
        waits.push(cluster.now.duration_since(failed).as_secs());
        assert!(cluster.held()[0].ends_with(&gpu), "{:?}", cluster.held());
        assert_eq!(cluster.ready("rr").1, "PodFailed");
        cluster.run_pods();
    }
    assert!(waits.is_sorted() && waits[0] < waits[3], "{waits:?}");
    let text = "Pod rr-0-1 is replaced: UnexpectedAdmissionError";
    assert_eq!(cluster.noted("ReplacingFailed")[0], text);
    let text = "Pod rr-0-1 failed and is replaced: UnexpectedAdmissionError";
    assert_eq!(cluster.noted("PodFailed")[0], text);
}

#[test]
fn after_a_reboot_every_pod_comes_back_to_its_gpu_also_when_the_plugin_is_late() {
    let mut cluster = Cluster::new(&[2]);
    cluster.reranker_on("b", 1);
    cluster.apply("Reranker", "a", reranker(json!({"count": 1})));
    cluster.settle();
    let before = cluster.held();
    for name in ["a-0-1", "b-0-1"] {
        cluster.fail(name, "UnexpectedAdmissionError");
    }
    cluster.node("n0", |node| node.ready = false);
    cluster.apply("Reranker", "newcomer", reranker(json!({"count": 1})));
    for _ in 0..5 {
        cluster.pass();
        cluster.now += SignedDuration::from_secs(20);
    }
    assert_eq!(cluster.held(), before, "nothing is made on a node that is not ready");
    cluster.node("n0", |node| node.ready = true);
    cluster.settle();
    let after: Vec<String> = before.iter().map(|held| held.replace("-0-1 ", "-0-2 ")).collect();
    assert_eq!(cluster.held(), after);
    assert_eq!(cluster.ready("newcomer").1, "WaitingForGPU");
}

#[test]
fn a_resource_made_anew_waits_for_the_pods_of_the_former_one() {
    let mut cluster = Cluster::new(&[1]);
    cluster.reranker_on("rr", 0);
    cluster.settle();
    cluster.delete("rr");
    cluster.reranker_on("rr", 0);
    cluster.pass();
    assert_eq!(cluster.pod_names(), ["rr-0-1"]);
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["rr-0-2"], "the name of the former pod is not used again");
}

#[test]
fn a_resource_that_is_being_deleted_frees_its_gpus_and_restarts_nothing() {
    let mut cluster = Cluster::new(&[1]);
    cluster.reranker_on("rr", 0);
    cluster.settle();
    let now = cluster.now;
    let found = &mut cluster.observed.rerankers[0];
    Arc::make_mut(found).metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
    cluster.settle();
    assert_eq!(cluster.pod_names(), [""; 0]);
    assert_eq!(cluster.ready("rr").1, "Deleting");
}

#[test]
fn a_data_factory_runs_without_its_pool_and_says_that_enrichment_waits() {
    let mut cluster = Cluster::new(&[2]);
    let mut spec = factory(json!({"devices": [{"index": 0}]}));
    spec["enrichment"] = json!({"ollamaPoolRef": {"name": "pool"}, "model": "tiny"});
    cluster.apply("DataFactory", "df", spec);
    cluster.settle();
    let (status, _, message) = cluster.ready("df");
    assert_eq!(
        (status.as_str(), cluster.condition("df", "EnrichmentReady").reason.as_str()),
        ("True", "PoolMissing")
    );
    assert_eq!(
        message,
        "it takes documents; enrichment waits for OllamaPool demo/pool, which does not exist"
    );
    cluster.apply(
        "OllamaPool",
        "pool",
        json!({"models": [{"name": "tiny"}], "gpu": {"devices": [{"index": 1}]}}),
    );
    cluster.settle();
    assert_eq!(cluster.condition("df", "EnrichmentReady").status, "True");
    assert_eq!(cluster.pod_names(), ["df-0-1", "pool-0-1"], "its named model needs no restart");
}

#[test]
fn a_data_factory_says_that_its_pool_does_not_serve_the_model_that_it_names() {
    let lacking = "it takes documents; enrichment asks OllamaPool demo/pool for the model tiny:latest, which it does not serve: \
                   its models are tiny:1b, big";
    for (named, models, lacks) in [
        ("tiny", json!([{"name": "tiny:1b"}, {"name": "big"}]), true),
        ("tiny", json!([{"name": "big"}, {"name": "Tiny:latest"}]), false),
        ("tiny:latest", json!([{"name": "tiny"}]), false),
        ("host:5000/team/tiny", json!([{"name": "host:5000/team/tiny:latest"}]), false),
        // What lies in the store of a pool without models is not known.
        ("tiny", json!([]), false),
    ] {
        let mut cluster = Cluster::new(&[2]);
        cluster.apply("OllamaPool", "pool", json!({"models": models, "gpu": {"devices": [{"index": 1}]}}));
        let mut spec = factory(json!({"devices": [{"index": 0}]}));
        spec["enrichment"] = json!({"ollamaPoolRef": {"name": "pool"}, "model": named});
        cluster.apply("DataFactory", "df", spec);
        cluster.settle();
        let (status, message) = if lacks { ("False", lacking) } else { ("True", "it takes documents") };
        assert_eq!(cluster.condition("df", "EnrichmentReady").status, status, "{named} of {models}");
        assert_eq!(cluster.ready("df"), ("True".to_owned(), "Ready".to_owned(), message.to_owned()));
    }
}

#[test]
fn a_data_factory_knows_the_context_window_of_its_pool() {
    let mut cluster = Cluster::new(&[2]);
    let pool = |length: u32| {
        let gpu = json!({"devices": [{"index": 1}]});
        json!({"models": [{"name": "tiny"}], "gpu": gpu, "settings": {"contextLength": length}})
    };
    cluster.apply("OllamaPool", "pool", pool(8192));
    let mut spec = factory(json!({"devices": [{"index": 0}]}));
    spec["enrichment"] = json!({"ollamaPoolRef": {"name": "pool"}});
    spec["docAnalyzer"] = json!({"ollamaPoolRef": {"name": "pool"}});
    cluster.apply("DataFactory", "df", spec);
    cluster.settle();
    let window = |cluster: &Cluster, name: &str| {
        let pod = cluster.pods[&("demo".to_owned(), name.to_owned())].spec.clone().unwrap();
        let found = pod.containers[0].env.clone().unwrap();
        found.into_iter().find(|variable| variable.name == "PRINCIPIUM_CONTEXT_WINDOW")?.value
    };
    for name in ["df-0-1", "df-analyzer-1"] {
        assert_eq!(window(&cluster, name).as_deref(), Some("8192"), "{name}");
    }
    cluster.delete("pool");
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["df-0-1", "df-analyzer-1"], "a pool that goes restarts nobody");
    cluster.apply("OllamaPool", "pool", pool(512));
    cluster.settle();
    for name in ["df-0-2", "df-analyzer-2"] {
        assert_eq!(window(&cluster, name).as_deref(), Some("1024"), "{name}: the least that it can do with");
    }
}

#[test]
fn a_data_factory_whose_model_nobody_names_waits_and_says_so() {
    let mut cluster = Cluster::new(&[2]);
    let mut spec = factory(json!({"devices": [{"index": 0}]}));
    spec["enrichment"] = json!({"ollamaPoolRef": {"name": "pool"}});
    cluster.apply("DataFactory", "df", spec.clone());
    cluster.settle();
    assert_eq!(cluster.pod_names(), [""; 0], "its pod could not start");
    let missing = "spec.enrichment takes the first model of OllamaPool demo/pool, which does not exist yet: make it, or name \
                   it in spec.enrichment.model, or in the pool's spec.models";
    assert_eq!(cluster.ready("df"), ("False".to_owned(), "PoolMissing".to_owned(), missing.to_owned()));
    assert_eq!(cluster.condition("df", "Stalled").status, "False", "it waits for another resource");
    let without_models = json!({"gpu": {"devices": [{"index": 1}]}});
    cluster.apply("OllamaPool", "pool", without_models.clone());
    cluster.settle();
    let none = "spec.enrichment needs a language model, and OllamaPool demo/pool has none: name it in \
                spec.enrichment.model, or in the pool's spec.models";
    assert_eq!(cluster.ready("df"), ("False".to_owned(), "NoModel".to_owned(), none.to_owned()));
    assert_eq!(cluster.noted("NoModel"), [none]);
    assert_eq!(cluster.condition("df", "Stalled").status, "True");
    let with_model = json!({"models": [{"name": "tiny"}], "gpu": {"devices": [{"index": 1}]}});
    cluster.apply("OllamaPool", "pool", with_model);
    cluster.settle();
    assert_eq!((cluster.ready("df").0.as_str(), cluster.pod_names().len()), ("True", 2));

    // What runs is left alone.
    cluster.apply("OllamaPool", "pool", without_models);
    spec["docAnalyzer"] = json!({"ollamaPoolRef": {"name": "pool"}});
    cluster.apply("DataFactory", "df", spec);
    cluster.settle();
    assert_eq!(cluster.ready("df").1, "NoModel");
    assert!(cluster.pod_names().contains(&"df-0-1".to_owned()), "{:?}", cluster.pod_names());
}

#[test]
fn an_operator_that_has_just_started_changes_nothing() {
    let mut cluster = Cluster::new(&[3]);
    cluster.apply(
        "OllamaPool",
        "pool",
        json!({"models": [{"name": "tiny"}], "gpu": {"devices": [{"index": 0}]}}),
    );
    cluster.reranker_on("rr", 1);
    cluster.apply("DataFactory", "df", factory(json!({"devices": [{"index": 2}]})));
    cluster.settle();
    cluster.observed.answers = Arc::default();
    cluster.now += SignedDuration::from_mins(1);
    let plan = cluster.pass();
    assert_eq!((plan.actions, plan.statuses, plan.notes), (Vec::new(), Vec::new(), Vec::new()));
    assert_eq!(plan.targets.len(), 3, "everyone is asked again");
    assert_eq!(
        plan.targets.iter().map(|target| target.known.len()).sum::<usize>(),
        1,
        "a model that answered is known"
    );
}

#[test]
fn a_pool_that_goes_restarts_nobody_and_another_first_model_does() {
    let mut cluster = Cluster::new(&[2]);
    let pool = |model: &str| json!({"models": [{"name": model}], "gpu": {"devices": [{"index": 1}]}});
    cluster.apply("OllamaPool", "pool", pool("tiny"));
    let mut spec = factory(json!({"devices": [{"index": 0}]}));
    spec["enrichment"] = json!({"ollamaPoolRef": {"name": "pool"}});
    cluster.apply("DataFactory", "df", spec);
    cluster.settle();
    cluster.delete("pool");
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["df-0-1"]);
    cluster.apply("OllamaPool", "pool", pool("tiny"));
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["df-0-1", "pool-0-1"]);
    cluster.apply("OllamaPool", "pool", pool("other"));
    cluster.settle();
    let expected = "Pod df-0-1 is stopped for its successor: enrichment.model changed from tiny to other";
    assert!(cluster.noted("Restarting").contains(&expected), "{:?}", cluster.noted("Restarting"));
}

#[test]
fn as_many_pods_are_replaced_at_once_as_may_be_unavailable() {
    for (may, least_expected) in [(1, 3), (2, 2), (4, 0)] {
        let mut cluster = Cluster::new(&[4]);
        // Every GPU is taken: the old pods go first.
        let spec = json!({"instances": 4, "models": [{"name": "tiny"}], "maxUnavailable": may});
        cluster.apply("OllamaPool", "pool", spec.clone());
        cluster.settle();
        cluster.apply("OllamaPool", "pool", image(spec, "ollama:2"));
        let mut least = 4;
        for _ in 0..60 {
            cluster.pass();
            let pods = cluster.pods.values().map(crate::pods::PodView::read);
            least = least.min(pods.filter(|pod| pod.ready && !pod.leaving).count());
            cluster.run_pods();
            cluster.now += SignedDuration::from_secs(1);
        }
        assert_eq!(cluster.pod_names(), ["pool-0-2", "pool-1-2", "pool-2-2", "pool-3-2"]);
        assert_eq!(least, least_expected, "with maxUnavailable {may}");
    }
}

#[test]
fn a_pod_that_never_got_a_gpu_keeps_no_other_from_being_replaced() {
    let mut cluster = Cluster::new(&[2]);
    cluster.foreign_pod("notebook", "n0", &[(1, 8)]);
    let spec = json!({"instances": 2, "models": [{"name": "tiny"}], "gpu": {"devices": [{"index": 0}, {"index": 1}]}});
    cluster.apply("OllamaPool", "pool", spec.clone());
    cluster.settle();
    assert_eq!(cluster.held(), ["pool-0-1 n0 0:8", "notebook n0 1:8"]);
    cluster.apply("OllamaPool", "pool", image(spec, "ollama:2"));
    cluster.settle();
    assert_eq!(cluster.held(), ["pool-0-2 n0 0:8", "notebook n0 1:8"]);
}

#[test]
fn what_works_is_not_stopped_for_a_successor_that_could_not_start() {
    let pinned = |index: u32| json!({"devices": [{"index": index}]});
    for kind in ["Reranker", "DataFactory"] {
        let mut cluster = Cluster::new(&[3]);
        let spec = |gpu| if kind == "Reranker" { reranker(gpu) } else { factory(gpu) };
        cluster.reranker_on("other", 1);
        cluster.apply(kind, "x", spec(pinned(0)));
        cluster.settle();
        let before = cluster.pod_names();
        let stays = |cluster: &mut Cluster, spec, reason: &str, words: &str| {
            cluster.apply(kind, "x", spec);
            cluster.settle();
            assert_eq!(cluster.pod_names(), before, "{kind} {reason}");
            let (_, found, message) = cluster.ready("x");
            assert_eq!(found, reason, "{kind}");
            assert!(message.contains(words), "{kind}: {message}");
        };
        stays(&mut cluster, spec(pinned(9)), "NoSuchGPU", "has no GPU 9");
        stays(&mut cluster, spec(pinned(1)), "WaitingForGPU", "is held by Reranker demo/other");
        cluster.heat("n0", 0, 92);
        stays(&mut cluster, image(spec(pinned(0)), "embedder:2"), "WaitingForGPU", "is withheld");
        cluster.heat("n0", 0, 40);
        cluster.node("n0", |node| node.unschedulable = true);
        stays(&mut cluster, image(spec(pinned(0)), "embedder:3"), "WaitingForGPU", "is cordoned");
        cluster.node("n0", |node| node.unschedulable = false);
        cluster.settle();
        assert_eq!(cluster.held(), ["other-0-1 n0 1:8", "x-0-2 n0 0:8"]);
        assert_eq!(cluster.ready("x").0, "True");
    }
}

#[test]
fn a_pod_that_has_other_gpus_than_the_named_ones_is_not_ready_also_where_those_are_unknown() {
    let mut cluster = Cluster::new(&[2, 2]);
    cluster.nodes.get_mut("n1").unwrap()[1].uuid = "GPU-elsewhere".to_owned();
    cluster.apply("Reranker", "rr", reranker(json!({"count": 1})));
    cluster.settle();
    cluster.apply("Reranker", "rr", reranker(json!({"devices": [{"uuid": "GPU-elsewhere"}]})));
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-2 n1 1:8"]);
}

#[test]
fn a_pass_makes_as_many_pods_as_it_may_and_the_next_goes_on() {
    let mut cluster = Cluster::new(&[8; 3]);
    let wide = |replicas: usize| {
        let mut spec = reranker(json!({"count": 0}));
        spec["replicas"] = json!(replicas);
        spec
    };
    cluster.apply("Reranker", "a-refused", wide(AT_MOST + 10));
    cluster.apply("Reranker", "b", wide(AT_MOST));
    cluster.apply("Reranker", "c", reranker(json!({"count": 1})));
    // What the API server refuses again and again keeps the others from nothing.
    let [refused] = &crate::desired::all(&cluster.observed)[..1] else {
        unreachable!("the first by age and name")
    };
    let refused = refused.id.key.clone();
    assert_eq!(refused.name, "a-refused");
    cluster.observed.failures.insert(refused, "exceeded quota".to_owned());
    let made = |plan: &Plan, name: &str| {
        let of =
            |action: &&Action| action.resource.name == name && matches!(action.write, Write::CreatePod(_));
        plan.actions.iter().filter(of).count()
    };
    let plan = cluster.pass();
    let names = ["a-refused", "b", "c"];
    assert_eq!(names.map(|name| made(&plan, name)), [AT_MOST + 10, AT_MOST, 0]);
    assert_eq!(plan.requeue_after, Some(SignedDuration::from_millis(100)), "at once");
    assert_eq!(cluster.ready("c").2, "ordinal 0: its pod is next to be made");
    assert!(cluster.assignments("c").is_empty(), "its GPU is chosen when it is made");
    let plan = cluster.pass();
    assert_eq!(names.map(|name| made(&plan, name)), [0, 0, 1]);
}
