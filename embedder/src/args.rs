//! Flags and environment variables of the program. Nothing else reads them.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::sources::Hosts;
use clap::{Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::format::Format;
use crate::http::Origins;
use crate::model::Precision;
use crate::pipeline::Chunker;

/// Embeds, reranks and prepares documents.
#[derive(Debug, Parser)]
#[command(name = "principium-embedder", version, about, propagate_version = true)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves the HTTP API of one role until SIGTERM.
    Serve(Box<ServeArgs>),
    /// Embeds texts of local files and writes them as JSON lines with their vectors.
    Embed(EmbedArgs),
    /// Puts texts of local files in the order of their scores by a query.
    Rerank(RerankArgs),
    /// Measures a model on this machine.
    Bench(BenchArgs),
    /// Reads one document from standard input and writes what it says, as JSON; started by `serve`, with limits of its own.
    #[command(hide = true)]
    Read {
        /// How the document is written.
        #[arg(value_parser = Format::named)]
        format: Format,
    },
}

/// What a process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Embeds texts and processes documents.
    DataFactory,
    /// Scores documents by a query.
    Reranker,
    /// Analyzes documents with a language model; needs no model of its own.
    DocAnalyzer,
}

impl Role {
    /// The name in flags and in `/info`.
    pub fn name(self) -> &'static str {
        match self {
            Self::DataFactory => "data-factory",
            Self::Reranker => "reranker",
            Self::DocAnalyzer => "doc-analyzer",
        }
    }
}

/// A GPU that was given to this pod, as the operator writes it into `PRINCIPIUM_GPUS`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Gpu {
    /// Index on the node.
    pub index: u32,
    /// The driver's name for the card.
    pub uuid: String,
    /// This pod's share of its memory, in MiB.
    #[serde(alias = "memoryMiB")]
    pub memory_mib: u64,
}

/// Flags of `serve`.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    /// What this process is for.
    #[arg(long, env = "PRINCIPIUM_ROLE", value_enum, default_value = "data-factory")]
    pub role: Role,
    /// Address to listen on.
    #[arg(long, env = "PRINCIPIUM_LISTEN", default_value = "0.0.0.0:9000")]
    pub listen: SocketAddr,
    /// A folder, or a name on the Hugging Face hub (HF_ENDPOINT and HF_TOKEN are respected). Required but for the doc-analyzer.
    #[arg(long, env = "PRINCIPIUM_MODEL")]
    pub model: Option<String>,
    /// Branch, tag or commit on the hub.
    #[arg(long, env = "PRINCIPIUM_MODEL_REVISION")]
    pub model_revision: Option<String>,
    /// The name that clients see; the model's folder or hub name where it is not given.
    #[arg(long, env = "PRINCIPIUM_MODEL_NAME")]
    pub model_name: Option<String>,
    /// Where models of the hub are kept.
    #[arg(long, env = "PRINCIPIUM_MODEL_CACHE")]
    pub model_cache: Option<PathBuf>,
    /// The prompt of the model's files for requests that name none, instead of the one that the files call the default.
    #[arg(long, env = "PRINCIPIUM_DEFAULT_PROMPT_NAME")]
    pub default_prompt_name: Option<String>,
    /// Number format of the computation: `f32`, `bf16`, `int8` (CPU only), `f16` (GPU only), or `auto`, which is f32 on the CPU
    /// and 16 bits on a GPU.
    #[arg(long, env = "PRINCIPIUM_DTYPE", value_parser = parse_dtype, default_value = "auto")]
    pub dtype: Precision,
    /// The GPUs of this process, `[{"index":6,"uuid":"GPU-…","memoryMiB":5120}]`, or `[]` for none; by default all that CUDA
    /// shows, with all their memory.
    #[arg(long, env = "PRINCIPIUM_GPUS", value_parser = parse_gpus)]
    pub gpus: Option<Gpus>,
    /// The driver's library, which is asked for names, temperatures and memory of the GPUs.
    #[arg(long, env = "PRINCIPIUM_NVML_LIBRARY", default_value = "libnvidia-ml.so.1")]
    pub nvml_library: PathBuf,
    /// Whether to be ready only while every given GPU is used.
    #[arg(long, env = "PRINCIPIUM_REQUIRE_ACCELERATION", action = clap::ArgAction::Set, default_value_t = false)]
    pub require_acceleration: bool,
    /// Tokens of one batch; by default 1024 on the CPU, and as many on a GPU as its memory has room for, 16384 at most.
    #[arg(long, env = "PRINCIPIUM_MAX_BATCH_TOKENS", value_parser = positive)]
    pub max_batch_tokens: Option<usize>,
    /// Waiting inputs from which on requests are answered with 429.
    #[arg(long, env = "PRINCIPIUM_MAX_QUEUE", default_value_t = 16384, value_parser = positive)]
    pub max_queue: usize,
    /// Bytes of one request's body.
    #[arg(long, env = "PRINCIPIUM_PAYLOAD_LIMIT", default_value_t = 16_000_000, value_parser = positive)]
    pub payload_limit: usize,
    /// API keys, divided by commas; without any, everybody may ask. Health, metrics and `/info` need none.
    #[arg(long, env = "PRINCIPIUM_API_KEYS", hide_env_values = true)]
    pub api_keys: Option<String>,
    /// A file with API keys, one a line, such as a mounted Secret; joined with those of the flag.
    #[arg(long, env = "PRINCIPIUM_API_KEYS_FILE")]
    pub api_keys_file: Option<PathBuf>,
    /// Origins of web pages that may ask from a browser, divided by commas, such as `https://app.example.com`; `*` for any. None by
    /// default.
    #[arg(long, env = "PRINCIPIUM_CORS_ALLOW_ORIGIN", default_value = "")]
    pub cors_allow_origin: Origins,
    /// Seconds that running requests get after SIGTERM.
    #[arg(long, env = "PRINCIPIUM_DRAIN_SECONDS", default_value_t = 25)]
    pub drain_seconds: u64,
    /// The program that reads PDF and DOCX in processes of its own; this program by default.
    #[arg(long, env = "PRINCIPIUM_READER_PROGRAM", hide = true)]
    pub reader_program: Option<PathBuf>,
    /// Ollama's base URL; every address behind its host name is an instance. Several, divided by commas, are one pool.
    #[arg(long, env = "PRINCIPIUM_OLLAMA_URL")]
    pub ollama_url: Option<String>,
    /// The language model in Ollama.
    #[arg(long, env = "PRINCIPIUM_OLLAMA_MODEL")]
    pub ollama_model: Option<String>,
    /// Base URL of a server that speaks OpenAI's API, such as `https://api.openai.com/v1`: the doc-analyzer asks it where no
    /// Ollama is given.
    #[arg(long, env = "PRINCIPIUM_LLM_URL")]
    pub llm_url: Option<String>,
    /// The language model there.
    #[arg(long, env = "PRINCIPIUM_LLM_MODEL")]
    pub llm_model: Option<String>,
    /// The key for it.
    #[arg(long, env = "PRINCIPIUM_LLM_API_KEY", hide_env_values = true)]
    pub llm_api_key: Option<Secret>,
    /// Certificates, in PEM, that are trusted with Ollama's URL beside the system's.
    #[arg(long, env = "PRINCIPIUM_OLLAMA_CA_FILE")]
    pub ollama_ca_file: Option<PathBuf>,
    /// Seconds that one answer of Ollama may take.
    #[arg(long, env = "PRINCIPIUM_OLLAMA_TIMEOUT_SECONDS", default_value_t = 180, value_parser = clap::value_parser!(u64).range(1..))]
    pub ollama_timeout_seconds: u64,
    /// Context window of the language model in tokens: how much of a long document it is shown.
    #[arg(long, env = "PRINCIPIUM_CONTEXT_WINDOW", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1024..))]
    pub context_window: u32,
    /// What the language model is told to do with a chunk, after it has read the document and the chunk.
    #[arg(long, env = "PRINCIPIUM_CONTEXT_PROMPT")]
    pub context_prompt: Option<String>,
    /// Most tokens of a generated context.
    #[arg(long, env = "PRINCIPIUM_CONTEXT_MAX_TOKENS", default_value_t = 100, value_parser = positive)]
    pub context_max_tokens: usize,
    /// By what documents are cut; `auto` looks at each.
    #[arg(long, env = "PRINCIPIUM_CHUNKER", value_enum, default_value = "auto")]
    pub chunker: Chunker,
    /// Most tokens of a chunk.
    #[arg(long, env = "PRINCIPIUM_CHUNK_MAX_TOKENS", default_value_t = 200, value_parser = positive)]
    pub chunk_max_tokens: usize,
    /// Tokens that neighboring chunks share.
    #[arg(long, env = "PRINCIPIUM_CHUNK_OVERLAP", default_value_t = 0)]
    pub chunk_overlap: usize,
    /// Folder of this process alone, for jobs and corpora. Without it there are none.
    #[arg(long, env = "PRINCIPIUM_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Folder that sources and sinks of jobs may name files in.
    #[arg(long, env = "PRINCIPIUM_VOLUMES")]
    pub volumes: Option<PathBuf>,
    /// Base URL of the server that reranks search results.
    #[arg(long, env = "PRINCIPIUM_RERANKER_URL")]
    pub reranker_url: Option<String>,
    /// The API key for it.
    #[arg(long, env = "PRINCIPIUM_RERANKER_API_KEY", hide_env_values = true)]
    pub reranker_api_key: Option<Secret>,
    /// A file with the API key for it, such as a mounted Secret, where the flag is not given.
    #[arg(long, env = "PRINCIPIUM_RERANKER_API_KEY_FILE")]
    pub reranker_api_key_file: Option<PathBuf>,
    /// Hosts that jobs may read documents from over HTTP, divided by commas: names, `*.example.com`, or `*` for any.
    #[arg(long, env = "PRINCIPIUM_HTTP_SOURCES", default_value = "")]
    pub http_sources: Hosts,
    /// Base URL of the Qdrant server that jobs may send chunks to.
    #[arg(long, env = "PRINCIPIUM_QDRANT_URL")]
    pub qdrant_url: Option<String>,
    /// Its API key.
    #[arg(long, env = "PRINCIPIUM_QDRANT_API_KEY", hide_env_values = true)]
    pub qdrant_api_key: Option<Secret>,
    /// URL of the PostgreSQL database that jobs may send chunks to, with user and password.
    #[arg(long, env = "PRINCIPIUM_POSTGRES_URL", hide_env_values = true)]
    pub postgres_url: Option<Secret>,
    /// The document analyzer of this data factory, shown in `/info`.
    #[arg(long, env = "PRINCIPIUM_ANALYZER_URL")]
    pub analyzer_url: Option<String>,
}

/// What must not be seen in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("(secret)")
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl ServeArgs {
    /// What `serve` has without flags: the environment's values, and the defaults.
    pub fn defaults() -> Self {
        #[derive(Parser)]
        struct NoFlags {
            #[command(flatten)]
            serve: ServeArgs,
        }
        NoFlags::parse_from(["principium-embedder"]).serve
    }
}

/// Which model, for the commands on local files. Everything else is as the environment has it for `serve`.
#[derive(Debug, Clone, clap::Args)]
pub struct ModelFlags {
    /// A folder, or a name on the Hugging Face hub.
    #[arg(long, env = "PRINCIPIUM_MODEL")]
    pub model: String,
    /// Branch, tag or commit on the hub.
    #[arg(long, env = "PRINCIPIUM_MODEL_REVISION")]
    pub model_revision: Option<String>,
    /// Where models of the hub are kept.
    #[arg(long, env = "PRINCIPIUM_MODEL_CACHE")]
    pub model_cache: Option<PathBuf>,
    /// Tokens of one batch.
    #[arg(long, env = "PRINCIPIUM_MAX_BATCH_TOKENS", value_parser = positive)]
    pub max_batch_tokens: Option<usize>,
    /// Number format of the computation, as for `serve`.
    #[arg(long, env = "PRINCIPIUM_DTYPE", value_parser = parse_dtype, default_value = "auto")]
    pub dtype: Precision,
}

/// Which texts.
#[derive(Debug, Clone, clap::Args)]
pub struct InputFlags {
    /// Files with a text on each line, or JSON lines where the name ends in .jsonl or .ndjson; - is standard input.
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// The field of JSON lines that holds the text; with it, every file is read as JSON lines. `text` for .jsonl.
    #[arg(long)]
    pub field: Option<String>,
    /// Each file is one text.
    #[arg(long, conflicts_with = "field")]
    pub whole_files: bool,
}

/// Flags of `embed`.
#[derive(Debug, Clone, clap::Args)]
pub struct EmbedArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelFlags,
    /// The texts.
    #[command(flatten)]
    pub input: InputFlags,
    /// Where the vectors go; standard output where it is not given.
    #[arg(long, short)]
    pub output: Option<PathBuf>,
    /// What is wanted, divided by commas: dense, sparse, multi_vector; all that the model has where it is not given.
    #[arg(long, value_delimiter = ',')]
    pub outputs: Option<Vec<String>>,
    /// The texts are queries, not documents.
    #[arg(long)]
    pub query: bool,
    /// A prompt of the model's files that is put before each text.
    #[arg(long)]
    pub prompt_name: Option<String>,
    /// How many of the first dimensions are kept.
    #[arg(long, value_parser = positive)]
    pub dimensions: Option<usize>,
    /// Gives dense vectors length 1, also where the model's files don't.
    #[arg(long, overrides_with = "no_normalize")]
    pub normalize: bool,
    /// Leaves dense vectors at the length that the pooling and the dense layers give them, also where the files scale them.
    #[arg(long, overrides_with = "normalize")]
    pub no_normalize: bool,
    /// Repeats each text beside its vector.
    #[arg(long)]
    pub with_text: bool,
}

/// Flags of `rerank`.
#[derive(Debug, Clone, clap::Args)]
pub struct RerankArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelFlags,
    /// What the texts are scored by.
    #[arg(long)]
    pub query: String,
    /// The texts.
    #[command(flatten)]
    pub input: InputFlags,
    /// Prints so many of the best; all where it is not given.
    #[arg(long, value_parser = positive)]
    pub top: Option<usize>,
    /// Prints JSON lines.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `bench`.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelFlags,
    /// The model scores pairs.
    #[arg(long)]
    pub reranker: bool,
    /// Tokens of a text.
    #[arg(long, default_value_t = 175, value_parser = positive)]
    pub tokens: usize,
    /// Texts of one request.
    #[arg(long, default_value_t = 256, value_parser = positive)]
    pub texts: usize,
    /// Seconds that each of the two measurements takes at least.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
}

/// The GPUs of a pod. A type of its own, because clap reads a `Vec` as one value an element.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gpus(pub Vec<Gpu>);

fn parse_gpus(text: &str) -> Result<Gpus, String> {
    if text.trim().is_empty() {
        return Ok(Gpus::default());
    }
    serde_json::from_str(text).map(Gpus).map_err(|error| {
        let example = r#"[{"index":0,"uuid":"GPU-…","memoryMiB":4096}], or [] for the CPU"#;
        format!("not a JSON list of GPUs such as {example}: {error}")
    })
}

/// The names of text-embeddings-inference are understood as well; an empty variable is not set.
fn parse_dtype(text: &str) -> Result<Precision, String> {
    match text.trim() {
        "" | "auto" => Ok(Precision::Auto),
        "f32" | "float32" => Ok(Precision::F32),
        "f16" | "float16" => Ok(Precision::F16),
        "bf16" | "bfloat16" => Ok(Precision::Bf16),
        "int8" => Ok(Precision::Int8),
        _ => Err("must be auto, f32, f16, bf16 or int8".to_owned()),
    }
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("not a whole number: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_read_as_the_operator_writes_them() {
        let gpus = parse_gpus(r#"[{"index":6,"uuid":"GPU-1","memoryMiB":5120}]"#).unwrap();
        assert_eq!(gpus.0, [Gpu { index: 6, uuid: "GPU-1".to_owned(), memory_mib: 5120 }]);
        assert_eq!(parse_gpus("").unwrap(), Gpus::default());
        assert!(parse_gpus("GPU-1").unwrap_err().contains("JSON list of GPUs"));
    }

    #[test]
    fn a_wrong_origin_is_refused_with_the_flag_and_what_would_be_right() {
        let flags = ["principium-embedder", "serve", "--cors-allow-origin", "https://a.example/app"];
        let error = Args::try_parse_from(flags).unwrap_err().to_string();
        for says in ["--cors-allow-origin", "\"https://a.example/app\"", "write https://a.example"] {
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
    }

    #[test]
    fn the_flags_fit_together() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
