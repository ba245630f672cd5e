//! The Kubernetes API of principium: five kinds in the group `principium.ai/v1alpha1`.
//!
//! This crate holds types, their schema and validation rules, and the names that every other crate must agree on. It
//! knows no client, no runtime and no policy, so that anything may depend on it.

pub mod data_factory;
pub mod gpu;
pub mod gpu_node;
pub mod ingestion;
pub mod model;
pub mod names;
pub mod ollama_pool;
pub mod pod;
pub mod reranker;
pub mod status;
pub mod storage;

pub use data_factory::{DataFactory, DataFactorySpec, DataFactoryStatus};
pub use gpu_node::{GPUNode, GpuNodeStatus};
pub use ingestion::{Ingestion, IngestionSpec, IngestionStatus};
pub use ollama_pool::{OllamaPool, OllamaPoolSpec, OllamaPoolStatus};
pub use reranker::{Reranker, RerankerSpec, RerankerStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// Takes the description from the schema of an enum. In a CustomResourceDefinition that of the type would stand in the place of
/// the field's own wherever the field is optional, and the field's says what the default is.
fn told_by_its_field(schema: &mut schemars::Schema) {
    schema.remove("description");
}

/// Every CustomResourceDefinition of the project, in the order in which documents list them.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![DataFactory::crd(), Reranker::crd(), OllamaPool::crd(), Ingestion::crd(), GPUNode::crd()]
}

#[cfg(test)]
mod tests {
    use super::crds;
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        JSONSchemaProps, JSONSchemaPropsOrArray,
    };

    #[test]
    fn every_optional_choice_of_a_spec_says_what_its_default_is() {
        let mut found = 0;
        for crd in crds() {
            let version = &crd.spec.versions[0];
            let schema =
                version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref()).unwrap();
            let properties = schema.properties.as_ref().unwrap();
            look(&crd.spec.names.kind, properties.get("spec").unwrap(), &mut found);
        }
        assert!(found >= 10, "only {found} of them");
    }

    fn look(path: &str, schema: &JSONSchemaProps, found: &mut usize) {
        let required = schema.required.as_deref().unwrap_or_default();
        for (name, property) in schema.properties.iter().flatten() {
            let path = format!("{path}.{name}");
            let text = property.description.as_deref().unwrap_or_default();
            if property.enum_.is_some() && !required.contains(name) {
                *found += 1;
                assert!(text.to_lowercase().contains("default"), "{path}: {text:?}");
            }
            look(&path, property, found);
            if let Some(JSONSchemaPropsOrArray::Schema(item)) = &property.items {
                look(&format!("{path}[]"), item, found);
            }
        }
    }
}
