//! Loads the model of a process onto the devices that it has, and starts the engine over its replicas.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::json;

use super::{Devices, given};
use crate::args::{Gpu, Role, ServeArgs};
use crate::batch::{self, Budget};
use crate::engine::{Engine, EngineLimits, Worker};
use crate::gpus::Temperature;
use crate::http::{ModelInfo, Served};
use crate::metrics::Metrics;
use crate::model::{self, Model, ModelFiles, ModelSource, Precision};

/// Most inputs of a batch; the tokens are what limits it.
const BATCH_INPUTS: usize = 1024;
/// Tokens of a batch on a GPU, where its memory suffices.
pub const GPU_BATCH_TOKENS: usize = 16_384;
/// Tokens of a batch on the CPU, where larger ones are no faster and make others wait.
pub const CPU_BATCH_TOKENS: usize = 1024;

/// Cores that compute a batch together: more of them would mostly wait for one another.
const CORES: usize = 4;

/// The model of `args` with its engine, and what `/info` says of it. Blocks: it reads files and may download them.
pub(super) fn load(
    args: &ServeArgs,
    devices: &Devices,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(Arc<Served>, ModelInfo)> {
    let model = given(args.model.as_ref())
        .with_context(|| format!("the role {} needs a model: set PRINCIPIUM_MODEL", args.role.name()))?;
    let source = ModelSource {
        model: model.clone(),
        revision: given(args.model_revision.as_ref()),
        cache: args.model_cache.clone(),
    };
    let (folder, commit) = model::fetch(&source)?;
    let mut files = ModelFiles::read(&folder)?;
    if let Some(name) = given(args.default_prompt_name.as_ref()) {
        let prompts = &files.prompts.by_name;
        anyhow::ensure!(
            prompts.contains_key(&name),
            "the model has no prompt {name:?} for PRINCIPIUM_DEFAULT_PROMPT_NAME; it has {:?}",
            prompts.keys().collect::<Vec<_>>()
        );
        files.prompts.default = Some(name);
    }
    let files = Arc::new(files);
    check_role(args.role, &files)?;
    let tokenizer = model::load_tokenizer(&files)?;
    let Replicas { ordinary, express } = replicas(&files, devices, args.dtype)?;
    let first = ordinary.first().context("the model has no replica")?;
    let tokens = batch_tokens(args, &files, devices, first.precision())?;
    let name = given(args.model_name.as_ref()).unwrap_or(model);
    let info = ModelInfo {
        model_id: name.clone(),
        served_model_name: name.clone(),
        model_sha: commit.unwrap_or_else(|| files.weights_digest.clone()),
        weights_digest: files.weights_digest.clone(),
        model_dtype: first.precision().name(),
        model_type: model_type(&files),
        architecture: files.architecture.clone(),
        dimension: files.heads.dense.as_ref().map(|head| head.width),
        outputs: files.heads.outputs(),
        prompts: files.prompts.by_name.keys().cloned().collect(),
        max_input_length: files.max_input_length,
        max_batch_tokens: tokens.iter().copied().min().unwrap_or_default(),
        max_batch_requests: BATCH_INPUTS,
        max_concurrent_requests: args.max_queue,
        max_client_batch_size: args.max_queue,
        auto_truncate: true,
        tokenization_workers: rayon::current_num_threads(),
        kernel: first.kernel_name(),
        workers: ordinary.len(),
    };
    tracing::info!(
        model = name,
        digest = files.weights_digest,
        workers = info.workers,
        kernel = info.kernel,
        "loaded the model"
    );
    // On the CPU all workers have the one budget.
    let budgets = tokens.iter().copied().cycle().map(|tokens| Budget { tokens, inputs: BATCH_INPUTS });
    // Where GPUs are given but not used, a worker stands for each of them.
    let temperatures =
        devices.temperatures.iter().cloned().chain(std::iter::repeat_with(Temperature::default));
    let replicas = ordinary.into_iter().map(|it| (it, false)).chain(express.map(|it| (it, true)));
    let workers = replicas.zip(budgets).zip(temperatures);
    let workers = workers
        .map(|(((replica, express), budget), temperature)| Worker { replica, budget, temperature, express })
        .collect();
    let limits = EngineLimits { queue_inputs: args.max_queue };
    let engine =
        Engine::start(workers, limits, Arc::clone(metrics)).context("starting the model's threads")?;
    Ok((Arc::new(Served { engine, tokenizer, files, name }), info))
}

/// Tokens of a batch for each accelerator in use, as far as this pod's share of its memory allows; one number for the CPU.
fn batch_tokens(
    args: &ServeArgs,
    files: &ModelFiles,
    devices: &Devices,
    precision: Precision,
) -> anyhow::Result<Vec<usize>> {
    if devices.accelerators.is_empty() {
        return Ok(vec![args.max_batch_tokens.unwrap_or(CPU_BATCH_TOKENS)]);
    }
    let most = args.max_batch_tokens.unwrap_or(GPU_BATCH_TOKENS);
    let footprint = files.footprint(precision)?;
    let within = |gpu: &Gpu| batch::tokens_within(gpu.memory_mib << 20, footprint, most);
    Ok(devices.given.iter().take(devices.accelerators.len()).map(within).collect())
}

/// The kind of model as text-embeddings-inference tells it.
fn model_type(files: &ModelFiles) -> serde_json::Value {
    let Some(labels) = &files.heads.labels else {
        let pooling = match (&files.heads.dense, &files.heads.sparse) {
            (Some(head), _) => head.pooling.iter().map(|mode| mode.name()).collect::<Vec<_>>().join("+"),
            (None, Some(_)) => "splade".to_owned(),
            (None, None) => "none".to_owned(),
        };
        return json!({ "embedding": { "pooling": pooling } });
    };
    let by_id: BTreeMap<String, &String> = (0..).map(|id: usize| id.to_string()).zip(labels).collect();
    let by_label: BTreeMap<&String, usize> = labels.iter().zip(0..).collect();
    let kind = if labels.len() == 1 { "reranker" } else { "classifier" };
    json!({ (kind): { "id2label": by_id, "label2id": by_label } })
}

fn check_role(role: Role, files: &ModelFiles) -> anyhow::Result<()> {
    match (role, &files.heads.labels) {
        (Role::Reranker, None) => anyhow::bail!(
            "the role reranker needs a model with labels, but {} in {} embeds texts",
            files.architecture,
            files.folder.display()
        ),
        (Role::DataFactory, Some(_)) => anyhow::bail!(
            "the role data-factory needs a model that embeds texts, but {} in {} scores pairs",
            files.architecture,
            files.folder.display()
        ),
        _ => Ok(()),
    }
}

/// The replicas of a model.
struct Replicas {
    ordinary: Vec<Model>,
    /// For interactive inputs, beside the others.
    express: Option<Model>,
}

/// One replica a GPU. On the CPU as many as GPUs were given, or one for every [`CORES`]: they share the weights, and each has
/// its part of the cores; so has the express one, with which the operating system lets them share.
fn replicas(files: &ModelFiles, devices: &Devices, precision: Precision) -> anyhow::Result<Replicas> {
    if !devices.accelerators.is_empty() {
        let load = |it| Ok(Model::load(files, Some(it), precision)?);
        let ordinary = devices.accelerators.iter().map(load).collect::<anyhow::Result<_>>()?;
        return Ok(Replicas { ordinary, express: None });
    }
    let model = Model::load(files, None, precision)?;
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let workers = devices.given.len().max(cores.div_ceil(CORES));
    let replica = || Ok(model.on_cores(cores.div_ceil(workers))?);
    let ordinary = (0..workers).map(|_| replica()).collect::<anyhow::Result<_>>()?;
    Ok(Replicas { ordinary, express: Some(replica()?) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command};
    use crate::model::Accelerator;
    use clap::Parser as _;
    use std::path::Path;

    fn arguments(flags: &[&str]) -> ServeArgs {
        match Args::try_parse_from(["principium-embedder", "serve"].iter().chain(flags)).unwrap().command {
            Command::Serve(args) => *args,
            other => panic!("{other:?} does not serve"),
        }
    }

    #[test]
    fn batches_get_smaller_where_the_number_format_needs_more_of_a_gpus_memory() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/bert");
        let files = ModelFiles::read(&folder).unwrap();
        let gpu = |index| Gpu { index, uuid: format!("GPU-{index}"), memory_mib: u64::from(index) + 1 };
        let devices = |count| Devices {
            given: vec![gpu(0), gpu(1)],
            accelerators: (0..count).map(|ordinal| Accelerator { ordinal }).collect(),
            info: Vec::new(),
            temperatures: Vec::new(),
            missing: None,
        };
        let args = arguments(&[]);
        let tokens = |count, precision| batch_tokens(&args, &files, &devices(count), precision).unwrap();
        assert_eq!(tokens(0, Precision::F32), [CPU_BATCH_TOKENS], "shares of GPUs say nothing of the CPU");
        let (coarse, exact) = (tokens(2, Precision::Bf16), tokens(2, Precision::F32));
        assert!(coarse[0] < coarse[1] && exact[0] < exact[1], "{coarse:?} {exact:?}");
        assert!(exact[0] < coarse[0] && exact[1] < coarse[1], "{coarse:?} {exact:?}");
        assert!(coarse[1] < GPU_BATCH_TOKENS, "{coarse:?}");
        let args = arguments(&["--max-batch-tokens", "70"]);
        assert_eq!(batch_tokens(&args, &files, &devices(1), Precision::Bf16).unwrap(), [70]);
    }
}
