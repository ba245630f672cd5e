//! The operator of principium: turns DataFactory, Reranker and OllamaPool into pods with exact GPUs, and
//! sees that the jobs of Ingestions are done.
//!
//! One pass looks at the whole cluster: `observe` gathers plain data from caches, `plan` decides as a pure function (with
//! `placement` as the one allocator of GPUs), `apply` writes. Everything else serves one of the three.

mod actions;
mod apply;
mod args;
#[doc(hidden)]
pub mod bench;
mod budget;
mod caches;
mod check;
mod children;
mod clients;
mod conditions;
mod data_factory;
mod desired;
mod embedder;
mod events;
mod finish;
mod ingestion;
mod inventory;
mod leader;
mod lifecycle;
mod metrics;
mod observe;
mod observed;
mod ollama_pool;
mod placement;
mod plan;
mod pod_parts;
mod pods;
mod probe;
mod pull;
mod reranker;
mod resource;
mod run;
mod server;
mod services;
mod summary;
mod template;
#[cfg(test)]
mod tests;

pub use args::{Args, Command, PullArgs};
pub use check::check;
pub use clients::Clients;
pub use pull::pull;
pub use run::run;

/// A pass takes and gives back hundreds of thousands of small pieces; this allocator does that faster than the C library's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
