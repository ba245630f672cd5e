//! Every value of the chart has a schema: each one of the wrong type, and each unknown one, is refused by Helm with its name.

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Objects that Kubernetes defines and may extend; unknown fields in them are for the API server to refuse.
const KUBERNETES: [&str; 4] = [
    "/operator/podSecurityContext",
    "/operator/securityContext",
    "/devicePlugin/podSecurityContext",
    "/devicePlugin/securityContext",
];
const UNKNOWN: &str = "noSuchValue";

/// Asks Helm to render the chart with nothing but mistakes, and looks for each in its answer.
pub fn check(helm: &Path, chart: &Path) -> Result<()> {
    let file = chart.join("values.yaml");
    let values: Value = serde_yaml::from_str(&fs::read_to_string(&file)?)
        .with_context(|| format!("reading {}", file.display()))?;
    let mut expected = Vec::new();
    let wrong = mistaken("", &values, &mut expected);
    let written = crate::target().join("wrong-values.json");
    fs::write(&written, wrong.to_string())?;
    let mut template = Command::new(helm);
    let output = template.args(["template", "principium", "--values"]).arg(written).arg(chart).output()?;
    ensure!(!output.status.success(), "Helm takes values that are all wrong");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // What an object says about a field that it doesn't know is told of the object, or of the field.
    let tells = |place: &String| {
        said.contains(&format!("at '{place}'")) || said.contains(&format!("at '{place}/{UNKNOWN}'"))
    };
    let missing: Vec<&String> = expected.iter().filter(|place| !tells(place)).collect();
    ensure!(
        missing.is_empty(),
        "values.schema.json says nothing about {missing:?}; Helm refuses only:\n{said}"
    );
    Ok(())
}

/// The same values, each of a wrong type, with an unknown one in each object; and where the mistakes are.
fn mistaken(place: &str, value: &Value, expected: &mut Vec<String>) -> Value {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let within = fields.iter().map(|(key, value)| {
                let place = format!("{place}/{}", key.replace('/', "~1"));
                (key.clone(), mistaken(&place, value, expected))
            });
            let mut wrong: Map<String, Value> = within.collect();
            if !KUBERNETES.iter().any(|theirs| place.starts_with(theirs)) {
                expected.push(place.to_owned());
                wrong.insert(UNKNOWN.to_owned(), json!({"a": ["b"]}));
            }
            Value::Object(wrong)
        }
        Value::String(_) | Value::Number(_) => {
            expected.push(place.to_owned());
            json!(["a list"])
        }
        _ => {
            expected.push(place.to_owned());
            json!("a text")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_made_wrong_and_its_place_is_known() {
        let values = json!({"a": {"b/c": "text", "d": 1}, "e": {}, "f": []});
        let mut places = Vec::new();
        let wrong = mistaken("", &values, &mut places);
        assert_eq!(wrong["a"]["b/c"], json!(["a list"]));
        assert_eq!(wrong["a"]["d"], json!(["a list"]));
        assert_eq!((&wrong["e"], &wrong["f"]), (&json!("a text"), &json!("a text")));
        assert_eq!(places, ["/a/b~1c", "/a/d", "/a", "/e", "/f", ""]);
    }
}
