//! The states of resources that GitOps tools see, written down for the check that shows them to Argo CD and Flux.

use crate::conditions::{Progress, reason, updated};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;
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

#[test]
fn every_event_is_explained_on_the_operations_page() {
    let page = include_str!("../../../docs/operations.md");
    let (_, section) = page.split_once("\n## Events\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut reasons = BTreeSet::new();
    for source in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        reasons.extend(texts_after(&source, "event: \""));
        let calls = [".note(", ".note_made("].map(|call| source.split(call).skip(1));
        for call in calls.into_iter().flatten() {
            // The resource, the severity or the pod, the reason, the text.
            match arguments(call)[2] {
                // That of a condition, that of a move, and what `note_made` hands on.
                "reason" | "sink.reason" | "off.event" => {}
                written => {
                    let reason = written.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
                    let reason = reason.unwrap_or_else(|| panic!("{written} is the reason of an Event"));
                    reasons.insert(reason.to_owned());
                }
            }
        }
    }
    reasons.extend(texts_after(include_str!("../../../device-plugin/src/events.rs"), "reason: \""));
    assert!(reasons.len() > 10, "{reasons:?}");
    for reason in reasons {
        assert!(
            section.contains(&format!("\n| `{reason}` |")),
            "docs/operations.md does not explain {reason}"
        );
    }
}

/// The operator's sources, without these tests.
fn sources(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            found.push(std::fs::read_to_string(path).unwrap());
        } else if !path.ends_with("tests") {
            found.extend(sources(&path));
        }
    }
    found
}

/// The text behind each of these beginnings, up to its quotation mark.
fn texts_after<'a>(source: &'a str, beginning: &'a str) -> impl Iterator<Item = String> + use<'a> {
    source.split(beginning).skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
}

/// The arguments of a call, which are written behind its opening parenthesis.
fn arguments(source: &str) -> Vec<&str> {
    let (mut found, mut begin, mut depth) = (Vec::new(), 0, 0_usize);
    let (mut quoted, mut escaped) = (false, false);
    for (at, letter) in source.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' => depth += 1,
            ',' | ')' if depth == 0 => {
                found.push(source[begin..at].trim());
                begin = at + 1;
                if letter == ')' {
                    return found;
                }
            }
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    panic!("a call without an end: {source}")
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
