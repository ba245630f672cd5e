//! The system on the real cluster: API server, scheduler, kubelet, containerd, Helm, Ollama and models are real, the GPUs
//! are simulated. One binary, run with `--test-threads=1`, because the tests heat and lose the same eight GPUs.

mod chart;
mod churn;
mod configuration;
mod conflicts;
mod deletion;
mod faults;
mod gitops;
mod handover;
mod health;
mod heat;
mod hub;
mod ingestion;
mod isolation;
mod leadership;
mod manifests;
mod memory;
mod mig;
mod monitoring;
mod moves;
mod overcommit;
mod plugin;
mod pods;
mod policy;
mod pools;
mod pulls;
mod restarts;
mod rights;
mod scale;
mod scenarios;
mod sources;
mod views;
