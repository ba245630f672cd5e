//! What of a spec matters to a running pod, and the named differences that decide a restart.
//!
//! A template holds values of the spec, not the defaults behind them. So an operator whose defaults changed restarts
//! nothing, and every restart can be explained by the fields that changed.

use serde::Serialize;
use serde_json::{Map, Value};
use std::sync::OnceLock;

/// Annotation of a pod: the template that it was made from.
pub const ANNOTATION: &str = "principium.ai/template";

/// Fields whose values are not repeated in messages, because users put secrets there.
const PRIVATE: &[&str] = &["env"];

/// The fields of a spec that a pod was, or is to be, made from.
#[derive(Clone, Debug, Default)]
pub struct Template {
    fields: Map<String, Value>,
    /// Made once: every pod of a resource is compared with it in every pass.
    text: OnceLock<String>,
}

impl Template {
    /// Adds a field. What is absent in the spec is absent here.
    pub fn with(mut self, name: &str, value: &impl Serialize) -> Self {
        // Only maps with keys that are no strings fail, and no spec has one.
        if let Ok(value) = serde_json::to_value(value)
            && !value.is_null()
        {
            self.fields.insert(name.to_owned(), value);
            self.text = OnceLock::new();
        }
        self
    }

    /// The text of the annotation.
    pub fn text(&self) -> &str {
        self.text.get_or_init(|| serde_json::to_string(&self.fields).unwrap_or_default())
    }

    /// What differs between the template of a running pod and this one, one sentence a field. A pod without a readable
    /// template differs in just that.
    pub fn differences(&self, running: Option<&str>) -> Vec<String> {
        if running == Some(self.text()) {
            return Vec::new();
        }
        let Some(Ok(Value::Object(running))) = running.map(serde_json::from_str) else {
            return vec![format!("annotation {ANNOTATION} is not readable")];
        };
        let mut found = Vec::new();
        compare("", &Value::Object(running), &Value::Object(self.fields.clone()), &mut found);
        found
    }
}

fn compare(path: &str, running: &Value, wanted: &Value, found: &mut Vec<String>) {
    if running == wanted {
        return;
    }
    // A group of fields that is not there at all is one without any.
    let none = Map::new();
    let both = match (running, wanted) {
        (Value::Object(running), Value::Object(wanted)) => Some((running, wanted)),
        (Value::Null, Value::Object(wanted)) => Some((&none, wanted)),
        (Value::Object(running), Value::Null) => Some((running, &none)),
        _ => None,
    };
    if let Some((running, wanted)) = both {
        let mut names: Vec<&String> = running.keys().chain(wanted.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let value = |map: &Map<String, Value>| map.get(name).cloned().unwrap_or(Value::Null);
            compare(&path, &value(running), &value(wanted), found);
        }
        return;
    }
    if PRIVATE.iter().any(|private| path.split('.').next() == Some(private)) {
        found.push(format!("{path} changed"));
        return;
    }
    found.push(match (running, wanted) {
        (Value::Null, wanted) => format!("{path} set to {}", shown(wanted)),
        (running, Value::Null) => format!("{path} removed (was {})", shown(running)),
        (running, wanted) => format!("{path} changed from {} to {}", shown(running), shown(wanted)),
    });
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_changed_field_is_named_with_both_values() {
        let running = Template::default()
            .with("image", &"embedder:1")
            .with("chunking", &json!({"maxTokens": 200, "overlap": 10}))
            .with("priorityClassName", &"gold");
        let wanted = Template::default()
            .with("image", &"embedder:2")
            .with("chunking", &json!({"maxTokens": 300, "overlap": 10}))
            .with("model", &json!({"hub": {"name": "a/b"}}));
        assert_eq!(
            wanted.differences(Some(running.text())),
            [
                "chunking.maxTokens changed from 200 to 300",
                "image changed from embedder:1 to embedder:2",
                "model.hub.name set to a/b",
                "priorityClassName removed (was gold)",
            ]
        );
    }

    #[test]
    fn equal_templates_have_no_difference_and_absent_values_do_not_count() {
        let running = Template::default().with("image", &"a");
        let wanted = Template::default().with("image", &"a").with("env", &None::<String>);
        assert_eq!(wanted.differences(Some(running.text())), [""; 0]);
    }

    #[test]
    fn values_of_the_environment_are_never_told() {
        let running = Template::default().with("env", &json!({"API_KEY": "old"}));
        let wanted = Template::default().with("env", &json!({"API_KEY": "secret"}));
        assert_eq!(wanted.differences(Some(running.text())), ["env.API_KEY changed"]);
    }

    #[test]
    fn a_pod_without_a_template_is_different() {
        assert_eq!(Template::default().differences(None).len(), 1);
        assert_eq!(Template::default().differences(Some("{")).len(), 1);
    }
}
