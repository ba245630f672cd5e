//! A model that the real Ollama pulls from a real registry: progress in the status, and an authority that has to be named first.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use principium_api::OllamaPool;
use principium_api::ollama_pool::OllamaModelState;
use principium_e2e::registry::Registry;
use principium_e2e::run;
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn a_model_is_pulled_from_a_registry_that_is_trusted_and_its_progress_shown() -> Result<()> {
    run("pulls", |world| async move {
        // A fifth of the model.
        let registry = Registry::start(20 << 20).await?;
        let model = &registry.model;
        let pool = |more: &str| {
            format!(
                "{{apiVersion: principium.ai/v1alpha1, kind: OllamaPool, metadata: {{name: pool}}, \
                 spec: {{models: [{{name: '{model}'}}], gpu: {{devices: [{{index: 2}}]}}{more}}}}}"
            )
        };
        world.apply::<OllamaPool>(&pool("")).await?;
        let message = world.reason::<OllamaPool>("pool", "Ready", "ModelFailed").await?;
        ensure!(message.contains(model.as_str()) && message.contains("unknown authority"), "{message}");

        let authorities = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "authorities"},
            "data": {"registry.pem": registry.certificate}
        });
        world.apply::<ConfigMap>(&authorities.to_string()).await?;
        let trusting = ", registryCaConfigMapRef: {name: authorities, key: registry.pem}";
        world.apply::<OllamaPool>(&pool(trusting)).await?;
        let models = || async {
            let status = world.api::<OllamaPool>().get("pool").await?.status.unwrap_or_default();
            anyhow::Ok(status.models)
        };
        let part = world
            .eventually("a part of the model is there", || async {
                let models = models().await?;
                let part = models.into_iter().find(|it| it.percent.is_some_and(|percent| percent > 0));
                Ok(part.filter(|it| it.state == OllamaModelState::Pulling))
            })
            .await?;
        let (pulled, size) = (part.pulled.unwrap_or_default(), part.size.unwrap_or_default());
        ensure!(0 < pulled && pulled < size && part.percent < Some(100), "{part:?}");
        let message = world.reason::<OllamaPool>("pool", "Ready", "PullingModels").await?;
        ensure!(message.contains(&format!("model {model} on instance 0, ")), "{message}");
        world
            .eventually("more of it is there", || async {
                Ok(models().await?.into_iter().find(|it| it.pulled > Some(pulled)))
            })
            .await?;

        registry.let_go();
        let status = world.ready::<OllamaPool>("pool").await?.status.unwrap_or_default();
        let ready = status.models.first().context("no model in the status")?;
        ensure!(ready.state == OllamaModelState::Ready && ready.digest.is_some(), "{ready:?}");
        let pod =
            world.pods_of("pool").await?.pop().and_then(|pod| pod.status?.pod_ip).context("no address")?;
        let question =
            json!({"model": model, "prompt": "Say hello.", "stream": false, "options": {"num_predict": 8}});
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build()?;
        let asked = client.post(format!("http://{pod}:11434/api/generate")).json(&question).send().await?;
        let answer: Value = asked.error_for_status()?.json().await?;
        ensure!(answer["response"].as_str().is_some_and(|text| !text.trim().is_empty()), "{answer}");
        world.delete::<OllamaPool>("pool").await
    })
}
