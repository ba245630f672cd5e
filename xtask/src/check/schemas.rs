//! JSON schemas of every kind that the chart and the examples use, from where the API server has them: the OpenAPI document
//! of Kubernetes' own module, and CustomResourceDefinitions, ours and those in other projects' modules.

use anyhow::{Context, Result};
use principium_local_cluster::tools;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Writes a file for each kind: `<kind in lower case>-<group>-<version>.json`.
pub fn write(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    write_kubernetes(folder)?;
    let mut definitions = tools::crd_folders()?;
    definitions.push(crate::root().join("crds"));
    for file in definitions.iter().map(|folder| yaml_files(folder)).collect::<Result<Vec<_>>>()?.concat() {
        write_custom(folder, &file).with_context(|| format!("schemas of {}", file.display()))?;
    }
    Ok(())
}

fn write_kubernetes(folder: &Path) -> Result<()> {
    let path = tools::kubernetes_openapi()?;
    let mut document: Value =
        serde_json::from_slice(&fs::read(&path).with_context(|| path.display().to_string())?)?;
    let Value::Object(mut definitions) = document["definitions"].take() else {
        anyhow::bail!("{} has no definitions", path.display());
    };
    // The two types that are written in YAML as a number or as text; the document can say only one.
    definitions.insert(
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString".into(),
        json!({"type": ["integer", "string"]}),
    );
    definitions.insert(
        "io.k8s.apimachinery.pkg.api.resource.Quantity".into(),
        json!({"type": ["number", "string"]}),
    );
    definitions.values_mut().for_each(make_strict);
    for (name, definition) in &definitions {
        let kinds = definition["x-kubernetes-group-version-kind"].as_array();
        // Those that belong to every group carry a list of all.
        let Some([kind]) = kinds.map(Vec::as_slice) else { continue };
        let text = |field: &str| kind[field].as_str().unwrap_or_default().to_owned();
        let mut schema = definition.clone();
        schema["definitions"] = Value::Object(used(&definitions, name));
        write_schema(folder, &text("kind"), &text("group"), &text("version"), &schema)?;
    }
    Ok(())
}

/// The definitions that one needs, itself included: each file stands alone.
fn used(definitions: &Map<String, Value>, name: &str) -> Map<String, Value> {
    let mut found = BTreeSet::new();
    let mut open = vec![name.to_owned()];
    while let Some(name) = open.pop() {
        if found.insert(name.clone())
            && let Some(definition) = definitions.get(&name)
        {
            references(definition, &mut open);
        }
    }
    found.into_iter().filter_map(|name| Some((name.clone(), definitions.get(&name)?.clone()))).collect()
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let reference = fields.get("$ref").and_then(Value::as_str);
            found.extend(reference.and_then(|text| text.strip_prefix("#/definitions/")).map(str::to_owned));
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

fn write_custom(folder: &Path, file: &Path) -> Result<()> {
    for document in serde_yaml::Deserializer::from_str(&fs::read_to_string(file)?) {
        let definition = Value::deserialize(document)?;
        if definition["kind"] != "CustomResourceDefinition" {
            continue;
        }
        let spec = &definition["spec"];
        for version in spec["versions"].as_array().into_iter().flatten() {
            let mut schema = version["schema"]["openAPIV3Schema"].clone();
            for (field, kind) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
                schema["properties"][field] = json!({"type": kind});
            }
            make_strict(&mut schema);
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            write_schema(
                folder,
                &text(&spec["names"]["kind"]),
                &text(&spec["group"]),
                &text(&version["name"]),
                &schema,
            )?;
        }
    }
    Ok(())
}

/// Refuses unknown fields of every object whose fields are listed, and puts into words of JSON schema what Kubernetes has
/// words of its own for. Branches of `anyOf` and the like are left: they only add to what stands outside of them.
fn make_strict(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    fields.retain(|key, value| key != "description" || !value.is_string());
    let is_set = |fields: &Map<String, Value>, key: &str| fields.get(key) == Some(&Value::Bool(true));
    if is_set(fields, "x-kubernetes-int-or-string") {
        fields.insert("type".into(), json!(["integer", "string"]));
    }
    if is_set(fields, "nullable")
        && let Some(Value::String(kind)) = fields.get("type").cloned()
    {
        fields.insert("type".into(), json!([kind, "null"]));
    }
    let open = is_set(fields, "x-kubernetes-preserve-unknown-fields")
        || is_set(fields, "x-kubernetes-embedded-resource");
    if fields.contains_key("properties") && !open {
        fields.entry("additionalProperties").or_insert(Value::Bool(false));
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(make_strict);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(key) {
            make_strict(inner);
        }
    }
}

fn write_schema(folder: &Path, kind: &str, group: &str, version: &str, schema: &Value) -> Result<()> {
    // To kubeconform the group of what has none is its version.
    let group = if group.is_empty() { version } else { group };
    let file = folder.join(format!("{}-{group}-{version}.json", kind.to_lowercase()));
    fs::write(&file, serde_json::to_vec(schema)?).with_context(|| file.display().to_string())
}

fn yaml_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let found = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let paths: Vec<PathBuf> = found.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "yaml")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_refused_and_a_field_named_description_is_kept() {
        let mut schema = json!({
            "description": "x",
            "properties": {
                "description": {"type": "string", "description": "y"},
                "port": {"x-kubernetes-int-or-string": true},
                "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {}},
                "maybe": {"type": "string", "nullable": true},
            }
        });
        make_strict(&mut schema);
        assert_eq!(
            schema,
            json!({
                "additionalProperties": false,
                "properties": {
                    "description": {"type": "string"},
                    "port": {"type": ["integer", "string"], "x-kubernetes-int-or-string": true},
                    "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {}},
                    "maybe": {"type": ["string", "null"], "nullable": true},
                }
            })
        );
    }
}
