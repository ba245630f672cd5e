//! The states of resources that GitOps tools see, written down for the check that shows them to Argo CD and Flux.

use crate::conditions::{Progress, reason, updated};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::path::Path;

/// A way to be, what makes it of a reason, and each reason for it.
type Way = (&'static str, fn(&'static str) -> Progress, &'static [&'static str]);

const REASONS: [Way; 3] = [
    (
        "Ready",
        ready,
        &[reason::READY, reason::SCALED_TO_ZERO, reason::COMPLETED, reason::SUSPENDED, reason::RUNNING],
    ),
    (
        "Reconciling",
        reconciling,
        &[
            reason::WAITING_FOR_GPU,
            reason::STARTING,
            reason::UPDATING,
            reason::PULLING_MODELS,
            reason::LOADING_MODELS,
            reason::MODEL_FAILED,
            reason::POD_FAILED,
            reason::APPLY_FAILED,
            reason::DELETING,
            reason::POOL_MISSING,
            reason::RUNNING,
            reason::RUN_FAILED,
            reason::DATA_FACTORY_MISSING,
            reason::DATA_FACTORY_NOT_READY,
            reason::DATA_FACTORY_SILENT,
        ],
    ),
    (
        "Stalled",
        stalled,
        &[
            reason::INVALID_NAME,
            reason::NO_MODEL,
            reason::DUPLICATE_DEVICES,
            reason::NO_SUCH_GPU,
            reason::NO_SUCH_PRODUCT,
            reason::NOT_ENOUGH_GPUS,
            reason::TOO_MUCH_MEMORY,
            reason::NOT_ACCELERATED,
            reason::REFUSED,
            reason::INVALID_SCHEDULE,
        ],
    ),
];

fn ready(reason: &'static str) -> Progress {
    Progress::Ready { reason, message: "all replicas answer".to_owned() }
}

fn reconciling(reason: &'static str) -> Progress {
    Progress::Reconciling { reason, message: "waits".to_owned() }
}

fn stalled(reason: &'static str) -> Progress {
    Progress::Stalled { reason, message: "change the spec".to_owned() }
}

#[test]
fn the_states_that_gitops_tools_are_shown_are_those_that_the_operator_reports() {
    let kinds = ["DataFactory", "Reranker", "OllamaPool", "Ingestion"];
    let mut states = Vec::new();
    for kind in kinds {
        states.push(state("Unseen", kind, &json!(null)));
        states.push(state("Unseen", kind, &status(1, &ready(reason::READY))));
    }
    for (progress, make, reasons) in REASONS {
        for (at, reason) in reasons.iter().enumerate() {
            states.push(state(progress, kinds[at % kinds.len()], &status(2, &make(reason))));
        }
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testing/gitops/states.json");
    let written = serde_json::to_string_pretty(&states).unwrap() + "\n";
    if std::env::var_os("PRINCIPIUM_WRITE").is_some() {
        std::fs::write(&file, &written).unwrap();
    }
    // Both are too long to show.
    assert!(
        std::fs::read_to_string(&file).unwrap_or_default() == written,
        "run this test with PRINCIPIUM_WRITE=1 to write {}, then `cargo xtask check`",
        file.display()
    );
}

#[test]
fn every_reason_is_explained_on_the_operations_page_and_shown_to_gitops_tools() {
    let page = include_str!("../../../docs/operations.md");
    let shown: Vec<&str> = REASONS.iter().flat_map(|(_, _, reasons)| reasons.iter().copied()).collect();
    let mut kstatus = true;
    for line in include_str!("../conditions.rs").lines().map(str::trim) {
        // From here on the reasons of conditions that kstatus doesn't look at.
        kstatus &= !line.contains(reason::ON_GPU);
        let Some((_, value)) =
            line.strip_prefix("pub const ").and_then(|rest| rest.split_once(": &str = \""))
        else {
            continue;
        };
        let reason = value.trim_end_matches("\";");
        assert!(page.contains(&format!("`{reason}`")), "docs/operations.md does not explain {reason}");
        assert!(!kstatus || shown.contains(&reason), "{reason} is not among the states for GitOps tools");
    }
    assert!(!kstatus, "conditions.rs has its reasons in this order");
}

/// A resource of generation 2.
fn state(progress: &str, kind: &str, status: &Value) -> Value {
    let mut resource = json!({
        "apiVersion": "principium.ai/v1alpha1",
        "kind": kind,
        "metadata": {"generation": 2, "name": "example", "namespace": "demo"},
    });
    if !status.is_null() {
        resource["status"] = status.clone();
    }
    json!({"progress": progress, "resource": resource})
}

fn status(observed: i64, progress: &Progress) -> Value {
    let conditions = updated(&[], &progress.verdicts(), Some(observed), Timestamp::UNIX_EPOCH);
    json!({"observedGeneration": observed, "conditions": conditions})
}
