//! Mistakes in manifests are refused with a sentence that tells how to mend them.

use crate::pods::image;
use anyhow::Result;
use principium_api::{DataFactory, Ingestion, OllamaPool, Reranker};
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
            (
                format!("{{{model}, resources: {{limits: {{principium.ai/gpu-3: 1}}}}}}"),
                "GPUs are asked for in spec.gpu",
            ),
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
        assert!(error.contains("one instance a device"), "{error}");
        let pool = "{apiVersion: principium.ai/v1alpha1, kind: OllamaPool, metadata: {name: scaled}, spec: {instances: 0, gpu: {devices: [{index: 0}, {index: 1}]}}}";
        world.apply::<OllamaPool>(pool).await?;
        Ok(())
    })
}

#[test]
fn a_wrong_ingestion_is_refused_with_the_value_and_what_would_be_right() -> Result<()> {
    run("ingestion-manifests", |world| async move {
        let folder = "source: {folder: {path: documents}}";
        for (spec, says) in [
            ("source: {}".to_owned(), "exactly one of folder, s3 or http"),
            (
                "source: {folder: {path: a}, http: {urls: ['https://x/y']}}".to_owned(),
                "exactly one of folder",
            ),
            ("source: {folder: {path: /etc}}".to_owned(), r#"source.folder.path is "/etc""#),
            ("source: {folder: {path: docs/../x}}".to_owned(), r#"source.folder.path is "docs/../x""#),
            ("source: {s3: {url: 'http://bucket/x'}}".to_owned(), r#"source.s3.url is "http://bucket/x""#),
            (
                "source: {http: {urls: ['https://a/b', 'ftp://c/d']}}".to_owned(),
                r#"source.http.urls has "ftp://c/d""#,
            ),
            (
                "source: {http: {urls: ['https://user:word@host/x']}}".to_owned(),
                "an address with credentials in it",
            ),
            (format!("{folder}, sink: {{jsonl: {{path: out/}}}}"), r#"path is "out/""#),
            (format!("{folder}, sink: {{}}"), "exactly one of jsonl, parquet, qdrant or postgres"),
            (format!("{folder}, sink: {{postgres: {{table: 'a; drop'}}}}"), "spec.sink.postgres.table"),
            (format!("{folder}, schedule: 'every single day'"), r#"schedule is "every single day""#),
            (
                format!("{folder}, processing: {{chunking: {{maxTokens: 64, overlap: 64}}}}"),
                "chunking.overlap",
            ),
        ] {
            let wrong = format!(
                "{{apiVersion: principium.ai/v1alpha1, kind: Ingestion, metadata: {{name: wrong}}, spec: {{dataFactoryRef: {{name: df}}, {spec}}}}}"
            );
            let error = world.apply::<Ingestion>(&wrong).await.expect_err(&spec).to_string();
            assert!(error.contains(says), "{spec}: {error}");
        }
        let two = "{name: docs, configMap: {name: a}}";
        for (spec, says) in [
            ("storage: {}".to_owned(), "exactly one of emptyDir, persistentVolumeClaim or hostPath"),
            ("storage: {emptyDir: {sizeLimit: much}}".to_owned(), r#"storage.emptyDir.sizeLimit is "much""#),
            (
                "volumes: [{name: docs}]".to_owned(),
                "exactly one of persistentVolumeClaim, configMap or hostPath",
            ),
            (format!("volumes: [{two}, {two}]"), "two volumes of one name"),
        ] {
            let wrong = format!(
                "{{apiVersion: principium.ai/v1alpha1, kind: DataFactory, metadata: {{name: wrong}}, spec: {{model: {{hub: {{name: a/b}}}}, {spec}}}}}"
            );
            let error = world.apply::<DataFactory>(&wrong).await.expect_err(&spec).to_string();
            assert!(error.contains(says), "{spec}: {error}");
        }
        Ok(())
    })
}
