//! What a pod has: what the table of changes expects of the pods that are made after one.

use serde_json::{Value, json};

/// Something that can be looked for in a pod.
#[derive(Clone, Debug)]
pub enum Has {
    /// This value at this place of its spec, by JSON pointer.
    At(&'static str, Value),
    /// This among the values of the list at this place.
    In(&'static str, Value),
    /// Its container has this variable once, with this value.
    Env(&'static str, String),
    /// So many GPUs, with so many units of each.
    Gpus(usize, u32),
    /// All of these.
    All(Vec<Has>),
    /// The doc analyzer beside it has this.
    Analyzer(Box<Has>),
}

impl Has {
    /// Whether the spec of a worker has it; `analyzer` is that of the doc analyzer beside it, if there is one.
    pub fn is_in(&self, worker: &Value, analyzer: &Value) -> bool {
        match self {
            Self::At(place, value) => worker.pointer(place) == Some(value),
            Self::In(place, value) => {
                worker.pointer(place).and_then(Value::as_array).is_some_and(|found| found.contains(value))
            }
            Self::Env(name, value) => {
                let variables = worker["containers"][0]["env"].as_array();
                let named = variables.into_iter().flatten().filter(|variable| variable["name"] == *name);
                named.map(|variable| &variable["value"]).eq([&json!(value)])
            }
            Self::Gpus(count, units) => {
                let limits = worker["containers"][0]["resources"]["limits"].as_object();
                let gpus = limits.into_iter().flatten();
                let gpus = gpus.filter(|(name, _)| name.starts_with("principium.ai/gpu-"));
                let found: Vec<&Value> = gpus.map(|(_, units)| units).collect();
                let units = json!(units.to_string());
                found.len() == *count && found.into_iter().all(|found| *found == units)
            }
            Self::All(parts) => parts.iter().all(|part| part.is_in(worker, analyzer)),
            Self::Analyzer(has) => has.is_in(analyzer, &Value::Null),
        }
    }
}

/// A variable of the container.
pub fn env(name: &'static str, value: &str) -> Has {
    Has::Env(name, value.to_owned())
}

/// A volume of the pod.
pub fn volume(volume: Value) -> Has {
    Has::In("/volumes", volume)
}

/// A mount of the container.
pub fn mount(mount: Value) -> Has {
    Has::In("/containers/0/volumeMounts", mount)
}

/// That many units of one GPU, on whichever node.
pub fn on_gpu(index: u32, units: u32) -> Has {
    let mut limits = json!({});
    limits[format!("principium.ai/gpu-{index}")] = json!(units.to_string());
    Has::At("/containers/0/resources/limits", limits)
}

/// A key of a Secret as a file that a variable names.
pub fn key_file(name: &str, variable: &'static str, secret: &str, key: &str) -> Has {
    let folder = format!("/var/run/secrets/principium.ai/{name}");
    let items = json!([{"key": key, "path": "key"}]);
    let source = json!({"secretName": secret, "items": items, "optional": false});
    Has::All(vec![
        env(variable, &format!("{folder}/key")),
        volume(json!({"name": name, "secret": source})),
        mount(json!({"name": name, "mountPath": folder, "readOnly": true})),
    ])
}
