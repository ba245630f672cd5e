//! The API over real HTTP, with the real models: what every route answers, what it refuses and in which words, and
//! whether the numbers are those of the reference implementations. Ollama alone is a stand-in here, so that it can fail on
//! demand; the end-to-end tests have the real one.

#[cfg(test)]
mod access;
#[cfg(test)]
mod analyze;
#[cfg(test)]
mod bombs;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod devices;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod drain;
#[cfg(test)]
mod embed;
#[cfg(test)]
mod encode;
#[cfg(test)]
mod enrichment;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod formats;
#[cfg(test)]
mod hub;
#[cfg(test)]
mod jobs;
#[cfg(test)]
mod load;
#[cfg(test)]
mod log;
#[cfg(test)]
mod models;
#[cfg(test)]
mod ollama;
#[cfg(test)]
mod openai;
#[cfg(test)]
mod openapi;
#[cfg(test)]
mod page;
#[cfg(test)]
mod postgres;
#[cfg(test)]
mod predict;
#[cfg(test)]
mod process;
#[cfg(test)]
mod program;
#[cfg(test)]
mod qdrant;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod rerank;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod retrieval;
#[cfg(test)]
mod s3;
#[cfg(test)]
mod server;
#[cfg(test)]
mod status;
#[cfg(test)]
mod tei;
#[cfg(test)]
mod tokenize;
