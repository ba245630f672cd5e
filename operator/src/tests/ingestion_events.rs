//! Properties of Ingestions: whatever happens in whatever order, no run is done twice, no two go on at once, and the corpus is
//! as its source in the end.

use super::cluster::{Cluster, factory};
use super::ingestions::{finish, runs, spec, work};
use jiff::SignedDuration;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Something that happens around one Ingestion.
#[derive(Clone, Debug)]
enum Happening {
    Respec {
        corpus: u8,
        schedule: bool,
        suspend: bool,
    },
    End {
        failed: bool,
    },
    Refuse {
        on: bool,
    },
    Silence {
        on: bool,
    },
    LosePod,
    /// The operator is killed, and starts anew.
    Restart,
    /// A write of the status is lost, or a cache is behind.
    Forget,
    Pass,
    RunPods,
    Wait {
        seconds: u16,
    },
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => (0..3u8, any::<bool>(), any::<bool>())
            .prop_map(|(corpus, schedule, suspend)| Happening::Respec { corpus, schedule, suspend }),
        3 => any::<bool>().prop_map(|failed| Happening::End { failed }),
        1 => any::<bool>().prop_map(|on| Happening::Refuse { on }),
        1 => any::<bool>().prop_map(|on| Happening::Silence { on }),
        1 => Just(Happening::LosePod),
        1 => Just(Happening::Restart),
        1 => Just(Happening::Forget),
        6 => Just(Happening::Pass),
        4 => Just(Happening::RunPods),
        2 => (0..5000u16).prop_map(|seconds| Happening::Wait { seconds }),
    ]
}

fn happen(cluster: &mut Cluster, what: &Happening) {
    match what {
        Happening::Respec { corpus, schedule, suspend } => {
            let mut change = json!({"corpus": format!("c{corpus}"), "suspend": suspend});
            if *schedule {
                change["schedule"] = json!("0 * * * *");
            }
            cluster.apply("Ingestion", "x", spec(&change));
        }
        Happening::End { failed } => {
            let now = cluster.now;
            cluster.jobs.end(if *failed { "failed" } else { "succeeded" }, now);
        }
        Happening::Refuse { on } => cluster.jobs.refuses = on.then_some("there is no such volume"),
        Happening::Silence { on } => cluster.jobs.silent = on.then_some("it is busy"),
        Happening::LosePod => {
            let pods = cluster.pod_names();
            if let Some(pod) = pods.first() {
                cluster.fail(pod, "Evicted");
            }
        }
        Happening::Restart => {
            cluster.observed.answers = Arc::default();
            cluster.targets.clear();
        }
        Happening::Forget => {
            let before = cluster.observed.ingestions.clone();
            cluster.pass();
            let same = |a: &Arc<principium_api::Ingestion>| a.metadata.generation;
            if before.iter().map(same).eq(cluster.observed.ingestions.iter().map(same)) {
                cluster.observed.ingestions = before;
            }
        }
        Happening::Pass => drop(cluster.pass()),
        Happening::RunPods => drop(cluster.run_pods()),
        Happening::Wait { seconds } => cluster.now += SignedDuration::from_secs(i64::from(*seconds)),
    }
}

fn check(cluster: &Cluster) {
    let runs = runs(cluster);
    let ids: BTreeSet<&String> = runs.iter().map(|run| &run.id).collect();
    assert_eq!(ids.len(), runs.len(), "a run stands there twice: {runs:?}");
    assert!(runs.iter().skip(1).all(|run| run.state.ended()), "two go on at once: {runs:?}");
    let made: BTreeSet<&String> = cluster.jobs.made.iter().collect();
    assert_eq!(made.len(), cluster.jobs.made.len(), "a job was made twice");
    assert!(cluster.jobs.running() <= 1, "a job goes on beside the one that took its place");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn in_the_end_the_corpus_is_as_its_source(what in prop::collection::vec(happening(), 0..60)) {
        let mut cluster = Cluster::new(&[2]);
        cluster.jobs.kept = true;
        let mut made = factory(json!({"count": 1}));
        made["storage"] = json!({"persistentVolumeClaim": {"claimName": "c"}});
        cluster.apply("DataFactory", "df", made);
        cluster.apply("Ingestion", "x", spec(&json!({})));
        cluster.settle();
        for what in &what {
            happen(&mut cluster, what);
            check(&cluster);
        }
        (cluster.jobs.refuses, cluster.jobs.silent) = (None, None);
        // Long enough for a pod that failed often to be made anew.
        cluster.now += SignedDuration::from_mins(10);
        cluster.apply("Ingestion", "x", spec(&json!({"corpus": "last"})));
        cluster.settle();
        for _ in 0..3 {
            work(&mut cluster);
            finish(&mut cluster, "succeeded");
            check(&cluster);
        }
        prop_assert_eq!(cluster.ready("x").1, "Completed");
        prop_assert_eq!(&cluster.jobs.requests.last().unwrap()["corpus"], "last");
        prop_assert_eq!(cluster.jobs.running(), 0, "nothing is left that nobody looks after");
    }
}
