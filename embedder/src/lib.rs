//! The embedder: a server that turns texts into vectors, query–document pairs into scores and documents into chunks.
//!
//! `model/` alone knows candle, `engine` owns the threads that own the models, `batch` decides what is computed
//! together, `http/` speaks to clients, `ollama` to language models, `format/` reads files, `pipeline/` and `analyze/` serve
//! whole documents. `jobs/` keeps corpora on disk; its documents come from `sources/` and its chunks go to `sinks/`,
//! `search/` tries them out, and `page/` is for people. `gpus` asks the driver about the cards, `trace` tells
//! others which request they are asked for, and `answer` reads no more of what they say than it should. `cli/` does the same on local
//! files. `args` alone reads flags and environment variables.

pub mod analyze;
pub mod answer;
pub mod args;
pub mod batch;
pub mod cli;
pub mod engine;
pub mod format;
pub mod gpus;
pub mod http;
pub mod jobs;
pub mod metrics;
pub mod model;
pub mod objects;
pub mod ollama;
pub mod page;
pub mod pipeline;
pub mod search;
pub mod serve;
pub mod sinks;
pub mod sources;
pub mod tls;
pub mod trace;

/// A layer's output takes megabytes for some milliseconds. The C library gives them back to the kernel each time, which then
/// hands them out page by page; this allocator keeps them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
