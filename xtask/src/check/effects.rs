//! Every value of the chart does something: the chart is rendered again with one value changed, for each value, and what
//! comes out must differ, in every object that the value is meant for.

use anyhow::{Context, Result, bail, ensure};
use principium_local_cluster::NAMESPACE;
use principium_local_cluster::command::run_with_input;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What must be set for the values below a place to matter. Definitions are left out where they don't: they are the most
/// of what is rendered.
const NEEDS: [(&str, &str); 5] = [
    (
        "",
        "{crds: {enabled: false}, operator: {podDisruptionBudget: {enabled: true}}, networkPolicy: {enabled: true},
          metrics: {serviceMonitor: {enabled: true}, prometheusRule: {enabled: true}, dashboard: {enabled: true}}}",
    ),
    ("/crds", "{crds: {enabled: true}}"),
    ("/commonLabels", "{crds: {enabled: true}}"),
    ("/simulation", "{simulation: {enabled: true}}"),
    ("/devicePlugin/driver/libraryPath", "{devicePlugin: {driver: {source: HostPath}}}"),
];

/// Another value for places that end so, where none can be made from the value itself.
const EXAMPLES: [(&str, &str); 23] = [
    (
        "/affinity",
        "{nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{}]}}}",
    ),
    ("/annotations", "{example.com/a: another}"),
    ("/commonLabels", "{example.com/a: another}"),
    ("/config", "{foreignTolerance: 1Gi}"),
    ("/cpu", "321m"),
    ("/digest", "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"),
    ("/drop", "[NET_RAW]"),
    ("/dwell", "7s"),
    ("/extraArgs", "[--another=true]"),
    ("/extraEnv", "[{name: ANOTHER, value: another}]"),
    ("/hostPath", "/another"),
    ("/interval", "7s"),
    ("/kubeletRootDir", "/another"),
    ("/labels", "{example.com/a: another}"),
    ("/libraryPath", "/another"),
    ("/memory", "321Mi"),
    ("/metricsFrom", "[{podSelector: {matchLabels: {example.com/a: another}}}]"),
    ("/podAnnotations", "{example.com/a: another}"),
    ("/podLabels", "{example.com/a: another}"),
    ("/priorityClasses/classes", "[{name: another, value: 7, description: Another.}]"),
    ("/pullSecrets", "[{name: another}]"),
    ("/requireAcceleration", "false"),
    ("/tolerations", "[{key: example.com/a, operator: Exists}]"),
];

/// Every object that is rendered.
const EVERY: &str = "*";

/// Objects in which each value below a place must show, where one of several would hide that another has lost it: all of
/// them, one of a kind, or one by its name. `Pod` is that of `helm test`.
const SHOWS_IN: [(&str, &[&str]); 24] = [
    ("/commonLabels", &[EVERY]),
    ("/podAnnotations", &["DaemonSet", "Deployment"]),
    ("/image", &["DaemonSet", "Deployment", "Pod"]),
    ("/rbac/create", &["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"]),
    ("/simulation", &["DaemonSet"]),
    ("/operator/image", &["Deployment", "Pod"]),
    ("/operator/watchNamespace", &["Deployment", "Pod", "Role", "RoleBinding", "ServiceMonitor"]),
    (
        "/operator/serviceAccount/name",
        &["ClusterRoleBinding", "Deployment", "Pod", "RoleBinding", "ServiceAccount"],
    ),
    ("/operator/resources", &["Deployment", "Pod"]),
    ("/operator/podSecurityContext", &["Deployment", "Pod"]),
    ("/operator/securityContext", &["Deployment", "Pod"]),
    ("/operator/nodeSelector", &["Deployment", "Pod"]),
    ("/operator/tolerations", &["Deployment", "Pod"]),
    (
        "/devicePlugin/enabled",
        &["ConfigMap", "DaemonSet", "NetworkPolicy", "Role", "Service", "ServiceAccount", "ServiceMonitor"],
    ),
    ("/devicePlugin/injection", &["ConfigMap"]),
    ("/devicePlugin/interval", &["ConfigMap"]),
    ("/devicePlugin/temperature", &["ConfigMap"]),
    ("/devicePlugin/config", &["ConfigMap"]),
    ("/devicePlugin/nodeLabels", &["ClusterRole", "DaemonSet", "ValidatingAdmissionPolicy"]),
    (
        "/devicePlugin/serviceAccount/name",
        &["ClusterRoleBinding", "DaemonSet", "RoleBinding", "ServiceAccount", "ValidatingAdmissionPolicy"],
    ),
    ("/metrics/serviceMonitor", &[OPERATORS_MONITOR, PLUGINS_MONITOR, WORKERS_MONITOR]),
    ("/metrics/prometheusRule", &["PrometheusRule"]),
    ("/metrics/dashboard", &["ConfigMap/principium-dashboard"]),
    ("/networkPolicy", &["NetworkPolicy/principium-operator", "NetworkPolicy/principium-device-plugin"]),
];
const OPERATORS_MONITOR: &str = "ServiceMonitor/principium-operator";
const PLUGINS_MONITOR: &str = "ServiceMonitor/principium-device-plugin";
const WORKERS_MONITOR: &str = "ServiceMonitor/principium-workers";

/// What is rendered, by kind and name.
type Objects = BTreeMap<String, Value>;

/// Changes one value after the other and names those that change nothing, or not all that they should.
pub fn check(helm: &Path, chart: &Path) -> Result<()> {
    let read = |name: &str| -> Result<Value> {
        let file = chart.join(name);
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        serde_yaml::from_str(&text).with_context(|| format!("reading {}", file.display()))
    };
    let (defaults, schema) = (read("values.yaml")?, read("values.schema.json")?);
    let mut places = Vec::new();
    leaves("", &defaults, &mut places);
    // Most values are rendered over the same others.
    let mut rendered: BTreeMap<String, Objects> = BTreeMap::new();
    let mut idle = Vec::new();
    for place in &places {
        let set = needed(place)?;
        let before = merged(defaults.clone(), set.clone());
        let value = another(place, before.pointer(place).unwrap_or(&Value::Null), &schema)?;
        let told = || format!("rendering the chart with {place} = {value}");
        let without = match rendered.entry(set.to_string()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => free.insert(objects(&render(helm, chart, &set)?)?),
        };
        let with = render(helm, chart, &merged(set, at(place, value.clone()))).with_context(told)?;
        let with = objects(&with).with_context(told)?;
        let changed = those_that_differ(without, &with);
        if changed.is_empty() {
            idle.push(format!("{place} changes nothing"));
        } else {
            idle.extend(
                missing(place, without, &changed).map(|object| format!("{place} changes no {object}")),
            );
        }
    }
    ensure!(idle.is_empty(), "values of the chart that are not used:\n  {}", idle.join("\n  "));
    Ok(())
}

fn render(helm: &Path, chart: &Path, values: &Value) -> Result<String> {
    let mut command = Command::new(helm);
    command.args(["template", "principium", "--namespace", NAMESPACE, "--values", "-"]).arg(chart);
    run_with_input(&mut command, &values.to_string())
}

/// The places, as JSON pointers, of all that has no values below it. A list is one value.
fn leaves(place: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                leaves(&format!("{place}/{}", key.replace('/', "~1")), value, found);
            }
        }
        _ => found.push(place.to_owned()),
    }
}

fn is_below(place: &str, above: &str) -> bool {
    place.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Of the objects in which a value must show, those that are not among the changed ones.
fn missing<'a>(place: &str, before: &'a Objects, changed: &[&str]) -> impl Iterator<Item = &'a str> {
    let wanted =
        SHOWS_IN.iter().filter(|(above, _)| is_below(place, above)).flat_map(|(_, objects)| *objects);
    let wanted = wanted.flat_map(|wanted| match *wanted {
        EVERY => before.keys().map(String::as_str).collect(),
        object => vec![object],
    });
    wanted.filter(|wanted| !changed.iter().any(|object| is_below(object, wanted)))
}

fn needed(place: &str) -> Result<Value> {
    let mut set = json!({});
    for (_, values) in NEEDS.iter().filter(|(above, _)| is_below(place, above)) {
        set = merged(set, serde_yaml::from_str(values).with_context(|| format!("reading {values}"))?);
    }
    Ok(set)
}

/// Values with others put over them.
fn merged(below: Value, above: Value) -> Value {
    match (below, above) {
        (Value::Object(mut fields), Value::Object(over)) => {
            for (key, value) in over {
                let below = fields.remove(&key).unwrap_or_default();
                fields.insert(key, merged(below, value));
            }
            Value::Object(fields)
        }
        (_, above) => above,
    }
}

/// Values that set nothing but this.
fn at(place: &str, value: Value) -> Value {
    let keys = place.trim_start_matches('/').rsplit('/');
    keys.fold(value, |value, key| Value::Object(Map::from_iter([(key.replace("~1", "/"), value)])))
}

/// A value that the schema allows at a place, and that is not the one that is there.
fn another(place: &str, value: &Value, schema: &Value) -> Result<Value> {
    let example = EXAMPLES.iter().find(|(end, _)| place.ends_with(end));
    let other = match (example, value) {
        (Some((_, text)), _) => {
            serde_yaml::from_str(text).with_context(|| format!("reading the example for {place}"))?
        }
        (None, Value::Bool(on)) => json!(!on),
        (None, Value::Number(number)) => {
            let number = number.as_i64().with_context(|| format!("{place} is no whole number"))?;
            let limit = schema_of(place, schema).and_then(|schema| schema["maximum"].as_i64());
            json!(if limit == Some(number) { number - 1 } else { number + 1 })
        }
        (None, Value::String(_)) => {
            let choices = schema_of(place, schema).and_then(|schema| schema["enum"].as_array());
            let choice = choices.into_iter().flatten().find(|choice| *choice != value);
            choice.cloned().unwrap_or_else(|| json!("another"))
        }
        (None, _) => {
            bail!("{place} needs an example of another value, in EXAMPLES of xtask/src/check/effects.rs")
        }
    };
    ensure!(other != *value, "the example for {place} is the value that is there already: {value}");
    Ok(other)
}

/// What the schema says about a place.
fn schema_of<'a>(place: &str, schema: &'a Value) -> Option<&'a Value> {
    place.split('/').skip(1).try_fold(schema, |found, key| {
        let found =
            found["properties"].get(key.replace("~1", "/")).or_else(|| found.get("additionalProperties"))?;
        match found["$ref"].as_str() {
            Some(reference) => schema.pointer(reference.trim_start_matches('#')),
            None => Some(found),
        }
    })
}

/// What is rendered, without comments, so that no change of a comment counts.
fn objects(manifests: &str) -> Result<Objects> {
    let mut found = Objects::new();
    for document in serde_yaml::Deserializer::from_str(manifests) {
        let object = Value::deserialize(document)?;
        if let (Some(kind), Some(name)) = (object["kind"].as_str(), object["metadata"]["name"].as_str()) {
            found.insert(format!("{kind}/{name}"), object);
        }
    }
    Ok(found)
}

fn those_that_differ<'a>(before: &'a Objects, after: &'a Objects) -> Vec<&'a str> {
    let differs = |object: &&String| before.get(*object) != after.get(*object);
    let new = after.keys().filter(|object| !before.contains_key(*object));
    before.keys().chain(new).filter(differs).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_place_and_is_set_there_alone() {
        let values = json!({"a": {"b/c": "text", "d": [1]}, "e": {}, "f": null});
        let mut places = Vec::new();
        leaves("", &values, &mut places);
        assert_eq!(places, ["/a/b~1c", "/a/d", "/e", "/f"]);
        assert_eq!(at("/a/b~1c", json!(1)), json!({"a": {"b/c": 1}}));
        assert_eq!(
            merged(values, at("/a/b~1c", json!(1))),
            json!({"a": {"b/c": 1, "d": [1]}, "e": {}, "f": null})
        );
    }

    #[test]
    fn another_value_is_one_that_the_schema_allows() -> Result<()> {
        let schema = json!({
            "definitions": {"strategy": {"properties": {"kind": {"enum": ["A", "B"]}}}},
            "properties": {
                "full": {"maximum": 5},
                "strategy": {"$ref": "#/definitions/strategy"},
                "labels": {"additionalProperties": {"type": "string"}}
            }
        });
        let cases = [
            ("/on", json!(true), json!(false)),
            ("/full", json!(5), json!(4)),
            ("/full", json!(1), json!(2)),
            ("/strategy/kind", json!("A"), json!("B")),
            ("/labels/a~1b", json!("text"), json!("another")),
            ("/x/memory", json!("1Gi"), json!("321Mi")),
            ("/x/requireAcceleration", Value::Null, json!(false)),
        ];
        for (place, value, expected) in cases {
            assert_eq!(another(place, &value, &schema)?, expected, "{place}");
        }
        let error = another("/x/unknown", &json!([]), &schema).unwrap_err().to_string();
        assert!(error.contains("/x/unknown"), "{error}");
        assert!(another("/x/memory", &json!("321Mi"), &schema).is_err(), "the same is not another");
        Ok(())
    }

    #[test]
    fn a_comment_is_no_difference_and_an_object_that_comes_or_goes_is_one() -> Result<()> {
        let object = |kind: &str, more: &str| format!("kind: {kind}\nmetadata: {{name: x}}\n{more}\n---\n");
        let before = objects(&[object("A", "y: 1"), object("B", ""), object("C", "")].concat())?;
        let after = objects(&[object("A", "y: 1 # new"), object("B", "y: 2"), object("D", "")].concat())?;
        assert_eq!(those_that_differ(&before, &after), ["B/x", "C/x", "D/x"]);
        Ok(())
    }

    #[test]
    fn a_value_must_show_in_each_object_that_it_is_meant_for() {
        let before: Objects =
            ["DaemonSet/a", "Deployment/a"].map(|name| (name.to_owned(), Value::Null)).into();
        let lacks = |place: &str, changed: &[&str]| -> Vec<String> {
            missing(place, &before, changed).map(str::to_owned).collect()
        };
        assert_eq!(lacks("/podAnnotations", &["Deployment/a"]), ["DaemonSet"]);
        assert_eq!(lacks("/commonLabels", &["Deployment/a"]), ["DaemonSet/a"]);
        assert_eq!(lacks("/image/tag", &["DaemonSet/a", "Deployment/a"]), ["Pod"]);
        assert_eq!(lacks("/imagePull", &[]), [""; 0], "a longer name is another value");
        assert_eq!(
            lacks("/metrics/serviceMonitor/interval", &[PLUGINS_MONITOR, WORKERS_MONITOR]),
            [OPERATORS_MONITOR]
        );
    }
}
