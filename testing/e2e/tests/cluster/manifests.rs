//! Mistakes in manifests are refused with a sentence that tells how to mend them.

use crate::pods::image;
use anyhow::Result;
use principium_api::{OllamaPool, Reranker};
use principium_e2e::run;

#[test]
fn a_wrong_manifest_is_refused_with_what_would_be_right() -> Result<()> {
    run("manifests", |world| async move {
        let model = image("principium-model-ms-marco-minilm-l12-v2");
        let ranker = |spec: &str| {
            format!(
                "{{apiVersion: principium.ai/v1alpha1, kind: Reranker, metadata: {{name: wrong}}, spec: {spec}}}"
            )
        };
        let model = format!("model: {{image: {{reference: '{model}'}}}}");
        for (spec, says) in [
            ("{}".to_owned(), "spec.model"),
            ("{model: {}}".to_owned(), "exactly one source"),
            (format!("{{{model}, gpu: {{count: 1, devices: [{{index: 1}}]}}}}"), "exclude each other"),
            (format!("{{{model}, gpu: {{devices: [{{index: 1, uuid: GPU-1}}]}}}}"), "by index or by uuid"),
            (format!("{{{model}, gpu: {{count: 1, memory: 5GB}}}}"), "for example 5Gi"),
            (format!("{{{model}, gpu: {{devices: [{{index: 1}}], memory: 5Gi}}}}"), "devices[].memory"),
            (
                format!("{{{model}, gpu: {{devices: [{{index: 1}}]}}, replicas: 2}}"),
                "replicas needs gpu.count",
            ),
            (format!("{{{model}, gpus: 3}}"), "gpus"),
        ] {
            let error = world.apply::<Reranker>(&ranker(&spec)).await.expect_err(&spec).to_string();
            assert!(error.contains(says), "{spec}: {error}");
        }
        let pool = "{apiVersion: principium.ai/v1alpha1, kind: OllamaPool, metadata: {name: wrong}, spec: {instances: 2, gpu: {devices: [{index: 0}]}}}";
        let error =
            world.apply::<OllamaPool>(pool).await.expect_err("one device for two instances").to_string();
        assert!(error.contains("one device an instance"), "{error}");
        Ok(())
    })
}
