//! The rights that the chart grants: exactly these, with every set of values of `charts/principium/ci/`. A verb, a resource, a
//! role or a subject more or less is an error, so that none comes unnoticed; `docs/security.md` says what each is for.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// The kinds that grant rights.
const KINDS: [&str; 4] = ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
/// What a rule may consist of.
const FIELDS: [&str; 4] = ["apiGroups", "resources", "resourceNames", "verbs"];
/// Labels that add a ClusterRole to one of Kubernetes' own begin so.
const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";

/// A role with what it may, or a binding with whom it gives which role.
type Granted = (&'static str, &'static [&'static str]);

/// The operator's, wherever it works.
const OPERATOR: &[Granted] = &[
    (
        "ClusterRole principium-operator",
        &[
            "get list watch nodes",
            "get list watch principium.ai/gpunodes",
            "get list watch scheduling.k8s.io/priorityclasses",
        ],
    ),
    (
        "ClusterRoleBinding principium-operator",
        &["ClusterRole principium-operator to principium-system/principium-operator"],
    ),
    (
        "Role principium-system/principium-operator-leases",
        &[
            "create get list watch coordination.k8s.io/leases",
            "update coordination.k8s.io/leases named principium-operator",
        ],
    ),
    (
        "RoleBinding principium-system/principium-operator-leases",
        &["Role principium-operator-leases to principium-system/principium-operator"],
    ),
];

/// The operator's in the namespaces of the resources.
const WORKLOADS: &[&str] = &[
    "get list watch principium.ai/datafactories",
    "get list watch principium.ai/rerankers",
    "get list watch principium.ai/ollamapools",
    "get list watch principium.ai/ingestions",
    "patch principium.ai/datafactories/status",
    "patch principium.ai/rerankers/status",
    "patch principium.ai/ollamapools/status",
    "patch principium.ai/ingestions/status",
    "create delete get list watch pods",
    "patch pods/status",
    "create delete get list patch watch services",
    "create delete get list patch watch policy/poddisruptionbudgets",
    "create events.k8s.io/events",
];

/// Those where it works everywhere.
const EVERYWHERE: &[Granted] = &[
    ("ClusterRole principium-operator-workloads", WORKLOADS),
    (
        "ClusterRoleBinding principium-operator-workloads",
        &["ClusterRole principium-operator-workloads to principium-system/principium-operator"],
    ),
];

/// Those where it works in the namespace `team-a`.
const IN_ONE_NAMESPACE: &[Granted] = &[
    ("Role team-a/principium-operator-workloads", WORKLOADS),
    (
        "RoleBinding team-a/principium-operator-workloads",
        &["Role principium-operator-workloads to principium-system/principium-operator"],
    ),
];

/// The device plugin's, but for its Node.
const PLUGIN: &[Granted] = &[
    (
        "ClusterRole principium-device-plugin",
        &["list pods", "create get patch principium.ai/gpunodes", "patch principium.ai/gpunodes/status"],
    ),
    (
        "ClusterRoleBinding principium-device-plugin",
        &["ClusterRole principium-device-plugin to principium-system/principium-device-plugin"],
    ),
    ("Role default/principium-device-plugin-events", &["create events.k8s.io/events"]),
    (
        "RoleBinding default/principium-device-plugin-events",
        &["Role principium-device-plugin-events to principium-system/principium-device-plugin"],
    ),
    ("Role principium-system/principium-device-plugin-leases", &["create patch coordination.k8s.io/leases"]),
    (
        "RoleBinding principium-system/principium-device-plugin-leases",
        &["Role principium-device-plugin-leases to principium-system/principium-device-plugin"],
    ),
];

/// The device plugin's on its Node, where it labels it and where it doesn't.
const LABELS: &[Granted] = &[("ClusterRole principium-device-plugin", &["get patch nodes"])];
const NO_LABELS: &[Granted] = &[("ClusterRole principium-device-plugin", &["get nodes"])];

/// What is added to the rights of people.
const USERS: &[Granted] = &[
    (
        "ClusterRole principium-view",
        &[
            "part of admin",
            "part of edit",
            "part of view",
            "get list watch principium.ai/datafactories",
            "get list watch principium.ai/rerankers",
            "get list watch principium.ai/ollamapools",
            "get list watch principium.ai/ingestions",
            "get list watch principium.ai/gpunodes",
        ],
    ),
    (
        "ClusterRole principium-edit",
        &[
            "part of admin",
            "part of edit",
            "create delete deletecollection patch update principium.ai/datafactories",
            "create delete deletecollection patch update principium.ai/rerankers",
            "create delete deletecollection patch update principium.ai/ollamapools",
            "create delete deletecollection patch update principium.ai/ingestions",
            "get patch update principium.ai/rerankers/scale",
            "get patch update principium.ai/ollamapools/scale",
        ],
    ),
];

/// What the defaults grant.
const ALL: &[&[Granted]] = &[OPERATOR, EVERYWHERE, PLUGIN, LABELS, USERS];

/// A row for every set of values.
const SETS: &[(&str, &[&[Granted]])] = &[
    ("default-values", ALL),
    ("everything-values", ALL),
    ("host-driver-values", ALL),
    ("mirror-values", ALL),
    ("namespaced-values", &[OPERATOR, IN_ONE_NAMESPACE, PLUGIN, NO_LABELS]),
    ("no-cluster-rights-values", &[]),
    ("operator-only-values", &[OPERATOR, EVERYWHERE, USERS]),
    ("simulated-values", ALL),
];

/// What a set of values grants.
fn expected(set: &str) -> Option<BTreeSet<String>> {
    let (_, parts) = SETS.iter().find(|(name, _)| *name == set)?;
    let granted = parts.iter().copied().flatten();
    Some(granted.flat_map(|(name, rights)| rights.iter().map(move |it| format!("{name}: {it}"))).collect())
}

/// Compares what a set of values renders with what it is to grant.
pub fn check(set: &str, rendered: &str) -> Result<()> {
    let expected = expected(set).with_context(|| format!("{} says nothing of {set}", file!()))?;
    // One set has another name for everything.
    let found = rights(&rendered.replace("name: gpus-", "name: principium-"))?;
    let more: Vec<&String> = found.difference(&expected).collect();
    let less: Vec<&String> = expected.difference(&found).collect();
    ensure!(
        more.is_empty() && less.is_empty(),
        "{set} grants other rights than {}; change them there and in docs/security.md, if that is meant.\nMore: {more:#?}\n\
         Less: {less:#?}",
        file!()
    );
    Ok(())
}

/// Every right that is granted: a role with verbs and a resource, or a binding with a role and a subject.
fn rights(rendered: &str) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for document in serde_yaml::Deserializer::from_str(rendered) {
        let object = Value::deserialize(document)?;
        let text = |place: &str| object.pointer(place).and_then(Value::as_str).unwrap_or_default();
        let (kind, name) = (text("/kind"), text("/metadata/name"));
        if !KINDS.contains(&kind) {
            continue;
        }
        let name = match text("/metadata/namespace") {
            "" => format!("{kind} {name}"),
            namespace => format!("{kind} {namespace}/{name}"),
        };
        let mut granted: Vec<String> = list(&object, "rules").flat_map(of_rule).collect();
        let role = format!("{} {}", text("/roleRef/kind"), text("/roleRef/name"));
        granted.extend(list(&object, "subjects").map(|subject| format!("{role} to {}", of_subject(subject))));
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
        let labels = labels.into_iter().flatten().filter(|(_, value)| *value == "true");
        let aggregates = labels.filter_map(|(label, _)| label.strip_prefix(AGGREGATE));
        granted.extend(aggregates.map(|aggregate| format!("part of {aggregate}")));
        granted.extend(object.get("aggregationRule").map(|rule| format!("all of {rule}")));
        found.extend(granted.into_iter().map(|right| format!("{name}: {right}")));
    }
    Ok(found)
}

fn list<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    object.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// A line for each resource of a rule. A rule with other fields is told as it is.
fn of_rule(rule: &Value) -> Vec<String> {
    let known = |field: &String| FIELDS.contains(&field.as_str());
    if !rule.as_object().is_some_and(|fields| fields.keys().all(known)) {
        return vec![rule.to_string()];
    }
    let texts = |field: &str| -> Vec<&str> { list(rule, field).filter_map(Value::as_str).collect() };
    let mut verbs = texts("verbs");
    verbs.sort_unstable();
    let verbs = verbs.join(" ");
    let names = texts("resourceNames");
    let named = if names.is_empty() { String::new() } else { format!(" named {}", names.join(" ")) };
    let mut lines = Vec::new();
    for group in texts("apiGroups") {
        let group = if group.is_empty() { String::new() } else { format!("{group}/") };
        lines.extend(texts("resources").iter().map(|resource| format!("{verbs} {group}{resource}{named}")));
    }
    lines
}

fn of_subject(subject: &Value) -> String {
    let text = |field: &str| subject.get(field).and_then(Value::as_str).unwrap_or_default();
    match text("kind") {
        "ServiceAccount" => format!("{}/{}", text("namespace"), text("name")),
        kind => format!("{kind} {}", text("name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = "kind: Role
metadata: {name: a, namespace: x, labels: {team: y}}
rules:
  - {apiGroups: ['', apps], resources: [pods], resourceNames: [z], verbs: [list, get]}
---
kind: RoleBinding
metadata: {name: a, namespace: x}
roleRef: {kind: Role, name: a}
subjects: [{kind: ServiceAccount, namespace: x, name: s}]
";

    #[test]
    fn whatever_widens_a_right_is_another_right() -> Result<()> {
        let granted = rights(ROLE)?;
        let lines: Vec<&str> = granted.iter().map(String::as_str).collect();
        let (core, apps) = ("Role x/a: get list pods named z", "Role x/a: get list apps/pods named z");
        assert_eq!(lines, [apps, core, "RoleBinding x/a: Role a to x/s"]);
        for (from, to) in [
            ("[list, get]", "[list, get, watch]"),
            ("[list, get]", "['*']"),
            ("[pods]", "[pods, secrets]"),
            ("'', apps", "'', apps, batch"),
            ("resourceNames: [z], ", ""),
            ("{apiGroups", "{nonResourceURLs: [/logs], apiGroups"),
            ("kind: Role\nmetadata", "kind: ClusterRole\nmetadata"),
            ("rules:", "aggregationRule: {}\nrules:"),
            ("team: y", "rbac.authorization.k8s.io/aggregate-to-view: 'true'"),
            ("{kind: Role, name: a}", "{kind: ClusterRole, name: cluster-admin}"),
            ("subjects: [", "subjects: [{kind: Group, name: 'system:authenticated'}, "),
        ] {
            let widened = ROLE.replace(from, to);
            assert!(widened != ROLE && !rights(&widened)?.is_subset(&granted), "{from} to {to}");
        }
        assert!(rights("kind: Deployment\nmetadata: {name: a}\nrules: [{verbs: ['*']}]\n")?.is_empty());
        Ok(())
    }

    #[test]
    fn a_set_of_values_without_an_entry_and_one_with_a_right_more_or_less_are_refused() {
        let said = |set: &str, rendered: &str| check(set, rendered).err().map(|error| error.to_string());
        assert_eq!(said("no-cluster-rights-values", "kind: Deployment"), None);
        for (set, rendered, wrong) in [
            ("new-values", "kind: Deployment", "says nothing of new-values"),
            ("no-cluster-rights-values", ROLE, "Role x/a: get list pods named z"),
            ("default-values", "kind: Deployment", "ClusterRole principium-operator: get list watch nodes"),
        ] {
            assert!(said(set, rendered).is_some_and(|said| said.contains(wrong)), "{set}");
        }
    }
}
