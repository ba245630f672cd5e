//! Verifies the models of an Ollama instance: each is listed, answers one token, and its part in GPU memory is known.

use super::Shared;
use super::http::{Http, HttpError, bounded};
use crate::actions::Target;
use crate::observed::{ModelAnswer, ModelStep};
use crate::ollama_pool::tagged;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Time for loading a model and answering one token: large models come from a disk.
const LOADING: Duration = Duration::from_secs(600);
/// Between looks at an instance whose models all answered.
const SLOW: Duration = Duration::from_secs(30);
/// First wait before a look at one whose models did not; doubled up to [`SLOW`].
const FAST: Duration = Duration::from_millis(500);

#[derive(Debug, Default, Deserialize)]
struct Listed {
    #[serde(default)]
    models: Vec<Model>,
}

/// A model as `/api/tags` and `/api/ps` list it.
#[derive(Clone, Debug, Default, Deserialize)]
struct Model {
    #[serde(default)]
    name: String,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    size_vram: Option<u64>,
}

pub async fn ask(http: Http, target: Target, models: Arc<[String]>, shared: Shared) {
    let mut wait = FAST;
    loop {
        match look(&http, &target, &models, &shared).await {
            Ok(true) => wait = SLOW,
            Ok(false) => wait = (wait * 2).min(SLOW),
            Err(error) => {
                tracing::debug!(pod = target.uid, %error, "asking an Ollama instance");
                wait = (wait * 2).min(SLOW);
            }
        }
        sleep(wait).await;
    }
}

/// One look at all models. Returns whether all answered.
async fn look(http: &Http, target: &Target, models: &[String], shared: &Shared) -> Result<bool, HttpError> {
    let listed: Listed = http.get(&format!("{}/api/tags", target.url)).await?;
    let heard = shared.models(&target.uid);
    let before = if heard.is_empty() { &target.known } else { &heard };
    let mut answers: Vec<ModelAnswer> = models.iter().map(|name| as_listed(name, &listed, before)).collect();
    if answers.iter().any(|answer| answer.step == ModelStep::Ready) {
        // Ollama unloads a model that nobody asks, and may later load less of it into the GPU's memory.
        let running: Listed = http.get(&format!("{}/api/ps", target.url)).await?;
        for answer in answers.iter_mut().filter(|answer| answer.step == ModelStep::Ready) {
            if let Some(model) = find(&running.models, &answer.name) {
                *answer = answer.clone().located(model);
            }
        }
    }
    shared.instance_said(&target.uid, answers.clone());
    // The last first: one model is loaded at a time, and the first of the spec is to stay.
    for at in (0..answers.len()).rev() {
        let Some(answer) = answers.get(at).filter(|answer| answer.step == ModelStep::Loading) else {
            continue;
        };
        let loaded = load(http, target, answer.clone()).await;
        if let Some(answer) = answers.get_mut(at) {
            *answer = loaded;
        }
        shared.instance_said(&target.uid, answers.clone());
    }
    Ok(answers.iter().all(|answer| answer.step == ModelStep::Ready))
}

/// What is known of a model before it is asked. One that answered need not answer again, unless it is another by now.
fn as_listed(name: &str, listed: &Listed, before: &[ModelAnswer]) -> ModelAnswer {
    let Some(model) = find(&listed.models, name) else {
        return ModelAnswer { name: name.to_owned(), ..ModelAnswer::default() };
    };
    let known = before.iter().find(|answer| answer.name == name);
    if let Some(known) = known
        .filter(|known| known.step == ModelStep::Ready && known.digest == model.digest.clone().map(bounded))
    {
        return known.clone();
    }
    ModelAnswer {
        name: name.to_owned(),
        step: ModelStep::Loading,
        digest: model.digest.clone().map(bounded),
        size: model.size,
        size_vram: None,
        on_gpu: None,
        message: known.and_then(|known| known.message.clone()),
    }
}

async fn load(http: &Http, target: &Target, answer: ModelAnswer) -> ModelAnswer {
    let failed = |error: &HttpError| ModelAnswer {
        step: ModelStep::Failed,
        message: Some(match error {
            HttpError::Status { text, .. } => text.clone(),
            other => other.to_string(),
        }),
        ..answer.clone()
    };
    let url = &target.url;
    let one_token =
        json!({"model": answer.name, "prompt": "Hi", "stream": false, "options": {"num_predict": 1}});
    let generated = http.post::<Value>(&format!("{url}/api/generate"), &one_token, LOADING).await;
    if let Err(error) = generated {
        // A model that only embeds is fine too.
        if !matches!(&error, HttpError::Status { text, .. } if text.contains("does not support generate")) {
            return failed(&error);
        }
        let body = json!({"model": answer.name, "input": "Hi"});
        if let Err(error) = http.post::<Value>(&format!("{url}/api/embed"), &body, LOADING).await {
            return failed(&error);
        }
    }
    match http.get::<Listed>(&format!("{url}/api/ps")).await {
        Ok(running) => {
            let loaded = find(&running.models, &answer.name).cloned().unwrap_or_default();
            ModelAnswer { step: ModelStep::Ready, ..answer.clone() }.located(&loaded)
        }
        Err(error) => failed(&error),
    }
}

impl ModelAnswer {
    /// With where it computes, by what `/api/ps` says of it. What is small beside the rest, such as a table of words, may stay
    /// with the CPU.
    fn located(self, loaded: &Model) -> Self {
        let size_vram = loaded.size_vram;
        let (Some(in_vram), Some(size)) = (size_vram, loaded.size) else {
            return Self { size_vram, on_gpu: size_vram.map(|size| size > 0), message: None, ..self };
        };
        let on_gpu = in_vram > 0 && in_vram >= size - size / 10;
        let message = (in_vram > 0 && !on_gpu).then(|| {
            let mib = |bytes: u64| bytes >> 20;
            format!("only {} of {} MiB are in GPU memory; the CPU does the rest", mib(in_vram), mib(size))
        });
        Self { size_vram, on_gpu: Some(on_gpu), message, ..self }
    }
}

fn find<'a>(models: &'a [Model], name: &str) -> Option<&'a Model> {
    let tagged = tagged(name);
    models.iter().find(|model| model.name.eq_ignore_ascii_case(&tagged))
}

#[cfg(test)]
mod tests {
    use super::super::Shared;
    use super::*;
    use crate::actions::Question;
    use axum::http::StatusCode;
    use axum::routing::{get, post};
    use axum::{Json, Router};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Its first model is loaded into the CPU's memory at first, and later into the GPU's.
    async fn instance(asked: Arc<AtomicUsize>) -> Target {
        let looks = AtomicUsize::new(0);
        let loaded =
            move || json!([{"name": "tiny:latest", "size_vram": looks.fetch_add(1, Ordering::Relaxed) / 2}]);
        let loaded = Arc::new(loaded);
        let router = Router::new()
            .route(
                "/api/tags",
                get(|| async {
                    Json(json!({"models": [
                        {"name": "tiny:latest", "digest": "d1", "size": 5},
                        {"name": "embed:v1", "digest": "d2", "size": 6},
                        {"name": "broken:latest", "digest": "d3", "size": 7}]}))
                }),
            )
            .route(
                "/api/generate",
                post(move |Json(body): Json<Value>| async move {
                    asked.fetch_add(1, Ordering::Relaxed);
                    match body["model"].as_str().unwrap() {
                        "tiny" => (StatusCode::OK, Json(json!({"response": "x"}))),
                        "embed:v1" => (
                            StatusCode::BAD_REQUEST,
                            Json(json!({"error": "\"embed\" does not support generate"})),
                        ),
                        _ => (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({"error": "out of memory"}))),
                    }
                }),
            )
            .route("/api/embed", post(|| async { Json(json!({"embeddings": [[0.0]]})) }))
            .route(
                "/api/ps",
                get(move || {
                    let models = loaded();
                    async move { Json(json!({"models": models})) }
                }),
            );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Target { uid: "u".to_owned(), life: 0, url, question: Question::Worker, known: Vec::new() }
    }

    #[test]
    fn a_model_that_is_only_partly_in_gpu_memory_is_not_on_the_gpu() {
        for (vram, size, on_gpu, told) in [
            (None, Some(100), None, false),
            (Some(0), Some(100), Some(false), false),
            (Some(100), None, Some(true), false),
            (Some(95), Some(100), Some(true), false),
            (Some(50), Some(100), Some(false), true),
        ] {
            let bytes = |mib: Option<u64>| mib.map(|mib| mib << 20);
            let loaded = Model { size_vram: bytes(vram), size: bytes(size), ..Model::default() };
            let found = ModelAnswer::default().located(&loaded);
            assert_eq!((found.on_gpu, found.message.is_some()), (on_gpu, told), "{vram:?} of {size:?}");
        }
    }

    #[tokio::test]
    async fn every_model_is_listed_asked_once_and_its_gpu_memory_known() {
        let asked = Arc::new(AtomicUsize::new(0));
        let target = instance(Arc::clone(&asked)).await;
        let http = Http::new().unwrap();
        let shared = Shared { answers: Arc::default(), changed: Arc::default() };
        let models = ["tiny", "embed:v1", "broken", "absent"].map(ToOwned::to_owned);
        assert!(!look(&http, &target, &models, &shared).await.unwrap());
        let found = shared.models("u");
        let steps: Vec<_> = found.iter().map(|answer| answer.step).collect();
        assert_eq!(steps, [ModelStep::Ready, ModelStep::Ready, ModelStep::Failed, ModelStep::Missing]);
        assert_eq!((found[0].digest.as_deref(), found[0].size_vram), (Some("d1"), Some(0)));
        assert_eq!(found[2].message.as_deref(), Some("out of memory"));
        let first = asked.load(Ordering::Relaxed);
        look(&http, &target, &models, &shared).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), first + 1, "only the broken one is asked again");
        let now = &shared.models("u")[0];
        assert_eq!((now.size_vram, now.on_gpu), (Some(1), Some(true)), "where it lies is looked at again");
    }
}
