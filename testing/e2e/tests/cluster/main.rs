//! The system on the real cluster: API server, scheduler, kubelet, containerd, Helm, Ollama and models are real, the GPUs
//! are simulated. One binary, run with `--test-threads=1`, because the tests heat and lose the same eight GPUs.

mod conflicts;
mod heat;
mod isolation;
mod manifests;
mod monitoring;
mod overcommit;
mod pods;
mod policy;
mod restarts;
mod scenarios;
